package integration

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

// choir are sockets that echo all the time.
type choir struct {
	stop, failed atomic.Bool
	sent         atomic.Int64
	done         sync.WaitGroup
}

// sing opens n sockets, over all nodes in turn, each of which sends a message,
// waits for its echo, and goes on.
func sing(t testing.TB, nodes []*gate, n int, h func(i int) handshake) *choir {
	t.Helper()
	all := new(choir)
	for i := range n {
		c := nodes[i%len(nodes)].open(t, h(i))
		all.done.Go(func() {
			for round := 0; !all.stop.Load(); round++ {
				if err := c.echo(fmt.Sprintf("%d/%d", i, round)); err != nil {
					if !all.failed.Swap(true) {
						t.Errorf("socket %d, message %d: %v", i, round, err)
					}
					return
				}
				all.sent.Add(1)
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return all
}

// echo sends a message and waits for it to come back.
func (c *conn) echo(text string) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(masked(0x81, []byte(text))); err != nil {
		return err
	}
	for {
		f, err := readFrame(c.br)
		switch {
		case err != nil:
			return err
		case f.opcode() == 9:
			if _, err := c.Write(masked(0x8A, f.payload)); err != nil {
				return err
			}
		case f.first != 0x81 || string(f.payload) != text:
			return fmt.Errorf("got %x %.50q, want %q", f.first, f.payload, text)
		default:
			return nil
		}
	}
}

// end stops the singing and tells how many messages went through.
func (c *choir) end() int64 {
	c.stop.Store(true)
	c.done.Wait()
	return c.sent.Load()
}

// states are what the log said of Redis.
func (g *gate) states() []string {
	var all []string
	for _, line := range g.lines() {
		for _, state := range []string{"redis is away", "redis is back"} {
			if strings.Contains(line, `"msg":"`+state+`"`) {
				all = append(all, state)
			}
		}
	}
	return all
}

// Whatever happens to Redis, live sockets go on and handshakes are answered;
// when it is back, caps are right again.
func TestRedisFailures(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	nodes, _ := startNodes(t, 2, server, p, "timeout 300ms",
		gated{name: "crowd", gate: "max_connections 1000 by user", upstream: b.addr},
		gated{name: "cap", gate: "max_connections 3 by user", upstream: b.addr})
	crowded := p.token(nodes[0], claims{"sub": "crowd"})
	voices := 500
	if testing.Short() {
		voices = 50
	}
	all := sing(t, nodes, voices, func(int) handshake { return at("crowd", crowded) })

	for _, how := range []struct {
		name      string
		away, fix func()
	}{
		{"stopped and resumed", server.Pause, server.Resume},
		{"killed and started empty", server.Kill, server.Start},
		{"read only", func() { server.Do("CONFIG", "SET", "min-replicas-to-write", "1") }, func() { server.Do("CONFIG", "SET", "min-replicas-to-write", "0") }},
	} {
		t.Run(how.name, func(t *testing.T) {
			user := strings.ReplaceAll(how.name, " ", "-")
			token := p.token(nodes[0], claims{"sub": user})
			nodes[0].open(t, at("cap", token))
			nodes[1].open(t, at("cap", token))
			how.away()
			// Nobody waits longer than the timeout, and each node counts for
			// itself.
			var took []time.Duration
			for i := range 40 {
				begin := time.Now()
				c, a := nodes[i%2].attempt(at("crowd", crowded))
				took = append(took, time.Since(begin))
				if a.status != 101 {
					t.Errorf("while it is away: status %d", a.status)
				} else {
					c.finish(t)
				}
			}
			slices.Sort(took)
			t.Logf("handshakes while it is away: median %s, most %s", took[20], took[39])
			if took[39] > 300*time.Millisecond+time.Second { // the rest is for a busy machine
				t.Errorf("a handshake took %s", took[39])
			}
			for _, g := range nodes {
				eventually(t, "the node knows", func() bool { return g.scrape(t)["caddy_ws_gate_store_up"] == 0 })
			}
			// One of this user's is on each node, so two more fit there.
			want(t, "on a node by itself", nodes[0].statuses(t, "127.0.0.1", 1, func(int) handshake { return at("cap", token) }), map[int]int{101: 1})
			nodes[0].open(t, at("cap", token))
			eventually(t, "room", func() bool { return nodes[0].liveOn(t, "cap") > 0 })
			how.fix()
			for _, g := range nodes {
				eventually(t, "the node knows", func() bool { return g.scrape(t)["caddy_ws_gate_store_up"] == 1 })
			}
			// Three are live, over both nodes.
			for _, g := range nodes {
				if _, a := g.attempt(at("cap", token)); a.status != 429 {
					t.Errorf("when it is back: status %d", a.status)
				}
			}
		})
	}
	if n := all.end(); n < int64(voices) {
		t.Errorf("%d messages in all", n)
	}
	if n := liveOver(t, nodes, "crowd"); n != voices {
		t.Errorf("%d of %d sockets live", n, voices)
	}
	for i, g := range nodes {
		// One line for each change; a busy machine can make for more changes.
		got := g.states()
		for j, state := range got {
			if state != []string{"redis is away", "redis is back"}[j%2] {
				t.Errorf("node %d said %q", i, got)
			}
		}
		if len(got) < 6 || len(got)%2 != 0 {
			t.Errorf("node %d said %q", i, got)
		}
	}
}

// A gate that starts without Redis serves, and finds it later; one that is to
// deny says so.
func TestRedisAwayAtStart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Kill()
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	gates := gated{name: "a", gate: "max_connections 2 by user", upstream: b.addr}
	g := startSeveral(t, []*idp{p}, sharing(server.Addr, "timeout 300ms"), gates)
	token := p.token(g, nil)
	open := g.open(t, at("a", token))
	g.open(t, at("a", token))
	g.refused(t, at("a", token), 429)

	denying := start(t, several([]*idp{p}, sharing(server.Addr, "on_error deny\ntimeout 300ms"), gates))
	eventually(t, "the refusal to be about the store", func() bool {
		_, a := denying.attempt(at("a", token))
		if a.status != 503 || a.header.Get("Retry-After") == "" {
			t.Fatalf("on_error deny: status %d, Retry-After %q", a.status, a.header.Get("Retry-After"))
		}
		return slices.ContainsFunc(denying.entries("handshake refused"), func(e map[string]any) bool { return e["reason"] == "store" })
	})
	server.Start()
	eventually(t, "Redis to be found", func() bool {
		return g.scrape(t)["caddy_ws_gate_store_up"] == 1 && denying.scrape(t)["caddy_ws_gate_store_up"] == 1
	})
	denying.refused(t, at("a", token), 429) // the other node's two
	open.finish(t)
	denying.open(t, at("a", token))
}

// Half-open: the connections to Redis are there and say nothing.
func TestRedisHalfOpen(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	nodes, wires := startNodes(t, 2, server, p, "timeout 300ms", gated{name: "a", gate: "max_connections 1 by user evict_oldest", upstream: b.addr})
	token := p.token(nodes[0], nil)
	oldest := follow(nodes[0].open(t, at("a", token)))
	wires[0].block()
	newest := nodes[1].open(t, at("a", token))
	eventually(t, "the node to notice", func() bool { return nodes[0].scrape(t)["caddy_ws_gate_store_up"] == 0 })
	if oldest.ended() {
		t.Error("evicted by a word that can't have come")
	}
	wires[0].mend()
	eventually(t, "the eviction to be heard of", oldest.ended)
	if !newest.alive(t) {
		t.Error("the newest is gone")
	}
}

// A reload keeps what is counted, and one that changes the store takes the
// live sockets along.
func TestRedisReload(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	gates := gated{name: "a", gate: "max_connections 2 by user", upstream: b.addr}
	g := startSeveral(t, []*idp{p}, sharing(server.Addr, "timeout 1s"), gates)
	other := startSeveral(t, []*idp{p}, sharing(server.Addr, "timeout 1s\nprefix moved:"), gates)
	token := p.token(g, nil)
	first := g.open(t, at("a", token))
	for i, global := range []string{
		sharing(server.Addr, "timeout 1s") + "\n# changed",
		sharing(server.Addr, "timeout 1s\nprefix moved:"),
		"",
		sharing(server.Addr, "timeout 1s\nprefix moved:"),
	} {
		if err := g.reload(several([]*idp{p}, global, gates)); err != nil {
			t.Fatal(err)
		}
		second := g.open(t, at("a", token))
		g.refused(t, at("a", token), 429)
		second.finish(t)
		if !first.alive(t) {
			t.Fatalf("reload %d: the socket is gone", i)
		}
	}
	other.open(t, at("a", token))
	other.refused(t, at("a", token), 429)
	first.finish(t)
	eventually(t, "the place that was taken along", func() bool {
		c, _ := other.attempt(at("a", token))
		return c != nil
	})
	if keys := server.Do("KEYS", "wsgate:*leases*"); strings.Contains(keys, "leases") {
		t.Errorf("the store before still has %s", keys)
	}
}

// BenchmarkHandshakeWhileRedisHangs measures handshakes from the moment on at
// which Redis stops to answer: those that meet it wait for the timeout, 300 ms,
// until the node knows.
func BenchmarkHandshakeWhileRedisHangs(b *testing.B) {
	const parallel, timeout = 8, 300 * time.Millisecond
	server := redistest.Start(b)
	p := newIDP(b)
	up := newBackend(b)
	up.echoes()
	g := startSeveral(b, []*idp{p}, sharing(server.Addr, "timeout "+timeout.String()), gated{name: "a", gate: "max_connections 1000 by user", upstream: up.addr})
	token := p.token(g, nil)
	g.open(b, at("a", token))
	var took []time.Duration
	var mu sync.Mutex
	server.Pause()
	b.ResetTimer()
	var workers sync.WaitGroup
	var next atomic.Int64
	for range parallel {
		workers.Go(func() {
			for next.Add(1) <= int64(b.N) {
				begin := time.Now()
				c, a := g.attempt(at("a", token))
				d := time.Since(begin)
				if c == nil {
					b.Errorf("status %d", a.status)
					return
				}
				c.Close()
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	b.StopTimer()
	server.Resume()
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	b.ReportMetric(ms(took[len(took)-1]), "max-ms")
	b.ReportMetric(ms(took[len(took)-1]-timeout), "max-over-timeout-ms")
}
