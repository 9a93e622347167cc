package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a token says decides who gets in and what the backend is told.
func TestClaims(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := startSeveral(t, []*idp{p}, "",
		gated{name: "one", upstream: b.addr, gate: "require scope chat:write chat:admin"},
		gated{name: "two", upstream: b.addr, gate: "require scope chat:write\nrequire realm_access.roles writer\nrequire https://example.com/tier 3\nrequire verified true"},
		gated{name: "nested", upstream: b.addr, gate: "user_claim act.user.id"},
		gated{name: "dotted", upstream: b.addr, gate: "user_claim https://example.com/user"},
		gated{name: "lines", upstream: b.addr, gate: `
			identity X-User sub
			identity X-Roles realm_access.roles
			identity X-Tier https://example.com/tier
			identity X-Namespace kubernetes.io.serviceaccount.name
			identity X-Level level
			identity X-Admin admin
			identity X-Both a.b
		`},
	)
	type object = map[string]any
	in := func(t *testing.T, gate string, c claims) *upstream {
		t.Helper()
		return seen(t, g, b, at(gate, p.token(g, c)))
	}
	out := func(t *testing.T, gate string, c claims, status int, code string) {
		t.Helper()
		b.untouched(t, func() {
			a := g.refused(t, at(gate, p.token(g, c)), status)
			if want := fmt.Sprintf(`Bearer realm=%q, error=%q`, gate, code); a.header.Get("Www-Authenticate") != want {
				t.Errorf("WWW-Authenticate %q, want %q", a.header.Get("Www-Authenticate"), want)
			}
		})
	}

	t.Run("require", func(t *testing.T) {
		for _, scope := range []any{"chat:write", "chat:admin", "a chat:write b", "chat:write a", []string{"a", "chat:write"}, []any{1, "chat:admin"}} {
			in(t, "one", claims{"scope": scope})
		}
		for _, scope := range []any{nil, "", "chat", "chat:writer", "xchat:write", "CHAT:WRITE", "chat:write,chat:read", "a\tchat:write", "chat:\u00adwrite",
			[]string{}, []string{"a chat:write"}, [][]string{{"chat:write"}}, object{"chat:write": true}, true, 1} {
			out(t, "one", claims{"scope": scope}, http.StatusForbidden, "insufficient_scope")
		}
	})
	t.Run("every line of require", func(t *testing.T) {
		full := func() claims {
			return claims{"scope": "chat:write", "realm_access": object{"roles": []string{"reader", "writer"}}, "https://example.com/tier": 3, "verified": true}
		}
		in(t, "two", full())
		for name, value := range map[string]any{"scope": "x", "realm_access": object{"roles": []string{"reader"}}, "https://example.com/tier": 4, "verified": false} {
			for _, v := range []any{value, nil} {
				c := full()
				c[name] = v
				out(t, "two", c, http.StatusForbidden, "insufficient_scope")
			}
		}
		c := full() // a path is no substitute for the name it spells, nor the other way round
		delete(c, "realm_access")
		c["realm_access.roles"] = "writer" // an exact name goes first
		in(t, "two", c)
	})
	t.Run("S-41 a nested user", func(t *testing.T) {
		u := in(t, "nested", claims{"act": object{"user": object{"id": "bob"}}})
		if got := values(u, "X-User-Id"); !slices.Equal(got, []string{"X-User-Id: bob"}) {
			t.Errorf("the backend saw %q", got)
		}
		u = in(t, "nested", claims{"sub": nil, "act": object{"user": object{"id": 17}}})
		if got := values(u, "X-User-Id"); !slices.Equal(got, []string{"X-User-Id: 17"}) {
			t.Errorf("the backend saw %q", got)
		}
		u = in(t, "dotted", claims{"https://example.com/user": "carol"})
		if got := values(u, "X-User-Id"); !slices.Equal(got, []string{"X-User-Id: carol"}) {
			t.Errorf("the backend saw %q", got)
		}
		for _, act := range []any{nil, "bob", object{}, object{"user": "bob"}, object{"user": object{"id": nil}}, object{"user": object{"id": ""}},
			object{"user": object{"id": " "}}, object{"user": object{"id": []string{"bob"}}}, object{"user": object{"id": object{}}}, object{"user": []any{object{"id": "bob"}}}} {
			out(t, "nested", claims{"act": act}, http.StatusUnauthorized, "invalid_token")
		}
	})
	t.Run("identity lines", func(t *testing.T) {
		spoof := []string{"X-User: admin", "X-Roles: admin", "X-Tier: 9", "X-Namespace: kube-system", "X-Level: 9", "X-Admin: true", "X-Both: 1", "X_Roles: admin", "X-User-Id: kept"}
		u := seen(t, g, b, at("lines", p.token(g, claims{
			"realm_access": object{"roles": []any{"reader", 7, true, "", "writer"}}, "https://example.com/tier": "gold",
			"kubernetes.io": object{"serviceaccount": object{"name": "default"}}, "level": 1.5, "admin": false, "a": object{"b": "inner"}, "a.b": "outer",
		}), spoof...))
		for name, want := range map[string]string{
			"X-User": "alice", "X-Roles": "reader,7,true,writer", "X-Tier": "gold", "X-Namespace": "default", "X-Level": "1.5", "X-Admin": "false", "X-Both": "outer",
			"X-User-Id": "kept", // lines of the operator's own replace the default one
		} {
			if got := values(u, name); !slices.Equal(got, []string{name + ": " + want}) {
				t.Errorf("the backend saw %q, want %s: %s", got, name, want)
			}
		}
		u = seen(t, g, b, at("lines", p.token(g, claims{"realm_access": object{"roles": []string{}}, "level": nil, "https://example.com/tier": ""}), spoof...)) // S-104
		for _, name := range []string{"X-Roles", "X-Tier", "X-Namespace", "X-Level", "X-Admin", "X-Both"} {
			if got := values(u, name); len(got) != 0 {
				t.Errorf("without the claim the backend saw %q", got)
			}
		}
	})
	t.Run("S-108 what no header can carry", func(t *testing.T) {
		for _, bad := range []string{"a\r\nX-Admin: 1", "a\nb", "a\x00", "a\x7f", "a\u0085b", "a\u2028b", "\u2029", " a", "a ", "\ta", "\u00a0a", "a\u00a0", " "} {
			for name, c := range map[string]claims{
				"a text":             {"https://example.com/tier": bad},
				"an array's element": {"realm_access": object{"roles": []string{"reader", bad}}},
				"the user":           {"sub": bad},
				"below":              {"kubernetes.io": object{"serviceaccount": object{"name": bad}}},
			} {
				t.Run(fmt.Sprintf("%s %q", name, bad), func(t *testing.T) { out(t, "lines", c, http.StatusUnauthorized, "invalid_token") })
			}
		}
		for _, roles := range []any{[]string{"reader", "a,admin"}, []string{","}, object{"admin": true}, []any{"reader", []string{"admin"}}, []any{object{}}, []any{nil}} {
			out(t, "lines", claims{"realm_access": object{"roles": roles}}, http.StatusUnauthorized, "invalid_token")
		}
		// One claim that is a text may have commas in it.
		if u := in(t, "lines", claims{"https://example.com/tier": "a, b"}); u.req.Header.Get("X-Tier") != "a, b" {
			t.Errorf("the backend saw %q", u.req.Header.Get("X-Tier"))
		}
		if u := in(t, "lines", claims{"https://example.com/tier": "Zoë 🦊"}); u.req.Header.Get("X-Tier") != "Zoë 🦊" {
			t.Errorf("the backend saw %q", u.req.Header.Get("X-Tier"))
		}
	})
}

// S-51: claims are data. Wherever a configuration uses them, what looks like a
// placeholder in one stays what it is.
func TestClaimsAreNotExpanded(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	text := strings.Replace(several([]*idp{p}, "", gated{name: "a", upstream: b.addr,
		gate: "identity X-User-Id sub\nidentity X-Roles roles\nidentity X-Deep a.b\nmax_connections 1 by {http.auth.user.group}\nhandshake_rate 100/1s by {http.auth.user.group}",
		before: "log_append who {http.auth.user.id}\nlog_append deep {http.auth.user.a.b}\nrequest_header X-Copy {http.auth.user.id}\nheader X-Echo {http.auth.user.id}\n" +
			"vars seen {http.auth.user.id}\nrequest_header X-Vars {http.vars.seen}",
	}), "http://127.0.0.1:{{port}} {", "http://127.0.0.1:{{port}} {\nlog {\n"+redaction+"\n}", 1)
	const secret = "the-value-of-the-environment"
	g := start(t, text, "WSGATE_SECRET="+secret)
	g.refused(t, at("warm", p.token(g, nil)), http.StatusNoContent)
	for i, evil := range []string{"{env.WSGATE_SECRET}", "{$WSGATE_SECRET}", "{file./etc/hostname}", "{http.request.header.X-Secret}", "{system.hostname}", "{{env.WSGATE_SECRET}}",
		"{http.auth.user.id}", `\{env.WSGATE_SECRET\}`, "{env.WSGATE_SECRET", "{{", "}}", "{http.vars.seen}"} {
		h := at("a", p.token(g, claims{"sub": evil, "roles": []string{evil, "x"}, "a": map[string]any{"b": evil}, "group": fmt.Sprint(evil, i)}), "X-Secret: "+secret)
		c := g.open(t, h)
		u := b.next(t)
		for name, want := range map[string]string{"X-User-Id": evil, "X-Roles": evil + ",x", "X-Deep": evil, "X-Copy": evil} {
			if got := u.req.Header.Get(name); got != want {
				t.Errorf("%s: the backend saw %q, want %q", name, got, want)
			}
		}
		if got := c.answer.header.Get("X-Echo"); got != evil && got != "" {
			t.Errorf("the client saw %q, want %q", got, evil)
		}
		if strings.Contains(strings.Replace(u.head, "X-Secret: "+secret, "", 1)+c.answer.text, secret) {
			t.Errorf("%q was expanded: %s%s", evil, u.head, c.answer.text)
		}
		c.Close()
		u.Close()
	}
	// The group of a cap is the claim's own text too: a second one is refused,
	// another text is another group.
	first := g.open(t, at("a", p.token(g, claims{"sub": "a", "group": "{env.WSGATE_SECRET}"})))
	g.refused(t, at("a", p.token(g, claims{"sub": "b", "group": "{env.WSGATE_SECRET}"})), http.StatusTooManyRequests)
	g.open(t, at("a", p.token(g, claims{"sub": "c", "group": secret})))
	first.Close()
	for _, line := range g.lines() { // Caddy itself logs the header that the test sent
		if strings.Contains(strings.ReplaceAll(line, `"X-Secret":["`+secret+`"]`, ""), secret) && !strings.Contains(line, `"user_id":"c"`) {
			t.Errorf("a claim was expanded in the log: %s", line)
		}
	}
}

// Subprotocols that carry tokens: several prefixes, the encoded form, and what
// the client is answered.
func TestSubprotocolForms(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	const kube = "base64url.bearer.authorization.k8s.io."
	g := wiring{idp: p, upstream: b.addr, gate: "from_header Authorization\nfrom_subprotocol bearer\nfrom_subprotocol jwt\nfrom_subprotocol bearer.v2\nfrom_subprotocol token.\nfrom_subprotocol " + kube}.start(t)
	token := p.token(g, nil)
	encoded := b64([]byte(token))
	g.guard("." + encoded) // guarded from the second part on

	for _, c := range []struct { // S-123, S-126
		name     string
		offer    []string // T is the token, B the token in base64url
		backends string   // what the backend is offered
		chosen   string   // what it chooses
		told     string   // what the client is told
	}{
		{"kubernetes", []string{kube + "B", "v4.channel.k8s.io"}, "v4.channel.k8s.io", "v4.channel.k8s.io", "v4.channel.k8s.io"},
		{"kubernetes, last", []string{"v5.channel.k8s.io", "v4.channel.k8s.io", kube + "B"}, "v5.channel.k8s.io, v4.channel.k8s.io", "v4.channel.k8s.io", "v4.channel.k8s.io"},
		{"kubernetes, nothing chosen", []string{kube + "B", "v4.channel.k8s.io"}, "v4.channel.k8s.io", "", ""},
		{"second prefix, pair", []string{"jwt", "T"}, "", "", "jwt"},
		{"second prefix, pair and more", []string{"jwt", "T", "chat.v1"}, "chat.v1", "chat.v1", "chat.v1"},
		{"second prefix, single", []string{"jwt.T", "chat.v1"}, "chat.v1", "chat.v1", "chat.v1"},
		{"the longest prefix", []string{"bearer.v2.T", "chat.v1"}, "chat.v1", "", ""},
		{"the longest prefix, pair", []string{"bearer.v2", "T"}, "", "", "bearer.v2"},
		{"a prefix with a dot", []string{"token.T", "token", "x"}, "token, x", "token", "token"},
		{"a name that only begins alike", []string{"bearers", "jwt", "T", "bearer2.x"}, "bearers, bearer2.x", "", "jwt"},
		{"another case", []string{"Bearer", "jwt", "T"}, "Bearer", "Bearer", "Bearer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.answers(func(u *upstream) string {
				if c.chosen == "" {
					return accept(u)
				}
				return accept(u, "Sec-WebSocket-Protocol: "+c.chosen)
			})
			defer b.answers(nil)
			ws := g.open(t, hello().offering(offer(c.offer, token)...))
			u := b.next(t)
			if got := strings.Join(u.req.Header.Values("Sec-Websocket-Protocol"), "|"); got != c.backends {
				t.Errorf("the backend was offered %q, want %q", got, c.backends)
			}
			if got := strings.Join(ws.answer.header.Values("Sec-Websocket-Protocol"), "|"); got != c.told {
				t.Errorf("the client was told %q, want %q", got, c.told)
			}
			for _, s := range []string{token, encoded} {
				if strings.Contains(u.head+ws.answer.text, s) {
					t.Error("the token went on")
				}
			}
			ws.Close()
			u.Close()
		})
	}

	t.Run("S-126 bad encodings", func(t *testing.T) {
		padded := encoded + strings.Repeat("=", (4-len(encoded)%4)%4)
		for name, entry := range map[string]string{
			"nothing": "", "not encoded": token, "twice encoded": b64([]byte(encoded)), "bad characters": encoded[:40] + "*" + encoded[41:],
			"cut": encoded[:len(encoded)-1], "one character": "A", "no UTF-8": b64([]byte{0xff, 0xfe, 0xfd}), "a blank in it": b64([]byte(token + " ")),
			"a line end in it": b64([]byte(token + "\n")), "Bearer in it": b64([]byte("Bearer " + token)),
			"padding": padded + strings.Repeat("=", 1-min(1, len(padded)-len(encoded))), "a dot": encoded + ".", "standard alphabet": strings.NewReplacer("-", "+", "_", "/").Replace(b64([]byte("ÿÿ>>??" + token))),
		} {
			t.Run(name, func(t *testing.T) {
				b.untouched(t, func() {
					a := g.settled(t, hello().offering(kube+entry, "v4.channel.k8s.io"))
					// What is no token of the grammar at all may be a bad request.
					if a.status != http.StatusUnauthorized && (a.status != http.StatusBadRequest || !strings.ContainsAny(entry, "=/")) {
						t.Errorf("status %d, want 401", a.status)
					}
				})
			})
		}
	})
	t.Run("alone", func(t *testing.T) {
		for _, entry := range []string{"bearer.T", "jwt.T", "token.T", kube + "B"} {
			b.untouched(t, func() {
				a := g.refused(t, hello().offering(offer([]string{entry}, token)...), http.StatusBadRequest)
				if hint := a.header.Get("X-Ws-Gate-Hint"); !strings.Contains(hint, "one more subprotocol") {
					t.Errorf("%s: the answer does not say what to do: %s", entry, a.text)
				}
			})
		}
		b.untouched(t, func() { // nor does one beside a token elsewhere make it whole
			g.refused(t, bearer(token).offering("jwt."+token), http.StatusBadRequest)
		})
	})
	t.Run("two of them", func(t *testing.T) { // S-119
		other := p.token(g, claims{"sub": "mallory"})
		for _, entries := range [][]string{
			{"bearer", token, "jwt", other}, {"jwt." + token, "bearer." + other, "chat.v1"}, {kube + encoded, kube + encoded, "x"},
			{kube + encoded, "bearer", other}, {"bearer", "bearer", "chat.v1", "bearer." + token}, {"jwt", token, "jwt"},
		} {
			b.untouched(t, func() { g.refused(t, hello().offering(entries...), http.StatusBadRequest) })
		}
	})
	t.Run("a prefix without a token", func(t *testing.T) {
		for _, entries := range [][]string{{"bearer"}, {"chat.v1", "bearer"}, {"bearer", "chat.v1"}, {"bearer.", "chat.v1"}, {"jwt", "bearer", token}} {
			b.untouched(t, func() {
				a := g.settled(t, hello().offering(entries...))
				if a.status != http.StatusUnauthorized && a.status != http.StatusBadRequest {
					t.Errorf("%q: status %d", entries, a.status)
				}
			})
		}
	})
}

// S-42, S-44, S-131: what is too long or too much is refused early and
// cheaply, wherever it stands, also where the server takes headers of 2 MiB.
func TestOversized(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	const all = "from_header Authorization\nfrom_header X-Api-Token\nfrom_query access_token\nfrom_cookies session\nfrom_subprotocol bearer\nfrom_subprotocol base64url.bearer.authorization.k8s.io.\norigins https://app.example.com"
	usual := wiring{idp: p, upstream: b.addr, gate: all}.start(t)
	large := wiring{idp: p, upstream: b.addr, gate: all, global: "servers {\nmax_header_size 2MiB\n}"}.start(t)
	places := append(slices.Clone(carriers),
		carrier{"custom header", func(h handshake, token string) handshake { return h.with("X-Api-Token: " + token) }, ""},
		carrier{"kubernetes", func(h handshake, token string) handshake {
			return h.offering("base64url.bearer.authorization.k8s.io."+b64([]byte(token)), "chat.v1")
		}, "chat.v1"})
	long := func(n int) string { // a token of n bytes or some more, with a good signature
		return p.mint("ES256", claims{"x": strings.Repeat("x", n*3/4)})
	}
	texts := map[string]string{
		"9 KiB": long(9 << 10), "9 KiB of nothing": strings.Repeat("A", 9<<10), "64 KiB": long(64 << 10), "1 MiB": long(1 << 20),
		"dots": strings.Repeat(".", 8000), "15,000 dots": strings.Repeat(".", 15000), "1,000,000 dots": strings.Repeat(".", 1_000_000),
		"8,000 dots and a token": strings.Repeat(".", 7000) + p.mint("ES256", nil), "two dots and 8 KiB": "a.b." + strings.Repeat("A", 8100),
	}
	for _, g := range []*gate{usual, large} {
		for _, c := range places {
			for name, text := range texts {
				t.Run(fmt.Sprintf("%v %s %s", g == large, c.name, name), func(t *testing.T) {
					h := c.present(hello(), text)
					b.untouched(t, func() {
						begin := time.Now()
						status := g.tooMuch(t, h)
						if d := time.Since(begin); d > 5*time.Second {
							t.Errorf("answered after %v", d)
						}
						switch {
						case status == http.StatusUnauthorized, status == http.StatusBadRequest:
						case status == http.StatusRequestHeaderFieldsTooLarge, status == http.StatusRequestURITooLong:
							if g == large && len(text) < 900_000 {
								t.Errorf("status %d where the server takes 2 MiB", status)
							}
						default:
							t.Errorf("status %d", status)
						}
					})
				})
			}
		}
	}

	// A token just below 8 KiB is a token like any other, in every place.
	fits := p.mint("ES256", claims{"x": strings.Repeat("x", 5700)})
	if len(fits) < 7800 || len(fits) > 8<<10 {
		t.Fatalf("a token of %d bytes", len(fits))
	}
	large.guard(fits)
	for _, c := range places {
		seen(t, large, b, c.present(hello(), fits)).Close()
	}

	t.Run("S-131 header floods", func(t *testing.T) {
		rss := large.rss()
		token := p.token(large, nil)
		lines := func(n int, of func(i int) string) (all []string) {
			for i := range n {
				all = append(all, of(i))
			}
			return all
		}
		for name, h := range map[string]handshake{
			"15 KB in one header":  bearer(token, "X-Long: "+strings.Repeat("x", 15<<10)),
			"1.5 MB in one header": bearer(token, "X-Long: "+strings.Repeat("x", 1500<<10)),
			"10,000 headers":       bearer(token, lines(10_000, func(i int) string { return fmt.Sprintf("X-%d: 1", i) })...),
			"3,000 of one name":    bearer(token, lines(3000, func(int) string { return "X-A: 1" })...),
			"5,000 cookies":        bearer(token, "Cookie: "+strings.Join(lines(5000, func(i int) string { return fmt.Sprintf("c%d=1", i) }), "; ")),
			"1,000 cookie lines":   bearer(token, lines(1000, func(i int) string { return fmt.Sprintf("Cookie: session%d=1; x=2", i) })...),
			"5,000 session cookies": hello(lines(5000, func(int) string { return "Cookie: session=" + token[:20] })...).
				fromOrigin("https://app.example.com"),
			"3,000 identities":     bearer(token, lines(3000, func(i int) string { return fmt.Sprintf("X-User-Id: %d", i) })...),
			"20,000 parameters":    hello().to("/ws?" + strings.Repeat("access_token=a&", 20_000)),
			"20,000 other ones":    bearer(token).to("/ws?" + strings.Repeat("a=b&", 20_000)),
			"20,000 subprotocols":  hello().offering(slices.Repeat([]string{"a"}, 20_000)...),
			"10,000 bearers":       hello().offering(slices.Repeat([]string{"bearer.x"}, 10_000)...),
			"10,000 in Connection": bearer(token).instead("Connection", "Connection: Upgrade"+strings.Repeat(", X-A", 10_000)),
		} {
			t.Run(name, func(t *testing.T) {
				begin := time.Now()
				status := large.tooMuch(t, h)
				if status != 101 && (status < 400 || status >= 500) && status != 502 { // the scripted backend's own limits
					t.Errorf("status %d", status)
				}
				if d := time.Since(begin); d > 10*time.Second {
					t.Errorf("answered after %v", d)
				}
			})
		}
		if grown := large.rss() - rss; grown > 200<<20 {
			t.Errorf("the process has grown by %d MiB", grown>>20)
		}
		seen(t, large, b, bearer(token))
	})
	// Many at once cost no more than the machine has.
	t.Run("at once", func(t *testing.T) {
		token := p.token(large, nil)
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				text := texts["1,000,000 dots"]
				if i%2 == 0 {
					text = texts["1 MiB"]
				}
				large.tooMuch(t, places[i%len(places)].present(hello(), text))
			})
		}
		begin := time.Now()
		c, a := large.attempt(bearer(token))
		if c == nil {
			t.Errorf("beside them: status %d, %v", a.status, a.err)
		} else {
			c.Close()
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("a good handshake beside them took %v", d)
		}
		wg.Wait()
		if mib := large.rss() >> 20; mib > 1024 {
			t.Errorf("the process has %d MiB", mib)
		}
	})
}

// tooMuch sends a handshake that may be refused before all of it is sent, and
// returns the status.
func (g *gate) tooMuch(t *testing.T, h handshake) int {
	raw, err := net.DialTimeout("tcp", g.addr, patience)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer raw.Close()
	c := &conn{Conn: raw, t: t, host: g.addr, br: bufio.NewReaderSize(raw, 1<<16)}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_ = raw.SetWriteDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(raw, h.text(g.addr))
	}()
	a := c.readAnswer(h.method)
	if a.status == 0 {
		t.Errorf("no answer: %v %q", a.err, shorten(a.text))
	}
	raw.Close()
	<-sent
	return a.status
}
