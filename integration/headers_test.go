package integration

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// seen is what the backend saw of a handshake that went through.
func seen(t *testing.T, g *gate, b *backend, h handshake) *upstream {
	t.Helper()
	c := g.open(t, h)
	u := b.next(t)
	c.Close()
	return u
}

// folded is a header's name as CGI, WSGI and PHP fold it.
func folded(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, name)
}

// values returns the values of every header that an application could take
// for name.
func values(u *upstream, name string) []string {
	var found []string
	for _, line := range strings.Split(u.head, "\r\n")[1:] {
		if k, v, ok := strings.Cut(line, ":"); ok && folded(k) == folded(name) {
			found = append(found, k+": "+strings.TrimSpace(v))
		}
	}
	return found
}

// What the client says of itself never reaches the backend; what the token
// says does.
func TestIdentityHeaders(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	// Caddy drops names with _ and . by default, which would hide a hole of ours.
	aliases := []string{"X_User_Id", "X-User_Id", "X_User-Id", "x_user-id", "x_user_id", "X__User-Id", "X.User.Id", "X-User.Id", "x.user_id"}
	g := wiring{idp: p, upstream: b.addr,
		global: "servers {\nexpected_underscore_headers X_User_Id X-User_Id X_User-Id x_user-id x_user_id X__User-Id X_Kept x.user_id X-User_Roles\n" +
			"expected_dot_headers X.User.Id X-User.Id x.user_id X.Kept\n}",
		gate: "identity X-User-Id sub\nidentity X-User-Roles realm_access.roles",
	}.start(t)
	token := p.token(g, nil)

	spoofs := [][]string{
		{"X-User-Id: admin"}, {"x-user-id: admin"}, {"X-USER-ID: admin"}, // S-102
		{"X-User-Id: admin", "X-User-Id: admin", "x-user-id: admin"},
		{"X-User-Id:"}, {"X-User-Id: alice", "X-User-Id:"},
	}
	for _, a := range aliases { // S-103
		spoofs = append(spoofs, []string{a + ": admin"})
	}
	for _, lines := range spoofs {
		t.Run(strings.Join(lines, ","), func(t *testing.T) {
			u := seen(t, g, b, bearer(token, lines...))
			if got := values(u, "X-User-Id"); !slices.Equal(got, []string{"X-User-Id: alice"}) {
				t.Errorf("the backend saw %q", got)
			}
		})
	}

	t.Run("S-104 a claim that is absent leaves no header", func(t *testing.T) {
		u := seen(t, g, b, bearer(token, "X-User-Roles: admin", "X-User_Roles: admin"))
		if got := values(u, "X-User-Roles"); len(got) != 0 {
			t.Errorf("the backend saw %q", got)
		}
	})
	t.Run("nested claims and arrays", func(t *testing.T) {
		u := seen(t, g, b, bearer(p.token(g, claims{"realm_access": map[string]any{"roles": []string{"reader", "writer"}}}), "X-User-Roles: admin"))
		if got := values(u, "X-User-Roles"); !slices.Equal(got, []string{"X-User-Roles: reader,writer"}) {
			t.Errorf("the backend saw %q", got)
		}
	})
	t.Run("S-105 Connection does not remove them", func(t *testing.T) {
		for _, lines := range [][]string{
			{"Connection: Upgrade, X-User-Id, x-user-id"},
			{"Connection: Upgrade", "Connection: X-User-Id"},
			{"Connection: X-User-Id, close, Upgrade"},
			{"Connection: keep-alive, Upgrade"},
		} {
			u := seen(t, g, b, bearer(token, "X-User-Id: admin").instead("Connection", lines...))
			if got := values(u, "X-User-Id"); !slices.Equal(got, []string{"X-User-Id: alice"}) {
				t.Errorf("%q: the backend saw %q", lines, got)
			}
			if got := u.req.Header.Values("Connection"); !slices.Equal(got, []string{"Upgrade"}) {
				t.Errorf("%q: the backend saw Connection %q, want exactly Upgrade", lines, got)
			}
		}
	})
	t.Run("what Connection names is for the gate alone", func(t *testing.T) {
		u := seen(t, g, b, bearer(token, "X-Hop: 1", "X-Stays: 2", "Keep-Alive: timeout=5", "Te: trailers").instead("Connection", "Connection: Upgrade, x-hop"))
		if got := values(u, "X-Hop"); len(got) != 0 {
			t.Errorf("the backend saw %q", got)
		}
		if got := values(u, "X-Stays"); len(got) != 1 {
			t.Errorf("the backend saw %q", got)
		}
	})
	t.Run("S-108 control characters in claims", func(t *testing.T) {
		for _, sub := range []string{"a\r\nX-Admin: 1", "a\nb", "a\rb", "a\x00b", "a\x0bb", "a\x7fb", "a\tb", " a", "a ", "\ta"} {
			b.untouched(t, func() {
				g.refused(t, bearer(p.token(g, claims{"sub": sub})), http.StatusUnauthorized)
			})
			b.untouched(t, func() { // in a mapped claim that is not the user
				g.refused(t, bearer(p.token(g, claims{"realm_access": map[string]any{"roles": sub}})), http.StatusUnauthorized)
			})
		}
		b.untouched(t, func() {
			g.refused(t, bearer(p.token(g, claims{"realm_access": map[string]any{"roles": []string{"a,admin"}}})), http.StatusUnauthorized)
		})
	})
	t.Run("S-51 a claim is not expanded", func(t *testing.T) {
		for _, sub := range []string{"{env.HOME}", "{file./etc/hostname}", "{http.request.header.Cookie}", "{{", "{http.auth.user.id}"} {
			u := seen(t, g, b, bearer(p.token(g, claims{"sub": sub})))
			if got := u.req.Header.Get("X-User-Id"); got != sub {
				t.Errorf("sub %q reached the backend as %q", sub, got)
			}
		}
	})
	t.Run("S-111 X-Forwarded-For is not the client's to say", func(t *testing.T) {
		u := seen(t, g, b, bearer(token, "X-Forwarded-For: 10.9.8.7", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil.test"))
		if got := u.req.Header.Get("X-Forwarded-For"); got != "127.0.0.1" {
			t.Errorf("X-Forwarded-For %q", got)
		}
		if got := u.req.Header.Get("X-Forwarded-Proto"); got != "http" {
			t.Errorf("X-Forwarded-Proto %q", got)
		}
	})
	t.Run("S-118 everything else is as it was sent", func(t *testing.T) {
		u := seen(t, g, b, bearer(token, `Cookie: a=1; b="x y"; c=`, "Cookie: d=4", "X-Custom: One", "X-Custom: two",
			"X_Kept: 1", "X.Kept: 2", "User-Agent: tester", "Accept-Language: de,en;q=0.5"))
		for name, want := range map[string][]string{
			"Cookie": {`a=1; b="x y"; c=`, "d=4"}, "X-Custom": {"One", "two"}, "X_Kept": {"1"}, "X.Kept": {"2"},
			"User-Agent": {"tester"}, "Accept-Language": {"de,en;q=0.5"}, "Authorization": nil,
		} {
			var got []string
			for k, v := range u.req.Header {
				if strings.EqualFold(k, name) {
					got = append(got, v...)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: the backend saw %q, want %q", name, got, want)
			}
		}
	})
}

// The token's carrier goes, every other byte stays.
func TestStripping(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: `
		from_header Authorization
		from_header X-Api-Token
		from_query token
		from_cookies session
		from_subprotocol bearer
		missing_origin allow
		origins https://app.example.com
	`}.start(t)
	token := p.mint("ES256", nil)
	g.guard(token)

	for _, q := range []struct{ sent, want string }{ // S-114
		{"/ws?a=1&token=T&b=%2F+x&a=2&c", "/ws?a=1&b=%2F+x&a=2&c"},
		{"/ws?token=T", "/ws"},
		{"/ws?token=T&a=1", "/ws?a=1"},
		{"/ws?a=1&token=T", "/ws?a=1"},
		{"/ws?%74oken=T&a=1", "/ws?a=1"},
		{"/ws?Token=x&token=T&tokens=y&=&&x=%zz", "/ws?Token=x&tokens=y&=&&x=%zz"},
		{"/ws/%41%2fb//c?a=b=c&token=T", "/ws/%41%2fb//c?a=b=c"},
	} {
		t.Run(q.sent, func(t *testing.T) {
			u := seen(t, g, b, hello().to(strings.ReplaceAll(q.sent, "=T", "="+token)))
			target := strings.Fields(u.head)[1]
			if target != q.want {
				t.Errorf("the backend saw %s, want %s", target, q.want)
			}
		})
	}

	for _, c := range []struct{ sent, want []string }{ // S-118
		{[]string{`a=1; session=T; b="x y"`}, []string{`a=1; b="x y"`}},
		{[]string{`session=T; a=1`}, []string{`a=1`}},
		{[]string{`a=1; session=T`}, []string{`a=1`}},
		{[]string{`session=T`}, nil},
		{[]string{`a=1;b=2; session=T;c=3`, "sessions=x; Session=y"}, []string{`a=1;b=2;c=3`, "sessions=x; Session=y"}},
		{[]string{"a=1", "session=T"}, []string{"a=1"}},
	} {
		t.Run(strings.Join(c.sent, "|"), func(t *testing.T) {
			h := hello().fromOrigin("https://app.example.com")
			for _, line := range c.sent {
				h = h.with("Cookie: " + strings.ReplaceAll(line, "=T", "="+token))
			}
			u := seen(t, g, b, h)
			got := u.req.Header.Values("Cookie")
			normal := func(s []string) string { // one blank more or less around a removed pair is nobody's meaning
				return strings.ReplaceAll(strings.Join(s, "|"), "; ", ";")
			}
			if normal(got) != normal(c.want) {
				t.Errorf("the backend saw %q, want %q", got, c.want)
			}
			if len(c.want) > 0 && c.want[0] == `a=1; b="x y"` && !slices.Equal(got, c.want) {
				t.Errorf("the backend saw %q, want %q", got, c.want)
			}
		})
	}

	t.Run("another header, bare and with the scheme", func(t *testing.T) {
		for _, value := range []string{token, "Bearer " + token} {
			u := seen(t, g, b, hello("X-Api-Token: "+value))
			if strings.Contains(u.head, token) {
				t.Errorf("the backend saw the token: %q", u.head)
			}
		}
	})

	for _, s := range []struct { // S-123
		offer  []string // T is the token
		want   []string // what the backend is offered
		chosen string   // what the backend chooses
		answer string   // what the client is told
	}{
		{[]string{"bearer", "T", "chat.v1"}, []string{"chat.v1"}, "chat.v1", "chat.v1"},
		{[]string{"chat.v1", "bearer", "T"}, []string{"chat.v1"}, "chat.v1", "chat.v1"},
		{[]string{"bearer", "T", "chat.v1"}, []string{"chat.v1"}, "", "bearer"},
		{[]string{"bearer", "T"}, nil, "", "bearer"},
		{[]string{"bearer.T", "chat.v1"}, []string{"chat.v1"}, "chat.v1", "chat.v1"},
		{[]string{"chat.v2", "bearer.T", "chat.v1"}, []string{"chat.v2", "chat.v1"}, "chat.v1", "chat.v1"},
		{[]string{"bearer.T", "chat.v1"}, []string{"chat.v1"}, "", ""},
	} {
		t.Run("offer "+strings.Join(s.offer, ",")+" choose "+s.chosen, func(t *testing.T) {
			b.answers(func(u *upstream) string {
				if s.chosen == "" {
					return accept(u)
				}
				return accept(u, "Sec-WebSocket-Protocol: "+s.chosen)
			})
			defer b.answers(nil)
			var offer []string
			for _, o := range s.offer {
				offer = append(offer, strings.ReplaceAll(o, "T", token))
			}
			c := g.open(t, hello().offering(offer...))
			u := b.next(t)
			var offered []string
			for _, v := range u.req.Header.Values("Sec-Websocket-Protocol") {
				for _, o := range strings.Split(v, ",") {
					offered = append(offered, strings.TrimSpace(o))
				}
			}
			if !slices.Equal(offered, s.want) {
				t.Errorf("the backend was offered %q, want %q", offered, s.want)
			}
			if got := strings.Join(c.answer.header.Values("Sec-Websocket-Protocol"), "|"); got != s.answer {
				t.Errorf("the client was told %q, want %q", got, s.answer)
			}
			if strings.Contains(u.head, token) || strings.Contains(c.answer.text, token) {
				t.Error("the token went on")
			}
		})
	}
	t.Run("the prefix form alone", func(t *testing.T) { // S-123: a browser would fail otherwise
		b.untouched(t, func() {
			a := g.refused(t, hello().offering("bearer."+token), http.StatusBadRequest)
			if !strings.Contains(strings.ToLower(a.text+a.body), "subprotocol") {
				t.Errorf("the answer does not say to offer one more subprotocol: %s%s", a.text, a.body)
			}
		})
	})
	t.Run("subprotocols without a token pass", func(t *testing.T) {
		b.answers(func(u *upstream) string { return accept(u, "Sec-WebSocket-Protocol: chat.v1") })
		defer b.answers(nil)
		u := seen(t, g, b, bearer(token).offering("chat.v1", "chat.v2"))
		if got := u.req.Header.Get("Sec-Websocket-Protocol"); strings.ReplaceAll(got, " ", "") != "chat.v1,chat.v2" {
			t.Errorf("the backend was offered %q", got)
		}
	})

	t.Run("the same token in two places", func(t *testing.T) { // no two different ones, so no 400
		u := seen(t, g, b, bearer(token, "X-Api-Token: "+token).toPath("?a=1&token="+token))
		if strings.Contains(u.head, token) || strings.Fields(u.head)[1] != "/ws?a=1" {
			t.Errorf("the backend saw %q", u.head)
		}
	})

	// S-119: one token, once.
	other := p.mint("ES256", claims{"sub": "mallory"})
	g.guard(other)
	cookie := "Cookie: session=" + token
	origin := "Origin: https://app.example.com"
	for name, h := range map[string]handshake{
		"header and query":           bearer(token).toPath("?token=" + other),
		"header and cookie":          bearer("garbage", cookie, origin),
		"header and subprotocol":     bearer(token).offering("bearer", other, "chat.v1"),
		"header twice":               bearer(token, "Authorization: Bearer "+other),
		"the same header twice":      bearer(token, "Authorization: Bearer "+token),
		"query twice":                hello().toPath("?token=" + token + "&token=" + token),
		"query twice, one empty":     hello().toPath("?token=" + token + "&token="),
		"query twice, one encoded":   hello().toPath("?token=" + token + "&%74oken=" + token),
		"cookie twice":               hello(cookie+"; session="+token, origin),
		"cookie twice, in two lines": hello(cookie, cookie, origin),
		"cookie twice, one empty":    hello(cookie+"; session=", origin),
		"subprotocol, both forms":    hello().offering("bearer", token, "bearer."+token, "chat.v1"),
		"subprotocol prefix twice":   hello().offering("bearer."+token, "bearer."+other, "chat.v1"),
		"two headers that take it":   bearer(token, "X-Api-Token: "+other),
		"header and an empty query":  bearer(token).toPath("?token="),
		"header and an empty cookie": bearer(token, "Cookie: session=", origin),
		"pair in two lines, twice":   hello().offering("bearer", token).offering("bearer", token),
	} {
		t.Run(name, func(t *testing.T) {
			b.untouched(t, func() { g.refused(t, h, http.StatusBadRequest) })
		})
	}
}

// forward_token leaves the token where the client put it.
func TestForwardToken(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "forward_token\nfrom_header Authorization\nfrom_query token"}.start(t)
	// Not guarded in the log: Caddy's debug lines show what goes to the backend.
	token := p.mint("ES256", nil)
	if u := seen(t, g, b, bearer(token)); u.req.Header.Get("Authorization") != "Bearer "+token {
		t.Errorf("the backend saw Authorization %q", u.req.Header.Get("Authorization"))
	}
	target := "/ws?a=1&token=" + token + "&b=2"
	if u := seen(t, g, b, hello().to(target)); strings.Fields(u.head)[1] != target {
		t.Errorf("the backend saw %s", strings.Fields(u.head)[1])
	}
}

// S-121: how the scheme may be written.
func TestScheme(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	token := p.token(g, nil)
	for _, scheme := range []string{"Bearer", "bearer", "BEARER", "bEaReR"} {
		seen(t, g, b, hello("Authorization: "+scheme+" "+token))
	}
	for _, value := range []string{"Bearer", "Bearer ", "Basic " + token, "Token " + token, "Bearer " + token + " x",
		"Bearer a b", token, "Bearer\t" + token + "\tx", `Bearer "` + token + `"`, "Bearer " + token + ","} {
		b.untouched(t, func() {
			a := g.settled(t, hello("Authorization: "+value))
			if a.status != http.StatusUnauthorized && a.status != http.StatusBadRequest {
				t.Errorf("Authorization: %s: status %d", strings.ReplaceAll(value, token, "T"), a.status)
			}
		})
	}
}

// The placeholders that the gate sets hold what the token says.
func TestPlaceholders(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, proxy: `
		header_up X-Id {http.auth.user.id}
		header_up X-Name {http.auth.user.name}
		header_up X-Level {http.auth.user.level}
		header_up X-Admin {http.auth.user.admin}
		header_up X-Conn {http.ws_gate.connection_id}
	`}.start(t)
	u := seen(t, g, b, bearer(p.token(g, claims{"name": "Alice {env.HOME}", "level": 7, "admin": true})))
	for name, want := range map[string]string{"X-Id": "alice", "X-Name": "Alice {env.HOME}", "X-Level": "7", "X-Admin": "true"} {
		if got := u.req.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if u.req.Header.Get("X-Conn") == "" {
		t.Error("{http.ws_gate.connection_id} is empty")
	}
}

// S-116: at debug level, in every path and from every source, no token is in
// Caddy's log or in the access log.
func TestTokenNotLogged(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, site: "log {\n" + redaction + "\n}", gate: `
		from_header Authorization
		from_query access_token
		from_query token
		from_cookies session
		from_subprotocol bearer
		origins https://app.example.com
	`}.start(t)
	for _, token := range []string{
		p.mint("RS256", nil), p.mint("ES256", nil), p.mint("EdDSA", nil),
		p.mint("ES256", claims{"exp": 1_000_000_000}), p.mint("ES256", claims{"aud": "other"}), p.mint("ES256", claims{"iss": "https://other.example"}),
		p.mintWith(newECKey("nobody's"), nil), p.mintWith(newECKey("ec-1"), nil),
		p.mint("ES256", nil) + "x", "x." + p.mint("ES256", nil),
	} {
		g.guard(token)
		for _, c := range carriers {
			h := c.present(hello(), token)
			for _, h := range []handshake{
				h, h.without("Origin").fromOrigin("https://evil.test"), h.without("Sec-WebSocket-Key"),
				h.as("POST"), h.with("Authorization: Bearer other"), h.toPath("&token=" + token),
			} {
				g.settled(t, h)
			}
		}
		// A backend that fails, and one that refuses, make lines of their own.
		for _, text := range []string{"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "no HTTP\r\n\r\n"} {
			b.answers(func(*upstream) string { return text })
			g.settled(t, hello().toPath("?token="+token))
			b.answers(nil)
		}
	}
	for _, msg := range []string{"handshake refused", "connection opened", "connection closed", "handled request"} {
		eventually(t, "a line of the log: "+msg, func() bool { return len(g.entries(msg)) > 0 })
	}
}

// S-210: what a client writes makes no line of its own, and no control
// character is in one.
func TestLogInjection(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	evil := "\r\n{\"level\":\"error\",\"msg\":\"forged\"}\x1b[2J"
	kid, _ := json.Marshal(evil)
	es := commonKeys()["ES256"]
	for _, token := range []string{
		es.compact(`{"alg":"ES256","kid":`+string(kid)+`}`, p.usual(nil)), // S-19
		es.compact(`{"alg":`+string(kid)+`,"kid":"ec-1"}`, p.usual(nil)),
		p.mint("ES256", claims{"iss": evil}), p.mint("ES256", claims{"sub": evil}), p.mint("ES256", claims{"aud": evil}),
	} {
		g.refused(t, bearer(token), http.StatusUnauthorized)
	}
	g.refused(t, bearer(p.mint("ES256", nil)).fromOrigin(`https://a"b\u001b[2J`), http.StatusForbidden)
	eventually(t, "refusals in the log", func() bool { return len(g.entries("handshake refused")) >= 6 })
	for _, line := range g.lines() {
		if !json.Valid([]byte(line)) {
			t.Errorf("a line is no JSON: %q", line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			t.Errorf("a line holds a control character: %q", line)
		}
	}
	if len(g.entries("forged")) > 0 {
		t.Error("a client wrote a line into the log")
	}
}
