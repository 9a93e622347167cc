package integration

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// failures is how many handshakes fail in each way in TestCapFailures: 1,000
// of each take too long for every run of CI.
var failures = flag.Int("failures", 100, "failed handshakes of each kind")

// S-185: of 200 handshakes at the same moment exactly 5 get through, and the
// backend sees no more than these.
func TestCapRace(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	g := startSeveral(t, []*idp{p}, "", gated{name: "a", gate: "max_connections 5 by user", upstream: b.addr})
	rounds := 5
	if testing.Short() {
		rounds = 1
	}
	token := p.token(g, nil)
	for round := range rounds {
		dials := b.dials.Load()
		open, got := race(g, 200, func(int) handshake { return at("a", token) })
		want(t, fmt.Sprintf("round %d", round), got, map[int]int{101: 5, 429: 195})
		if n := b.dials.Load() - dials; n != 5 {
			t.Errorf("round %d: the backend saw %d", round, n)
		}
		_, a := g.attempt(at("a", token))
		if hint := a.header.Get("X-Ws-Gate-Hint"); a.status != 429 || !strings.Contains(hint, "5 connections") { // S-190
			t.Errorf("status %d, hint %q", a.status, hint)
		}
		retryAfter(t, a)
		for _, c := range open {
			c.finish(t)
		}
	}
}

// race makes n handshakes at the same moment.
func race(g *gate, n int, h func(i int) handshake) (open []*conn, got map[int]int) {
	var mu sync.Mutex
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	got = make(map[int]int)
	ready.Add(n)
	for i := range n {
		done.Go(func() {
			ready.Done()
			<-begin
			c, a := g.attempt(h(i))
			mu.Lock()
			defer mu.Unlock()
			got[a.status]++
			if c != nil {
				open = append(open, c)
			}
		})
	}
	ready.Wait()
	close(begin)
	done.Wait()
	return open, got
}

// finish closes a socket whose backend echoes, by the close handshake.
func (c *conn) finish(t testing.TB) {
	t.Helper()
	c.t = t
	c.send(masked(0x88, closing(1000, "")))
	if f := c.readPonging(); f.first != 0x88 {
		t.Errorf("frame %x, want the close frame", f.first)
	}
	c.Close()
}

// alive has the backend echo, and reports whether it does.
func (c *conn) alive(t testing.TB) bool {
	t.Helper()
	c.SetWriteDeadline(time.Now().Add(patience))
	if _, err := c.Write(masked(0x81, []byte("alive?"))); err != nil {
		return false
	}
	c.SetReadDeadline(time.Now().Add(patience))
	for {
		f, err := readFrame(c.br)
		if err != nil || f.opcode() == 8 {
			return false
		}
		if f.first == 0x81 {
			return string(f.payload) == "alive?"
		}
	}
}

// evict_oldest under the same race: everybody may try, 5 remain; and then one
// after the other takes the place of the oldest.
func TestCapEvictsOldest(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	g := startSeveral(t, []*idp{p}, "", gated{name: "a", gate: "max_connections 5 by user evict_oldest", upstream: b.addr})
	token := p.token(g, nil)
	open, got := race(g, 200, func(int) handshake { return at("a", token) })
	if got[101]+got[429] != 200 || got[101] < 5 {
		t.Fatalf("answers %v, want 101, or 429 for those evicted before theirs", got)
	}
	t.Logf("of 200: %v", got)
	// Each of these gets its close frame, or lives on.
	var evicted atomic.Int64
	left := make(chan *conn, len(open))
	for _, c := range open {
		go func() {
			for {
				c.SetReadDeadline(time.Now().Add(3 * time.Second))
				f, err := readFrame(c.br)
				switch {
				case err == nil && f.opcode() == 9:
					continue
				case err == nil && f.opcode() == 8 && f.code() == 1008:
					evicted.Add(1)
					c.Close()
					left <- nil
				case err != nil && !isReset(err): // nothing came
					left <- c
				default:
					t.Errorf("a socket ended by frame %x (%d), %v; want 1008", f.first, f.code(), err)
					left <- nil
				}
				return
			}
		}()
	}
	var living []*conn
	for range open {
		if c := <-left; c != nil {
			living = append(living, c)
		}
	}
	if len(living) != 5 {
		t.Fatalf("%d sockets are left of the race, want 5 (%d were evicted)", len(living), evicted.Load())
	}
	for i, c := range living {
		if !c.alive(t) {
			t.Errorf("socket %d of those left is dead", i)
		}
	}
	// The newest 5 of 12 that come one by one, in this order.
	var line []*conn
	for range 12 {
		line = append(line, g.open(t, at("a", token)))
	}
	for i, c := range append(living, line[:7]...) {
		c.t = t
		f := c.expectClose(1008)
		if string(f.payload[2:]) != "replaced by a newer connection" {
			t.Errorf("socket %d: reason %q", i, f.payload[2:])
		}
	}
	for i, c := range line[7:] {
		if !c.alive(t) {
			t.Errorf("socket %d of the newest is dead", i)
		}
	}
}

// A newcomer does not wait for the close handshake of the one it evicts, nor
// for one that takes no bytes at all.
func TestCapEvictsStuckSockets(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := startSeveral(t, []*idp{p}, "", gated{name: "a", gate: "max_connections 1 by user evict_oldest\nping_interval 0", upstream: b.addr})
	for range 3 {
		_, u := pairWith(t, g, b, at("a", p.token(g, nil)))
		go func() { // what is between it and a client that does not read is full
			piece := unmasked(0x82, make([]byte, 1<<16))
			for {
				u.SetWriteDeadline(time.Now().Add(patience))
				if _, err := u.Conn.Write(piece); err != nil {
					return
				}
			}
		}()
		time.Sleep(200 * time.Millisecond)
	}
	c, u := pairWith(t, g, b, at("a", p.token(g, nil)))
	frame := masked(0x81, []byte("x"))
	c.send(frame)
	u.expectBytes(frame)
}

// A handshake that is evicted before its 101 gets 429, as soon as that; the
// backend's side of it is closed.
func TestCapEvictsHandshake(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := startSeveral(t, []*idp{p}, "",
		gated{name: "a", gate: "max_connections 1 by user evict_oldest", upstream: b.addr},
		gated{name: "b", gate: "max_connections 1 by user evict_oldest\non_reject close", upstream: b.addr})
	for _, name := range []string{"a", "b"} {
		t.Run(name, func(t *testing.T) {
			token := p.token(g, nil)
			waiting := make(chan *upstream, 4)
			release := make(chan struct{})
			b.answers(func(u *upstream) string {
				waiting <- u
				<-release
				return accept(u)
			})
			first := g.connect(t)
			first.send([]byte(at(name, token).text(first.host)))
			<-waiting
			second := g.connect(t)
			second.send([]byte(at(name, token).text(second.host)))
			newer := <-waiting
			a := first.readAnswer("GET")
			if name == "a" {
				if a.status != http.StatusTooManyRequests {
					t.Errorf("evicted during the handshake: status %d, want 429\n%s", a.status, a.text)
				}
				retryAfter(t, a)
			} else {
				if a.status != http.StatusSwitchingProtocols {
					t.Errorf("evicted during the handshake: status %d, want a 101 and a close frame", a.status)
				}
				first.expectClose(1013)
			}
			close(release)
			if a := second.readAnswer("GET"); a.status != http.StatusSwitchingProtocols {
				t.Errorf("the newer one: status %d, want 101\n%s", a.status, a.text)
			}
			up := b.next(t)
			for up != newer { // the first may have been written to after all
				up = b.next(t)
			}
			frame := masked(0x81, []byte("x"))
			second.send(frame)
			up.expectBytes(frame)
			second.Close()
			up.Close()
			b.answers(nil)
		})
	}
	if got := g.refusals("a"); got["cap"] != 1 || len(got) != 1 {
		t.Errorf("refusals %v, want one for the cap", got)
	}
}

// S-186, S-208: whichever way a handshake fails, its place is free again.
func TestCapFailures(t *testing.T) {
	t.Parallel()
	n := *failures
	if testing.Short() {
		n = 20
	}
	p := newIDP(t)
	b := newBackend(t)
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()
	b.answers(func(u *upstream) string {
		switch _, kind, _ := strings.Cut(u.req.URL.Path, "-"); kind {
		case "403":
			return "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
		case "reset":
			u.reset()
			return ""
		case "closed":
			u.Close()
			return ""
		case "half":
			return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: webs"
		case "silent":
			_, _ = u.br.Peek(1) // until the gate closes it
			return ""
		case "accept":
			return strings.Replace(accept(u), "Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x", 1)
		case "protocol":
			return accept(u, "Sec-WebSocket-Protocol: not.offered")
		case "slow": // answers what nobody waits for any more
			time.Sleep(20 * time.Millisecond)
			return accept(u)
		case "garbage":
			return "SSH-2.0-OpenSSH\r\n\r\n"
		}
		return accept(u)
	})
	full := fullListener(t)
	const limits = "max_connections 2 by user\nmax_connections 2 by ip\nmax_connections 2 by {http.auth.user.id}"
	const short = "response_header_timeout 100ms\ndial_timeout 100ms"
	g := startSeveral(t, []*idp{p}, "",
		gated{name: "down", gate: "tunnel_name a\n" + limits, upstream: refused.Addr().String()},
		gated{name: "full", gate: "tunnel_name a\n" + limits, upstream: full, transport: short},
		gated{name: "error", gate: "tunnel_name a\n" + limits, before: "error 503"},
		gated{name: "abort", gate: "tunnel_name a\n" + limits, before: "abort"}, // panics
		gated{name: "respond", gate: "tunnel_name a\n" + limits, before: "respond 200"},
		gated{name: "nothing", gate: "tunnel_name a\n" + limits},
		gated{name: "short", gate: "tunnel_name a\n" + limits, upstream: b.addr, transport: short},
		gated{name: "fit", gate: "tunnel_name a\n" + limits, upstream: b.addr},
	)
	token := p.token(g, nil)
	gone := func(at time.Duration) func(h handshake) answer {
		return func(h handshake) answer {
			raw, err := net.Dial("tcp", g.addr)
			if err != nil {
				return answer{err: err}
			}
			_, _ = raw.Write([]byte(h.text(g.addr)))
			time.Sleep(at)
			_ = raw.(*net.TCPConn).SetLinger(0)
			raw.Close()
			return answer{status: 499}
		}
	}
	kinds := []struct {
		name, path string
		status     int
		do         func(h handshake) answer
	}{
		{"backend down", "down", 502, nil},
		{"dial that hangs", "full", 502, nil},
		{"client gone during the dial", "full", 499, gone(5 * time.Millisecond)},
		{"client gone at once", "short-silent", 499, gone(0)},
		{"client gone while the backend is silent", "short-silent", 499, gone(10 * time.Millisecond)},
		{"client gone as the 101 comes", "fit-slow", 499, gone(20 * time.Millisecond)},
		{"refused with 403", "fit-403", 403, nil},
		{"reset", "fit-reset", 502, nil},
		{"closed", "fit-closed", 502, nil},
		{"closed within its answer", "short-half", 504, nil},
		{"timed out", "short-silent", 504, nil},
		{"wrong accept", "fit-accept", 502, nil},
		{"wrong subprotocol", "fit-protocol", 502, nil},
		{"no HTTP", "fit-garbage", 502, nil},
		{"error in a later handler", "error", 503, nil},
		{"panic in a later handler", "abort", 0, nil},
		{"later handler that answers", "respond", 200, nil},
		{"no later handler", "nothing", 502, nil},
		{"bad token", "fit", 401, func(h handshake) answer {
			_, a := g.attempt(h.instead("Authorization", "Authorization: Bearer "+token+"x"))
			return a
		}},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			do := k.do
			if do == nil {
				do = func(h handshake) answer {
					c, a := g.attempt(h)
					if c != nil {
						c.Close()
					}
					return a
				}
			}
			// Two at a time, as many as the cap lets in: with more, 429 would hide
			// a failure; where a place is given back late, one tries again.
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					for i := 0; i < n/2; {
						a := do(at(k.path, token))
						switch a.status {
						case k.status:
							i++
						case http.StatusTooManyRequests:
							time.Sleep(5 * time.Millisecond)
							if t.Failed() {
								return
							}
						default:
							t.Errorf("status %d (%v), want %d", a.status, a.err, k.status)
							return
						}
					}
				})
			}
			stuck := time.AfterFunc(3*time.Minute, func() { t.Error("places do not come back") })
			wg.Wait()
			stuck.Stop()
			intact(t, g, at("fit", token), 2)
		})
	}
}

// intact expects that exactly n sockets fit in, as soon as what ends just now
// has given back its places.
func intact(t *testing.T, g *gate, h handshake, n int) {
	t.Helper()
	var open []*conn
	eventually(t, fmt.Sprintf("%d free places", n), func() bool {
		c, a := g.attempt(h.instead("Sec-WebSocket-Key", "Sec-WebSocket-Key: "+newKey()))
		if c != nil {
			open = append(open, c)
		} else if a.status != http.StatusTooManyRequests {
			t.Fatalf("status %d (%v), want 101 or 429", a.status, a.err)
		}
		return len(open) == n
	})
	if c, a := g.attempt(h); a.status != http.StatusTooManyRequests {
		t.Errorf("one more than %d: status %d, want 429", n, a.status)
		if c != nil {
			c.Close()
		}
	}
	for _, c := range open {
		c.reset()
	}
}

// fullListener is an address at which dials hang: a listener that never
// accepts, with a queue that is full.
func fullListener(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "full") // keeps the queue until the test ends
	t.Cleanup(func() { file.Close() })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 16 {
		c, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue of a listener takes all")
	return ""
}

// S-189: whoever closed can come back: at once behind a close handshake, and
// soon behind an end without one.
func TestCapReconnect(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := startSeveral(t, []*idp{p}, "",
		gated{name: "client", gate: "max_connections 1 by user", upstream: b.addr},
		gated{name: "backend", gate: "max_connections 1 by user", upstream: b.addr},
		gated{name: "reset", gate: "max_connections 1 by user", upstream: b.addr},
		gated{name: "fin", gate: "max_connections 1 by user", upstream: b.addr},
	)
	token := p.token(g, nil)
	for _, style := range []struct {
		name   string
		atOnce bool
		end    func(c *conn, u *upstream)
	}{
		{"client", true, func(c *conn, u *upstream) {
			c.send(masked(0x88, closing(1000, "")))
			u.expectClose(1000)
			u.send(unmasked(0x88, closing(1000, "")))
			c.expectClose(1000)
		}},
		{"backend", true, func(c *conn, u *upstream) {
			u.send(unmasked(0x88, closing(1000, "")))
			c.expectClose(1000)
			c.send(masked(0x88, closing(1000, "")))
			u.expectClose(1000)
		}},
		{"reset", false, func(c *conn, _ *upstream) { c.reset() }},
		{"fin", false, func(c *conn, u *upstream) {
			c.Close()
			u.expectEndOrClose() // a backend ends when its client does
			u.Close()
		}},
	} {
		t.Run(style.name, func(t *testing.T) {
			var slowest time.Duration
			for i := range 30 {
				c, u := pairWith(t, g, b, at(style.name, token))
				if i%5 == 0 {
					if _, a := g.attempt(at(style.name, token)); a.status != http.StatusTooManyRequests {
						t.Fatalf("a second socket: status %d, want 429", a.status)
					}
				}
				style.end(c, u)
				left := time.Now()
				var next *conn
				eventuallyWithin(t, 5*time.Second, "a place", func() bool {
					var a answer
					next, a = g.attempt(at(style.name, token))
					if next == nil && style.atOnce {
						t.Fatalf("back at once: status %d, want 101", a.status)
					}
					return next != nil
				})
				slowest = max(slowest, time.Since(left))
				next.t = t
				nu := b.next(t)
				next.reset()
				nu.expectEndOrClose()
				nu.Close()
				c.Close()
				u.Close()
				eventuallyWithin(t, 5*time.Second, "a place", func() bool {
					again, _ := g.attempt(at(style.name, token))
					if again == nil {
						return false
					}
					again.t = t
					u := b.next(t)
					again.send(masked(0x88, nil))
					u.expectClose(1005)
					u.send(unmasked(0x88, nil))
					again.expectClose(1005)
					again.Close()
					u.Close()
					return true
				})
			}
			t.Logf("slowest return: %v", slowest)
		})
	}
}

// The number of a cap may be a claim; a token without a good one gets 403.
func TestCapFromClaim(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	g := startSeveral(t, []*idp{p}, "",
		gated{name: "a", gate: "max_connections {http.auth.user.max_conns}", upstream: b.addr},
		gated{name: "nested", gate: "max_connections {http.auth.user.plan.conns}", upstream: b.addr})
	user := 0
	for _, v := range []struct {
		claim any
		fit   int // 0: 403
	}{
		{nil, 0}, {0, 0}, {-1, 0}, {"many", 0}, {"", 0}, {true, 0}, {[]int{3}, 0}, {map[string]int{"n": 3}, 0},
		{0.5, 0}, {"-3", 0}, {"{env.HOME}", 0}, {"{http.auth.user.other}", 0}, {"Inf", 0}, {"NaN", 0},
		{1, 1}, {3, 3}, {"2", 2}, {2.0, 2}, {2.9, 2}, {1e300, 4},
	} {
		user++
		t.Run(fmt.Sprintf("%T %v", v.claim, v.claim), func(t *testing.T) {
			token := p.token(g, claims{"max_conns": v.claim, "sub": fmt.Sprint(user), "other": 3})
			if v.fit == 0 {
				b.untouched(t, func() { g.refused(t, at("a", token), http.StatusForbidden) })
				return
			}
			for i := range min(v.fit, 4) {
				if c, a := g.attempt(at("a", token)); c == nil {
					t.Fatalf("socket %d of %d: status %d", i, v.fit, a.status)
				} else {
					defer c.Close()
				}
			}
			if v.fit < 4 {
				g.refused(t, at("a", token), http.StatusTooManyRequests)
			}
		})
	}
	token := p.token(g, claims{"plan": map[string]any{"conns": 1}})
	c := g.open(t, at("nested", token))
	g.refused(t, at("nested", token), http.StatusTooManyRequests)
	c.finish(t)
	// A newer token of the same user may say another number.
	more := p.token(g, claims{"plan": map[string]any{"conns": 2}})
	g.open(t, at("nested", token))
	g.open(t, at("nested", more))
	g.refused(t, at("nested", more), http.StatusTooManyRequests)
}

// What sockets count under: user and issuer, address, tunnel, and whatever an
// operator names; several caps at once.
func TestCapKeys(t *testing.T) {
	t.Parallel()
	p, other := newIDP(t), newIDP(t)
	b := newBackend(t)
	b.echoes()
	g := startSeveral(t, []*idp{p, other}, "servers {\ntrusted_proxies static 127.0.0.2/32\n}",
		gated{name: "user", gate: "max_connections 1", upstream: b.addr},
		gated{name: "elsewhere", gate: "max_connections 1", upstream: b.addr},
		gated{name: "same1", gate: "max_connections 1\ntunnel_name same", upstream: b.addr},
		gated{name: "same2", gate: "max_connections 1\ntunnel_name same", upstream: b.addr},
		gated{name: "ip", gate: "max_connections 1 by ip", upstream: b.addr},
		gated{name: "tenant", gate: "max_connections 2 by {http.auth.user.tenant}", upstream: b.addr},
		gated{name: "both", gate: "max_connections 2 by user\nmax_connections 3 by ip", upstream: b.addr},
		gated{name: "mixed", gate: "max_connections 1 by user evict_oldest\nmax_connections 2 by ip reject", upstream: b.addr},
		gated{name: "email", gate: "max_connections 1\nuser_claim email", upstream: b.addr},
	)
	alice, bob := p.token(g, nil), p.token(g, claims{"sub": "bob"})
	open := func(t *testing.T, from string, h handshake) *conn {
		t.Helper()
		c, a := g.attemptFrom(from, h)
		if c == nil {
			t.Fatalf("status %d (%v), want 101", a.status, a.err)
		}
		c.t = t
		t.Cleanup(func() { c.Close() })
		return c
	}
	refused := func(t *testing.T, from string, h handshake) {
		t.Helper()
		if c, a := g.attemptFrom(from, h); a.status != http.StatusTooManyRequests {
			t.Errorf("status %d (%v), want 429", a.status, a.err)
			if c != nil {
				c.Close()
			}
		}
	}
	const here = "127.0.0.1"
	t.Run("the same sub of two issuers is two users", func(t *testing.T) {
		open(t, here, at("user", alice))
		open(t, here, at("user", other.token(g, nil)))
		open(t, here, at("user", bob))
		refused(t, here, at("user", alice))
		refused(t, "127.0.0.9", at("user", p.token(g, claims{"jti": "n"})))
		// Exact bytes: no folding of case, blanks or Unicode forms.
		open(t, here, at("user", p.token(g, claims{"sub": "Alice"})))
		open(t, here, at("user", p.token(g, claims{"sub": "al\u0131ce"})))
	})
	t.Run("tunnels count by name", func(t *testing.T) {
		open(t, here, at("elsewhere", alice)) // alice has one at "user", too
		open(t, here, at("same1", alice))
		refused(t, here, at("same2", alice))
	})
	t.Run("IPv6 by /64", func(t *testing.T) {
		from := func(ip string) handshake { return at("ip", alice, "X-Forwarded-For: "+ip) }
		const proxy = "127.0.0.2"
		open(t, proxy, from("2001:db8::1"))
		refused(t, proxy, from("2001:db8::2"))
		refused(t, proxy, from("2001:db8:0:0:ffff:ffff:ffff:ffff"))
		open(t, proxy, from("2001:db8:0:1::1"))
		open(t, proxy, from("192.0.2.1"))
		refused(t, proxy, from("::ffff:192.0.2.1"))
		open(t, proxy, from("192.0.2.2"))
		open(t, here, from("2001:db8::3")) // no trusted proxy: its own address
		refused(t, here, from("2001:db8:7::3"))
	})
	t.Run("by a claim", func(t *testing.T) {
		for _, tenant := range []string{"red", "blue"} {
			for i := range 2 {
				open(t, here, at("tenant", p.token(g, claims{"tenant": tenant, "sub": fmt.Sprint(i)})))
			}
			refused(t, here, at("tenant", p.token(g, claims{"tenant": tenant, "sub": "third"})))
		}
	})
	t.Run("several caps", func(t *testing.T) {
		open(t, here, at("both", alice))
		open(t, here, at("both", alice))
		refused(t, here, at("both", alice))
		open(t, "127.0.0.8", at("both", bob)) // elsewhere
		last := open(t, here, at("both", bob))
		refused(t, here, at("both", p.token(g, claims{"sub": "carol"}))) // the address has 3
		refused(t, "127.0.0.8", at("both", bob))                         // bob has 2, the address 1
		last.finish(t)
		open(t, here, at("both", p.token(g, claims{"sub": "carol"}))) // both places came back
	})
	t.Run("a refusal by one cap evicts nobody under another", func(t *testing.T) {
		first := open(t, here, at("mixed", alice))
		open(t, here, at("mixed", bob))
		refused(t, here, at("mixed", alice)) // 2 at the address: reject
		if !first.alive(t) {
			t.Error("evicted for one that was refused")
		}
	})
	t.Run("another user claim", func(t *testing.T) {
		open(t, here, at("email", p.token(g, claims{"email": "a@example.com"})))
		refused(t, here, at("email", p.token(g, claims{"email": "a@example.com", "sub": "bob"})))
		open(t, here, at("email", p.token(g, claims{"email": "b@example.com"})))
	})
}

// S-200: sockets count across reloads, also under caps that come with one.
func TestCapAcrossReload(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	caddyfile := func(a, late string) string {
		return several([]*idp{p}, "",
			gated{name: "a", gate: a, upstream: b.addr},
			gated{name: "late", gate: late, upstream: b.addr})
	}
	const cap3 = "max_connections 3 by user\nmax_connections 3 by {http.auth.user.id}"
	g := start(t, caddyfile(cap3, ""))
	token := p.token(g, nil)
	g.refused(t, at("warm", token), http.StatusNoContent)
	reload := func(a, late string) {
		t.Helper()
		if err := g.reload(caddyfile(a, late)); err != nil {
			t.Fatal(err)
		}
	}
	var open, late []*conn
	for range 3 {
		open = append(open, g.open(t, at("a", token)))
		late = append(late, g.open(t, at("late", token)))
	}
	g.refused(t, at("a", token), http.StatusTooManyRequests)

	for i := range 3 {
		reload(cap3+fmt.Sprintf("\nping_interval %ds", 50+i), "")
		g.refused(t, at("a", token), http.StatusTooManyRequests)
		open[0].finish(t)
		open = append(open[1:], g.open(t, at("a", token)))
		g.refused(t, at("a", token), http.StatusTooManyRequests)
	}
	// A cap where there was none counts those that live, by user and address.
	reload(cap3, "max_connections 3 by user\nmax_connections 3 by ip")
	g.refused(t, at("late", token), http.StatusTooManyRequests)
	g.refused(t, at("late", p.token(g, claims{"sub": "bob"})), http.StatusTooManyRequests)
	late[0].finish(t)
	late = append(late[1:], g.open(t, at("late", token)))
	g.refused(t, at("late", token), http.StatusTooManyRequests)
	// A lower cap ends nobody, and lets nobody in before there is room.
	reload("max_connections 2 by user", "max_connections 2 by user evict_oldest")
	for i, c := range append(open, late...) {
		if !c.alive(t) {
			t.Errorf("socket %d: ended by a reload", i)
		}
	}
	open[0].finish(t)
	g.refused(t, at("a", token), http.StatusTooManyRequests)
	open[1].finish(t)
	open = append(open[2:], g.open(t, at("a", token)))
	g.refused(t, at("a", token), http.StatusTooManyRequests)
	// evict_oldest makes as much room as it needs: the two oldest go.
	newest := g.open(t, at("late", token))
	late[0].expectClose(1008)
	late[1].expectClose(1008)
	if !late[2].alive(t) || !newest.alive(t) {
		t.Error("the newest two are not alive")
	}
	// A failed reload changes nothing (S-203), and none is counted twice.
	for range 2 {
		if err := g.reload(caddyfile("max_connections 1 by user", "max_connections many")); err == nil {
			t.Fatal("accepted")
		}
	}
	open[0].finish(t)
	g.open(t, at("a", token))
	g.refused(t, at("a", token), http.StatusTooManyRequests)
}

// A reload while a handshake is on its way: its socket counts as well.
func TestCapReloadDuringHandshake(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	caddyfile := func(options string) string {
		return several([]*idp{p}, "", gated{name: "a", gate: options, upstream: b.addr})
	}
	g := start(t, caddyfile("max_connections 1 by user"))
	token := p.token(g, nil)
	g.refused(t, at("warm", token), http.StatusNoContent)
	waiting, release := make(chan *upstream, 1), make(chan struct{})
	b.answers(func(u *upstream) string {
		waiting <- u
		<-release
		return accept(u)
	})
	c := g.connect(t)
	c.send([]byte(at("a", token).text(c.host)))
	<-waiting
	if err := g.reload(caddyfile("max_connections 1 by user\nping_interval 50s")); err != nil {
		t.Fatal(err)
	}
	g.refused(t, at("a", token), http.StatusTooManyRequests)
	close(release)
	if a := c.readAnswer("GET"); a.status != http.StatusSwitchingProtocols {
		t.Fatalf("status %d, want 101", a.status)
	}
	b.answers(nil)
	g.refused(t, at("a", token), http.StatusTooManyRequests)
	c.reset()
	b.next(t).Close()
	intact(t, g, at("a", token), 1)
}
