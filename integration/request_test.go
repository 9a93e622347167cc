package integration

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What is no valid opening handshake gets the answer of RFC 6455, section
// 4.2.1, and no byte of it reaches the backend.
func TestMalformedHandshakes(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	token := p.token(g, nil)
	good := bearer(token)
	seen(t, g, b, good) // the keys are there

	const key = "Sec-WebSocket-Key: "
	for _, c := range []struct {
		name   string
		h      handshake
		status int
	}{
		{"S-85 version 1337", good.instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 1337"), 426},
		{"S-85 version 8", good.instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"), 426},
		{"S-85 version 013", good.instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 013"), 426},
		{"S-85 empty version", good.instead("Sec-WebSocket-Version", "Sec-WebSocket-Version:"), 426},
		{"S-85 no version", good.without("Sec-WebSocket-Version"), 426},
		{"S-85 two versions", good.instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"), 426},
		{"S-85 list of versions", good.instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 13, 8"), 426},

		{"S-89 POST", good.as("POST").with("Content-Length: 0"), 405},
		{"S-89 PUT", good.as("PUT"), 405},
		{"S-89 HEAD", good.as("HEAD"), 405},
		{"S-89 PATCH", good.as("PATCH"), 405},
		{"S-89 DELETE", good.as("DELETE"), 405},
		{"S-89 OPTIONS", good.as("OPTIONS"), 405},
		{"S-89 lower case", good.as("get"), 405},

		{"S-93 h2c", good.instead("Upgrade", "Upgrade: h2c").instead("Connection", "Connection: Upgrade, HTTP2-Settings").with("HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"), 400},
		{"S-93 h2c beside websocket", good.instead("Upgrade", "Upgrade: websocket, h2c"), 0},
		{"S-93 two lines", good.with("Upgrade: h2c"), 0},
		{"S-93 h2c without a key", good.instead("Upgrade", "Upgrade: h2c").without("Sec-WebSocket-Key").instead("Connection", "Connection: Upgrade, HTTP2-Settings").with("HTTP2-Settings: AAMAAABk"), -1},
		{"S-94 version in the token", good.instead("Upgrade", "Upgrade: websocket/13"), 400},
		{"S-94 no Upgrade", good.without("Upgrade"), 400},

		{"S-95 HTTP/1.0", good.proto("HTTP/1.0"), 400},
		{"S-95 HTTP/1.2", good.proto("HTTP/1.2"), -2},
		{"S-95 HTTP/0.9", good.proto("HTTP/0.9"), -2},
		{"S-95 HTTP/2.0", good.proto("HTTP/2.0"), -2},

		{"S-96 a body", good.with("Content-Length: 5").followedBy("hello"), 400},
		{"S-96 chunked", good.with("Transfer-Encoding: chunked").followedBy("5\r\nhello\r\n0\r\n\r\n"), 400},
		{"S-96 chunked and empty", good.with("Transfer-Encoding: chunked").followedBy("0\r\n\r\n"), 400},
		{"S-96 length and chunked", good.with("Content-Length: 5", "Transfer-Encoding: chunked").followedBy("0\r\n\r\n"), 400},
		{"S-96 two lengths", good.with("Content-Length: 5", "Content-Length: 6").followedBy("hello"), 400},
		{"S-96 a negative length", good.with("Content-Length: -1"), 400},

		{"S-98 no key", good.without("Sec-WebSocket-Key"), 400},
		{"S-98 15 bytes", good.instead("Sec-WebSocket-Key", key+base64Std(random(15))), 400},
		{"S-98 17 bytes", good.instead("Sec-WebSocket-Key", key+base64Std(random(17))), 400},
		{"S-98 no base64", good.instead("Sec-WebSocket-Key", key+"!!!!!!!!!!!!!!!!!!!!!!=="), 400},
		{"S-98 no padding", good.instead("Sec-WebSocket-Key", key+strings.TrimRight(newKey(), "=")), 400},
		{"S-98 two keys", good.with(key + newKey()), 400},
		{"S-98 two keys in a list", good.instead("Sec-WebSocket-Key", key+newKey()+", "+newKey()), 400},
		{"S-98 an empty key", good.instead("Sec-WebSocket-Key", "Sec-WebSocket-Key:"), 400},
		{"S-98 a folded line", good.instead("Sec-WebSocket-Key", key+newKey(), " X-User-Id: a"), 400},
		{"S-98 no Connection", good.without("Connection"), 400},
		{"S-98 keep-alive alone", good.instead("Connection", "Connection: keep-alive"), 400},
		{"S-98 a word that only holds it", good.instead("Connection", "Connection: Upgraded"), 400},

		{"no Host", good.onHost("-"), 400},
		{"two Hosts", good.with("Host: other.test"), 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.status == 0 { // S-94: accepted, but the backend sees one word, or refused
				u := backendSees(t, g, b, c.h)
				if u != nil && !slices.Equal(u.req.Header.Values("Upgrade"), []string{"websocket"}) {
					t.Errorf("the backend saw Upgrade %q", u.req.Header.Values("Upgrade"))
				}
				return
			}
			if c.status == -1 { // no WebSocket handshake: plain HTTP, but never an upgrade
				a := g.try(t, c.h)
				if a.status == 101 {
					t.Error("status 101")
				}
				for _, head := range b.requests() {
					if strings.Contains(head, "h2c") || strings.Contains(strings.ToLower(head), "http2-settings") {
						t.Errorf("the backend saw %q", head)
					}
				}
				return
			}
			b.untouched(t, func() {
				a := g.try(t, c.h)
				switch {
				case c.status == -2 && a.status != 400 && a.status != 505 && a.status != 426:
					t.Errorf("status %d, want 400, 426 or 505", a.status)
				case c.status > 0 && a.status != c.status:
					t.Errorf("status %d, want %d\n%s", a.status, c.status, a.text)
				case c.status == 426 && !slices.Equal(a.header.Values("Sec-Websocket-Version"), []string{"13"}):
					t.Errorf("Sec-WebSocket-Version %q, want 13", a.header.Values("Sec-Websocket-Version"))
				}
			})
		})
	}

	t.Run("S-98 spellings that are valid", func(t *testing.T) {
		for _, h := range []handshake{
			good.instead("Connection", "Connection: keep-alive, Upgrade"), // Firefox
			good.instead("Connection", "connection: UPGRADE"),
			good.instead("Connection", "Connection: keep-alive", "Connection: upgrade"),
			good.instead("Upgrade", "Upgrade: WebSocket"),
			good.instead("Upgrade", "upgrade: WEBSOCKET"),
			good.with("Content-Length: 0"), // S-96
		} {
			u := seen(t, g, b, h)
			if got := u.req.Header.Values("Upgrade"); !slices.Equal(got, []string{"websocket"}) { // S-94
				t.Errorf("the backend saw Upgrade %q", got)
			}
			if got := u.req.Header.Values("Connection"); !slices.Equal(got, []string{"Upgrade"}) {
				t.Errorf("the backend saw Connection %q", got)
			}
		}
	})

	t.Run("S-97 Expect", func(t *testing.T) {
		for _, lines := range [][]string{{"Expect: 100-continue"}, {"Expect: foo"}} {
			c := g.connect(t)
			c.send([]byte(good.with(lines...).text(c.host)))
			a := c.readAnswer("GET")
			if a.status == 100 {
				t.Errorf("%s: a 100 before the answer", lines)
			}
			if a.status == 101 {
				u := b.next(t)
				if got := u.req.Header.Values("Expect"); len(got) > 0 {
					t.Errorf("the backend saw Expect %q", got)
				}
			} else if a.status != 417 && a.status != 400 {
				t.Errorf("%s: status %d", lines, a.status)
			}
			c.Close()
		}
	})
}

// backendSees is what the backend saw, or nil if the handshake was refused
// with 400.
func backendSees(t *testing.T, g *gate, b *backend, h handshake) *upstream {
	t.Helper()
	a := g.try(t, h)
	switch a.status {
	case 101:
		return b.next(t)
	case 400:
		return nil
	}
	t.Errorf("status %d, want 101 or 400", a.status)
	return nil
}

// S-85, S-90: what a client sends behind a handshake that is refused is neither
// forwarded nor taken for a request.
func TestBytesBehindRefusedHandshakes(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	token := p.token(g, nil)
	seen(t, g, b, bearer(token))
	smuggled := "GET /ws/internal HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + "\r\n\r\n"
	for name, h := range map[string]handshake{
		"version":   bearer(token).instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 1337"),
		"no token":  hello(),
		"bad token": bearer(p.mint("ES256", claims{"aud": "other"})),
		"origin":    bearer(token, "Origin: https://evil.test"),
		"no key":    bearer(token).without("Sec-WebSocket-Key"),
		"method":    bearer(token).as("POST"),
	} {
		for _, behind := range []string{smuggled, string(masked(0x81, []byte("frame")))} {
			t.Run(name, func(t *testing.T) {
				b.untouched(t, func() {
					c := g.connect(t)
					c.send([]byte(h.followedBy(behind).text(c.host)))
					a := c.readAnswer(h.method)
					if a.status < 400 {
						t.Fatalf("status %d", a.status)
					}
					if !strings.Contains(a.text, "\r\nConnection: close\r\n") { // ReadResponse takes it out of the header
						t.Errorf("no Connection: close in %q", a.text)
					}
					if err := c.ended(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// S-99: plain HTTP on a guarded route meets the same guard.
func TestPlainRequests(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "from_header Authorization\nfrom_query access_token\nfrom_cookies session\norigins same_origin https://app.example.com"}.start(t)
	token := p.token(g, nil)
	plain := func(lines ...string) handshake {
		return handshake{method: "GET", target: "/ws/poll", version: "HTTP/1.1", lines: append([]string{"Connection: close"}, lines...)}
	}
	seen(t, g, b, bearer(token))

	for _, method := range []string{"GET", "POST", "HEAD", "PUT"} {
		b.untouched(t, func() {
			a := g.refused(t, plain("Content-Length: 0").as(method), http.StatusUnauthorized)
			if !strings.HasPrefix(a.header.Get("Www-Authenticate"), "Bearer") {
				t.Errorf("%s: WWW-Authenticate %q", method, a.header.Get("Www-Authenticate"))
			}
		})
		a := g.refused(t, plain("Content-Length: 0", "Authorization: Bearer "+token, "X-User-Id: admin").as(method), http.StatusOK)
		if method == "GET" && a.body != "ok" {
			t.Errorf("body %q", a.body)
		}
		heads := b.requests()
		head := heads[len(heads)-1]
		if !strings.Contains(head, "X-User-Id: alice\r\n") || strings.Contains(head, "admin") || strings.Contains(head, token) {
			t.Errorf("%s: the backend saw %q", method, head)
		}
	}
	cookie := "Cookie: session=" + token
	for _, c := range []struct {
		lines  []string
		status int
	}{
		{[]string{cookie}, 200},                                    // browsers send no Origin with a same-origin GET
		{[]string{cookie, "Sec-Fetch-Site: same-origin"}, 200},     //
		{[]string{cookie, "Sec-Fetch-Site: cross-site"}, 403},      // nor with a foreign page's
		{[]string{cookie, "Origin: https://evil.test"}, 403},       //
		{[]string{cookie, "Origin: https://app.example.com"}, 200}, //
	} {
		t.Run(strings.ReplaceAll(strings.Join(c.lines, ","), token, "T"), func(t *testing.T) {
			g.refused(t, plain(c.lines...), c.status)
		})
	}
}

// S-129: no spelling of the path gets round the guard: what reverse_proxy takes
// for /ws* has been before the gate.
func TestPathSpellings(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	seen(t, g, b, bearer(p.token(g, nil)))
	for _, path := range []string{"/WS", "//ws", "/ws/", "/./ws", "/%77s", "/ws%2f..%2fws", "/x/..;/ws", "/ws%00", "/ws;a=1", "/ws\\..",
		"/x/../ws", "/ws/../ws", "/ws?", "http://127.0.0.1/ws", "/ws%20", "/%2fws"} {
		b.untouched(t, func() {
			if a := g.try(t, hello().to(path)); a.status == 101 {
				t.Errorf("%s: status 101 without a token", path)
			}
		})
	}
}

// S-100: extended CONNECT over HTTP/2 does not get round the gate: without a
// token it is refused as any handshake, with one it is not built yet.
func TestExtendedConnect(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, tls: true}.start(t, "GODEBUG=http2xconnect=1")
	token := p.token(g, nil)
	seen(t, g, b, bearer(token))
	good := [][2]string{{"sec-websocket-version", "13"}, {"authorization", "Bearer " + token}}
	bad := p.mint("ES256", claims{"aud": "other"})
	b.untouched(t, func() {
		for name, c := range map[string]struct {
			fields   [][2]string
			statuses []int
		}{
			"no token":       {good[:1], []int{401, 501}},
			"bad token":      {[][2]string{good[0], {"authorization", "Bearer " + bad}}, []int{401, 501}},
			"foreign origin": {append(good[:2:2], [2]string{"origin", "https://evil.test"}), []int{403, 501}},
			"good token":     {good, []int{501}},
		} {
			if status := connectH2(t, g, c.fields); !slices.Contains(c.statuses, status) {
				t.Errorf("%s: status %d, want one of %d", name, status, c.statuses)
			}
		}
	})
}

// connectH2 sends an extended CONNECT, RFC 8441, and returns the status.
func connectH2(t *testing.T, g *gate, fields [][2]string) int {
	t.Helper()
	_, port, _ := net.SplitHostPort(g.addr)
	c, err := tls.Dial("tcp", g.addr, &tls.Config{ServerName: "localhost", RootCAs: certPool(), NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if got := c.ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Fatalf("negotiated %q", got)
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(c, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range append([][2]string{
		{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "https"},
		{":path", "/ws"}, {":authority", "localhost:" + port},
	}, fields...) {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	sent := false
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("reading HTTP/2 frames: %v", err)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if f.IsAck() {
				continue
			}
			if v, ok := f.Value(http2.SettingEnableConnectProtocol); !ok || v != 1 {
				t.Fatal("the server does not offer extended CONNECT: this test shows nothing")
			}
			if err := framer.WriteSettingsAck(); err != nil {
				t.Fatal(err)
			}
			if !sent {
				sent = true
				if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
					t.Fatal(err)
				}
			}
		case *http2.MetaHeadersFrame:
			var status int
			fmt.Sscan(f.PseudoValue("status"), &status)
			return status
		case *http2.RSTStreamFrame:
			t.Fatalf("the stream was reset: %v", f.ErrCode)
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo { // Connection: close ends a connection in good order
				t.Fatalf("the connection was ended: %v", f.ErrCode)
			}
		}
	}
}

// A socket that nothing would guard is refused, with a word to the operator.
func TestWithoutTunnel(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, bare: true}.start(t)
	token := p.token(g, nil)
	g.refused(t, hello(), http.StatusUnauthorized)
	g.refused(t, bearer(token), http.StatusNotImplemented)
	eventually(t, "a log line that says to configure ws_tunnel", func() bool {
		return slices.ContainsFunc(g.lines(), func(line string) bool {
			return strings.Contains(line, "ws_tunnel") && !strings.Contains(line, `"level":"debug"`)
		})
	})
	select {
	case u := <-b.arrivals:
		// The backend's 101 must not have become a socket.
		u.expectEnd()
	default:
	}
	// Plain HTTP needs no tunnel.
	g.refused(t, handshake{method: "GET", target: "/ws", version: "HTTP/1.1", lines: []string{"Authorization: Bearer " + token, "Connection: close"}}, http.StatusOK)

	t.Run("behind respond", func(t *testing.T) {
		g := start(t, fmt.Sprintf("{\nadmin 127.0.0.1:{{admin}}\nauto_https off\n}\nhttp://127.0.0.1:{{port}} {\nroute {\nws_gate {\nissuer %s {\njwks %s\naudience chat\n}\n}\nrespond hello 200\n}\n}\n", p.issuer, p.jwksURL()))
		if a := g.settled(t, bearer(p.token(g, nil))); a.status == 101 {
			t.Error("status 101 without a backend")
		}
	})
}
