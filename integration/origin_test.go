package integration

import (
	"net/http"
	"strings"
	"testing"
)

// Who may open a socket from where: S-76 to S-80.
func TestOrigin(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: `
		from_header Authorization
		from_query access_token
		from_cookies session
		from_subprotocol bearer
		origins https://example.com https://*.example.org http://plain.example:8080 same_origin
	`}.start(t)
	token := p.mint("ES256", nil)
	g.guard(token)
	with := map[string]func() handshake{
		"header":      func() handshake { return bearer(token) },
		"query":       func() handshake { return hello().toPath("?access_token=" + token) },
		"cookie":      func() handshake { return hello("Cookie: session=" + token) },
		"subprotocol": func() handshake { return hello().offering("bearer", token, "chat.v1") },
	}
	seen(t, g, b, bearer(token))
	host := g.addr
	_, port, _ := strings.Cut(host, ":")

	for _, origin := range []string{
		"https://example.com", "https://EXAMPLE.com", "HTTPS://example.com", "https://example.com:443", // S-80
		"https://a.example.org", "https://a.b.example.org", "https://a.example.org:443",
		"http://plain.example:8080", "http://" + host,
	} {
		for _, carried := range []string{"header", "cookie"} {
			t.Run(carried+" "+origin, func(t *testing.T) {
				seen(t, g, b, with[carried]().fromOrigin(origin))
			})
		}
	}
	for _, origins := range [][]string{
		{"https://evil.test"},                                             // S-76
		{"null"}, {"NULL"}, {"null "}, {""}, {"file://"}, {"about:blank"}, // S-78
		{"https://evil-example.com"}, {"https://example.com.evil.com"}, {"https://exampleXcom"}, // S-79
		{"https://example.com@evil.com"}, {"https://evil.com#example.com"}, {"https://evil.com/example.com"}, {"https://example.com%2eevil.com"},
		{"https://user@example.com"}, {"https://example.com/"}, {"https://example.com/path"}, {"https://example.com?"}, {"https://example.com."},
		{"https://example.org"}, {"https://evilexample.org"}, {"https://.example.org"}, {"https://a.example.org.evil.com"}, {"https://a.example.org."},
		{"https://evil.com/.example.org"}, {"https://evil.com#.example.org"}, {"https://evil.com:1.example.org"}, {"https://*.example.org"},
		{"http://example.com"}, {"https://example.com:8443"}, {"https://example.com:80"}, {"https://example.com:"}, // S-80
		{"wss://example.com"}, {"http://plain.example"}, {"http://a.example.org"},
		{"https://" + host}, {"http://127.0.0.1"}, {"http://127.0.0.1:1"}, {"http://localhost:" + port},
		{"https://example.com https://evil.test"}, {"https://example.com, https://example.com"},
		{"https://example.com", "https://example.com"}, {"https://example.com", "https://evil.test"},
	} {
		t.Run(strings.Join(origins, " and "), func(t *testing.T) {
			for _, carried := range []string{"header", "query", "cookie", "subprotocol"} {
				b.untouched(t, func() {
					h := with[carried]()
					for _, o := range origins {
						h = h.fromOrigin(o)
					}
					a := g.refused(t, h, http.StatusForbidden)
					if strings.Contains(a.text+a.body, "example.com") {
						t.Errorf("the answer tells the list: %s%s", a.text, a.body)
					}
				})
			}
		})
	}
	// S-77: no Origin is no browser, so nothing ambient speaks for the client.
	for _, carried := range []string{"header", "query", "subprotocol"} {
		seen(t, g, b, with[carried]())
	}
	b.untouched(t, func() { g.refused(t, with["cookie"](), http.StatusForbidden) })
	// Origin is judged before the token.
	b.untouched(t, func() { g.refused(t, hello().fromOrigin("https://evil.test"), http.StatusForbidden) })
}

func TestMissingOriginDenied(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "missing_origin deny"}.start(t)
	token := p.token(g, nil)
	seen(t, g, b, bearer(token).fromOrigin("http://"+g.addr))
	b.untouched(t, func() { g.refused(t, bearer(token), http.StatusForbidden) })                           // S-77
	b.untouched(t, func() { g.refused(t, bearer(token).fromOrigin("null"), http.StatusForbidden) })        // S-78
	b.untouched(t, func() { g.refused(t, bearer(token).fromOrigin("https://a.b"), http.StatusForbidden) }) // S-76
}

// By default only the site itself may open a socket.
func TestSameOriginByDefault(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, tls: true}.start(t)
	token := p.token(g, nil)
	_, port, _ := strings.Cut(g.addr, ":")
	seen(t, g, b, bearer(token).fromOrigin("https://localhost:"+port))
	for _, o := range []string{"http://localhost:" + port, "https://localhost", "https://127.0.0.1:" + port, "https://evil.test", "null"} {
		b.untouched(t, func() { g.refused(t, bearer(token).fromOrigin(o), http.StatusForbidden) })
	}
}
