package integration

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// documented is the log format of the documentation, with the site's own
// header, parameter and prefix named as it says.
const documented = `format filter {
	request>uri ws_token ticket
	request>headers>Sec-Websocket-Protocol ws_token jwt
	request>headers>Sec-WebSocket-Protocol ws_token jwt
	request>headers>X-Access-Token ws_token
}`

// loggedSite is a site at debug level whose access log goes to a file, with
// error routes that tell the reason, and these gates.
func loggedSite(p *idp, format, global string, gates ...gated) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{
	admin 127.0.0.1:{{admin}}
	auto_https off
	debug
	persist_config off
	grace_period 2s
	log default {
		level DEBUG
		%s
	}
	%s
}
http://127.0.0.1:{{port}} {
	log {
		output file {{dir}}/access.log
		level DEBUG
		%s
	}
	handle_errors {
		header X-Reason {http.ws_gate.reject.reason}
		header X-Seen {http.error.status_code}
		respond "refused: {http.ws_gate.reject.reason}" {http.error.status_code}
	}
`, format, global, format)
	for _, g := range gates {
		fmt.Fprintf(&b, `route /ws/%s* {
			ws_gate {
				issuer %s {
					jwks %s
					audience chat
				}
				issuer http://127.0.0.1:1/ {
					audience chat
				}
				from_header Authorization
				from_header X-Access-Token
				from_query access_token
				from_query ticket
				from_cookies session
				from_subprotocol bearer
				from_subprotocol jwt
				from_subprotocol base64url.bearer.authorization.k8s.io.
				origins https://app.example.com
				leeway 0s
				tunnel_name %s
				%s
			}
			%s
		`, g.name, p.issuer, p.jwksURL(), g.name, g.gate, g.before)
		if g.upstream != "" {
			fmt.Fprintf(&b, "reverse_proxy %s {\ntransport ws_tunnel {\n%s\n}\n}\n", g.upstream, g.transport)
		}
		b.WriteString("}\n")
	}
	return b.String() + "respond /other* 200\n}\n"
}

// probes are the pieces of a token that a log must not hold: every part of 8
// bytes and more, cut into pieces so that no piece of one gets through either.
func probes(token string) []string {
	const length = 16
	var all []string
	for _, part := range strings.FieldsFunc(token, func(r rune) bool { return r == '.' || r == '%' || r == ' ' || r == '"' || r == ',' }) {
		if len(part) < 8 {
			continue
		}
		for at := 0; at+length < len(part); at += length {
			all = append(all, part[at:at+length])
		}
		all = append(all, part[max(0, len(part)-length):])
	}
	return all
}

// S-116: with the documented filters no piece of a token is in any log line at
// debug level, from every place that a token may be in, whatever becomes of
// the handshake.
func TestNoPieceOfATokenInLogs(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b, refuses, fakes, silent := newBackend(t), newBackend(t), newBackend(t), newBackend(t)
	b.echoes()
	fakes.echoes()
	refuses.answers(func(*upstream) string {
		return "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nX-Backend: said\r\n\r\nno"
	})
	fakes.answers(func(u *upstream) string {
		return strings.Replace(accept(u), "Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x", 1)
	})
	silent.answers(func(*upstream) string { return "" })
	g := start(t, loggedSite(p, documented, "",
		gated{name: "good", upstream: b.addr},
		gated{name: "strict", upstream: b.addr, gate: "require scope chat:write"},
		gated{name: "close", upstream: b.addr, gate: "on_reject close\nrequire scope chat:write"},
		gated{name: "cap", upstream: b.addr, gate: "max_connections {http.auth.user.n} by user"},
		gated{name: "rate", upstream: b.addr, gate: "handshake_rate 1/1h by user"},
		gated{name: "address", upstream: b.addr, gate: "handshake_rate 1/1h by ip"},
		gated{name: "down", upstream: "127.0.0.1:1"},
		gated{name: "refuses", upstream: refuses.addr},
		gated{name: "fakes", upstream: fakes.addr},
		gated{name: "silent", upstream: silent.addr, transport: "response_header_timeout 200ms"},
		gated{name: "bare", before: "reverse_proxy " + b.addr}, // 501
		gated{name: "nobody"},
		gated{name: "forward", upstream: b.addr, gate: "forward_token\nidentity X-User-Id sub\nidentity X-Jti jti"},
	))
	g.settled(t, bearer(p.mint("ES256", nil)).to("/ws/good"))
	post(t, g, "/ws_gate/revocations", `{"jti":"gone","issuer":"`+p.issuer+`"}`)

	const kube = "base64url.bearer.authorization.k8s.io."
	origin := "Origin: https://app.example.com"
	places := map[string]func(h handshake, token string) handshake{
		"header":            func(h handshake, token string) handshake { return h.with("Authorization: Bearer " + token) },
		"header, another":   func(h handshake, token string) handshake { return h.with("X-Access-Token: " + token) },
		"header, prefixed":  func(h handshake, token string) handshake { return h.with("X-Access-Token: Bearer " + token) },
		"header, no scheme": func(h handshake, token string) handshake { return h.with("Authorization: " + token) },
		"query":             func(h handshake, token string) handshake { return h.toPath("?a=1&access_token=" + token + "&b=2") },
		"query, encoded": func(h handshake, token string) handshake {
			return h.toPath("?%61ccess_token=" + strings.ReplaceAll(token, ".", "%2E"))
		},
		"query, another": func(h handshake, token string) handshake { return h.toPath("?ticket=" + token) },
		"query, unknown": func(h handshake, token string) handshake { return h.toPath("?x=" + token) },
		"path":           func(h handshake, token string) handshake { return h.toPath("/" + token) },
		"cookie": func(h handshake, token string) handshake {
			return h.with("Cookie: a=1; session="+token+"; b=2", origin)
		},
		"cookie, no origin":       func(h handshake, token string) handshake { return h.with("Cookie: session=" + token) },
		"pair":                    func(h handshake, token string) handshake { return h.offering("bearer", token, "chat.v1") },
		"pair alone":              func(h handshake, token string) handshake { return h.offering("bearer", token) },
		"pair, another":           func(h handshake, token string) handshake { return h.offering("chat.v1", "jwt", token) },
		"pair, in two lines":      func(h handshake, token string) handshake { return h.offering("bearer").offering(token, "chat.v1") },
		"prefix":                  func(h handshake, token string) handshake { return h.offering("bearer."+token, "chat.v1") },
		"prefix alone":            func(h handshake, token string) handshake { return h.offering("bearer." + token) },
		"prefix, another":         func(h handshake, token string) handshake { return h.offering("chat.v1", "jwt."+token) },
		"prefix of another case":  func(h handshake, token string) handshake { return h.offering("Bearer."+token, "chat.v1") },
		"kubernetes":              func(h handshake, token string) handshake { return h.offering(kube+b64([]byte(token)), "chat.v1") },
		"kubernetes, not encoded": func(h handshake, token string) handshake { return h.offering(kube+token, "chat.v1") },
	}
	tokens := map[string]string{
		"good":         p.mint("ES256", claims{"scope": "chat:write", "n": 100}),
		"RS256":        p.mint("RS256", claims{"n": 1}),
		"EdDSA":        p.mint("EdDSA", nil),
		"expired":      p.mint("ES256", claims{"exp": 1_000_000_000}),
		"audience":     p.mint("ES256", claims{"aud": "other"}),
		"issuer":       p.mint("ES256", claims{"iss": "https://other.example"}),
		"no keys":      p.mint("ES256", claims{"iss": "http://127.0.0.1:1/"}),
		"unknown kid":  p.mintWith(newECKey("nobody's"), nil),
		"signature":    p.mintWith(newECKey("ec-1"), nil),
		"revoked":      p.mint("ES256", claims{"jti": "gone"}),
		"identity":     p.mint("ES256", claims{"sub": "a\r\nb"}),
		"two parts":    strings.Join(strings.Split(p.mint("ES256", nil), ".")[:2], "."),
		"longer":       p.mint("ES256", nil) + ".x",
		"no signature": p.mint("EdDSA", nil)[:120] + ".",
	}
	secret := make(map[string][]string)
	for name, token := range tokens {
		secret[name] = append(probes(token), probes(b64([]byte(token)))...)
	}
	handshakes := 0
	try := func(h handshake) {
		handshakes++
		if c, _ := g.attempt(h); c != nil {
			c.Close()
		}
	}
	for place, present := range places {
		for name, token := range tokens {
			try(present(hello().to("/ws/good"), token))
			if place != "query" && name != "good" && name != "expired" {
				continue
			}
			// Paths behind or before the token's check.
			for _, gate := range []string{"strict", "close", "cap", "rate", "address", "down", "refuses", "fakes", "bare", "nobody", "forward"} {
				try(present(hello().to("/ws/"+gate), token))
			}
			for _, h := range []handshake{
				hello().to("/ws/good").fromOrigin("https://evil.test"),
				hello().to("/ws/close").fromOrigin("https://evil.test"),
				hello().to("/ws/good").without("Sec-WebSocket-Key"),
				hello().to("/ws/good").instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"),
				hello().to("/ws/good").as("POST"),
				hello().to("/ws/good").proto("HTTP/1.0"),
				hello().to("/other"), hello().to("/nowhere"),
				{method: "GET", target: "/ws/good", version: "HTTP/1.1", lines: []string{"Connection: close"}},
				{method: "POST", target: "/ws/down", version: "HTTP/1.1", lines: []string{"Connection: close", "Content-Length: 0"}},
				hello().to("/ws/good").with("Authorization: Bearer " + tokens["RS256"]), // two
			} {
				try(present(h, token))
			}
		}
		try(present(hello().to("/ws/silent"), tokens["good"]))
	}
	// A token that is not one: nobody can tell it from other words but by its
	// place, so the place is what is redacted.
	for i, opaque := range []string{"opaque-secret-0123456789", "Zm9vYmFyYmF6-secret", url.QueryEscape(`{"payload":"cGF5bG9hZA","sub":"admin"}`)} {
		secret[fmt.Sprint("opaque ", i)] = []string{opaque, "cGF5bG9hZA", "0123456789", "Zm9vYmFyYmF6"}
		for place, present := range places {
			if slices.Contains([]string{"query, unknown", "path", "header, another", "header, prefixed", "prefix of another case"}, place) || strings.Contains(place, "kubernetes") ||
				strings.ContainsAny(opaque, "%") && !strings.HasPrefix(place, "query") {
				continue
			}
			try(present(hello().to("/ws/good"), opaque))
			try(present(hello().to("/ws/close"), opaque))
		}
	}
	// The tunnels end, and Caddy writes what it has to say of them.
	closed, access := "connection closed", filepath.Join(g.dir, "access.log")
	eventually(t, "as many ends as beginnings in the log", func() bool {
		opened := len(g.entries("connection opened"))
		return opened > 50 && len(g.entries(closed)) >= opened
	})
	var content string
	eventually(t, "an access log", func() bool {
		b, err := os.ReadFile(access)
		content = string(b)
		return err == nil && strings.Count(content, "\n") >= handshakes*9/10
	})
	t.Logf("%d handshakes, %d lines of access log, %d of Caddy's", handshakes, strings.Count(content, "\n"), len(g.lines()))
	for _, needed := range []string{"REDACTED", `"status":101`, `"status":401`, `"status":403`, `"status":502`} {
		if !strings.Contains(content, needed) {
			t.Errorf("the access log has no %s: the test does not see what it should", needed)
		}
	}
	for _, line := range strings.Split(content, "\n") {
		// gorilla's upgrader writes the 101 of on_reject close past Caddy.
		if strings.Contains(line, `"status":0`) && !strings.Contains(line, `"uri":"/ws/close`) && !strings.Contains(line, `"msg":"NOP"`) {
			t.Errorf("the access log has a request without a status: %s", line)
			break
		}
	}
	all := map[string]string{"access log": content, "log": strings.Join(g.lines(), "\n")}
	for _, needed := range []string{"handshake refused", "connection opened", "ws_gate.refused", "upstream roundtrip", "http.log.error"} {
		if !strings.Contains(all["log"], needed) {
			t.Errorf("the log has no %q: the test does not see what it should", needed)
		}
	}
	reported := 0
	for where, text := range all {
		for name, pieces := range secret {
			for _, piece := range pieces {
				if at := strings.Index(text, piece); at >= 0 && reported < 8 {
					reported++
					from, to := strings.LastIndexByte(text[:at], '\n')+1, strings.IndexByte(text[at:], '\n')
					t.Errorf("the %s holds %q of the token %q: %s", where, piece, name, text[from:at+max(to, 0)])
					break
				}
			}
		}
	}
}

// The reason of a refusal is there for error routes, in the vocabulary of the
// contract, and with on_reject close in the log alone.
func TestRejectReason(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	g := start(t, loggedSite(p, documented, "",
		gated{name: "a", upstream: b.addr, gate: "require scope chat:write\nmissing_origin allow"},
		gated{name: "cap", upstream: b.addr, gate: "max_connections 1 by user"},
		gated{name: "user", upstream: b.addr, gate: "handshake_rate 1/1h by user"},
		gated{name: "address", upstream: b.addr, gate: "handshake_rate 1/1h by ip"},
		gated{name: "bare", before: "reverse_proxy " + b.addr},
		gated{name: "close", upstream: b.addr, gate: "on_reject close"},
		gated{name: "down", upstream: "127.0.0.1:1"},
	))
	good := p.token(g, claims{"scope": "chat:write"})
	g.open(t, at("a", good)).Close()
	post(t, g, "/ws_gate/revocations", `{"jti":"gone","issuer":"`+p.issuer+`"}`)
	g.open(t, at("cap", good))
	g.open(t, at("user", good))
	g.open(t, at("address", good))
	for _, c := range []struct {
		h      handshake
		status int
		reason string
	}{
		{at("a", good).without("Sec-WebSocket-Key"), 400, "bad_request"},
		{at("a", good).as("POST"), 405, "bad_request"},
		{hello().to("/ws/a").offering("bearer." + good), 400, "bad_request"},
		{at("a", good).instead("Sec-WebSocket-Version", "Sec-WebSocket-Version: 7"), 426, "bad_version"},
		{at("a", good).fromOrigin("https://evil.test"), 403, "origin"},
		{hello().to("/ws/a"), 401, "no_token"},
		{at("a", good, "X-Access-Token: x"), 400, "several_tokens"},
		{at("a", "garbage"), 401, "invalid_token"},
		{at("a", p.token(g, claims{"exp": 1_000_000_000})), 401, "invalid_token"},
		{at("a", p.token(g, claims{"jti": "gone"})), 401, "revoked"},
		{at("a", p.token(g, claims{"iss": "http://127.0.0.1:1/"})), 503, "no_keys"},
		{at("a", p.token(g, nil)), 403, "claims"},
		{at("cap", good), 429, "cap"},
		{at("user", good), 429, "rate"},
		{at("address", good), 429, "rate"},
		{at("bare", good), 501, "unsupported"},
	} {
		a := g.try(t, c.h)
		if a.status != c.status || a.header.Get("X-Reason") != c.reason || a.body != "refused: "+c.reason {
			t.Errorf("%s: %d %q %q, want %d", c.reason, a.status, a.header.Get("X-Reason"), a.body, c.status)
		}
		// What the answer needs survives an error route of the operator's.
		name := map[int]string{401: "Www-Authenticate", 405: "Allow", 426: "Sec-Websocket-Version", 429: "Retry-After", 503: "Retry-After"}[c.status]
		if name != "" && a.header.Get(name) == "" {
			t.Errorf("%s: the answer has no %s", c.reason, name)
		}
	}
	closedWith(t, g, at("close", "garbage"), 3000, "")
	eventually(t, "the reason in the log", func() bool { return g.refusals("close")["invalid_token"] == 1 })
	g.refused(t, at("down", good), http.StatusBadGateway)
}

// A site that takes tokens where its access log has them is named at startup
// unless the filter is there; so does a reload.
func TestLogWarning(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	plain := "format json"
	config := func(format string) string {
		return loggedSite(p, format, "", gated{name: "a", upstream: "127.0.0.1:1"})
	}
	warnings := func(g *gate) (found []map[string]any) {
		for _, e := range g.entries("this site's access log would hold tokens: filter the fields with ws_token") {
			if e["level"] == "warn" && e["logger"] == "http.handlers.ws_gate" {
				found = append(found, e)
			}
		}
		return found
	}
	g := start(t, config(plain))
	eventually(t, "a warning", func() bool { return len(warnings(g)) == 1 })
	said := warnings(g)[0]
	if site := fmt.Sprint(said["site"]); !strings.Contains(site, "127.0.0.1") {
		t.Errorf("the warning names the site %q", site)
	}
	for _, field := range []string{"request>uri", "request>headers>Sec-Websocket-Protocol", "request>headers>X-Access-Token"} {
		if !slices.Contains(said["fields"].([]any), any(field)) {
			t.Errorf("the warning names the fields %v, not %s", said["fields"], field)
		}
	}
	// Nothing else but Authorization and cookies is worth no warning.
	silent := strings.NewReplacer("from_query access_token", "", "from_query ticket", "", "from_header X-Access-Token", "", "from_subprotocol bearer", "", "from_subprotocol jwt", "",
		"from_subprotocol base64url.bearer.authorization.k8s.io.", "").Replace(config(plain))
	for i, text := range []string{config(documented), silent} {
		if err := g.reload(text); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if n := len(warnings(g)); n != 1+i {
			t.Errorf("config %d: %d warnings, want %d", i, n, 1+i)
		}
		if err := g.reload(config(plain)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a warning again", func() bool { return len(warnings(g)) == 2+i })
	}
	quiet := start(t, config(documented))
	time.Sleep(100 * time.Millisecond)
	if n := len(warnings(quiet)); n != 0 {
		t.Errorf("%d warnings where the filter is set", n)
	}
}
