package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// closedWith reads the answer of on_reject close: a good 101 with this
// subprotocol, one close frame, and an end that waits for the client.
func closedWith(t *testing.T, g *gate, h handshake, code int, subprotocol string) (answer, frame) {
	t.Helper()
	c := g.connect(t)
	defer c.Close()
	c.send([]byte(h.text(c.host)))
	a := c.readAnswer(h.method)
	if a.status != http.StatusSwitchingProtocols {
		t.Fatalf("status %d, want 101 and a close frame\n--- sent\n%s\n--- answer\n%s%s", a.status, shorten(h.text(c.host)), shorten(a.text), a.body)
	}
	key := ""
	for _, l := range h.lines {
		if k, v, _ := strings.Cut(l, ": "); strings.EqualFold(k, "Sec-WebSocket-Key") {
			key = v
		}
	}
	for name, want := range map[string]string{ // what a browser insists on, RFC 6455 section 4.1
		"Upgrade": "websocket", "Connection": "Upgrade", "Sec-Websocket-Accept": acceptOf(key),
		"Sec-Websocket-Protocol": subprotocol, "Sec-Websocket-Extensions": "", "Content-Length": "", "Transfer-Encoding": "",
	} {
		if got := strings.Join(a.header.Values(name), "|"); got != want {
			t.Errorf("the 101 says %s: %q, want %q", name, got, want)
		}
	}
	if subprotocol == "" && a.header.Values("Sec-Websocket-Protocol") != nil {
		t.Errorf("the 101 has an empty subprotocol")
	}
	f := c.expectClose(code)
	if len(f.payload) > 125 {
		t.Errorf("a close frame of %d bytes", len(f.payload))
	}
	c.send(masked(0x88, f.payload))
	if err := c.ended(); err != nil {
		t.Errorf("after the close frame: %v", err)
	}
	return a, f
}

// on_reject close: every refusal from the token on, and Origin, is a close
// code that a page can read; nothing reaches the backend (NRU).
func TestRejectByClose(t *testing.T) {
	t.Parallel()
	p, down := newIDP(t), newIDP(t)
	b := newBackend(t)
	b.echoes()
	down.answerWith(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true })
	sources := `
		on_reject close
		origins https://app.example.com
		from_header Authorization
		from_query access_token
		from_cookies session
		from_subprotocol bearer
		from_subprotocol jwt
		from_subprotocol base64url.bearer.authorization.k8s.io.
	`
	g := startSeveral(t, []*idp{p}, "",
		gated{name: "all", upstream: b.addr, gate: sources + "require scope chat:write\nissuer " + down.issuer + " {\njwks " + down.jwksURL() + "\naudience chat\n}"},
		gated{name: "cap", upstream: b.addr, gate: "on_reject close\nmax_connections 1 by user"},
		gated{name: "rate", upstream: b.addr, gate: "on_reject close\nhandshake_rate 1/1h by user"},
		gated{name: "address", upstream: b.addr, gate: "on_reject close\nhandshake_rate 1/1h by ip"},
		gated{name: "number", upstream: b.addr, gate: "on_reject close\nmax_connections {http.auth.user.n} by user"},
		gated{name: "gone", upstream: "127.0.0.1:1", gate: "on_reject close"},
	)
	all := func(lines ...string) handshake { return hello(lines...).to("/ws/all") }
	good := p.token(g, claims{"scope": "chat:read chat:write"})
	poor := p.token(g, claims{"scope": "chat:read"})
	expired := p.token(g, claims{"scope": "chat:write", "exp": time.Now().Unix() - 60})
	forged := p.mintWith(newECKey("ec-1"), claims{"scope": "chat:write"})
	foreign := down.token(g, nil)
	revoked := p.token(g, claims{"scope": "chat:write", "jti": "gone"})
	g.guard(forged)
	post(t, g, "/ws_gate/revocations", `{"jti":"gone","issuer":"`+p.issuer+`"}`)
	evil := "Origin: https://evil.test"
	authorization := func(token string) string { return "Authorization: Bearer " + token }

	for _, c := range []struct {
		name string
		h    handshake
		code int
		text string
	}{
		{"no token", all(), 3000, "unauthorized"},
		{"expired", all(authorization(expired)), 3000, "unauthorized"},
		{"bad signature", all(authorization(forged)), 3000, "unauthorized"},
		{"garbage", all(authorization("garbage")), 3000, "unauthorized"},
		{"9 KiB", all(authorization(strings.Repeat("x", 9<<10))), 3000, "unauthorized"},
		{"revoked", all(authorization(revoked)), 3000, "unauthorized"},
		{"a subprotocol where a token was due", all().offering("bearer"), 3000, "unauthorized"},
		{"insufficient scope", all(authorization(poor)), 3003, "forbidden"},
		{"foreign origin", all(authorization(good), evil), 3003, "forbidden"},
		{"foreign origin, no token", all(evil), 3003, "forbidden"},
		{"cookie without an origin", all("Cookie: session=" + good), 3003, "forbidden"}, // S-77
		{"two tokens", all(authorization(good), "Cookie: session="+poor), 1002, "bad request"},
		{"the query twice", all().toPath("?access_token=" + good + "&access_token="), 1002, "bad request"},
		{"keys away", all(authorization(foreign)), 1013, "try again later"},
		{"a cap that no claim names", at("number", good), 3003, "forbidden"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.untouched(t, func() {
				subprotocol := ""
				if strings.Contains(c.name, "subprotocol") {
					subprotocol = "bearer"
				}
				a, f := closedWith(t, g, c.h, c.code, subprotocol)
				if got := string(f.payload[2:]); got != c.text {
					t.Errorf("close reason %q, want %q", got, c.text)
				}
				for _, token := range []string{good, poor, expired, forged} {
					if strings.Contains(a.text, token) {
						t.Error("the 101 holds a token")
					}
				}
			})
		})
	}

	// S-123: what a browser needs to show the code is an answer to its offer.
	kube := "base64url.bearer.authorization.k8s.io."
	for _, token := range []struct {
		name, text string
		code       int
	}{{"expired", expired, 3000}, {"poor", poor, 3003}} {
		for _, c := range []struct {
			offer  []string // T is the token
			chosen string
		}{
			{[]string{"bearer", "T"}, "bearer"},
			{[]string{"jwt", "T"}, "jwt"},
			{[]string{"bearer", "T", "chat.v1"}, "chat.v1"},
			{[]string{"chat.v1", "bearer", "T"}, "chat.v1"},
			{[]string{"chat.v2", "bearer", "T", "chat.v1"}, "chat.v2"},
			{[]string{"bearer.T", "chat.v1"}, "chat.v1"},
			{[]string{"chat.v1", "jwt.T"}, "chat.v1"},
			{[]string{kube + "B", "chat.v1"}, "chat.v1"},
		} {
			t.Run(token.name+" "+strings.Join(c.offer, ","), func(t *testing.T) {
				b.untouched(t, func() {
					a, _ := closedWith(t, g, all().offering(offer(c.offer, token.text)...), token.code, c.chosen)
					if strings.Contains(a.text, token.text) || strings.Contains(a.text, b64([]byte(token.text))) {
						t.Error("the 101 holds the token")
					}
				})
			})
		}
	}
	t.Run("offers beside a token elsewhere", func(t *testing.T) {
		closedWith(t, g, all(authorization(expired)).offering("chat.v1", "chat.v2"), 3000, "chat.v1")
		closedWith(t, g, all(authorization(expired), "Sec-WebSocket-Protocol: chat.v1", "Sec-WebSocket-Protocol: chat.v2"), 3000, "chat.v1")
		closedWith(t, g, all(authorization(expired)).offering("bearer", poor), 1002, "bearer")
		closedWith(t, g, all().offering("bearer", expired, "jwt", poor), 1002, "jwt")
		closedWith(t, g, all(evil).offering("bearer", good), 3003, "bearer")
	})

	t.Run("S-49 one frame for every cause", func(t *testing.T) {
		var first []byte
		for _, token := range []string{expired, forged, revoked, "garbage", p.token(g, claims{"aud": "other"}), p.token(g, claims{"iss": "https://other.example/"})} {
			_, f := closedWith(t, g, all(authorization(token)), 3000, "")
			if first == nil {
				first = f.raw
			}
			if !bytes.Equal(f.raw, first) {
				t.Errorf("close frame %q, another cause's is %q", f.raw, first)
			}
		}
	})

	t.Run("rate by user", func(t *testing.T) {
		token := p.token(g, claims{"sub": "fast"})
		g.open(t, at("rate", token))
		b.untouched(t, func() {
			_, f := closedWith(t, g, at("rate", token), 1013, "")
			if got := string(f.payload[2:]); got != "try again later" {
				t.Errorf("close reason %q", got)
			}
		})
	})
	t.Run("cap", func(t *testing.T) {
		token := p.token(g, claims{"sub": "many"})
		c := g.open(t, at("cap", token))
		b.untouched(t, func() { closedWith(t, g, at("cap", token), 1013, "") })
		c.Close()
		// What was refused holds no slot.
		eventually(t, "a free slot", func() bool {
			c, _ := g.attempt(at("cap", token))
			if c == nil {
				return false
			}
			defer c.Close()
			c.send(masked(0x81, []byte("in?")))
			f, err := readFrame(c.br)
			return err == nil && string(f.payload) == "in?"
		})
	})

	// What is no good handshake, or comes before the token, keeps its status.
	t.Run("over HTTP", func(t *testing.T) {
		g.try(t, at("address", good))
		for _, c := range []struct {
			name   string
			h      handshake
			status int
		}{
			{"no key", all(authorization(expired)).without("Sec-WebSocket-Key"), 400},
			{"short key", all(authorization(expired)).instead("Sec-WebSocket-Key", "Sec-WebSocket-Key: c2hvcnQ="), 400},
			{"no Upgrade in Connection", all(authorization(expired)).instead("Connection", "Connection: keep-alive"), 400},
			{"a body", all(authorization(expired), "Content-Length: 2").followedBy("hi"), 400},
			{"POST", all(authorization(expired)).as("POST"), 405},
			{"version 8", all(authorization(expired)).instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"), 426}, // S-85
			{"no version", all(authorization(expired)).without("Sec-WebSocket-Version"), 426},
			{"a lone subprotocol with a good token", all().offering("bearer." + good), 400},
			{"a lone subprotocol with a bad token", all().offering("bearer." + expired), 400},
			{"rate by address", at("address", expired), 429},
			{"plain HTTP", handshake{method: "GET", target: "/ws/all", version: "HTTP/1.1"}, 401},
			{"the backend's own trouble", at("gone", good), 502},
		} {
			t.Run(c.name, func(t *testing.T) {
				b.untouched(t, func() {
					a := g.try(t, c.h)
					if a.status != c.status && !(c.name == "no version" && a.status == 400) {
						t.Errorf("status %d, want %d\n%s", a.status, c.status, a.text)
					}
				})
			})
		}
	})

	t.Run("clients that do not answer the close", func(t *testing.T) {
		begin := time.Now()
		quiet := g.connect(t)
		quiet.send([]byte(all().text(quiet.host)))
		if a := quiet.readAnswer("GET"); a.status != 101 {
			t.Fatalf("status %d", a.status)
		}
		quiet.expectClose(3000)
		if err := quiet.ended(); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("the connection ended after %v", d)
		}
		flood := g.connect(t)
		flood.send([]byte(all().text(flood.host)))
		flood.readAnswer("GET")
		flood.SetWriteDeadline(time.Now().Add(patience))
		chunk := masked(0x82, make([]byte, 60<<10))
		sent := 0
		for ; sent < 64<<20; sent += len(chunk) {
			if _, err := flood.Write(chunk); err != nil {
				break
			}
		}
		if sent >= 64<<20 {
			t.Error("a refused client may send without end")
		}
	})
	t.Run("S-90 frames behind a refused handshake", func(t *testing.T) {
		b.untouched(t, func() {
			c := g.connect(t)
			c.send([]byte(all(authorization(expired)).text(c.host) + "GET /ws/all HTTP/1.1\r\nHost: x\r\n\r\n"))
			if rest := c.rest(); strings.Count(rest, "HTTP/1.1") > 1 {
				t.Errorf("more than one answer: %q", rest)
			}
		})
	})
}

// offer fills a token into subprotocols: T as it is, B in base64url.
func offer(entries []string, token string) []string {
	filled := make([]string, len(entries))
	for i, e := range entries {
		head, last := e[:len(e)-1], e[len(e)-1:]
		switch {
		case last == "T" && (head == "" || strings.HasSuffix(head, ".")):
			e = head + token
		case last == "B" && strings.HasSuffix(head, "."):
			e = head + b64([]byte(token))
		}
		filled[i] = e
	}
	return filled
}

// post sends JSON to the admin API, which must take it.
func post(t *testing.T, g *gate, path, body string) {
	t.Helper()
	resp, err := adminClient.Post("http://"+g.admin+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		t.Fatalf("POST %s: %s", path, resp.Status)
	}
}

// S-49: the cause is in the log, and nowhere in the answer; not in its length
// and not in its headers.
func TestAnswersAlike(t *testing.T) {
	t.Parallel()
	p, second := newIDP(t), newIDP(t)
	b := newBackend(t)
	g := startSeveral(t, []*idp{p, second}, "", gated{name: "a", upstream: b.addr, gate: `
		from_header Authorization
		from_query access_token
		from_cookies session
		from_subprotocol bearer
		origins https://app.example.com
		identity X-User-Id sub
		identity X-Roles roles
	`})
	post(t, g, "/ws_gate/revocations", `{"jti":"gone","issuer":"`+p.issuer+`"}`)
	es := commonKeys()["ES256"]
	tokens := map[string]string{ // by the detail that the log has
		"bad signature": p.mintWith(newECKey("ec-1"), nil),
		"unknown kid":   p.mintWith(newECKey("nobody's"), nil),
		"expired":       p.mint("ES256", claims{"exp": time.Now().Unix() - 100}),
		"audience":      p.mint("ES256", claims{"aud": "other"}),
		"issuer":        p.mint("ES256", claims{"iss": "https://other.example/"}),
		"not yet":       p.mint("ES256", claims{"nbf": time.Now().Unix() + 1000}),
		"user":          p.mint("ES256", claims{"sub": nil}),
		"identity":      p.mint("ES256", claims{"roles": "a\r\nX-Admin: 1"}),
		"crit":          es.compact(`{"alg":"ES256","kid":"ec-1","crit":["x"],"x":1}`, p.usual(nil)),
		"none":          b64([]byte(`{"alg":"none"}`)) + "." + b64([]byte(p.usual(nil))) + ".",
		"revoked":       p.mint("ES256", claims{"jti": "gone"}),
		"garbage":       "garbage",
		"long":          strings.Repeat("x", 9<<10),
	}
	for _, c := range carriers {
		t.Run(c.name, func(t *testing.T) {
			first, from := "", ""
			for cause, token := range tokens {
				g.guard(token)
				a := g.refused(t, c.present(hello().to("/ws/a"), token), http.StatusUnauthorized)
				a.header.Del("Date")
				got := fmt.Sprint(a.status, a.header, len(a.body), a.body)
				if first == "" {
					first, from = got, cause
				}
				if got != first {
					t.Errorf("%s: %s\n%s: %s", cause, got, from, first)
				}
			}
			for _, leak := range []string{p.url, "jwks", "kid", "alice", "other.example"} {
				if strings.Contains(first, leak) {
					t.Errorf("the answer holds %q: %s", leak, first)
				}
			}
		})
	}
	details := make(map[string]bool)
	for _, e := range g.entries("handshake refused") {
		details[fmt.Sprint(e["reason"], e["detail"])] = true
	}
	if len(details) < 8 {
		t.Errorf("the log knows only these causes: %v", details)
	}
}
