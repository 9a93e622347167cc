package module

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

func init() {
	caddy.RegisterModule(listener{})
	caddy.RegisterModule(witness{})
}

// listener is a subscriber of Caddy's events app that a test reads from.
type listener struct{}

var heard = make(chan caddy.Event, 10_000)

func (listener) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.ws_gate_test", New: func() caddy.Module { return new(listener) }}
}

func (listener) Handle(_ context.Context, e caddy.Event) error {
	heard <- e
	return nil
}

// witness is a handler before the gate that remembers, weakly, what a request
// and its config are made of.
type witness struct{}

var witnessed []func() string // what is still reachable, "" if it is not

func (witness) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.ws_gate_witness", New: func() caddy.Module { return new(witness) }}
}

func (witness) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	remember("the request", r)
	remember("its URL", r.URL)
	repl, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	remember("its replacer", repl)
	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	remember("the server", server)
	app := running.Load()
	remember("the app", app)
	for _, g := range app.gates {
		remember("the gate", g)
	}
	return next.ServeHTTP(w, r)
}

func remember[T any](what string, p *T) {
	ref := weak.Make(p)
	witnessed = append(witnessed, func() string {
		if ref.Value() == nil {
			return ""
		}
		return what
	})
}

// reachable is what of it is still in memory.
func reachable() (all []string) {
	runtime.GC()
	for _, still := range witnessed {
		if what := still(); what != "" {
			all = append(all, what)
		}
	}
	return all
}

// site is a config of one server with a gate before a reverse_proxy.
type site struct {
	port     int
	upstream string
	gate     object
	events   []string
	more     object // further servers
	cert     object // speaks TLS with this one, in PEM
}

func (s site) load() error {
	gate := object{
		"handler": "ws_gate",
		"issuers": []object{{"name": "https://id.example.com/", "secret": base64.StdEncoding.EncodeToString(testSecret), "audience": []string{"chat"}}},
	}
	maps.Copy(gate, s.gate)
	server := object{
		"listen": []string{fmt.Sprint("127.0.0.1:", s.port)}, "automatic_https": object{"disable": true},
		"routes": []object{{"handle": []object{{"handler": "ws_gate_witness"}, gate, {
			"handler": "reverse_proxy", "upstreams": []object{{"dial": s.upstream}}, "transport": object{"protocol": "ws_tunnel"},
		}}}},
	}
	servers := object{"s": server}
	maps.Copy(servers, s.more)
	config := object{
		"admin":   object{"disabled": true, "config": object{"persist": false}},
		"logging": object{"logs": object{"default": object{"writer": object{"output": "discard"}}}},
		"apps": object{
			"http": object{"servers": servers, "grace_period": "100ms"},
			"tls":  object{"disable_storage_check": true, "disable_storage_clean": true},

			"ws_gate": object{"drain": object{"spread": "50ms"}},
		},
	}
	if s.cert != nil {
		server["protocols"], server["tls_connection_policies"] = []string{"h1"}, []object{{}}
		config["apps"].(object)["tls"].(object)["certificates"] = object{"load_pem": []object{s.cert}}
	}
	if len(s.events) > 0 {
		config["apps"].(object)["events"] = object{"subscriptions": []object{{"events": s.events, "modules": []string{"ws_gate"}, "handlers": []object{{"handler": "ws_gate_test"}}}}}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return caddy.Load(raw, true)
}

// newSite runs Caddy in this process, in front of a backend that echoes, until
// the test ends.
func newSite(t *testing.T) site {
	t.Helper()
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := backend.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { echoFrames(conn) })
		}
	})
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		for s := range live.All() {
			s.Cut()
		}
		eventually(t, "all ended", func() bool { return live.Len() == 0 && !events.busy() })
		backend.Close()
		conns.Wait()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	return site{port: unusedPort(t), upstream: backend.Addr().String()}
}

func unusedPort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// echoFrames accepts a handshake and sends every short binary message back.
func echoFrames(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	if _, err := http.ReadRequest(br); err != nil {
		return
	}
	// The key is that of opening.
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"); err != nil {
		return
	}
	for {
		head := make([]byte, 6)
		if _, err := io.ReadFull(br, head); err != nil || head[0] != 0x82 {
			return
		}
		payload := make([]byte, head[1]&0x7F)
		if _, err := io.ReadFull(br, payload); err != nil {
			return
		}
		for i := range payload {
			payload[i] ^= head[2+i&3]
		}
		if _, err := conn.Write(append([]byte{0x82, byte(len(payload))}, payload...)); err != nil {
			return
		}
	}
}

// socket opens a WebSocket at the site. Right after a reload the server of the
// config before may still take a connection, which it does not answer.
func (s site) socket(t *testing.T, header http.Header) (conn net.Conn, status int) {
	t.Helper()
	var res *http.Response
	eventually(t, "answered", func() bool {
		var err error
		if conn, err = net.Dial("tcp", fmt.Sprint("127.0.0.1:", s.port)); err != nil {
			return false
		}
		if s.cert != nil {
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"})
		}
		t.Cleanup(func() { conn.Close() })
		_, _ = io.WriteString(conn, "GET /chat HTTP/1.1\r\nHost: example.com\r\n")
		_ = header.Write(conn)
		_, _ = io.WriteString(conn, "\r\n")
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		br := bufio.NewReader(conn)
		res, err = http.ReadResponse(br, nil)
		if err == nil && br.Buffered() > 0 && res.StatusCode == http.StatusSwitchingProtocols {
			t.Fatal("bytes behind the 101")
		}
		return err == nil
	})
	return conn, res.StatusCode
}

// echoes holds that a socket lives.
func echoes(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = conn.Write([]byte{0x82, 0x83, 0, 0, 0, 0, 'a', 'b', 'c'})
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "\x82\x03abc" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func nextEvent(t *testing.T, name string) caddy.Event {
	t.Helper()
	select {
	case e := <-heard:
		if e.Name() != name {
			t.Fatalf("event %s, want %s: %v", e.Name(), name, e.Data)
		}
		return e
	case <-time.After(10 * time.Second):
		t.Fatalf("no event %s", name)
		return caddy.Event{}
	}
}

var closeFrame = []byte{0x88, 0x82, 0, 0, 0, 0, 0x03, 0xE8}

// A config that subscribes hears of sockets and refusals, with the fields of
// the log lines; also of sockets that were opened under the config before.
func TestEvents(t *testing.T) {
	s := newSite(t)
	s.events = []string{eventOpened, eventClosed, eventRefused}
	s.gate = object{"tunnel_name": "events"}
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	conn, _ := s.socket(t, opening(mint(t, object{"sub": "a\"b\\n"})))
	opened := nextEvent(t, eventOpened)
	if opened.Origin().CaddyModule().ID != "ws_gate" {
		t.Errorf("origin %v", opened.Origin())
	}
	id, _ := opened.Data["connection_id"].(string)
	want := map[string]any{
		"connection_id": id, "tunnel": "events", "user_id": "a\"b\\n", "issuer": "https://id.example.com/",
		"client_ip": "127.0.0.1", "upstream": s.upstream,
	}
	if live.Get(id) == nil || !maps.Equal(opened.Data, want) {
		t.Errorf("opened: %v, want %v", opened.Data, want)
	}
	if _, status := s.socket(t, opening("x")); status != http.StatusUnauthorized {
		t.Errorf("status %d", status)
	}
	refused := nextEvent(t, eventRefused)
	if refused.Data["reason"] != reasonInvalidToken || refused.Data["tunnel"] != "events" || refused.Data["client_ip"] != "127.0.0.1" {
		t.Errorf("refused: %v", refused.Data)
	}
	echoes(t, conn)

	// A config that does not subscribe, and one that does again.
	quiet := s
	quiet.events = nil
	if err := quiet.load(); err != nil {
		t.Fatal(err)
	}
	other, _ := quiet.socket(t, opening(mint(t)))
	echoes(t, other)
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(closeFrame)
	_, _ = io.Copy(io.Discard, conn)
	conn.Close()
	closed := nextEvent(t, eventClosed)
	for _, name := range []string{"duration", "close_code", "close_reason", "closed_by", "bytes_in", "bytes_out", "messages_in", "messages_out"} {
		if _, there := closed.Data[name]; !there {
			t.Errorf("closed: no %s in %v", name, closed.Data)
		}
	}
	if closed.Data["connection_id"] != id || closed.Data["closed_by"] != "client" || closed.Data["close_reason"] != "normal" {
		t.Errorf("closed: %v", closed.Data)
	}
	if len(heard) != 0 {
		t.Errorf("more was heard: %v", <-heard)
	}
}

// A subscriber that hangs holds up no handshake and no socket, and what waits
// for it is bounded.
func TestEventsNeverBlock(t *testing.T) {
	s := newSite(t)
	s.events = []string{eventOpened, eventClosed, eventRefused}
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	for len(heard) < cap(heard) { // the next to be heard hangs
		heard <- caddy.Event{}
	}
	t.Cleanup(func() {
		for events.busy() || len(heard) > 0 {
			<-heard
		}
	})
	for range 20 {
		conn, status := s.socket(t, opening(mint(t)))
		if status != http.StatusSwitchingProtocols {
			t.Fatal(status)
		}
		echoes(t, conn)
		_, _ = conn.Write(closeFrame)
		_, _ = io.Copy(io.Discard, conn)
		if _, status := s.socket(t, opening("x")); status != http.StatusUnauthorized {
			t.Fatal(status)
		}
	}
	for range 2 * maxEvents {
		emit(eventRefused, func() map[string]any { return nil })
	}
	events.mu.Lock()
	n := len(events.waiting)
	events.mu.Unlock()
	if n != maxEvents {
		t.Errorf("%d events wait, want %d", n, maxEvents)
	}
}

// S-203: a config whose apps do not all start changes nothing, in whichever
// order they are started: nothing drains that it does not have, and logs,
// events and the drain of the process stay with the config that runs.
func TestFailedReload(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := newSite(t)
	s.events = []string{eventOpened}
	s.gate = object{"tunnel_name": "first", "on_removal": "drain"}
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	app, logs := running.Load(), log.Load()
	conn, _ := s.socket(t, opening(mint(t)))
	nextEvent(t, eventOpened)
	for range 12 { // Caddy's order is by chance
		bad := s
		bad.events = nil
		bad.gate = object{"tunnel_name": "second"}
		bad.more = object{"x": object{"listen": []string{taken.Addr().String()}, "automatic_https": object{"disable": true}}}
		if err := bad.load(); err == nil {
			t.Fatal("loaded, though a port is taken")
		}
		if running.Load() != app || log.Load() != logs || emitting.Load() != app.emitter || app.previous != nil {
			t.Fatal("another config runs")
		}
	}
	time.Sleep(50 * time.Millisecond)
	echoes(t, conn)
	other, _ := s.socket(t, opening(mint(t)))
	if opened := nextEvent(t, eventOpened); opened.Data["tunnel"] != "first" {
		t.Errorf("opened %v", opened.Data)
	}
	echoes(t, other)

	// The same config without the taken port is another matter.
	s.gate = object{"tunnel_name": "second"}
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(conn, head); err != nil || head[0] != 0x88 || int(head[2])<<8|int(head[3]) != tunnel.CodeRestart {
		t.Errorf("got %x, %v, want a close frame 1012", head, err)
	}
	if running.Load() == app || running.Load().previous != nil {
		t.Error("the config before is kept")
	}
}

// Sockets hold nothing of the config that let them in, nor of the request, as
// soon as that is over (design.md §1). Over TLS the connection itself refers to
// its configuration, and that to Caddy's: there the config is kept until the
// last of its sockets has ended, and the requests are not.
func TestOldConfigsAreGarbage(t *testing.T) {
	running := []string{"the app", "the gate", "the server"}
	for name, cert := range map[string]object{"plain": nil, "tls": selfSigned(t)} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.cert, witnessed = cert, nil
			var conns []net.Conn
			for i := range 10 {
				s.gate = object{
					"tunnel_name": fmt.Sprint("t", i), "message_rate": object{"number": 1000 + i, "per": "1s", "by": "user"},
					"max_connections": []object{{"number": "1000"}}, "handshake_rate": []object{{"number": 1000 + i, "per": "1s"}},
				}
				if err := s.load(); err != nil {
					t.Fatal(err)
				}
				conn, status := s.socket(t, opening(mint(t)))
				if status != http.StatusSwitchingProtocols {
					t.Fatal(status)
				}
				echoes(t, conn)
				conns = append(conns, conn)
			}
			if len(witnessed) < 10*6 {
				t.Fatalf("%d things are watched", len(witnessed))
			}
			only := func(want []string, most int) {
				t.Helper()
				var left []string
				for range 100 {
					left = reachable()
					if len(left) <= most && slices.Equal(slices.Compact(slices.Sorted(slices.Values(left))), want) {
						return
					}
					time.Sleep(50 * time.Millisecond)
				}
				t.Errorf("%d things are still reachable: %v", len(left), left)
			}
			if cert == nil {
				only(running, len(running))
			} else {
				only(running, len(running)*len(conns))
			}
			for _, conn := range conns {
				echoes(t, conn)
			}
			if live.Len() != len(conns) {
				t.Errorf("%d sockets live, want %d", live.Len(), len(conns))
			}
			for _, conn := range conns {
				conn.Close()
			}
			eventually(t, "ended", func() bool { return live.Len() == 0 })
			only(running, len(running))
		})
	}
}

// selfSigned is a key pair for a server that nobody verifies.
func selfSigned(t *testing.T) object {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return object{
		"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"key":         string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})),
	}
}

// A line about a socket's end is written also when no config with a gate is
// left.
func TestLoggerWithoutConfig(t *testing.T) {
	s := newSite(t)
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	logs := log.Load()
	conn, _ := s.socket(t, opening(mint(t)))
	if err := caddy.Load([]byte(`{"admin":{"disabled":true,"config":{"persist":false}},"logging":{"logs":{"default":{"writer":{"output":"discard"}}}}}`), true); err != nil {
		t.Fatal(err)
	}
	if running.Load() != nil || emitting.Load() != nil {
		t.Error("a config runs")
	}
	echoes(t, conn)
	if name := logger().Name(); name != "http.handlers.ws_gate" || log.Load() == logs {
		t.Errorf("logs go to %q as before", name)
	}
	conn.Close()
	eventually(t, "ended", func() bool { return live.Len() == 0 })
}
