package module

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	stdlog "log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// unwrapOnly is a writer as some middleware has: it does nothing itself, and
// knows whom it wraps.
type unwrapOnly struct{ inner http.ResponseWriter }

func (w unwrapOnly) Header() http.Header         { return w.inner.Header() }
func (w unwrapOnly) Write(p []byte) (int, error) { return w.inner.Write(p) }
func (w unwrapOnly) WriteHeader(status int)      { w.inner.WriteHeader(status) }
func (w unwrapOnly) Unwrap() http.ResponseWriter { return w.inner }

// writers are what stands between net/http's writer and the gate.
var writers = map[string]func(http.ResponseWriter) http.ResponseWriter{
	"bare":        func(w http.ResponseWriter) http.ResponseWriter { return w },
	"access log":  func(w http.ResponseWriter) http.ResponseWriter { return caddyhttp.NewResponseRecorder(w, nil, nil) },
	"Unwrap only": func(w http.ResponseWriter) http.ResponseWriter { return unwrapOnly{w} },
	"all": func(w http.ResponseWriter) http.ResponseWriter {
		return unwrapOnly{caddyhttp.NewResponseRecorder(unwrapOnly{w}, nil, nil)}
	},
}

// served is what became of one handshake.
type served struct {
	*http.Response
	conn net.Conn      // the client's
	br   *bufio.Reader // of conn, behind the answer's head
	err  error         // of the handler
}

// serve has a gate's upgrade answer one handshake of a real connection, with
// early sent right behind it.
func serve(t *testing.T, g *Gate, wrap func(http.ResponseWriter) http.ResponseWriter, next caddyhttp.Handler, early []byte, change ...func(*visit)) served {
	t.Helper()
	return serveFunc(t, wrap, func(w http.ResponseWriter, v *visit) error {
		v.token = &auth.Token{User: "alice", Issuer: "https://id.example.com/", Expires: time.Now().Add(time.Hour)}
		for _, f := range change {
			f(v)
		}
		return g.upgrade(w, v, next)
	}, early)
}

// serveFunc has a part of a gate answer one handshake, with more header lines.
func serveFunc(t *testing.T, wrap func(http.ResponseWriter) http.ResponseWriter, answer func(http.ResponseWriter, *visit) error, early []byte, lines ...string) served {
	t.Helper()
	failed := make(chan error, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := newVisit(prepared(r, w))
		defer v.leave()
		err := answer(wrap(w), v)
		var handler caddyhttp.HandlerError
		if errors.As(err, &handler) {
			w.WriteHeader(handler.StatusCode) // as Caddy does
		}
		failed <- err
	}))
	server.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(server.Close)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	var head bytes.Buffer
	head.WriteString("GET /chat HTTP/1.1\r\nHost: example.com\r\n")
	_ = opening("x").Write(&head)
	for _, line := range append(lines, "") {
		head.WriteString(line + "\r\n")
	}
	head.Write(early)
	if _, err := conn.Write(head.Bytes()); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	s := served{conn: conn, br: bufio.NewReader(conn)}
	if s.Response, err = http.ReadResponse(s.br, nil); err != nil {
		t.Fatal(err)
	}
	if s.StatusCode == http.StatusSwitchingProtocols && early == nil && len(lines) > 0 {
		_ = conn.(*net.TCPConn).CloseWrite() // the gate need not wait for an answer to its close frame
	}
	s.err = <-failed
	return s
}

// accepting does as reverse_proxy and ws_tunnel do at a backend's 101 with
// this header; near is nil where no ws_tunnel is behind the gate.
func accepting(t *testing.T, near net.Conn, early []byte, header http.Header) caddyhttp.Handler {
	return nextFunc(func(w http.ResponseWriter, r *http.Request) error {
		answer := http.Header{"Sec-Websocket-Accept": {"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}, "Upgrade": {"websocket"}, "Connection": {"Upgrade"}}
		for name, values := range header {
			answer[http.CanonicalHeaderKey(name)] = values
		}
		if near == nil {
			maps.Copy(w.Header(), answer)
			w.WriteHeader(http.StatusSwitchingProtocols)
			if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
				t.Error("a handler behind the gate took the connection")
			}
			return nil
		}
		if err := handoffOf(r.Context()).accept(&accepted{conn: near, header: answer, early: early, upstream: "node1:3000"}); err != nil {
			near.Close()
			return caddyhttp.Error(http.StatusBadGateway, err)
		}
		// reverse_proxy finishes with the dummy: nothing of it may get out.
		res := handedOver(r)
		w.Header().Add("Via", "1.1 Caddy")
		w.WriteHeader(res.StatusCode)
		if _, err := io.Copy(w, res.Body); err != nil {
			t.Errorf("copying the dummy: %v", err)
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Errorf("flushing the dummy: %v", err)
		}
		return nil
	})
}

// S-138: the 101 is clean, keeps the backend's own fields, and what either
// side sends right behind it arrives, once and in order.
func TestUpgrade(t *testing.T) {
	text := func(payload string, masked bool) []byte {
		frame := []byte{0x81, byte(len(payload))}
		if masked {
			frame[1] |= 0x80
			frame = append(frame, 0, 0, 0, 0)
		}
		return append(frame, payload...)
	}
	for name, wrap := range writers {
		t.Run(name, func(t *testing.T) {
			g, _ := newGate(t)
			near, far := pair(t)
			s := serve(t, g, wrap, accepting(t, near, text("early", false), http.Header{
				"Content-Length": {"3"}, "Transfer-Encoding": {"chunked"}, "Trailer": {"X-T"}, "Keep-Alive": {"timeout=5"},
				"Set-Cookie": {"a=1", "b=2"}, "X-Custom": {"kept"}, "Sec-WebSocket-Protocol": {"chat.v1"},
			}), text("client 1", true))
			if s.err != nil || s.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("%d, %v", s.StatusCode, s.err)
			}
			for _, name := range []string{"Content-Length", "Transfer-Encoding", "Trailer", "Keep-Alive"} {
				if s.Header.Get(name) != "" || len(s.TransferEncoding) > 0 {
					t.Errorf("the 101 has %s", name)
				}
			}
			if s.Header.Get("X-Custom") != "kept" || !slices.Equal(s.Header["Set-Cookie"], []string{"a=1", "b=2"}) ||
				s.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
				t.Errorf("the 101 lost fields: %v", s.Header)
			}
			if live.Len() != 1 {
				t.Errorf("%d live sockets, want 1", live.Len())
			}
			for socket := range live.All() {
				if socket.User != "alice" || socket.Upstream != "node1:3000" || socket.Subprotocol != "chat.v1" || socket.Tunnel != "default" {
					t.Errorf("identity %+v", socket.Identity)
				}
			}
			_, _ = s.conn.Write(text("client 2", true))
			_, _ = far.Write(text("late", false))
			wantBytes(t, s.br, append(text("early", false), text("late", false)...))
			_ = far.SetReadDeadline(time.Now().Add(10 * time.Second))
			wantBytes(t, far, append(text("client 1", true), text("client 2", true)...))
			s.conn.Close()
			far.Close()
			eventually(t, "ended", func() bool { return live.Len() == 0 })
		})
	}
}

func wantBytes(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q (%v), want %q", got[:n], err, want)
	}
}

// The subprotocol of the answer (S-123): the backend's choice, or else the
// pair form's prefix, or none.
func TestUpgradeSubprotocol(t *testing.T) {
	for _, c := range []struct {
		name, chosen, pair, want string
	}{
		{"the backend's choice", "chat.v1", "", "chat.v1"},
		{"the backend's choice before ours", "chat.v1", "bearer", "chat.v1"},
		{"the prefix of a pair", "", "bearer", "bearer"},
		{"none invented", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _ := newGate(t)
			near, far := pair(t)
			header := http.Header{}
			if c.chosen != "" {
				header["Sec-WebSocket-Protocol"] = []string{c.chosen}
			}
			s := serve(t, g, writers["bare"], accepting(t, near, nil, header), nil, func(v *visit) { v.presented.PairPrefix = c.pair })
			if got := s.Header.Values("Sec-Websocket-Protocol"); strings.Join(got, "|") != c.want {
				t.Errorf("answered %q, want %q", got, c.want)
			}
			s.conn.Close()
			far.Close()
			eventually(t, "ended", func() bool { return live.Len() == 0 })
		})
	}
}

// S-123: with forward_token the backend sees the token among the offers, and
// may not send it back to where it came from.
func TestUpgradeNeverEchoesTheToken(t *testing.T) {
	const token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"
	for chosen, status := range map[string]int{
		"bearer." + token: http.StatusBadGateway,
		token:             http.StatusBadGateway,
		"chat.v1":         http.StatusSwitchingProtocols,
	} {
		g, _ := newGate(t, object{"forward_token": true})
		near, far := pair(t)
		s := serve(t, g, writers["bare"], accepting(t, near, nil, http.Header{"Sec-WebSocket-Protocol": {chosen}}), nil,
			func(v *visit) { v.offer = []string{"bearer." + token + ", chat.v1"} })
		if s.StatusCode != status || strings.Contains(s.Header.Get("Sec-Websocket-Protocol"), token) {
			t.Errorf("chosen %q: %d %v", chosen, s.StatusCode, s.Header)
		}
		s.conn.Close()
		far.Close()
		eventually(t, "ended", func() bool { return live.Len() == 0 })
	}
}

// Without ws_tunnel a handshake is refused, not let through, and nothing of
// the backend's 101 gets out.
func TestUpgradeWithoutTunnel(t *testing.T) {
	for name, wrap := range writers {
		t.Run(name, func(t *testing.T) {
			g, logs := newGate(t)
			s := serve(t, g, wrap, accepting(t, nil, nil, http.Header{"Set-Cookie": {"session=backend"}, "Sec-WebSocket-Protocol": {"chat"}}), nil)
			if s.StatusCode != http.StatusNotImplemented {
				t.Errorf("status %d, want 501", s.StatusCode)
			}
			for _, name := range []string{"Sec-Websocket-Accept", "Sec-Websocket-Protocol", "Set-Cookie", "Upgrade"} {
				if s.Header.Get(name) != "" {
					t.Errorf("the refusal has %s: %v", name, s.Header)
				}
			}
			if !s.Close {
				t.Error("the connection is kept (S-90)")
			}
			if entries := logs.FilterMessage("handshake refused").All(); len(entries) != 1 || !strings.Contains(entries[0].ContextMap()["detail"].(string), "transport ws_tunnel") {
				t.Errorf("logged %v, want one line that says what to configure", entries)
			}
		})
	}
}

// What is no 101 is relayed as it is, on a connection that ends with it: what
// the client sends next would be frames (S-86).
func TestUpgradeRelaysOtherAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		next   func(w http.ResponseWriter, r *http.Request) error
		status int
		body   string
		detail string
	}{
		{"a refusal of the backend", func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("X-Why", "full")
			w.WriteHeader(http.StatusForbidden)
			_, err := w.Write([]byte("no room"))
			return err
		}, 403, "no room", "answered 403"},
		{"a page", func(w http.ResponseWriter, _ *http.Request) error {
			_, err := w.Write([]byte("hello"))
			return err
		}, 200, "hello", "answered 200"},
		{"hints before", func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusTeapot)
			return nil
		}, 418, "", "answered 418"},
		{"a challenge with a connection to keep", func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Connection", "keep-alive")
			w.WriteHeader(http.StatusUnauthorized)
			return nil
		}, 401, "", "answered 401"},
		{"no backend", func(http.ResponseWriter, *http.Request) error {
			return caddyhttp.Error(http.StatusBadGateway, errors.New("dial tcp: refused"))
		}, 502, "", "dial tcp: refused"},
		{"nobody there", func(http.ResponseWriter, *http.Request) error { return nil }, 502, "", errNoAnswer.Error()},
		{"a connection taken without a 101", func(w http.ResponseWriter, _ *http.Request) error {
			if _, _, err := http.NewResponseController(w).Hijack(); !errors.Is(err, http.ErrNotSupported) {
				return errors.New("a handler behind the gate took the connection")
			}
			return nil
		}, 502, "", errNoAnswer.Error()},
	} {
		for name, wrap := range writers {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				g, logs := newGate(t)
				s := serve(t, g, wrap, nextFunc(c.next), nil)
				for s.StatusCode == http.StatusEarlyHints {
					s.Response, _ = http.ReadResponse(s.br, nil)
				}
				body, _ := io.ReadAll(s.Body)
				if s.StatusCode != c.status || string(body) != c.body {
					t.Errorf("%d %q, want %d %q", s.StatusCode, body, c.status, c.body)
				}
				if !s.Close {
					t.Error("the connection is kept")
				}
				entries := logs.FilterMessage("handshake refused").All()
				if len(entries) != 1 || entries[0].ContextMap()["reason"] != reasonBackend || entries[0].ContextMap()["detail"] != c.detail {
					t.Errorf("logged %v, want one line, %s %q", entries, reasonBackend, c.detail)
				}
				if live.Len() != 0 {
					t.Error("a socket came of it")
				}
			})
		}
	}
}

// noHijack is a writer below which there is no connection to take.
type noHijack struct{ *httptest.ResponseRecorder }

// S-139: a client that is gone before the handshake is complete takes the
// backend with it.
func TestUpgradeOfAClientThatIsGone(t *testing.T) {
	g, _ := newGate(t)
	near, far := pair(t)
	_ = g.upgrade(noHijack{httptest.NewRecorder()}, visitor(t, g), accepting(t, near, nil, nil))
	isClosed(t, far)
	if live.Len() != 0 {
		t.Error("a socket came of it")
	}
}

// What happens behind a completed handshake is about a request that is over.
func TestUpgradeIsTheLastWord(t *testing.T) {
	for name, after := range map[string]func(w http.ResponseWriter) error{
		"an error": func(http.ResponseWriter) error { return errors.New("late") },
		"an answer": func(w http.ResponseWriter) error {
			http.Error(w, "late", http.StatusTeapot)
			return nil
		},
		"a hijack": func(w http.ResponseWriter) error {
			if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
				t.Error("the connection was taken twice")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := newGate(t)
			near, far := pair(t)
			accept := accepting(t, near, nil, nil)
			s := serve(t, g, writers["all"], nextFunc(func(w http.ResponseWriter, r *http.Request) error {
				if err := accept.ServeHTTP(w, r); err != nil {
					t.Error(err)
				}
				return after(w)
			}), nil)
			if s.err != nil || s.StatusCode != http.StatusSwitchingProtocols {
				t.Errorf("%d, %v", s.StatusCode, s.err)
			}
			message := []byte{0x81, 2, 'o', 'k'}
			_, _ = far.Write(message)
			wantBytes(t, s.br, message)
			s.conn.Close()
			far.Close()
			eventually(t, "ended", func() bool { return live.Len() == 0 })
		})
	}
}

// A handshake that loses its place before its 101 gets 429, and its backend's
// connection is closed; one that loses it afterwards is closed with 1008.
func TestUpgradeEvicted(t *testing.T) {
	one := object{"tunnel_name": "evicted", "max_connections": []object{{"number": "1", "on_full": "evict_oldest"}}}
	for name, wrap := range writers {
		t.Run(name, func(t *testing.T) {
			g, _ := newGate(t, one)
			near, far := pair(t)
			accept := accepting(t, near, nil, nil)
			newer := visitor(t, g)
			s := serve(t, g, wrap, nextFunc(func(w http.ResponseWriter, r *http.Request) error {
				if err := g.takeSlots(newer); err != nil {
					t.Error(err)
				}
				if r.Context().Err() == nil {
					t.Error("the older handshake still waits for its backend")
				}
				return accept.ServeHTTP(w, r)
			}), nil, func(v *visit) {
				if err := g.takeSlots(v); err != nil {
					t.Error(err)
				}
			})
			if s.StatusCode != http.StatusTooManyRequests || s.Header.Get("Retry-After") == "" {
				t.Errorf("%d %v, want 429", s.StatusCode, s.Header)
			}
			isClosed(t, far)
		})
	}
	t.Run("live", func(t *testing.T) {
		g, _ := newGate(t, one)
		near, far := pair(t)
		s := serve(t, g, writers["bare"], accepting(t, near, nil, nil), nil, func(v *visit) {
			if err := g.takeSlots(v); err != nil {
				t.Error(err)
			}
		})
		newer := visitor(t, g)
		if err := g.takeSlots(newer); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 4)
		if _, err := io.ReadFull(s.br, head); err != nil || head[0] != 0x88 || int(head[2])<<8|int(head[3]) != tunnel.CodePolicy {
			t.Errorf("got % x, %v; want a close frame with 1008", head, err)
		}
		s.conn.Close()
		far.Close()
		eventually(t, "ended", func() bool { return live.Len() == 0 })
		newer.leave()
		if n := caps.(interface{ Len() int }).Len(); n != 0 {
			t.Errorf("%d places are still held", n)
		}
	})
}

// lifetime: min(exp + leeway + expiry_grace, now + max_lifetime).
func TestLifetime(t *testing.T) {
	const h, m, s = time.Hour, time.Minute, time.Second
	now := time.Now()
	for _, c := range []struct {
		name   string
		config object
		exp    time.Duration
		want   time.Duration
		cause  tunnel.Cause
	}{
		{"default", nil, h, h + 10*s, tunnel.CauseExpired},
		{"leeway", object{"leeway": 0}, h, h, tunnel.CauseExpired},
		{"grace", object{"leeway": "5s", "expiry_grace": "1m"}, h, h + m + 5*s, tunnel.CauseExpired},
		{"limit first", object{"max_lifetime": "30m"}, h, 30 * m, tunnel.CauseLifetime},
		{"token first", object{"max_lifetime": "2h"}, h, h + 10*s, tunnel.CauseExpired},
		{"within the leeway", nil, -5 * s, 5 * s, tunnel.CauseExpired},
		{"past it while the backend was slow", nil, -h, time.Millisecond, tunnel.CauseExpired},
		{"past it, with a limit", object{"max_lifetime": "1h"}, -h, time.Millisecond, tunnel.CauseExpired},
		{"keep", object{"on_expiry": "keep"}, h, 0, tunnel.CauseLifetime},
		{"keep, with a limit", object{"on_expiry": "keep", "max_lifetime": "2h"}, h, 2 * h, tunnel.CauseLifetime},
		{"keep, past", object{"on_expiry": "keep"}, -h, 0, tunnel.CauseLifetime},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _ := newGate(t, c.config)
			if got, cause := g.lifetime(now.Add(c.exp), now); got != c.want || *cause != c.cause {
				t.Errorf("%s %q, want %s %q", got, cause.Reason, c.want, c.cause.Reason)
			}
		})
	}
	t.Run("the largest exp", func(t *testing.T) { // 253402300799, contract §7
		g, _ := newGate(t, object{"expiry_grace": "1h"})
		if got, _ := g.lifetime(time.Unix(253402300799, 0), now); got < 200*365*24*h {
			t.Errorf("%s: it ran over", got)
		}
	})
}

// A socket keeps no more of its token than it shows: a claim is a piece of the
// whole payload.
func TestSocketKeepsNoPayload(t *testing.T) {
	g, _ := newGate(t, nil)
	payload := `{"sub":"ann","jti":"j1","sid":"s1"}`
	token := &auth.Token{Issuer: "https://id.example", User: payload[8:11], ID: payload[20:22], SessionID: payload[31:33]}
	a := g.accepted(&visit{r: httptest.NewRequest("GET", "/", nil), token: token}, &accepted{})
	defer a.Release()
	for _, c := range []struct{ kept, of string }{{a.User, token.User}, {a.TokenID, token.ID}, {a.SessionID, token.SessionID}} {
		if c.kept != c.of || unsafe.StringData(c.kept) == unsafe.StringData(c.of) {
			t.Errorf("%q is a piece of the payload", c.kept)
		}
	}
}
