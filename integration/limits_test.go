package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// gated is one of several gates of a process: at /ws/<name>, with a tunnel
// name of its own unless its options say another.
type gated struct {
	name      string
	gate      string // lines of the ws_gate block
	upstream  string
	transport string // lines of the transport's block
	before    string // handlers between the gate and the proxy, in this order
}

// several writes a Caddyfile with these gates. All take the tokens of every
// one of the identity providers. The gate "warm" is always there, and has no
// limits.
func several(issuers []*idp, global string, all ...gated) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{
	admin 127.0.0.1:{{admin}}
	auto_https off
	debug
	persist_config off
	grace_period 2s
	log {
		level DEBUG
		%s
	}
	%s
}
http://127.0.0.1:{{port}} {
`, redaction, global)
	for _, g := range append(all, gated{name: "warm", before: "respond 204"}) {
		fmt.Fprintf(&b, "route /ws/%s* {\nws_gate {\n", g.name)
		for _, p := range issuers {
			fmt.Fprintf(&b, "issuer %s {\njwks %s\naudience chat\n}\n", p.issuer, p.jwksURL())
		}
		fmt.Fprintf(&b, "leeway 0s\n%s\n", g.gate)
		if !strings.Contains(g.gate, "tunnel_name") {
			fmt.Fprintf(&b, "tunnel_name %s\n", g.name)
		}
		fmt.Fprintf(&b, "}\n%s\n", g.before)
		if g.upstream != "" {
			fmt.Fprintf(&b, "reverse_proxy %s {\ntransport ws_tunnel {\n%s\n}\n}\n", g.upstream, g.transport)
		}
		b.WriteString("}\n")
	}
	return b.String() + "}\n"
}

// startSeveral runs it, and waits until the keys of all issuers are there.
func startSeveral(t testing.TB, issuers []*idp, global string, all ...gated) *gate {
	t.Helper()
	g := start(t, several(issuers, global, all...))
	for _, p := range issuers {
		g.refused(t, at("warm", p.token(g, nil)), http.StatusNoContent)
	}
	return g
}

// at is a handshake with the gate of this name.
func at(name, token string, lines ...string) handshake {
	return bearer(token, lines...).to("/ws/" + name)
}

// attempt makes one handshake and fails no test, so that goroutines can. The
// connection is there only behind a 101.
func (g *gate) attempt(h handshake) (*conn, answer) { return g.attemptFrom("127.0.0.1", h) }

// attemptFrom is attempt from another address of the loopback interface.
func (g *gate) attemptFrom(ip string, h handshake) (*conn, answer) {
	return g.attemptBy(net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: patience}, h)
}

func (g *gate) attemptBy(d net.Dialer, h handshake) (*conn, answer) {
	raw, err := d.Dial("tcp", g.addr)
	if err != nil {
		return nil, answer{err: err}
	}
	c := &conn{Conn: raw, t: g.t, tcp: raw.(*net.TCPConn), host: g.addr, br: bufio.NewReader(raw)}
	c.SetWriteDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(raw, h.text(g.addr)); err != nil {
		raw.Close()
		return nil, answer{err: err}
	}
	a := c.readAnswer(h.method)
	if a.status != http.StatusSwitchingProtocols {
		raw.Close()
		return nil, a
	}
	return c, a
}

// statuses makes n handshakes, one after the other, and counts the answers.
// What was opened is closed again.
func (g *gate) statuses(t testing.TB, from string, n int, h func(i int) handshake) map[int]int {
	t.Helper()
	got := make(map[int]int)
	for i := range n {
		c, a := g.attemptFrom(from, h(i))
		if a.status == 0 {
			t.Fatalf("handshake %d: no answer: %v", i, a.err)
		}
		got[a.status]++
		if c != nil {
			c.Close()
		}
	}
	return got
}

// want compares counts of answers.
func want(t testing.TB, what string, got, want map[int]int) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) { // maps print in the order of their keys
		t.Errorf("%s: answers %v, want %v", what, got, want)
	}
}

// echoes has the backend answer data with the same data and closes with
// closes, on every socket from now on, until the test ends.
func (b *backend) echoes() {
	ctx, cancel := context.WithCancel(context.Background())
	b.t.Cleanup(cancel)
	go func() {
		for {
			select {
			case u := <-b.arrivals:
				go u.echo()
			case <-ctx.Done():
				return
			}
		}
	}()
}

// echo serves one socket until it ends.
func (u *upstream) echo() {
	defer u.Close()
	for {
		f, err := readFrame(u.br)
		if err != nil {
			return
		}
		first := f.first
		switch f.opcode() {
		case 9:
			first++
		case 10:
			continue
		}
		if _, err := u.Write(unmasked(first, f.payload)); err != nil || f.opcode() == 8 {
			return
		}
	}
}

// refusals are the log's lines about refused handshakes at this tunnel.
func (g *gate) refusals(tunnel string) map[string]int {
	got := make(map[string]int)
	for _, e := range append(g.entries("handshake refused"), g.entries("request refused")...) {
		if e["tunnel"] == tunnel {
			got[fmt.Sprint(e["reason"])]++
		}
	}
	return got
}

// retryAfter is the answer's Retry-After.
func retryAfter(t testing.TB, a answer) time.Duration {
	t.Helper()
	n, err := strconv.Atoi(a.header.Get("Retry-After"))
	if err != nil || n < 1 {
		t.Fatalf("Retry-After: %q", a.header.Get("Retry-After"))
	}
	return time.Duration(n) * time.Second
}

// The tests of handshake_rate share a process; 127.0.0.2 is a trusted proxy
// there, other addresses are not.
func TestHandshakeRate(t *testing.T) {
	t.Parallel()
	p, other := newIDP(t), newIDP(t)
	b := newBackend(t)
	b.echoes()
	issuers := []*idp{p, other}
	const trusted = "servers {\ntrusted_proxies static 127.0.0.2/32\n}"
	rated := func(name, rate string) gated {
		return gated{name: name, gate: rate, upstream: b.addr}
	}
	all := []gated{
		rated("ip", "handshake_rate 1/1h burst 5 by ip"),
		rated("default", "handshake_rate 5/1h"),
		rated("spoofed", "handshake_rate 1/1h burst 5"),
		rated("behind", "handshake_rate 1/1h burst 5"),
		rated("six", "handshake_rate 1/1h burst 2"),
		rated("user", "handshake_rate 1/1h burst 3 by user"),
		rated("header", "handshake_rate 1/1h burst 3 by {header.X-Tenant}"),
		rated("claim", "handshake_rate 1/1h burst 3 by {http.auth.user.tenant}"),
		rated("both", "handshake_rate 1/1h burst 6 by ip\nhandshake_rate 1/1h burst 2 by user"),
		rated("true", "handshake_rate 2/3s burst 3 by ip"),
		rated("crypto", "handshake_rate 1/1h burst 5 by ip"),
		rated("closing", "handshake_rate 1/1h burst 1 by user\non_reject close"),
		rated("closingip", "handshake_rate 1/1h burst 1 by ip\non_reject close"),
		rated("plain", "handshake_rate 1/1h burst 3"),
		rated("shared1", "handshake_rate 1/1h burst 4\ntunnel_name one"),
		rated("shared2", "handshake_rate 1/1h burst 4\ntunnel_name one"),
	}
	g := startSeveral(t, issuers, trusted, all...)
	token := p.token(g, nil)
	same := func(name string) func(int) handshake {
		return func(int) handshake { return at(name, token) }
	}

	t.Run("the burst and no more, also in parallel", func(t *testing.T) {
		t.Parallel()
		var mu sync.Mutex
		var wg sync.WaitGroup
		got := make(map[int]int)
		for range 40 {
			wg.Go(func() {
				c, a := g.attempt(at("ip", token))
				if c != nil {
					c.Close()
				}
				mu.Lock()
				defer mu.Unlock()
				got[a.status]++
			})
		}
		wg.Wait()
		want(t, "40 at once", got, map[int]int{101: 5, 429: 35})
		// Another address has a bucket of its own.
		want(t, "another address", g.statuses(t, "127.0.0.3", 1, same("ip")), map[int]int{101: 1})
		_, a := g.attempt(at("ip", token))
		if d := retryAfter(t, a); d > time.Hour || d < 50*time.Minute {
			t.Errorf("Retry-After %v at one an hour", d)
		}
		if hint := a.header.Get("X-Ws-Gate-Hint"); !strings.Contains(hint, "1 handshakes in 1h") { // S-190
			t.Errorf("the answer tells nothing of the limit: %q", hint)
		}
	})
	t.Run("by ip, and a burst of the number, are the default", func(t *testing.T) {
		t.Parallel()
		want(t, "20 of one address", g.statuses(t, "127.0.0.1", 20, same("default")), map[int]int{101: 5, 429: 15})
		want(t, "2 of another", g.statuses(t, "127.0.0.4", 2, same("default")), map[int]int{101: 2})
	})
	// S-111, S-112: what an untrusted peer says of its address has no effect.
	t.Run("spoofed addresses", func(t *testing.T) {
		t.Parallel()
		got := g.statuses(t, "127.0.0.1", 200, func(i int) handshake {
			fake := fmt.Sprintf("203.0.113.%d", i)
			return at("spoofed", token, "X-Forwarded-For: "+fake, "X-Real-IP: "+fake,
				"Forwarded: for="+fake, "X_Forwarded_For: "+fake, "CF-Connecting-IP: "+fake, "X-Client-IP: "+fake)
		})
		want(t, "200 made-up addresses", got, map[int]int{101: 5, 429: 195})
		for _, head := range b.requests() {
			if strings.HasPrefix(head, "GET /ws/spoofed") && strings.Contains(strings.ToLower(head), "x-forwarded-for: 203.") {
				t.Errorf("the backend is told the made-up address:\n%s", head)
			}
		}
	})
	t.Run("addresses from a trusted proxy", func(t *testing.T) {
		t.Parallel()
		got := g.statuses(t, "127.0.0.2", 50, func(i int) handshake {
			return at("behind", token, fmt.Sprintf("X-Forwarded-For: 203.0.113.%d", i))
		})
		want(t, "50 clients behind it", got, map[int]int{101: 50})
		got = g.statuses(t, "127.0.0.2", 20, func(int) handshake {
			return at("behind", token, "X-Forwarded-For: 198.51.100.1")
		})
		want(t, "one client behind it", got, map[int]int{101: 5, 429: 15})
	})
	t.Run("IPv6 by /64, mapped IPv4 as IPv4", func(t *testing.T) {
		t.Parallel()
		from := func(ips ...string) map[int]int {
			return g.statuses(t, "127.0.0.2", len(ips), func(i int) handshake {
				return at("six", token, "X-Forwarded-For: "+ips[i])
			})
		}
		want(t, "one /64", from("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", "2001:db8:1:2::3"), map[int]int{101: 2, 429: 1})
		want(t, "another", from("2001:db8:1:3::1"), map[int]int{101: 1})
		want(t, "mapped", from("::ffff:192.0.2.1", "192.0.2.1", "::ffff:c000:201"), map[int]int{101: 2, 429: 1})
	})
	t.Run("by user", func(t *testing.T) {
		t.Parallel()
		bob, foreign := p.token(g, claims{"sub": "bob"}), other.token(g, nil)
		want(t, "alice", g.statuses(t, "127.0.0.1", 6, same("user")), map[int]int{101: 3, 429: 3})
		want(t, "alice from elsewhere", g.statuses(t, "127.0.0.5", 1, same("user")), map[int]int{429: 1})
		want(t, "alice with another token", g.statuses(t, "127.0.0.1", 1, func(int) handshake {
			return at("user", p.token(g, claims{"jti": "another"}))
		}), map[int]int{429: 1})
		want(t, "bob", g.statuses(t, "127.0.0.1", 1, func(int) handshake { return at("user", bob) }), map[int]int{101: 1})
		want(t, "alice of another issuer", g.statuses(t, "127.0.0.1", 4, func(int) handshake { return at("user", foreign) }), map[int]int{101: 3, 429: 1})
		// Nobody can use up what a user has without a token of theirs.
		forged := p.mintWith(newECKey("ec-1"), claims{"sub": "victim"})
		want(t, "forged", g.statuses(t, "127.0.0.1", 10, func(int) handshake { return at("user", forged) }), map[int]int{401: 10})
		victim := p.token(g, claims{"sub": "victim"})
		want(t, "victim", g.statuses(t, "127.0.0.1", 4, func(int) handshake { return at("user", victim) }), map[int]int{101: 3, 429: 1})
	})
	t.Run("by a placeholder of the request", func(t *testing.T) {
		t.Parallel()
		for _, tenant := range []string{"red", "blue"} {
			got := g.statuses(t, "127.0.0.1", 5, func(int) handshake { return at("header", token, "X-Tenant: "+tenant) })
			want(t, tenant, got, map[int]int{101: 3, 429: 2})
		}
	})
	t.Run("by a placeholder of the token", func(t *testing.T) {
		t.Parallel()
		for _, tenant := range []string{"red", "blue"} {
			got := g.statuses(t, "127.0.0.1", 5, func(i int) handshake {
				return at("claim", p.token(g, claims{"tenant": tenant, "sub": fmt.Sprint(i)}))
			})
			want(t, tenant, got, map[int]int{101: 3, 429: 2})
		}
	})
	t.Run("several rates", func(t *testing.T) {
		t.Parallel()
		want(t, "one user", g.statuses(t, "127.0.0.1", 4, same("both")), map[int]int{101: 2, 429: 2})
		got := g.statuses(t, "127.0.0.1", 4, func(i int) handshake {
			return at("both", p.token(g, claims{"sub": fmt.Sprint("u", i)}))
		})
		want(t, "others at the same address", got, map[int]int{101: 2, 429: 2})
	})
	// S-195: whoever waits as long as Retry-After says gets in.
	t.Run("Retry-After is true", func(t *testing.T) {
		t.Parallel()
		for range 2 {
			var a answer
			eventually(t, "a refusal", func() bool {
				var c *conn
				if c, a = g.attempt(at("true", token)); c != nil {
					c.Close()
				}
				return a.status == http.StatusTooManyRequests
			})
			d := retryAfter(t, a)
			if d > 3*time.Second {
				t.Errorf("Retry-After %v at two in 3 s", d)
			}
			time.Sleep(d)
			want(t, "after the wait", g.statuses(t, "127.0.0.1", 1, same("true")), map[int]int{101: 1})
		}
	})
	// S-128: who floods with bad tokens is stopped before they are looked at,
	// and nobody else is.
	t.Run("before crypto", func(t *testing.T) {
		t.Parallel()
		gets := p.gets.Load()
		stranger := newECKey("unknown-kid")
		b.untouchedAt(t, "/ws/crypto", func() {
			got := g.statuses(t, "127.0.0.6", 300, func(i int) handshake {
				if i%2 == 0 {
					return at("crypto", p.mintWith(newECKeyOnce(), nil))
				}
				return at("crypto", p.mintWith(stranger, nil))
			})
			want(t, "300 bad tokens", got, map[int]int{401: 5, 429: 295})
		})
		if n := p.gets.Load() - gets; n > 1 {
			t.Errorf("%d fetches of keys for what was refused anyway", n)
		}
		want(t, "a good user elsewhere", g.statuses(t, "127.0.0.7", 1, same("crypto")), map[int]int{101: 1})
		if got := g.refusals("crypto"); got["invalid_token"] != 5 || got["rate"] != 295 {
			t.Errorf("refused: %v, want 5 for the token and 295 for the rate", got)
		}
	})
	t.Run("on_reject close", func(t *testing.T) {
		t.Parallel()
		want(t, "first", g.statuses(t, "127.0.0.1", 1, same("closing")), map[int]int{101: 1})
		c := g.open(t, at("closing", token))
		c.expectClose(1013)
		// Before the token there is no close frame.
		want(t, "by ip", g.statuses(t, "127.0.0.1", 2, same("closingip")), map[int]int{101: 1, 429: 1})
	})
	t.Run("plain requests count too", func(t *testing.T) {
		t.Parallel()
		poll := handshake{method: "GET", target: "/ws/plain", version: "HTTP/1.1", lines: []string{"Authorization: Bearer " + token}}
		want(t, "polls", g.statuses(t, "127.0.0.1", 4, func(int) handshake { return poll }), map[int]int{200: 3, 429: 1})
		want(t, "a handshake", g.statuses(t, "127.0.0.1", 1, same("plain")), map[int]int{429: 1})
	})
	t.Run("gates of one tunnel name share", func(t *testing.T) {
		t.Parallel()
		want(t, "one", g.statuses(t, "127.0.0.1", 3, same("shared1")), map[int]int{101: 3})
		want(t, "the other", g.statuses(t, "127.0.0.1", 3, same("shared2")), map[int]int{101: 1, 429: 2})
	})
}

// newECKeyOnce is a stranger's key under the kid of a good one.
var newECKeyOnce = sync.OnceValue(func() *signingKey { return newECKey("ec-1") })

// untouchedAt is untouched for the requests of one path.
func (b *backend) untouchedAt(t testing.TB, path string, fn func()) {
	t.Helper()
	count := func() (n int) {
		for _, head := range b.requests() {
			if strings.HasPrefix(head, "GET "+path) {
				n++
			}
		}
		return n
	}
	before := count()
	fn()
	if n := count() - before; n != 0 {
		t.Errorf("the backend got %d requests for %s", n, path)
	}
}

// S-201: what was used up before a reload is used up after it.
func TestHandshakeRateAcrossReload(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	caddyfile := func(options string) string {
		return several([]*idp{p}, "", gated{name: "a", gate: "handshake_rate 1/1h burst 5 by ip\nhandshake_rate 1/1h burst 2 by user\n" + options, upstream: b.addr})
	}
	g := start(t, caddyfile(""))
	token := p.token(g, nil)
	g.refused(t, at("warm", token), http.StatusNoContent)
	try := func(sub string, n int) map[int]int {
		return g.statuses(t, "127.0.0.1", n, func(int) handshake { return at("a", p.token(g, claims{"sub": sub})) })
	}
	want(t, "alice", try("alice", 3), map[int]int{101: 2, 429: 1})
	for i := range 3 {
		if err := g.reload(caddyfile(fmt.Sprintf("ping_interval %ds", 40+i))); err != nil {
			t.Fatal(err)
		}
		if i == 0 { // the address has two left, alice none
			want(t, "alice after the reload", try("alice", 1), map[int]int{429: 1})
			want(t, "bob", try("bob", 2), map[int]int{101: 1, 429: 1})
		}
		want(t, "the address after the reload", try(fmt.Sprint("u", i), 1), map[int]int{429: 1})
	}
	// S-203: a reload that fails neither resets nor loses it.
	if err := g.reload(caddyfile("ping_interval soon")); err == nil {
		t.Error("accepted")
	}
	want(t, "after a failed reload", try("carol", 1), map[int]int{429: 1})
	if !bytes.Contains([]byte(g.tail(200)), []byte(`"reason":"rate"`)) {
		t.Error("no refusal in the log names the rate")
	}
}
