package integration

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// carrier is a way to bring a token.
type carrier struct {
	name    string
	present func(h handshake, token string) handshake
	answer  string // subprotocol of the 101
}

var carriers = []carrier{
	{"header", func(h handshake, token string) handshake {
		return h.with("Authorization: Bearer " + token)
	}, ""},
	{"query", func(h handshake, token string) handshake {
		return h.toPath("?a=1&access_token=" + token + "&b=2")
	}, ""},
	{"cookie", func(h handshake, token string) handshake {
		return h.with("Cookie: a=1; session=" + token + "; b=2").fromOrigin("https://app.example.com")
	}, ""},
	{"subprotocol pair", func(h handshake, token string) handshake {
		return h.offering("bearer", token, "chat.v1")
	}, "chat.v1"},
	{"subprotocol prefix", func(h handshake, token string) handshake {
		return h.offering("bearer."+token, "chat.v1")
	}, "chat.v1"},
}

// Every token source with every kind of key, from a JWKS over HTTP and HTTPS.
func TestCarriers(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "http", true: "https"}[secure], func(t *testing.T) {
			t.Parallel()
			p := newIDPOn(t, secure, "")
			e := newEcho(t)
			g := wiring{idp: p, upstream: e.addr, gate: `
				from_header Authorization
				from_query access_token
				from_cookies session
				from_subprotocol bearer
				origins https://app.example.com same_origin
			`}.start(t)
			for _, c := range carriers {
				for _, alg := range algorithms {
					t.Run(c.name+"/"+alg, func(t *testing.T) {
						user := alg + "-" + strings.ReplaceAll(c.name, " ", "-")
						token := p.mint(alg, claims{"sub": user})
						g.guard(token)
						ws := g.open(t, c.present(hello(), token))
						if got := ws.answer.header.Get("Sec-Websocket-Protocol"); got != c.answer {
							t.Errorf("the 101 says subprotocol %q, want %q", got, c.answer)
						}
						if strings.Contains(ws.answer.text, token) { // S-123
							t.Error("the 101 holds the token")
						}
						ws.send(masked(0x81, []byte("hello "+user)))
						ws.expectBytes(unmasked(0x81, []byte("hello "+user)))

						r := e.last(t)
						if got := r.Header.Values("X-User-Id"); !slices.Equal(got, []string{user}) {
							t.Errorf("the backend saw X-User-Id %q, want %q", got, user)
						}
						if dump := fmt.Sprint(r.RequestURI, r.Header); strings.Contains(dump, token) { // S-118
							t.Errorf("the backend saw the token: %s", dump)
						}
					})
				}
			}
		})
	}
}

// Discovery, a file and a shared secret give keys too.
func TestKeySources(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	e := newEcho(t)
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, p.set(), 0o600); err != nil {
		t.Fatal(err)
	}
	shared := random(32)
	try := func(name, block string, token func() string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := wiring{upstream: e.addr, gate: block}.start(t)
			tok := token()
			g.guard(tok)
			c := g.open(t, bearer(tok))
			c.send(masked(0x81, []byte(name)))
			c.expectBytes(unmasked(0x81, []byte(name)))
			g.refused(t, bearer(p.mint("ES256", claims{"exp": 1_000_000_000})), http.StatusUnauthorized)
		})
	}
	good := func() string { return p.mint("EdDSA", nil) }
	try("discovery", fmt.Sprintf("issuer %s {\n audience chat\n}", p.issuer), good)
	try("file", fmt.Sprintf("issuer %s {\n jwks_file %s\n audience chat\n}", p.issuer, file), good)
	try("any issuer", fmt.Sprintf("issuer any {\n jwks %s\n audience chat\n}", p.jwksURL()),
		func() string { return p.mint("RS256", claims{"iss": nil}) })
	try("any audience", fmt.Sprintf("issuer %s {\n jwks %s\n audience any\n}\nissuer https://other.example {\n jwks_file %s\n audience x\n}", p.issuer, p.jwksURL(), file), func() string {
		return p.mint("RS256", claims{"aud": "other", "nbf": nil})
	})
	for name, encoded := range map[string]string{"standard": base64Std(shared), "url": b64(shared)} {
		try("secret, "+name+" base64", fmt.Sprintf("issuer any {\n secret %s\n audience chat\n}", encoded), func() string {
			return hs256(shared, `{"alg":"HS256","typ":"JWT"}`, p.usual(claims{"iss": "me"}))
		})
	}
}

// routes is one process with a plain and a TLS site before a plain, a TLS and
// a unix-socket backend.
type routes struct {
	*gate
	idp      *idp
	backends map[string]*backend
	secure   string // address of the TLS site
}

func startRoutes(t *testing.T, options string) routes {
	t.Helper()
	r := routes{idp: newIDP(t), backends: map[string]*backend{
		"plain": newBackend(t), "tls": newTLSBackend(t), "unix": newUnixBackend(t),
	}}
	site := fmt.Sprintf(`
	ws_gate /ws* {
		issuer %s {
			jwks %s
			audience chat
		}
		%s
	}
	reverse_proxy /ws/plain %s {
		transport ws_tunnel
	}
	reverse_proxy /ws/tls %s {
		transport ws_tunnel {
			tls_trust_pool file {{dir}}/ca.pem
		}
	}
	reverse_proxy /ws/unix %s {
		transport ws_tunnel
	}
`, r.idp.issuer, r.idp.jwksURL(), options, r.backends["plain"].addr, r.backends["tls"].addr, r.backends["unix"].addr)
	r.gate = start(t, fmt.Sprintf(`{
	admin 127.0.0.1:{{admin}}
	auto_https off
	debug
	persist_config off
	grace_period 2s
}
http://127.0.0.1:{{port}} {
	%s
}
https://localhost:{{port2}} {
	bind 127.0.0.1
	tls {{dir}}/cert.pem {{dir}}/key.pem
	%s
}
`, site, site))
	config, err := os.ReadFile(filepath.Join(r.dir, "Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(config), "https://localhost:")
	port, _, _ := strings.Cut(rest, " ")
	r.secure = "127.0.0.1:" + port
	return r
}

// Frames of every kind arrive byte for byte, both ways, whatever carries them.
func TestRelay(t *testing.T) {
	t.Parallel()
	r := startRoutes(t, "ping_interval 0")
	big := random(16 << 20)
	for _, secure := range []bool{false, true} {
		for name, b := range r.backends {
			t.Run(fmt.Sprintf("client tls %v, backend %s", secure, name), func(t *testing.T) {
				addr := r.addr
				if secure {
					addr = r.secure
				}
				c := r.openTo(t, addr, secure, bearer(r.idp.token(r.gate, nil)).to("/ws/"+name))
				u := b.next(t)
				for _, m := range []struct {
					name    string
					first   []byte // first bytes of the frames
					payload [][]byte
				}{
					{"text", []byte{0x81}, [][]byte{[]byte("grüße")}},
					{"binary", []byte{0x82}, [][]byte{random(1000)}},
					{"empty", []byte{0x82, 0x81}, [][]byte{nil, nil}}, // S-179
					{"lengths", []byte{0x82, 0x82, 0x82, 0x82}, [][]byte{random(125), random(126), random(65535), random(65536)}},
					{"fragmented", []byte{0x01, 0x00, 0x89, 0x00, 0x80}, [][]byte{[]byte("a"), nil, []byte("ping"), []byte("b"), []byte("c")}},
					{"ping", []byte{0x89, 0x89}, [][]byte{[]byte("are you there"), nil}},
					{"pong", []byte{0x8A, 0x8A}, [][]byte{[]byte("unasked"), nil}}, // S-157
					{"invalid utf-8", []byte{0x81}, [][]byte{{0xC3, 0x28}}},        // S-175
					{"16 MiB", []byte{0x82}, [][]byte{big}},
				} {
					var up, down []byte
					for i, first := range m.first {
						up = append(up, masked(first, m.payload[i])...)
						down = append(down, unmasked(first, m.payload[i])...)
					}
					t.Run(m.name, func(t *testing.T) {
						go func() { _, _ = c.Write(up) }()
						u.t, c.t = t, t
						u.expectBytes(up)
						go func() { _, _ = u.Write(down) }()
						c.expectBytes(down)
					})
				}
			})
		}
	}
}

// gorillaDial opens a socket as gorilla's client does.
func gorillaDial(t *testing.T, g *gate, header http.Header, edit func(*websocket.Dialer)) (*websocket.Conn, *http.Response) {
	t.Helper()
	d := &websocket.Dialer{HandshakeTimeout: patience, EnableCompression: true}
	scheme := "ws"
	host := g.addr
	if g.tls {
		scheme = "wss"
		host = strings.Replace(host, "127.0.0.1", "localhost", 1)
		d.TLSClientConfig = &tls.Config{RootCAs: certPool()}
	}
	if edit != nil {
		edit(d)
	}
	var ws *websocket.Conn
	var resp *http.Response
	eventually(t, "an answer other than 503", func() bool {
		var err error
		ws, resp, err = d.Dial((&url.URL{Scheme: scheme, Host: host, Path: "/ws"}).String(), header)
		if err != nil && resp != nil && resp.StatusCode == http.StatusServiceUnavailable {
			return false
		}
		if err != nil {
			t.Fatalf("dialling: %v", err)
		}
		return true
	})
	t.Cleanup(func() { ws.Close() })
	return ws, resp
}

// permessage-deflate is between the client and the backend.
func TestCompression(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "tls"}[secure], func(t *testing.T) {
			t.Parallel()
			p := newIDP(t)
			e := newEcho(t)
			g := wiring{idp: p, upstream: e.addr, tls: secure, gate: "ping_interval 100ms\npong_timeout 20s"}.start(t) // S-143: pings among compressed frames
			ws, resp := gorillaDial(t, g, http.Header{"Authorization": {"Bearer " + p.token(g, nil)}}, nil)
			if got := resp.Header.Get("Sec-Websocket-Extensions"); !strings.HasPrefix(got, "permessage-deflate") {
				t.Fatalf("the 101 says extensions %q", got)
			}
			if got := e.last(t).Header.Get("Sec-Websocket-Extensions"); !strings.HasPrefix(got, "permessage-deflate") {
				t.Fatalf("the backend was offered %q", got)
			}
			for i, size := range []int{0, 1, 100, 5000, 300_000} {
				for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
					message := bytes.Repeat([]byte("compressible "), size/13+1)[:size]
					_ = ws.SetWriteDeadline(time.Now().Add(patience))
					_ = ws.SetReadDeadline(time.Now().Add(patience))
					if err := ws.WriteMessage(kind, message); err != nil {
						t.Fatal(err)
					}
					gotKind, got, err := ws.ReadMessage()
					if err != nil {
						t.Fatal(err)
					}
					if gotKind != kind || !bytes.Equal(got, message) {
						t.Fatalf("message %d came back as kind %d, %d bytes", i, gotKind, len(got))
					}
				}
			}
		})
	}
}

// The one-line directive is the same thing.
func TestOneLine(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	e := newEcho(t)
	g := start(t, fmt.Sprintf(`{
	admin 127.0.0.1:{{admin}}
	auto_https off
	persist_config off
}
http://127.0.0.1:{{port}} {
	ws_proxy /ws* %s {
		issuer %s {
			jwks %s
			audience chat
		}
		identity X-Who sub
		header_up X-Added {http.auth.user.id}
	}
}
`, e.addr, p.issuer, p.jwksURL()))
	c := g.open(t, bearer(p.token(g, nil)))
	c.send(masked(0x81, []byte("x")))
	c.expectBytes(unmasked(0x81, []byte("x")))
	r := e.last(t)
	if r.Header.Get("X-Who") != "alice" || r.Header.Get("X-Added") != "alice" {
		t.Errorf("the backend saw X-Who %q, X-Added %q", r.Header.Get("X-Who"), r.Header.Get("X-Added"))
	}
	if got := r.Header.Get("X-User-Id"); got != "" {
		t.Errorf("an identity line replaces the default one, but the backend saw X-User-Id %q", got)
	}
	g.refused(t, hello(), http.StatusUnauthorized)
}
