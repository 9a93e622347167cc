package integration

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// S-86: a backend that refuses the upgrade says so itself, and no tunnel comes.
func TestBackendRefuses(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	token := p.token(g, nil)
	seen(t, g, b, bearer(token))
	for _, status := range []int{200, 204, 302, 400, 401, 403, 404, 426, 500, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			b.answers(func(*upstream) string {
				body := "because"
				if status == 204 {
					body = ""
				}
				text := fmt.Sprintf("HTTP/1.1 %d Some Reason\r\nX-Why: %d\r\nSet-Cookie: a=b\r\nWWW-Authenticate: Basic realm=\"backend\"\r\nLocation: /elsewhere\r\n", status, status)
				if status != 204 {
					text += fmt.Sprintf("Content-Length: %d\r\n", len(body))
				}
				return text + "\r\n" + body
			})
			requests := len(b.requests())
			c := g.connect(t)
			c.send([]byte(bearer(token).text(c.host)))
			// Bytes behind the handshake, as a client sends them that takes the socket for open.
			_, _ = c.Write(append(masked(0x81, []byte("frame")), "GET /ws/internal HTTP/1.1\r\nHost: x\r\n\r\n"...))
			a := c.readAnswer("GET")
			if a.status != status || a.header.Get("X-Why") != fmt.Sprint(status) || a.header.Get("Set-Cookie") != "a=b" {
				t.Errorf("the client got %d %q, want %d as it was", a.status, a.text, status)
			}
			if status != 204 && a.body != "because" {
				t.Errorf("the client got the body %q", a.body)
			}
			if status == 426 && a.header.Get("Www-Authenticate") != `Basic realm="backend"` {
				t.Errorf("WWW-Authenticate %q", a.header.Get("Www-Authenticate"))
			}
			rest := c.rest() // a 400 of the server to the bytes behind is its right
			if strings.Contains(rest, "X-Why") || strings.Contains(rest, " 101 ") {
				t.Errorf("the client got %q behind the answer", rest)
			}
			if n := len(b.requests()) - requests; n != 1 {
				t.Errorf("the backend got %d requests: %q", n, b.requests()[requests:])
			}
		})
	}
}

// S-88, S-127: a 101 that is no WebSocket's is 502, and the backend's
// connection is closed without a byte more.
func TestFakeSwitch(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	token := p.mint("ES256", nil)
	g.guard(token)
	seen(t, g, b, bearer(token))
	key := func(u *upstream) string { return u.req.Header.Get("Sec-Websocket-Key") }
	for _, c := range []struct {
		name   string
		answer func(u *upstream) string
		h      handshake
	}{
		{"no Accept", func(u *upstream) string {
			return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
		}, bearer(token)},
		{"wrong Accept", func(u *upstream) string { return strings.Replace(accept(u), "Accept: ", "Accept: x", 1) }, bearer(token)},
		{"the Accept of another key", func(u *upstream) string {
			return strings.Replace(accept(u), acceptOf(key(u)), acceptOf(newKey()), 1)
		}, bearer(token)},
		{"the Accept in another case", func(u *upstream) string {
			return strings.Replace(accept(u), acceptOf(key(u)), strings.ToLower(acceptOf(key(u))), 1)
		}, bearer(token)},
		{"two Accepts", func(u *upstream) string { return accept(u, "Sec-WebSocket-Accept: x") }, bearer(token)},
		{"another Upgrade", func(u *upstream) string { return strings.Replace(accept(u), "Upgrade: websocket", "Upgrade: foo", 1) }, bearer(token)},
		{"no Upgrade", func(u *upstream) string { return strings.Replace(accept(u), "Upgrade: websocket\r\n", "", 1) }, bearer(token)},
		{"no Connection", func(u *upstream) string { return strings.Replace(accept(u), "Connection: Upgrade\r\n", "", 1) }, bearer(token)},
		{"a subprotocol that was not offered", func(u *upstream) string { return accept(u, "Sec-WebSocket-Protocol: other") }, bearer(token).offering("chat.v1")},
		{"a subprotocol in another case", func(u *upstream) string { return accept(u, "Sec-WebSocket-Protocol: Chat.v1") }, bearer(token).offering("chat.v1")},
		{"a subprotocol where none was offered", func(u *upstream) string { return accept(u, "Sec-WebSocket-Protocol: chat.v1") }, bearer(token)},
		{"two subprotocols", func(u *upstream) string { return accept(u, "Sec-WebSocket-Protocol: chat.v1, chat.v2") }, bearer(token).offering("chat.v1", "chat.v2")},
		{"the token's own subprotocol", func(u *upstream) string { return accept(u, "Sec-WebSocket-Protocol: bearer") }, hello().offering("bearer", token, "chat.v1")},
		{"S-127 an extension that was not offered", func(u *upstream) string {
			return accept(u, "Sec-WebSocket-Extensions: permessage-deflate")
		}, bearer(token)},
		{"S-127 another extension than offered", func(u *upstream) string {
			return accept(u, "Sec-WebSocket-Extensions: x-other")
		}, bearer(token).extension("permessage-deflate")},
	} {
		t.Run(c.name, func(t *testing.T) {
			kept := make(chan *upstream, 1)
			b.answers(func(u *upstream) string {
				select {
				case kept <- u:
				default:
				}
				return c.answer(u)
			})
			client := g.connect(t)
			client.send([]byte(c.h.text(client.host)))
			_, _ = client.Write(masked(0x81, []byte("GET /internal HTTP/1.1\r\n\r\n")))
			a := client.readAnswer("GET")
			if a.status != http.StatusBadGateway {
				t.Fatalf("status %d, want 502\n%s", a.status, a.text)
			}
			u := <-kept
			u.t = t
			u.expectEnd()
			for len(b.arrivals) > 0 {
				<-b.arrivals
			}
		})
	}
}

// S-127: extensions are the two ends' business.
func TestExtensionsUntouched(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	token := p.token(g, nil)
	const offer = `permessage-deflate; client_max_window_bits=15; server_no_context_takeover, permessage-deflate`
	const answered = `permessage-deflate;client_max_window_bits=15 ;  server_no_context_takeover`
	b.answers(func(u *upstream) string { return accept(u, "Sec-WebSocket-Extensions: "+answered) })
	c := g.open(t, bearer(token).extension(offer))
	u := b.next(t)
	if !strings.Contains(u.head, "Extensions: "+offer+"\r\n") {
		t.Errorf("the backend was offered %q", u.req.Header.Values("Sec-Websocket-Extensions"))
	}
	if !strings.Contains(c.answer.text, "xtensions: "+answered+"\r\n") {
		t.Errorf("the client was answered %q", c.answer.header.Values("Sec-Websocket-Extensions"))
	}
	// S-143: with it, RSV1 is allowed on data frames, and passes.
	up := append(masked(0xC1, []byte{0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00}), masked(0x41, []byte{1})...)
	up = append(up, masked(0x80, []byte{2})...)
	c.send(up)
	u.expectBytes(up)
	down := append(unmasked(0xC2, []byte{0xf2, 0x48}), unmasked(0x81, []byte("x"))...)
	u.send(down)
	c.expectBytes(down)
}

// S-138: what a 101 carries besides.
func TestSwitchHygiene(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	b.answers(func(u *upstream) string {
		return accept(u, "Content-Length: 3", "Keep-Alive: timeout=5", "Trailer: X-T", "Set-Cookie: a=1", "Set-Cookie: b=2", "X-Custom: One", "X-Custom: two")
	})
	c := g.open(t, bearer(p.token(g, nil)))
	for _, name := range []string{"Content-Length", "Transfer-Encoding", "Trailer", "Keep-Alive"} {
		if v := c.answer.header.Values(name); len(v) > 0 {
			t.Errorf("the 101 carries %s: %q", name, v)
		}
	}
	if got := strings.Join(c.answer.header.Values("Set-Cookie"), "|"); got != "a=1|b=2" {
		t.Errorf("Set-Cookie %q", got)
	}
	if got := strings.Join(c.answer.header.Values("X-Custom"), "|"); got != "One|two" {
		t.Errorf("X-Custom %q", got)
	}
	key := ""
	for _, l := range strings.Split(b.requests()[0], "\r\n") {
		if k, v, _ := strings.Cut(l, ": "); strings.EqualFold(k, "Sec-WebSocket-Key") {
			key = v
		}
	}
	if got := c.answer.header.Values("Sec-Websocket-Accept"); len(got) != 1 || got[0] != acceptOf(key) {
		t.Errorf("Sec-WebSocket-Accept %q for the key %q", got, key)
	}
	// The tunnel works all the same.
	u := b.next(t)
	c.send(masked(0x81, []byte("x")))
	if f := u.read(); string(f.payload) != "x" {
		t.Errorf("the backend got %q", f.payload)
	}
}

// S-133: a backend that does not answer.
func TestBackendSilent(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, transport: "response_header_timeout 1s"}.start(t)
	token := p.token(g, nil)
	seen(t, g, b, bearer(token))
	for name, text := range map[string]string{"nothing": "", "half a status line": "HTTP/1.1 10", "half a head": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso"} {
		t.Run(name, func(t *testing.T) {
			kept := make(chan *upstream, 1)
			b.answers(func(u *upstream) string {
				_, _ = u.Write([]byte(text))
				kept <- u
				_, _ = u.br.Peek(1) // until the gate closes it
				return ""
			})
			a := g.settled(t, bearer(token))
			if a.status != http.StatusGatewayTimeout {
				t.Errorf("status %d, want 504", a.status)
			}
			(<-kept).Close()
		})
	}
	b.answers(nil)
	seen(t, g, b, bearer(token))
}

// A backend that cannot be reached is 502.
func TestBackendUnreachable(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	g := wiring{idp: p, upstream: ln.Addr().String()}.start(t)
	a := g.refused(t, bearer(p.token(g, nil)), http.StatusBadGateway)
	if strings.Contains(a.text+a.body, ln.Addr().String()) {
		t.Errorf("the answer tells where the backend is: %s%s", a.text, a.body)
	}
}

// S-139: a client that leaves during the handshake leaves nothing behind.
func TestClientLeavesDuringHandshake(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	token := p.token(g, nil)
	seen(t, g, b, bearer(token))
	for name, leave := range map[string]func(c *conn){
		"reset": func(c *conn) { c.reset() },
		"close": func(c *conn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			kept := make(chan *upstream, 1)
			over := make(chan struct{})
			defer close(over)
			b.answers(func(u *upstream) string {
				kept <- u
				<-over // silent, and not reading: the test does that
				return ""
			})
			c := g.connect(t)
			c.send([]byte(bearer(token).text(c.host)))
			u := <-kept
			leave(c)
			u.t = t
			start := time.Now()
			u.expectEnd()
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("the backend's connection was closed after %v", d)
			}
		})
	}
	t.Run("just as the 101 comes", func(t *testing.T) {
		for range 20 {
			kept := make(chan *upstream, 1)
			c := g.connect(t)
			b.answers(func(u *upstream) string {
				c.reset()
				kept <- u
				return accept(u)
			})
			c.send([]byte(bearer(token).text(c.host)))
			<-kept
			u := b.next(t)
			u.expectEndOrClose()
			u.Close()
		}
	})
}
