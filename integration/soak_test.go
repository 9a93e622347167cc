package integration

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	// soak is how long sockets come and go in TestSoak: `go test
	// ./integration -run Soak -soak 10m -timeout 15m`.
	soak = flag.Duration("soak", 12*time.Second, "how long TestSoak goes on")

	// long has tests use the sizes of the acceptance criteria where CI does
	// with less.
	long = flag.Bool("long", false, "use full sizes")
)

// S-206, S-192, S-186: sockets are opened, used, limited, expired and killed
// at random, with reloads between. Afterwards goroutines, descriptors, places
// under caps and buckets are back where they were.
func TestSoak(t *testing.T) {
	t.Parallel()
	length := *soak
	if testing.Short() {
		length = min(length, 3*time.Second)
	}
	p := newIDP(t)
	b := newBackend(t)
	serveSoak(t, b)
	const limits = `handshake_rate 200/1s burst 50 by user
handshake_rate 100/100ms burst 10000 by {header.X-Made-Up}
message_rate 100/1s burst 20 close
byte_rate 1MiB/1s burst 256KiB delay by user
max_message_size 100KiB
ping_interval 500ms
pong_timeout 1s
idle_timeout 1500ms
max_lifetime 3s
`
	caddyfile := func(options string) string {
		return several([]*idp{p}, "",
			gated{name: "reject", gate: limits + "max_connections 8 by user\nmax_connections 500 by ip\n" + options, upstream: b.addr},
			gated{name: "evict", gate: limits + "max_connections 5 by user evict_oldest\n" + options, upstream: b.addr, transport: "response_header_timeout 500ms"},
			gated{name: "free", gate: options, upstream: b.addr})
	}
	// One allocation in 4 KiB is noted, so that the heap's profile tells what
	// is left.
	g := start(t, caddyfile(""), "GODEBUG=memprofilerate=4096")
	g.refused(t, at("warm", p.token(g, nil)), http.StatusNoContent)
	round := func(length time.Duration, from int64) soaked {
		return soakFor(t, g, p, length, from)
	}
	round(2*time.Second, 1) // warm: pools, timers, what starts at first use
	fds, goroutines, profile := settled(g)
	reloads := make(chan struct{})
	go func() {
		defer close(reloads)
		for end := time.Now().Add(length); time.Until(end) > 2*time.Second; {
			time.Sleep(min(length/5, 20*time.Second))
			if err := g.reload(caddyfile(fmt.Sprintf("pong_timeout %dms", 1000+rand.IntN(100)))); err != nil &&
				!strings.Contains(err.Error(), "pong_timeout") {
				t.Errorf("reload: %v", err)
			}
			if err := g.reload(caddyfile("on_expiry keep")); err != nil {
				t.Errorf("reload: %v", err)
			}
			if err := g.reload(caddyfile("")); err != nil {
				t.Errorf("reload: %v", err)
			}
		}
	}()
	did := round(length, 100)
	<-reloads
	// 0 is no answer: Caddy opens a second listener on the port when it reloads,
	// and closing the first resets what stands in its queue.
	t.Logf("%d handshakes, %d sockets: %v", did.handshakes.Load(), did.opened.Load(), did.answers)
	if did.opened.Load() < int64(20*length/time.Second) {
		t.Errorf("only %d sockets: this test shows nothing", did.opened.Load())
	}
	for _, status := range []int{101, 429, 401} {
		if n, _ := did.answers.Load(status); n == nil {
			t.Errorf("no answer was %d", status)
		}
	}

	// Goroutines and descriptors.
	deadline := time.Now().Add(40 * time.Second)
	for {
		nowFDs := g.fds()
		nowGoroutines, nowProfile := g.goroutines()
		if nowFDs <= fds+2 && nowGoroutines <= goroutines+5 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("fds %d, before %d; goroutines %d, before %d\n--- before\n%s\n--- now\n%s",
				nowFDs, fds, nowGoroutines, goroutines, shorten(profile), shorten(nowProfile))
		}
		time.Sleep(100 * time.Millisecond)
	}
	// Places.
	for _, user := range did.users[:4] {
		token := p.token(g, claims{"sub": user})
		intact(t, g, at("reject", token), 8)
	}
	// Sockets, places and buckets, in the heap's profile.
	last := ""
	eventuallyWithin(t, 90*time.Second, "memory of sockets, places or buckets in the heap", func() bool {
		last = ""
		for stack, objects := range g.heap() {
			for _, what := range []string{"tunnel.newSocket", "limit.(*Table).bucket", "limit.Rate.NewBucket", "store.(*Memory).enter", "module.(*FlowRate)", "module.newConnectionID"} {
				// What the calls above opened last may still be ending.
				if strings.Contains(stack, what) && objects > 20 {
					last += fmt.Sprintf("%d objects:\n%s", objects, stack)
				}
			}
		}
		if last != "" {
			time.Sleep(500 * time.Millisecond)
		}
		return last == ""
	})
	if last != "" {
		t.Log(last)
	}
	// Every socket that was opened ended, once; and for every reason there is.
	reasons := make(map[string]int)
	var left map[any]int
	for deadline := time.Now().Add(patience); ; time.Sleep(300 * time.Millisecond) {
		left = make(map[any]int)
		clear(reasons)
		for _, e := range g.entries("connection opened") {
			left[e["connection_id"]]++
		}
		for _, e := range g.entries("connection closed") {
			if e["logger"] != "http.handlers.ws_gate" {
				continue // reverse_proxy's
			}
			left[e["connection_id"]]--
			reasons[fmt.Sprint(e["close_reason"])]++
		}
		maps.DeleteFunc(left, func(_ any, n int) bool { return n == 0 })
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("%d sockets did not begin and end once in the log: %v", len(left), left)
			break
		}
	}
	t.Logf("ends: %v", reasons)
	if !testing.Short() {
		for _, reason := range []string{"normal", "protocol", "too_big", "rate", "evicted", "expired", "lifetime", "idle_timeout", "backend_lost", "client_lost"} {
			if reasons[reason] == 0 {
				t.Errorf("no socket ended by %s", reason)
			}
		}
	}
}

// soaked is what a round did.
type soaked struct {
	handshakes, opened *atomic.Int64
	answers            *counts
	users              []string
}

// counts counts answers.
type counts struct {
	sync.Map
}

func (c *counts) add(status int) {
	n, _ := c.LoadOrStore(status, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

func (c *counts) String() string {
	var b strings.Builder
	c.Range(func(k, v any) bool {
		fmt.Fprintf(&b, "%d: %d  ", k, v.(*atomic.Int64).Load())
		return true
	})
	return b.String()
}

// soakFor has clients come and go.
func soakFor(t *testing.T, g *gate, p *idp, length time.Duration, seed int64) soaked {
	t.Helper()
	did := soaked{new(atomic.Int64), new(atomic.Int64), new(counts), nil}
	var good []string
	for i := range 12 {
		did.users = append(did.users, fmt.Sprint("user-", i))
		good = append(good, p.token(g, claims{"sub": did.users[i]}))
	}
	bad := p.mintWith(newECKey("ec-1"), nil)
	g.guard(bad)
	end := time.Now().Add(length)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(seed), uint64(i)))
			for time.Now().Before(end) {
				token := good[r.IntN(len(good))]
				switch r.IntN(12) {
				case 0:
					token = bad
				case 1:
					token = p.mint("ES256", claims{"sub": did.users[r.IntN(len(did.users))], "exp": time.Now().Unix() + 1 + int64(r.IntN(3))})
				}
				name := []string{"reject", "evict", "free"}[r.IntN(3)]
				path := name + []string{"", "", "", "", "", "", "-403", "-silent", "-reset"}[r.IntN(9)]
				h := at(path, token, "X-Made-Up: "+strconv.Itoa(r.IntN(1<<30)))
				did.handshakes.Add(1)
				if r.IntN(20) == 0 { // gone before the answer
					h.abandon(g, time.Duration(r.IntN(5))*time.Millisecond)
					continue
				}
				c, a := g.attemptFrom(fmt.Sprintf("127.0.1.%d", 1+i%50), h)
				did.answers.add(a.status)
				if c == nil {
					time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
					continue
				}
				did.opened.Add(1)
				c.live(r)
				c.Close()
			}
		})
	}
	wg.Wait()
	return did
}

// abandon sends a handshake and leaves.
func (h handshake) abandon(g *gate, after time.Duration) {
	raw, err := net.Dial("tcp", g.addr)
	if err != nil {
		return
	}
	_, _ = io.WriteString(raw, h.text(g.addr))
	time.Sleep(after)
	raw.Close()
}

// live does something with a socket, and ends it somehow; it fails no test.
func (c *conn) live(r *rand.Rand) {
	c.SetDeadline(time.Now().Add(time.Duration(1+r.IntN(5)) * time.Second))
	text := func(s string) []byte { return masked(0x81, []byte(s)) }
	for range r.IntN(5) { // some echoes
		if _, err := c.Write(text("echo" + strings.Repeat("x", r.IntN(3000)))); err != nil {
			return
		}
		if _, err := c.readPongingQuietly(); err != nil {
			return
		}
	}
	switch r.IntN(13) {
	case 0: // clean
		_, _ = c.Write(masked(0x88, closing(1000, "bye")))
		_, _ = io.Copy(io.Discard, c.br)
	case 1:
		c.reset()
	case 2: // FIN
		c.Close()
	case 3: // half-closed
		_ = c.closeWrite()
		_, _ = io.Copy(io.Discard, c.br)
	case 4: // rules broken
		_, _ = c.Write(unhex("83 80 00000000"))
		_, _ = io.Copy(io.Discard, c.br)
	case 5: // too big
		_, _ = c.Write(append(header(0x82, true, 200_000), 0, 0, 0, 0))
		_, _ = io.Copy(io.Discard, c.br)
	case 6: // too fast
		for range 100 {
			if _, err := c.Write(text("-")); err != nil {
				break
			}
		}
		_, _ = io.Copy(io.Discard, c.br)
	case 7: // delayed, and gone meanwhile
		for range 8 {
			if _, err := c.Write(masked(0x82, make([]byte, 90_000))); err != nil {
				break
			}
		}
		time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
	case 8: // the backend is told to do something
		_, _ = c.Write(text([]string{"kill", "close", "fin", "push", "hang", "break"}[r.IntN(6)]))
		_, _ = io.Copy(io.Discard, c.br)
	case 9: // within a frame
		_, _ = c.Write(unhex("82 FE 0400 00000000 01"))
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
		c.reset()
	case 10: // silent but for pongs, until something ends it
		for {
			if _, err := c.readPongingQuietly(); err != nil {
				return
			}
		}
	case 12: // busy, until something ends it
		for {
			if _, err := c.Write(text("busy")); err != nil {
				return
			}
			if _, err := c.readPongingQuietly(); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	case 11: // does not read
		_, _ = c.Write(text("push"))
		time.Sleep(time.Duration(r.IntN(3)) * time.Second)
	}
}

// readPongingQuietly is readPonging for goroutines.
func (c *conn) readPongingQuietly() (frame, error) {
	for {
		f, err := readFrame(c.br)
		if err != nil {
			return f, err
		}
		switch f.opcode() {
		case 9:
			if _, err := c.Write(masked(0x8A, f.payload)); err != nil {
				return f, err
			}
		case 8:
			_, _ = c.Write(masked(0x88, f.payload))
			return f, io.EOF
		default:
			return f, nil
		}
	}
}

// serveSoak is a backend that echoes, and does what it is told.
func serveSoak(t *testing.T, b *backend) {
	b.answers(func(u *upstream) string {
		b.forget()
		switch _, kind, _ := strings.Cut(u.req.URL.Path, "-"); kind {
		case "403":
			return "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
		case "silent":
			u.SetReadDeadline(time.Now().Add(2 * time.Second))
			_, _ = u.br.Peek(1)
			u.Close()
			return ""
		case "reset":
			u.reset()
			return ""
		}
		return accept(u)
	})
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case u := <-b.arrivals:
				go u.soak()
			case <-done:
				return
			}
		}
	}()
}

func (u *upstream) soak() {
	defer u.Close()
	for {
		u.SetDeadline(time.Now().Add(15 * time.Second))
		f, err := readFrame(u.br)
		if err != nil {
			return
		}
		reply := unmasked(f.first, f.payload)
		switch {
		case f.opcode() == 8:
			_, _ = u.Write(reply)
			return
		case f.opcode() == 9:
			reply = unmasked(0x8A, f.payload)
		case f.opcode() == 10:
			continue
		}
		switch string(f.payload) {
		case "kill":
			u.reset()
			return
		case "fin":
			return
		case "close":
			_, _ = u.Write(unmasked(0x88, closing(4000, "told to")))
			_, _ = io.Copy(io.Discard, u.br)
			return
		case "break":
			reply = unhex("83 00")
		case "hang": // takes nothing more
			time.Sleep(2 * time.Second)
		case "push":
			piece := unmasked(0x82, make([]byte, 1<<16))
			for range 200 {
				if _, err := u.Write(piece); err != nil {
					return
				}
			}
		}
		if _, err := u.Write(reply); err != nil {
			return
		}
	}
}

// forget drops what the backend keeps of ended connections: a soak has many.
func (b *backend) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heads = nil
	if len(b.conns) > 20_000 {
		b.conns = b.conns[10_000:]
	}
}

// heap is the process's heap after a collection: objects in use by stack.
func (g *gate) heap() map[string]int {
	resp, err := adminClient.Get("http://" + g.admin + "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	all := make(map[string]int)
	objects, stack := 0, ""
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "# runtime.MemStats"):
			return all
		case strings.HasPrefix(line, "#"):
			stack += line + "\n"
		case line == "":
			all[stack] += objects
			objects, stack = 0, ""
		default:
			var n int
			if _, err := fmt.Sscanf(line, "%d:", &n); err == nil {
				objects = n
			}
		}
	}
	return all
}
