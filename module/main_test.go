package module

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	zapobserver "go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The certificate cache of Caddy's tls app lives as long as the process.
		goleak.IgnoreTopFunction("github.com/caddyserver/certmagic.(*Cache).maintainAssets"),
	)
}

type object = map[string]any

// testSecret is the shared secret of the gates under test.
var testSecret = []byte("0123456789abcdef0123456789abcdef")

// gateJSON is the configuration of a gate, with more options.
func gateJSON(more ...object) json.RawMessage {
	config := object{"issuers": []object{{
		"name": "https://id.example.com/", "secret": base64.StdEncoding.EncodeToString(testSecret), "audience": []string{"chat"},
	}}}
	for _, m := range more {
		maps.Copy(config, m)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		panic(err)
	}
	return raw
}

// load provisions a gate as Caddy does. cleanup ends its config.
func load(t testing.TB, raw json.RawMessage) (g *Gate, cleanup func(), err error) {
	t.Helper()
	parent, err := caddy.ProvisionContext(new(caddy.Config))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(parent)
	t.Cleanup(cancel)
	module, err := ctx.LoadModuleByID("http.handlers.ws_gate", raw)
	if err != nil {
		return nil, cancel, err
	}
	return module.(*Gate), cancel, nil
}

// newGate is a gate that works, and what it logs.
func newGate(t testing.TB, more ...object) (*Gate, *zapobserver.ObservedLogs) {
	t.Helper()
	g, _, err := load(t, gateJSON(more...))
	if err != nil {
		t.Fatal(err)
	}
	core, logs := zapobserver.New(zap.DebugLevel)
	g.logger = zap.New(core)
	return g, logs
}

// mint is a token that a gate under test accepts, with more claims.
func mint(t testing.TB, more ...object) string {
	t.Helper()
	claims := object{"iss": "https://id.example.com/", "aud": "chat", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	for _, m := range more {
		maps.Copy(claims, m)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"HS256"}`)) + "." + encode(payload)
	mac := hmac.New(sha256.New, testSecret)
	mac.Write([]byte(text))
	return text + "." + encode(mac.Sum(nil))
}

// request is a request as Caddy's server hands it on, from 192.0.2.1.
func request(t testing.TB, header http.Header) *http.Request {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "http://example.com/chat", nil)
	maps.Copy(r.Header, header)
	return prepared(r, httptest.NewRecorder())
}

func prepared(r *http.Request, w http.ResponseWriter) *http.Request {
	return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server))
}

// opening are the fields of a good handshake with this token.
func opening(token string) http.Header {
	return http.Header{
		"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}, "Authorization": {"Bearer " + token},
	}
}

// visitor is a handshake that passed all checks up to the caps.
func visitor(t testing.TB, g *Gate, more ...object) *visit {
	t.Helper()
	v := newVisit(request(t, opening(mint(t, more...))))
	t.Cleanup(v.leave)
	for _, check := range checks[:len(checks)-1] {
		if err := check(g, v); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// pair are the two ends of a TCP connection.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, _ := listener.Accept()
		accepted <- conn
	}()
	if a, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	b = <-accepted
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// isClosed waits until the other end of a connection is closed.
func isClosed(t testing.TB, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Fatalf("read %d bytes, %v; want the connection to be closed", n, err)
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error) //nolint:errorlint // straight from Read
	return ok && timeout.Timeout()
}

// eventually waits for something that another goroutine brings about.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not " + what)
		}
	}
}

// references are the uses of everything in a pool.
func references(pool *caddy.UsagePool) (n int) {
	pool.Range(func(key, _ any) bool {
		refs, _ := pool.References(key)
		n += refs
		return true
	})
	return n
}

// nextFunc is a handler behind the gate.
func nextFunc(f func(w http.ResponseWriter, r *http.Request) error) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(f)
}
