package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// scrape reads /metrics: values by name and labels, of the gate only.
func (g *gate) scrape(t testing.TB) map[string]float64 {
	t.Helper()
	resp, err := adminClient.Get("http://" + g.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	values := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		series, text, found := cutLast(lines.Text())
		if !found || !strings.HasPrefix(series, "caddy_ws_gate_") {
			continue
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		values[series] = value
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return values
}

func cutLast(line string) (before, after string, found bool) {
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		return "", "", false
	}
	return line[:i], line[i+1:], true
}

var labelName = regexp.MustCompile(`([a-z_]+)="((?:[^"\\]|\\.)*)"`)

// vocabulary is what labels may say, contract §5; nil: the operator's words.
var vocabulary = map[string][]string{
	"tunnel": nil, "issuer": nil, "upstream": nil,
	"le":        nil,
	"direction": {"in", "out"},
	"closed_by": {"client", "backend", "gate"},
	"result": {
		"accepted", "bad_request", "bad_version", "origin", "rate", "no_token", "several_tokens", "invalid_token", "revoked",
		"no_keys", "claims", "cap", "draining", "unsupported", "backend", "success", "failure",
	},
	"reason": {
		"normal", "protocol", "too_big", "rate", "evicted", "admin", "revoked", "expired", "lifetime", "ping_timeout",
		"idle_timeout", "drain", "backend_lost", "client_lost",
	},
}

// Every metric of the contract, with its values, before and after three
// reloads: counters only rise, gauges go back to nothing, and no label tells
// who came from where.
func TestMetrics(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	sites := []gated{
		{name: "m", gate: "ping_interval 50ms\nmax_connections 3 by user\norigins https://app.example.com", upstream: b.addr},
		{name: "down", upstream: "127.0.0.1:1"},
	}
	g := startSeveral(t, []*idp{p}, "", sites...)
	token := p.token(g, claims{"sub": "metric-user"})
	open := func() *conn {
		t.Helper()
		c, a := g.attempt(at("m", token, "Origin: https://app.example.com"))
		if c == nil {
			t.Fatalf("status %d", a.status)
		}
		return c
	}
	var before map[string]float64
	rising := func() map[string]float64 {
		t.Helper()
		now := g.scrape(t)
		for series, value := range before {
			if strings.Contains(series, "_total") || strings.Contains(series, "_seconds_count") || strings.Contains(series, "_seconds_sum") || strings.Contains(series, "_bucket") {
				if got, there := now[series]; !there || got < value {
					t.Errorf("%s fell from %v to %v", series, value, got)
				}
			}
		}
		before = now
		return now
	}
	rising()
	one, two, three := open(), open(), open()
	for range 5 {
		one.send(masked(0x81, []byte("12345")))
		if f := one.readPonging(); string(f.payload) != "12345" {
			t.Fatalf("%q", f.payload)
		}
	}
	rising()
	two.finish(t)
	eventually(t, "the second is counted out", func() bool { return g.scrape(t)[`caddy_ws_gate_connections{tunnel="m"}`] == 2 })
	_, _ = g.attempt(at("m", "x", "Origin: https://app.example.com"))
	_, _ = g.attempt(at("m", token, "Origin: https://evil.example"))
	_, _ = g.attempt(at("down", token))
	_, _ = g.attempt(at("m", token).without("Sec-WebSocket-Version"))
	after := rising()
	want := map[string]float64{
		`caddy_ws_gate_connections{tunnel="m"}`:                                         2,
		`caddy_ws_gate_upstream_connections{tunnel="m",upstream="` + b.addr + `"}`:      2,
		`caddy_ws_gate_handshakes_total{result="accepted",tunnel="m"}`:                  3,
		`caddy_ws_gate_handshakes_total{result="invalid_token",tunnel="m"}`:             1,
		`caddy_ws_gate_handshakes_total{result="origin",tunnel="m"}`:                    1,
		`caddy_ws_gate_handshakes_total{result="bad_version",tunnel="m"}`:               1,
		`caddy_ws_gate_handshakes_total{result="backend",tunnel="down"}`:                1,
		`caddy_ws_gate_closes_total{closed_by="client",reason="normal",tunnel="m"}`:     1,
		`caddy_ws_gate_messages_total{direction="in",tunnel="m"}`:                       5,
		`caddy_ws_gate_messages_total{direction="out",tunnel="m"}`:                      5,
		`caddy_ws_gate_bytes_total{direction="in",tunnel="m"}`:                          25,
		`caddy_ws_gate_bytes_total{direction="out",tunnel="m"}`:                         25,
		`caddy_ws_gate_connection_duration_seconds_count{tunnel="m"}`:                   1,
		`caddy_ws_gate_jwks_fetches_total{issuer="` + p.issuer + `",result="success"}`:  1,
		`caddy_ws_gate_connection_duration_seconds_bucket{tunnel="m",le="+Inf"}`:        1,
		`caddy_ws_gate_connection_duration_seconds_bucket{tunnel="m",le="86400"}`:       1,
		`caddy_ws_gate_connections{tunnel="down"}`:                                      -1, // no socket ever: no series
		`caddy_ws_gate_jwks_fetches_total{issuer="` + p.issuer + `",result="failure"}`:  -1,
		`caddy_ws_gate_closes_total{closed_by="gate",reason="ping_timeout",tunnel="m"}`: -1,
		`caddy_ws_gate_upstream_connections{tunnel="down",upstream="127.0.0.1:1"}`:      -1,
	}
	for series, value := range want {
		got, there := after[series]
		if value < 0 && there || value >= 0 && got != value {
			t.Errorf("%s is %v (%t), want %v", series, got, there, value)
		}
	}
	eventually(t, "a pong is measured", func() bool {
		one.send(masked(0x81, []byte("x")))
		one.readPonging()
		return g.scrape(t)[`caddy_ws_gate_ping_rtt_seconds_count{tunnel="m"}`] > 0
	})
	if age := g.scrape(t)[`caddy_ws_gate_jwks_age_seconds{issuer="`+p.issuer+`"}`]; age <= 0 || age > 120 {
		t.Errorf("the keys are %v s old", age)
	}

	for i := range 3 {
		sites[0].gate = fmt.Sprintf("ping_interval %dms\nmax_connections %d by user\norigins https://app.example.com", 50+i, 3+i)
		if err := g.reload(several([]*idp{p}, "", sites...)); err != nil {
			t.Fatal(err)
		}
		rising()
		if !one.alive(t) {
			t.Fatal("a socket is gone")
		}
		open().finish(t)
		rising()
	}
	if got := before[`caddy_ws_gate_handshakes_total{result="accepted",tunnel="m"}`]; got != 6 {
		t.Errorf("%v accepted over all configs, want 6", got)
	}
	one.Close()
	three.reset()
	eventually(t, "the gauge is back at 0", func() bool {
		now := rising()
		_, there := now[`caddy_ws_gate_upstream_connections{tunnel="m",upstream="`+b.addr+`"}`]
		value, known := now[`caddy_ws_gate_connections{tunnel="m"}`]
		return known && value == 0 && !there
	})
	closes := 0.0
	for series, value := range rising() {
		name, _, _ := strings.Cut(series, "{")
		if name == "caddy_ws_gate_closes_total" && strings.Contains(series, `tunnel="m"`) {
			closes += value
		}
		for _, label := range labelName.FindAllStringSubmatch(series, -1) {
			words, known := vocabulary[label[1]]
			if !known || words != nil && !slices.Contains(words, label[2]) {
				t.Errorf("%s: label %s says %q", series, label[1], label[2])
			}
		}
		for _, secret := range []string{"metric-user", "app.example.com", "evil.example"} {
			if strings.Contains(series, secret) {
				t.Errorf("%s says %q", series, secret)
			}
		}
		if strings.Contains(series, "127.0.0.1") && name != "caddy_ws_gate_upstream_connections" && !strings.HasPrefix(name, "caddy_ws_gate_jwks") {
			t.Errorf("%s has an address", series)
		}
	}
	if closes != 6 {
		t.Errorf("%v closes, want 6", closes)
	}
}

// The metrics of the keys follow an endpoint that fails and heals.
func TestKeyMetrics(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	g := wiring{idp: p, upstream: newBackend(t).addr, issuer: "refresh 1s"}.start(t)
	series := func(name, more string) string {
		return "caddy_ws_gate_jwks_" + name + `{issuer="` + p.issuer + `"` + more + "}"
	}
	fetches := func(result string) float64 { return g.scrape(t)[series("fetches_total", `,result="`+result+`"`)] }
	age := func() float64 { return g.scrape(t)[series("age_seconds", "")] }
	eventually(t, "fetched", func() bool { return fetches("success") > 0 && age() > 0 })
	p.answerWith(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	eventually(t, "failures are counted and the keys grow old", func() bool { return fetches("failure") >= 2 && age() > 2 })
	p.answerWith(nil)
	eventually(t, "young again", func() bool { return age() < 1 && fetches("failure") >= 2 })
}

// logLine holds that a line has these fields, each of its type, and is the
// only one of its kind.
func logLine(t testing.TB, entry map[string]any, want map[string]string) {
	t.Helper()
	for name, kind := range want {
		value, there := entry[name]
		if got := fmt.Sprintf("%T", value); !there || got != kind {
			t.Errorf("%s: %s is %v (%s), want a %s", entry["msg"], name, value, got, kind)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(entry)) {
		switch name {
		case "level", "ts", "logger", "msg":
		default:
			if want[name] == "" {
				t.Errorf("%s: field %s is not in the contract: %v", entry["msg"], name, entry[name])
			}
		}
	}
}

// One line at open, one at close and one for each refusal, with the fields of
// contract §5.
func TestLogLines(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "tunnel_name logs"}.start(t)
	const text, number = "string", "float64"
	opened := map[string]string{"connection_id": text, "tunnel": text, "user_id": text, "issuer": text, "client_ip": text, "upstream": text}
	closed := map[string]string{
		"duration": number, "close_code": number, "close_reason": text, "closed_by": text,
		"bytes_in": number, "bytes_out": number, "messages_in": number, "messages_out": number,
	}
	maps.Copy(closed, opened)
	for i, tc := range []struct {
		by, reason string
		code       float64
		end        func(c *conn, u *upstream)
	}{
		{"client", "normal", 4001, func(c *conn, u *upstream) {
			c.send(masked(0x88, closing(4001, "secret reason")))
			u.read()
			u.send(unmasked(0x88, closing(4001, "")))
		}},
		{"backend", "normal", 1000, func(c *conn, u *upstream) {
			u.send(unmasked(0x88, closing(1000, "")))
			c.read()
			c.send(masked(0x88, closing(1000, "")))
		}},
		{"gate", "admin", 4002, func(c *conn, _ *upstream) {
			g.counted(t, "DELETE", "connections?user=alice&code=4002&reason=go", "", "closed")
			c.expectClose(4002)
		}},
		{"gate", "protocol", 1002, func(c *conn, _ *upstream) {
			c.send(unhex("83 80 00000000"))
			c.expectClose(1002)
		}},
		{"backend", "backend_lost", 1014, func(c *conn, u *upstream) {
			u.Close()
			c.expectClose(1014)
		}},
		{"client", "client_lost", 0, func(c *conn, u *upstream) {
			c.reset()
			u.rest()
		}},
	} {
		c, u := pair(t, g, p, b)
		up, down := masked(0x82, random(300)), unmasked(0x82, random(7))
		c.send(up)
		u.expectBytes(up)
		u.send(down)
		c.expectBytes(down)
		tc.end(c, u)
		c.Close()
		u.Close()
		eventually(t, "the line about the end", func() bool { return len(g.entries("connection closed")) > i })
		if n, m := len(g.entries("connection opened")), len(g.entries("connection closed")); n != i+1 || m != i+1 {
			t.Errorf("%d sockets: %d opened, %d closed", i+1, n, m)
		}
		first, last := g.entries("connection opened")[i], g.entries("connection closed")[i]
		logLine(t, first, opened)
		logLine(t, last, closed)
		for name, want := range map[string]any{
			"level": "info", "logger": "http.handlers.ws_gate", "tunnel": "logs", "user_id": "alice", "issuer": p.issuer,
			"client_ip": "127.0.0.1", "upstream": b.addr, "connection_id": first["connection_id"],
			"closed_by": tc.by, "close_reason": tc.reason, "close_code": tc.code,
			"bytes_in": 300.0, "bytes_out": 7.0, "messages_in": 1.0, "messages_out": 1.0,
		} {
			if last[name] != want {
				t.Errorf("%s by %s: %s is %v, want %v", tc.reason, tc.by, name, last[name], want)
			}
			if opened[name] != "" && first[name] != want {
				t.Errorf("opened: %s is %v, want %v", name, first[name], want)
			}
		}
	}
	for i, h := range []handshake{hello(), bearer("x"), bearer(p.token(g, nil)).fromOrigin("https://evil.example"), bearer(p.token(g, claims{"aud": "x"}))} {
		g.settled(t, h)
		eventually(t, "the line about the refusal", func() bool { return len(g.entries("handshake refused")) > i })
		lines := g.entries("handshake refused")
		if len(lines) != i+1 {
			t.Errorf("%d refusals, %d lines", i+1, len(lines))
		}
		line := lines[i]
		if line["level"] != "info" || line["logger"] != "http.handlers.ws_gate" || line["tunnel"] != "logs" || line["client_ip"] != "127.0.0.1" {
			t.Errorf("line %v", line)
		}
		if reason, _ := line["reason"].(string); reason != []string{"no_token", "invalid_token", "origin", "invalid_token"}[i] {
			t.Errorf("reason %q", reason)
		}
	}
	for _, line := range g.lines() {
		if strings.Contains(line, "secret reason") {
			t.Errorf("a peer's reason in the log: %s", line)
		}
	}
}

// Caddy's log sampling thins our lines out as it does others.
func TestLogSampling(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	file := filepath.Join(t.TempDir(), "gate.log")
	g := wiring{idp: p, upstream: newBackend(t).addr, global: `log sampled {
		include http.handlers.ws_gate
		output file ` + file + `
		sampling {
			interval 1h
			first 3
			thereafter 10
		}
	}`}.start(t)
	for range 33 {
		g.try(t, hello())
	}
	count := func() (n int) {
		content, _ := os.ReadFile(file)
		return strings.Count(string(content), "handshake refused")
	}
	eventually(t, "6 of 33 lines", func() bool { return count() == 6 })
	g.try(t, bearer("x").without("Upgrade").without("Sec-WebSocket-Key")) // of another kind: not sampled away
	eventually(t, "a line of another kind", func() bool {
		content, _ := os.ReadFile(file)
		return strings.Contains(string(content), "request refused")
	})
	if n := count(); n != 6 {
		t.Errorf("%d lines, want 6 sampled of 33", n)
	}
	if n := g.scrape(t)[`caddy_ws_gate_handshakes_total{result="no_token",tunnel="default"}`]; n != 33 {
		t.Errorf("%v are counted, want all 33", n)
	}
}

// S-210, beyond headers_test.go: whatever a client puts into what is logged, a line stays one line of
// JSON, and of plain text where the operator wants that.
func TestLogInjectionEverywhere(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	dir := t.TempDir()
	g := wiring{idp: p, upstream: b.addr, gate: "from_header X-Api-Token Authorization\nfrom_query token\norigins *", global: `log console {
		include http.handlers.ws_gate
		output file ` + dir + `/console.log
		format console
	}
	log ours {
		include http.handlers.ws_gate
		output file ` + dir + `/ours.log
	}`}.start(t)
	evil := "\r\n{\"level\":\"error\",\"msg\":\"forged\"}\x1b[2J\u2028\x00\x7f\"\\"
	key := commonKeys()["ES256"]
	quoted := func(s string) string { q, _ := json.Marshal(s); return string(q) }
	evilKid := key.compact(`{"alg":"ES256","kid":`+quoted(evil)+`,"typ":"JWT"}`, p.usual(nil))
	evilAlg := key.compact(`{"alg":`+quoted(evil)+`,"kid":"ec-1"}`, p.usual(nil))
	for _, h := range []handshake{
		bearer(evilKid), bearer(evilAlg),
		bearer(p.mint("ES256", claims{"iss": evil})), bearer(p.mint("ES256", claims{"aud": evil})),
		bearer(p.mint("ES256", claims{"sub": evil})), bearer(p.mint("ES256", claims{"sub": "a\x1b[2J"})),
		hello().fromOrigin("https://\x1b[2J\"}{evil\\n"),
		hello().to("/ws/%0d%0a%7b%22level%22%3a%22error%22%7d?x=%0a%1b"),
		hello().with("User-Agent: \"}\\n{\"level\":\"error\",\"msg\":\"forged\""),
		hello().offering(`"}{\n`), hello().to("/ws?token=%0d%0aforged"),
	} {
		g.try(t, h)
	}
	// What may be a user's name is logged as it is, in one line.
	c := g.open(t, bearer(p.mint("ES256", claims{"sub": `a"}{\n,"msg":"forged"`})))
	c.finish(t)
	read := func(name string) []string {
		content, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	}
	eventually(t, "the line about the end", func() bool { return strings.Contains(strings.Join(read("console.log"), ""), "connection closed") })
	for _, line := range append(g.lines(), read("ours.log")...) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("no JSON: %q", line)
		}
		if entry["msg"] == "forged" || strings.ContainsFunc(line, func(r rune) bool { return r < 0x20 || r == 0x7F }) {
			t.Errorf("injected: %q", line)
		}
		if got, there := entry["user_id"]; there && entry["msg"] == "connection closed" && got != `a"}{\n,"msg":"forged"` {
			t.Errorf("user_id %q", got)
		}
	}
	if n := len(read("ours.log")); n < 13 {
		t.Errorf("%d lines of ours", n)
	}
	for _, line := range read("console.log") {
		_, line, ours := strings.Cut(line, "\thttp.handlers.ws_gate\t") // before it, Caddy colours the level
		if !ours {
			t.Errorf("a line that is not ours: %q", line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < 0x20 && r != '\t' }) {
			t.Errorf("injected: %q", line)
		}
	}
}

// The events of sockets pass through Caddy's events app, which says so at the
// debug level. (module/events_test.go has subscribers.)
func TestEventsInTheLog(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	c, _ := pair(t, g, p, b)
	c.Close()
	g.try(t, hello())
	for _, name := range []string{"ws_gate.opened", "ws_gate.closed", "ws_gate.refused"} {
		eventually(t, name, func() bool {
			return slices.ContainsFunc(g.entries("event"), func(e map[string]any) bool {
				return e["logger"] == "events" && e["name"] == name && e["origin"] == "ws_gate"
			})
		})
	}
}
