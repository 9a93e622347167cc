package integration

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

// startNodes starts n gates that share a Redis. Each reaches it by a wire of
// its own.
func startNodes(t testing.TB, n int, server *redistest.Server, p *idp, options string, all ...gated) (nodes []*gate, wires []*wire) {
	t.Helper()
	for range n {
		w := newWire(t, server.Addr)
		wires = append(wires, w)
		nodes = append(nodes, startSeveral(t, []*idp{p}, sharing(w.addr, options), all...))
	}
	return nodes, wires
}

// sharing is the global option for a store at this address.
func sharing(addr, options string) string {
	return fmt.Sprintf("ws_gate {\nstore redis redis://%s/0 {\n%s\n}\n}", addr, options)
}

// raceOver makes n handshakes at the same moment, over all nodes in turn.
func raceOver(nodes []*gate, n int, h handshake) (open []*conn, got map[int]int) {
	var mu sync.Mutex
	var done sync.WaitGroup
	begin := make(chan struct{})
	got = make(map[int]int)
	for i := range n {
		done.Go(func() {
			<-begin
			c, a := nodes[i%len(nodes)].attempt(h)
			mu.Lock()
			defer mu.Unlock()
			got[a.status]++
			if c != nil {
				open = append(open, c)
			}
		})
	}
	close(begin)
	done.Wait()
	return open, got
}

// liveOn is how many sockets a node has itself.
func (g *gate) liveOn(t testing.TB, tunnel string) int {
	return int(g.scrape(t)[`caddy_ws_gate_connections{tunnel="`+tunnel+`"}`])
}

func liveOver(t testing.TB, nodes []*gate, tunnel string) (n int) {
	for _, g := range nodes {
		n += g.liveOn(t, tunnel)
	}
	return n
}

// S-185 over three nodes: of 300 handshakes at the same moment exactly 5 get
// through; of those that may evict, exactly 5 stay, and then the newest. One
// question to Redis is enough for each.
func TestNodesCap(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	// deny: a node that is too busy to hear Redis in time must not decide alone.
	nodes, _ := startNodes(t, 3, server, p, "timeout 1s\non_error deny",
		gated{name: "reject", gate: "max_connections 5 by user\nhandshake_rate 1000/1s by user", upstream: b.addr},
		gated{name: "evict", gate: "max_connections 5 by user evict_oldest", upstream: b.addr})
	token := p.token(nodes[0], nil)
	for round, clean := 0, 0; clean < 3; round++ {
		if round == 10 {
			t.Fatalf("%d of %d rounds went without a question that Redis did not answer in time", clean, round)
		}
		before := calls(t, server, "evalsha")
		open, got := raceOver(nodes, 300, at("reject", token))
		if got[503] == 0 {
			clean++
			want(t, fmt.Sprintf("round %d", round), got, map[int]int{101: 5, 429: 295})
		}
		if n := liveOver(t, nodes, "reject"); n > 5 || n != got[101] {
			t.Errorf("round %d: %d live, answers %v", round, n, got)
		}
		t.Logf("%d scripts for 300 handshakes and the beats of three nodes meanwhile", calls(t, server, "evalsha")-before)
		for _, c := range open {
			c.finish(t)
		}
		eventually(t, "room for all on every node", func() bool {
			var room []*conn
			for i := range 5 {
				if c, _ := nodes[i%3].attempt(at("reject", token)); c != nil {
					room = append(room, c)
				}
			}
			for _, c := range room {
				c.finish(t)
			}
			return len(room) == 5
		})
	}

	open, got := raceOver(nodes, 300, at("evict", token))
	if got[101]+got[429]+got[503] != 300 || got[101] < 5 {
		t.Fatalf("answers %v, want 101, or 429 for those evicted before theirs", got)
	}
	eventually(t, "5 left", func() bool { return liveOver(t, nodes, "evict") == 5 })
	for _, c := range open {
		c.Close()
	}
	eventually(t, "none left", func() bool { return liveOver(t, nodes, "evict") == 0 })
	var inOrder []*conn
	for i := range 12 {
		c := nodes[i%3].open(t, at("evict", token))
		c.t = t
		inOrder = append(inOrder, c)
	}
	for i, c := range inOrder {
		if i < len(inOrder)-5 {
			if f := c.readPonging(); f.code() != 1008 {
				t.Errorf("socket %d of 12: %x, want close code 1008", i, f.first)
			}
		} else if !c.alive(t) {
			t.Errorf("socket %d of 12 is gone", i)
		}
	}
}

// calls is how often Redis was asked with a command.
func calls(t testing.TB, server *redistest.Server, command string) (n int) {
	t.Helper()
	for line := range strings.Lines(server.Do("INFO", "commandstats")) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"+command+":calls="); ok {
			count, _, _ := strings.Cut(rest, ",")
			fmt.Sscan(count, &n)
		}
	}
	return n
}

// A handshake asks Redis once, whatever there is to ask, and one that this
// node can refuse by itself not at all.
func TestNodesRoundTrips(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	nodes, _ := startNodes(t, 1, server, p, "timeout 1s\nprefix counted:",
		gated{name: "all", gate: "max_connections 5 by user evict_oldest\nmax_connections 500 by ip\nhandshake_rate 1000/1m by user\nhandshake_rate 1000/1m by {http.auth.user.sub}", upstream: b.addr},
		gated{name: "rate", gate: "handshake_rate 5/1h by user", upstream: b.addr})
	g := nodes[0]
	token := p.token(g, nil)
	asked := func() int { return int(g.scrape(t)["caddy_ws_gate_store_request_seconds_count"]) }
	before := asked()
	for range 50 {
		g.open(t, at("all", token))
	}
	if n := asked() - before; n != 50 {
		t.Errorf("%d questions for 50 handshakes", n)
	}
	before = asked()
	want(t, "rate", g.statuses(t, "127.0.0.1", 100, func(int) handshake { return at("rate", token) }), map[int]int{101: 5, 429: 95})
	if n := asked() - before; n != 5 {
		t.Errorf("%d questions for 100 handshakes of which this node refuses 95", n)
	}
	if stats := server.Do("KEYS", "*"); strings.Contains(stats, "alice") || !strings.Contains(stats, "counted:") { // keys tell nothing of users
		t.Errorf("keys: %s", stats)
	}
}

// Rates by user and placeholder count on all nodes together, by address only
// where that is asked for.
func TestNodesRate(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	nodes, _ := startNodes(t, 3, server, p, "timeout 1s",
		gated{name: "user", gate: "handshake_rate 10/1h by user", upstream: b.addr},
		gated{name: "claim", gate: "handshake_rate 10/1h by {http.auth.user.tenant}", upstream: b.addr},
		gated{name: "field", gate: "handshake_rate 10/1h by {http.request.header.X-Key}", upstream: b.addr},
		gated{name: "shared", gate: "handshake_rate 10/1h by ip shared", upstream: b.addr},
		gated{name: "ip", gate: "handshake_rate 10/1h by ip", upstream: b.addr})
	token := p.token(nodes[0], claims{"tenant": "t1"})
	for name, accepted := range map[string]int{"user": 10, "claim": 10, "field": 10, "shared": 10, "ip": 30} {
		got := make(map[int]int)
		for i := range 45 {
			c, a := nodes[i%3].attempt(at(name, token, "X-Key: k1"))
			got[a.status]++
			if c != nil {
				c.Close()
			} else {
				retryAfter(t, a)
			}
		}
		want(t, name, got, map[int]int{101: accepted, 429: 45 - accepted})
	}
}

// kill ends the process as a crash does.
func (g *gate) kill() {
	g.killed = true
	_ = g.cmd.Process.Kill()
	<-g.exited
}

// A node that is killed frees its places within 30 s, and not while others may
// still count on them; the others' stay.
func TestNodesCrash(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	nodes, _ := startNodes(t, 2, server, p, "timeout 1s", gated{name: "a", gate: "max_connections 3 by user", upstream: b.addr})
	token := p.token(nodes[0], nil)
	stays := nodes[0].open(t, at("a", token))
	nodes[1].open(t, at("a", token))
	nodes[1].open(t, at("a", token))
	nodes[1].kill()
	if _, a := nodes[0].attempt(at("a", token)); a.status != 429 {
		t.Errorf("just after the crash: status %d", a.status)
	}
	eventuallyWithin(t, 32*time.Second, "the places of the node that crashed", func() bool {
		c, a := nodes[0].attempt(at("a", token))
		if c == nil && a.status != 429 {
			t.Fatalf("status %d", a.status)
		}
		return c != nil
	})
	nodes[0].open(t, at("a", token))
	nodes[0].refused(t, at("a", token), 429) // its own were renewed all the time
	if !stays.alive(t) {
		t.Error("a socket of the other node is gone")
	}
}

// A node that stops gives its places back at once.
func TestNodesStop(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	nodes, _ := startNodes(t, 2, server, p, "timeout 1s", gated{name: "a", gate: "max_connections 1 by user", upstream: b.addr})
	token := p.token(nodes[0], nil)
	nodes[1].open(t, at("a", token))
	nodes[0].refused(t, at("a", token), 429)
	if err := nodes[1].reload("{\nadmin 127.0.0.1:{{admin}}\n}\nhttp://127.0.0.1:{{port}} {\nrespond 204\n}\n"); err != nil {
		t.Fatal(err)
	}
	nodes[0].open(t, at("a", token))
}

// A revocation on one node holds on all: handshakes are refused and sockets
// closed, also where a node was cut off at that moment, or starts later.
func TestNodesRevocation(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	gates := []gated{{name: "a", upstream: b.addr}}
	nodes, wires := startNodes(t, 3, server, p, "timeout 500ms", gates...)
	for _, how := range []struct {
		name      string
		cut, mend func(*wire)
	}{
		{"connected", func(*wire) {}, func(*wire) {}},
		{"cut off", (*wire).sever, (*wire).mend},
		{"blocked", (*wire).block, (*wire).mend},
	} {
		user := strings.ReplaceAll(how.name, " ", "-")
		token, other := p.token(nodes[0], claims{"sub": user}), p.token(nodes[0], claims{"sub": "other-" + user})
		var members []*member
		for _, g := range nodes {
			members = append(members, follow(g.open(t, at("a", token))))
		}
		stays := nodes[1].open(t, at("a", other))
		how.cut(wires[1])
		var answer struct {
			Closed     int    `json:"closed"`
			Incomplete string `json:"incomplete"`
		}
		nodes[0].api(t, "POST", "revocations", `{"user":"`+user+`"}`, &answer)
		if connected := how.name == "connected"; connected != (answer.Closed == 3) || connected != (answer.Incomplete == "") {
			t.Errorf("%s: %+v", how.name, answer)
		}
		how.mend(wires[1])
		for i, m := range members {
			eventually(t, fmt.Sprintf("%s: the end of socket %d", how.name, i), m.ended)
			if seen := m.seen(); len(seen) == 0 || !strings.HasPrefix(seen[len(seen)-1], "close 3000") {
				t.Errorf("%s: socket %d saw %q", how.name, i, seen)
			}
			nodes[i].refused(t, at("a", token), 401)
		}
		if !stays.alive(t) {
			t.Errorf("%s: another user's socket is gone", how.name)
		}
	}
	late, _ := startNodes(t, 1, server, p, "timeout 500ms", gates...)
	if _, a := late[0].attempt(at("a", p.token(late[0], claims{"sub": "connected"}))); a.status != 401 {
		t.Errorf("a node that starts later: status %d", a.status)
	}
	var list map[string][]map[string]any
	late[0].api(t, "GET", "revocations", "", &list)
	if len(list["revocations"]) != 3 {
		t.Errorf("listed: %v", list)
	}
	// Lifted everywhere.
	late[0].counted(t, "DELETE", "revocations?user=connected", "", "lifted")
	for _, g := range nodes {
		eventually(t, "lifted", func() bool {
			c, _ := g.attempt(at("a", p.token(g, claims{"sub": "connected"})))
			return c != nil
		})
	}
}

// follow reads a socket to its end.
func follow(c *conn) *member {
	m := &member{conn: c, gone: make(chan struct{})}
	go m.follow()
	return m
}

// Every call of the admin API reaches all nodes, whichever is asked.
func TestNodesAdmin(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := newIDP(t)
	b := newBackend(t)
	b.echoes()
	nodes, wires := startNodes(t, 3, server, p, "timeout 1s", gated{name: "a", upstream: b.addr})
	var members []*member
	for i := range 9 {
		g := nodes[i%3]
		m := follow(g.open(t, at("a", p.token(g, claims{"sub": fmt.Sprintf("u%d", i/3)}))))
		m.user = fmt.Sprintf("u%d", i/3)
		members = append(members, m)
	}
	count := func(user string) (ended int) {
		for _, m := range members {
			if m.user == user && m.ended() {
				ended++
			}
		}
		return ended
	}
	eventually(t, "all nodes know each other", func() bool { return len(nodes[1].listed(t, "", 100)) == 9 })
	all := nodes[2].listed(t, "", 2) // in pages
	var ids []string
	on := make(map[any]int)
	for _, c := range all {
		ids = append(ids, c["id"].(string))
		on[c["node"]]++
	}
	if len(ids) != 9 || !slices.IsSorted(ids) || len(on) != 3 {
		t.Errorf("listed %v on %v", ids, on)
	}
	if n := len(nodes[0].listed(t, "&user=u1", 100)); n != 3 {
		t.Errorf("%d of one user", n)
	}
	if n := nodes[0].counted(t, "POST", "messages", `{"user":"u2","text":"hello"}`, "sent"); n != 3 {
		t.Errorf("sent to %d", n)
	}
	for _, m := range members[6:] {
		eventually(t, "the message", func() bool { return slices.Contains(m.seen(), "81 hello") })
	}
	for _, id := range ids {
		var one map[string]any
		if status := nodes[0].api(t, "GET", "connections/"+id, "", &one); status != 200 || one["id"] != id {
			t.Errorf("%s: %d %v", id, status, one)
		}
	}
	if n := nodes[0].counted(t, "DELETE", "connections?user=u0&code=4000&reason=bye", "", "closed"); n != 3 {
		t.Errorf("closed %d", n)
	}
	eventually(t, "closed on all nodes", func() bool { return count("u0") == 3 })
	if seen := members[1].seen(); seen[len(seen)-1] != "close 4000 bye" {
		t.Errorf("saw %q", seen)
	}
	elsewhere := slices.IndexFunc(all, func(c map[string]any) bool { return c["user"] == "u1" && c["node"] != all[0]["node"] })
	if n := nodes[0].counted(t, "DELETE", "connections/"+ids[elsewhere], "", "closed"); n != 1 {
		t.Errorf("closed %d", n)
	}
	if status := nodes[0].api(t, "DELETE", "connections/"+ids[elsewhere], "", nil); status != http.StatusNotFound {
		t.Errorf("closed twice: %d", status)
	}
	// A node that does not answer is named, and nothing waits long for it.
	wires[1].block()
	var page struct {
		Connections []map[string]any `json:"connections"`
		Incomplete  string           `json:"incomplete"`
	}
	nodes[0].api(t, "GET", "connections", "", &page)
	if len(page.Connections) == 0 || page.Incomplete == "" {
		t.Errorf("without an answer of one node: %+v", page)
	}
	wires[1].mend()
	eventually(t, "all answer again", func() bool {
		page.Incomplete = ""
		nodes[0].api(t, "GET", "connections", "", &page)
		return page.Incomplete == ""
	})
}
