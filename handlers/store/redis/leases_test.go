package redis_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

// Defect: check and act are two steps, or two nodes have two counts.
func TestCapExceededByParallelNodes(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 3, patient)
	var in atomic.Int64
	together(300, func(i int) {
		v, err := nodes[i%3].Acquire(context.Background(), handshake(ids("c", 300)[i], reject("u", 5)))
		if err != nil {
			t.Error(err)
		} else if v.Admitted() {
			in.Add(1)
		}
	})
	if in.Load() != 5 {
		t.Errorf("%d are in, want 5", in.Load())
	}
	nodes[1].wantCount("u", 5)
}

// Defect: it is not the oldest of all nodes that makes room.
func TestEvictedOutOfOrder(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 3)
	all := ids("c", 30)
	for i, id := range all {
		evicted := nodes[i%3].wantIn(id, evict("u", 5)).Evicted
		if want := all[max(0, i-5):max(0, i-4)]; i >= 5 && !slices.Equal(evicted, want) || i < 5 && len(evicted) > 0 {
			t.Errorf("%s took the place of %q, want %q", id, evicted, want)
		}
	}
	// Each is told to the node that holds it.
	for i, id := range all[:25] {
		await(t, id+" to be told", func() bool { return slices.Contains(nodes[i%3].told(), id) })
	}
	for _, id := range all[25:] {
		for _, n := range nodes {
			if slices.Contains(n.told(), id) {
				t.Errorf("%s was told that %s is evicted, which has a place", n.name, id)
			}
		}
	}
	// A lowered cap takes as many as it has to, also for a connection that
	// counts elsewhere as well.
	v := nodes[0].wantIn("one", reject("ip", 9), evict("u", 2))
	if !slices.Equal(v.Evicted, all[25:29]) {
		t.Errorf("evicted are %q", v.Evicted)
	}
	nodes[2].wantCount("u", 2)
	nodes[2].wantCount("ip", 1)
}

// Defect: of those that come at the same time, more remain than the cap, or
// not the newest: of the k-th admission it is the (k-5)th that makes room, so
// that who evicted whom forms five chains of the same length.
func TestEvictionsInParallelLoseOrder(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 3, patient)
	var mu sync.Mutex
	before := make(map[string]string) // whom each one evicted
	gone := make(map[string]bool)
	all := ids("c", 300)
	together(len(all), func(i int) {
		v, err := nodes[i%3].Acquire(context.Background(), handshake(all[i], evict("u", 5)))
		mu.Lock()
		defer mu.Unlock()
		if err != nil || !v.Admitted() || len(v.Evicted) > 1 {
			t.Errorf("%s: %+v, %v", all[i], v, err)
			return
		}
		for _, id := range v.Evicted {
			before[all[i]] = id
			if gone[id] {
				t.Errorf("%s was evicted twice", id)
			}
			gone[id] = true
		}
	})
	if len(gone) != 295 {
		t.Fatalf("%d were evicted, want 295", len(gone))
	}
	for i, id := range all {
		n := nodes[i%3]
		if gone[id] {
			await(t, id+" to be told to "+n.name, func() bool { return slices.Contains(n.told(), id) })
			continue
		}
		length := 1
		for by, more := before[id]; more; by, more = before[by] {
			length++
		}
		if length != 60 {
			t.Errorf("the chain before %s is %d long: it is not the oldest that made room", id, length)
		}
	}
	nodes[0].wantCount("u", 5)
}

// Defect: the leases of a node that crashed stay, or end before its sockets
// are surely gone; or those of a node that lives end.
func TestCrashedNodeKeepsItsLeases(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 3)
	nodes[0].wantIn("dead", reject("u", 2))
	nodes[1].wantIn("alive", reject("u", 2))
	begin := time.Now()
	nodes[0].Crash()
	ends := number(t, server.Do("ZSCORE", nodes[0].NameOfLeases("chat", "u"), "dead"))
	await(t, "the lease to end", func() bool {
		v, err := nodes[2].Acquire(context.Background(), handshake("next", reject("u", 2)))
		return err == nil && v.Admitted()
	})
	if now := clock(t, server); now < ends {
		t.Errorf("the lease ended %.0f µs too early", ends-now)
	}
	// The other one has been renewed meanwhile.
	if time.Since(begin) < 2*time.Second {
		t.Error("the lease ended before anything was renewed")
	}
	nodes[2].wantFull("one more", reject("u", 2))
	if got := nodes[1].told(); len(got) > 0 {
		t.Errorf("%q lost their places", got)
	}
}

// Defect: what is given back on one node stays taken on the others.
func TestReleaseUnseenByOthers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 2)
	for _, id := range ids("c", 20) {
		nodes[0].wantIn(id, reject("u", 1))
		nodes[0].Release(id)
		nodes[0].wantIn(id+"again", reject("u", 1)) // the same node: at once
		nodes[0].Release(id + "again")
		begin := time.Now()
		await(t, "a place on the other node", func() bool {
			v, err := nodes[1].Acquire(context.Background(), handshake(id, reject("u", 1)))
			return err == nil && v.Admitted()
		})
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the place was free after %s", took)
		}
		nodes[1].Release(id)
		await(t, "it to be free", func() bool { return nodes[1].Changed() == 0 })
	}
}

// Defect: what a later config counts is not known to other nodes.
func TestAdoptedUnseenByOthers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 2)
	for _, id := range ids("c", 1000) {
		nodes[0].Adopt(id, "chat", []string{"u", "ip"})
	}
	await(t, "all to be told", func() bool { return nodes[0].Changed() == 0 })
	nodes[1].wantCount("u", 1000)
	nodes[1].wantCount("ip", 1000)
	for _, id := range ids("c", 1000) {
		nodes[0].Release(id)
	}
	await(t, "all to be free", func() bool { return nodes[0].Changed() == 0 })
	nodes[1].wantCount("u", 0)
	if left := server.Do("KEYS", "test:{chat}:*"); strings.Contains(left, "leases") && strings.Contains(left, "order") {
		await(t, "nothing to be left", func() bool {
			return !strings.Contains(server.Do("KEYS", "test:{chat}:*"), "leases")
		})
	}
}

// Defect: a handshake costs more than one round trip, or one for the rates and
// one for the caps.
func TestHandshakeCostsMoreThanOneRoundTrip(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := startProxy(t, server.Addr)
	n := newNode(t, p.URL(), "idle") // not started: there is no keeper
	defer n.Close()
	ask := func(id string) {
		r := handshake(id, reject("u", 1000), evict("ip", 1000))
		r.Rates = rates("user", time.Millisecond, 1000)
		if v, err := n.acquire(r); err != nil || !v.Admitted() {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	ask("first") // connects, and brings the script
	before, chunks := server.Do("INFO", "commandstats"), p.chunks.Load()
	for _, id := range ids("c", 100) {
		ask(id)
	}
	after := server.Do("INFO", "commandstats")
	if n := calls(after, "evalsha") - calls(before, "evalsha"); n != 100 {
		t.Errorf("%d scripts for 100 handshakes", n)
	}
	if n := p.chunks.Load() - chunks; n != 100 {
		t.Errorf("%d round trips for 100 handshakes", n)
	}
}

// Defect: one that was told nothing of an eviction keeps its place: here the
// user of Redis may not publish, nor listen.
func TestEvictionNeverHeard(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do("ACL", "SETUSER", "gate", "on", ">s3cret", "~*", "+@all", "resetchannels")
	url := "redis://gate:s3cret@" + server.Addr + "/0"
	a, b := startNode(t, url, "a"), startNode(t, url, "b")
	await(t, "the first beats", func() bool { return a.Learned() && b.Learned() })
	a.wantIn("old", evict("u", 1))
	if v := b.wantIn("new", evict("u", 1)); !slices.Equal(v.Evicted, []string{"old"}) {
		t.Fatalf("evicted are %q", v.Evicted)
	}
	await(t, "the node to be told", func() bool { return slices.Contains(a.told(), "old") })
	b.wantFull("more", reject("u", 1))
	if !b.Up() || len(b.told()) > 0 {
		t.Errorf("up: %t, told: %q", b.Up(), b.told())
	}
	// The operator learns what is wrong, and not every second.
	await(t, "a line in the log", func() bool { return len(a.said()) > 0 })
	a.wantSaid("asking redis failed")
	if text := a.logs.All()[0].ContextMap()["error"].(string); !strings.Contains(text, "NOPERM") || strings.Contains(text, "s3cret") {
		t.Errorf("the cause is %q", text)
	}
}

// Defect: a reload that changes an option of Redis (a new store adopts, then
// the old one is closed) uncounts the live sockets.
func TestReloadGivesUpLeases(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	other := startNode(t, server.URL(), "other")
	before := newNode(t, server.URL(), "before")
	before.Start()
	before.wantIn("a", reject("u", 9))
	other.wantIn("b", reject("u", 9))
	before.wantIn("c", reject("u", 9))
	before.wantIn("handshake", reject("u", 9))
	after := startNode(t, server.URL(), "after")
	await(t, "the first beat", after.Learned)
	after.Adopt("a", "chat", []string{"u"})
	after.Adopt("c", "chat", []string{"u"})
	await(t, "those to be told", func() bool { return after.Changed() == 0 })
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	other.wantFull("more", reject("u", 3))
	if order := values(server.Do("ZRANGE", other.NameOfOrder("chat", "u"), "0", "-1")); !slices.Equal(order, []string{"a", "b", "c"}) {
		t.Errorf("the order is %q", order)
	}
	// Another prefix is another place: there is nothing left in the old one.
	moved := startNode(t, server.URL(), "moved", prefix("moved:"))
	moved.Adopt("b", "chat", []string{"u"})
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	after.wantFull("more", reject("u", 2))
	after.wantCount("u", 2)
	other = startNode(t, server.URL(), "another")
	after.Release("a")
	after.Release("c")
	await(t, "those to be free", func() bool { return after.Changed() == 0 })
	other.wantCount("u", 0)
}

// Defect: tunnels of one name under two prefixes, or two tunnels, count
// together.
func TestCountsNotApart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := startNode(t, server.URL(), "a"), startNode(t, server.URL(), "b", prefix("other:"))
	c := startNode(t, strings.TrimSuffix(server.URL(), "0")+"1", "c")
	for _, n := range []*node{a, b, c} {
		n.wantIn("x", evict("u", 1))
		r := handshake("y", evict("u", 1))
		r.Tunnel = "all" // as the keys that belong to no tunnel
		if v, err := n.acquire(r); err != nil || len(v.Evicted) > 0 {
			t.Fatalf("%s: %+v, %v", n.name, v, err)
		}
	}
	a.wantIn("z", evict("u", 1))
	await(t, "the eviction", func() bool { return slices.Contains(a.told(), "x") })
	if len(b.told())+len(c.told()) > 0 {
		t.Errorf("told to others: %q, %q", b.told(), c.told())
	}
}
