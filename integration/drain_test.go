package integration

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// ending is how one socket ended, seen from both sides.
type ending struct {
	at      time.Time
	code    int   // of the client's close frame; 0: none came
	within  bool  // something came that is no whole frame
	err     error // the stream did not end
	backend int   // code of the backend's close frame
}

// endings of a drained crowd, by the kind of socket.
type crowdEnd struct {
	mu  sync.Mutex
	all map[string][]ending
}

func (e *crowdEnd) add(kind string, one ending) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all[kind] = append(e.all[kind], one)
}

// watch reads the client's side to its end. The close frame is answered.
func (c *conn) watch(begin time.Time) (e ending) {
	c.SetReadDeadline(begin.Add(2 * time.Minute))
	for {
		first, err := c.br.Peek(1)
		if err != nil {
			if !isReset(err) {
				e.err = err
			}
			return e
		}
		f, err := readFrame(c.br)
		if err != nil {
			e.within = true
			if !isReset(err) {
				e.err = err
			}
			return e
		}
		if first[0] == 0x88 {
			e.at, e.code = time.Now(), f.code()
			_, _ = c.Write(masked(0x88, f.payload))
		} else if e.code != 0 {
			e.within = true // behind the close frame
		}
	}
}

// S-204, S-213: the process stops with 1,000 sockets, some in the midst of a
// message, some that don't read.
func TestDrain(t *testing.T) {
	t.Parallel()
	const (
		idle, fragmented, unfinished, finished, stuck = 880, 40, 30, 30, 20

		spread, grace = 4 * time.Second, 2 * time.Second
	)
	p := newIDP(t)
	b := newBackend(t)
	g := startSeveral(t, []*idp{p}, fmt.Sprintf("ws_gate {\ndrain {\nspread %s\ngrace %s\n}\n}", spread, grace), gated{name: "d", gate: "ping_interval 0", upstream: b.addr})
	token := p.token(g, nil)

	type socket struct {
		kind string
		c    *conn
		u    *upstream
	}
	var sockets []socket
	for kind, n := range map[string]int{"idle": idle, "fragmented": fragmented, "unfinished": unfinished, "finished": finished, "stuck": stuck} {
		for range n {
			var c *conn
			var a answer
			if kind == "stuck" {
				c, a = g.thrifty(at("d", token))
			} else {
				c, a = g.attempt(at("d", token))
			}
			if c == nil {
				t.Fatalf("status %d, %v", a.status, a.err)
			}
			defer c.Close()
			u := b.next(t)
			sockets = append(sockets, socket{kind, c, u})
			switch kind {
			case "fragmented": // between two frames of a message, in both directions
				u.send(unmasked(0x01, []byte("part")))
				c.send(masked(0x01, []byte("part")))
			case "unfinished", "finished": // within a frame
				u.send(unmasked(0x82, make([]byte, 1000))[:500])
			case "stuck":
				go func() {
					u.SetWriteDeadline(time.Now().Add(time.Minute))
					for {
						if _, err := u.Write(unmasked(0x82, make([]byte, 1<<16))); err != nil {
							return
						}
					}
				}()
			}
		}
	}
	eventually(t, "all are open", func() bool {
		return g.scrape(t)[`caddy_ws_gate_connections{tunnel="d"}`] == float64(len(sockets))
	})
	time.Sleep(200 * time.Millisecond) // parts arrive, stuck ones get stuck
	late := g.connect(t)               // its handshake comes during the drain
	late.send([]byte("GET /ws/d HTTP/1.1\r\n"))

	begin := time.Now()
	g.stop()
	end := crowdEnd{all: make(map[string][]ending)}
	var watchers sync.WaitGroup
	for _, s := range sockets {
		if s.kind == "stuck" {
			continue
		}
		watchers.Go(func() {
			backend := make(chan int, 1)
			go func() {
				s.u.SetReadDeadline(begin.Add(2 * time.Minute))
				for {
					f, err := readFrame(s.u.br)
					if err != nil {
						backend <- 0
						return
					}
					if f.opcode() == 8 {
						backend <- f.code()
						if s.kind == "finished" { // the frame's rest comes after all
							_, _ = s.u.Write(make([]byte, 504))
						}
						_, _ = s.u.Write(unmasked(0x88, f.payload))
						if s.kind != "unfinished" {
							s.u.Close()
						}
						return
					}
				}
			}()
			e := s.c.watch(begin)
			s.c.Close()
			e.backend = <-backend
			end.add(s.kind, e)
		})
	}
	// New handshakes meanwhile: 503, or nobody is there any more.
	refused := make(map[int]int)
	retry := make(map[string]bool)
	for time.Since(begin) < spread/2 {
		c, a := g.attempt(at("d", token))
		if c != nil {
			c.Close()
		}
		refused[a.status]++
		if a.status == http.StatusServiceUnavailable {
			retry[a.header.Get("Retry-After")] = true
		}
		time.Sleep(20 * time.Millisecond)
	}
	for status, n := range refused {
		if status != 0 && status != http.StatusServiceUnavailable {
			t.Errorf("%d handshakes got %d", n, status)
		}
	}
	if refused[http.StatusServiceUnavailable] < 10 || len(retry) < 2 || retry[""] {
		t.Errorf("answers %v with Retry-After %v", refused, retry)
	}
	late.send([]byte(strings.SplitN(at("d", token).text(late.host), "\r\n", 2)[1]))
	if a := late.readAnswer("GET"); a.status != 0 && a.status != http.StatusServiceUnavailable {
		t.Errorf("a handshake that began before got %d", a.status)
	}
	select {
	case <-g.exited:
	case <-time.After(time.Minute):
		t.Fatal("the process does not end")
	}
	took := time.Since(begin)
	watchers.Wait()
	t.Logf("took %v, answers %v", took.Round(10*time.Millisecond), refused)
	if took > spread+grace+5*time.Second { // a second, on a machine that has nothing else to do
		t.Errorf("took %v", took)
	}
	var slots [5]int
	for kind, all := range end.all {
		for _, e := range all {
			switch {
			case e.err != nil:
				t.Errorf("%s: %v", kind, e.err)
			case kind == "unfinished":
				if e.code != 0 || !e.within {
					t.Errorf("%s: close code %d inside a frame", kind, e.code)
				}
			case e.code != 1012 || e.within:
				t.Errorf("%s: close code %d, something else: %t", kind, e.code, e.within)
			}
			if e.backend != 1001 {
				t.Errorf("%s: the backend got close code %d", kind, e.backend)
			}
			if kind == "idle" {
				slots[max(0, min(int(e.at.Sub(begin)*5/spread), 4))]++
			}
		}
	}
	t.Logf("closes over five slots: %v", slots)
	for i, n := range slots {
		if n < idle/25 {
			t.Errorf("slot %d of %v is nearly empty", i, slots)
		}
	}
	if n := len(end.all["idle"]) + len(end.all["fragmented"]) + len(end.all["unfinished"]) + len(end.all["finished"]); n != len(sockets)-stuck {
		t.Errorf("%d ends", n)
	}
	// Each has its line, also those that were cut.
	closed := g.entries("connection closed")
	reasons := make(map[any]int)
	for _, line := range closed {
		reasons[line["close_reason"]]++
	}
	if len(closed) != len(sockets) || reasons["drain"] != len(sockets) {
		t.Errorf("%d lines, %v", len(closed), reasons)
	}
	if n := len(g.entries("draining connections")); n != 1 {
		t.Errorf("%d lines about the drain", n)
	}
}

// SIGINT and `caddy stop` do as SIGTERM does, also while a request keeps the
// HTTP server from ending; events of the last sockets are told too.
func TestDrainHoweverStopped(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(g *gate) error{
		"SIGTERM": func(g *gate) error { return g.cmd.Process.Signal(syscall.SIGTERM) },
		"SIGINT":  func(g *gate) error { return g.cmd.Process.Signal(syscall.SIGINT) },
		"caddy stop": func(g *gate) error {
			out, err := exec.Command(caddyBinary, "stop", "--address", g.admin).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newIDP(t)
			b := newBackend(t)
			slow := make(chan struct{})
			b.answers(func(u *upstream) string {
				if u.req.Header.Get("Upgrade") != "" {
					return accept(u)
				}
				<-slow
				return "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
			})
			g := wiring{idp: p, upstream: b.addr, global: "ws_gate {\ndrain {\nspread 1s\ngrace 1s\n}\n}", gate: "ping_interval 0"}.start(t)
			var conns []*conn
			var ups []*upstream
			for range 10 {
				c, u := pair(t, g, p, b)
				conns, ups = append(conns, c), append(ups, u)
			}
			// A plain request that is not done.
			plain := g.connect(t)
			plain.send([]byte(bearer(p.token(g, nil)).without("Upgrade").without("Connection").without("Sec-WebSocket-Key").without("Sec-WebSocket-Version").text(plain.host)))
			eventually(t, "the request at the backend", func() bool { return len(b.requests()) > len(conns) })
			begin := time.Now()
			stopped := make(chan error, 1)
			go func() { stopped <- stop(g) }()
			for i, c := range conns {
				c.expectClose(1012)
				c.send(masked(0x88, closing(1012, "")))
				ups[i].expectClose(1001)
				ups[i].Close()
			}
			close(slow)
			if a := plain.readAnswer("GET"); a.status != http.StatusOK || a.body != "done" {
				t.Errorf("the request got %d %q, %v", a.status, a.body, a.err)
			}
			select {
			case <-g.exited:
			case <-time.After(time.Minute):
				t.Fatal("the process does not end")
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("took %v", took)
			}
			if n := len(g.entries("connection closed")); n != len(conns) {
				t.Errorf("%d lines about ends", n)
			}
			closed := 0
			for _, e := range g.entries("event") {
				if e["name"] == "ws_gate.closed" {
					closed++
				}
			}
			if closed != len(conns) {
				t.Errorf("%d events about ends", closed)
			}
		})
	}
}

// What becomes of sockets whose route is gone: by default they live on, with
// on_removal drain they get 1012, and only those of that route.
func TestOnRemoval(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	drained, kept := gated{name: "drained", gate: "on_removal drain", upstream: b.addr}, gated{name: "kept", upstream: b.addr}
	stays := gated{name: "stays", gate: "on_removal drain", upstream: b.addr}
	const global = "ws_gate {\ndrain {\nspread 500ms\n}\n}"
	g := startSeveral(t, []*idp{p}, global, drained, kept, stays)
	open := func(name string) (*conn, *upstream) { return pairWith(t, g, b, at(name, p.token(g, nil))) }
	echoed := func(c *conn, u *upstream) {
		t.Helper()
		frame := masked(0x82, random(20))
		c.send(frame)
		u.expectBytes(frame)
		u.send(unmasked(0x82, frame[6:]))
		if f := c.readPonging(); !bytes.Equal(f.payload, frame[6:]) {
			t.Fatalf("got %x", f.raw)
		}
	}
	dc, du := open("drained")
	kc, ku := open("kept")
	sc, su := open("stays")
	// Another address of the same name is no removal.
	stays.gate = "on_removal drain\nping_interval 5s"
	renamed := stays
	renamed.name, renamed.gate = "elsewhere", stays.gate+"\ntunnel_name stays"
	if err := g.reload(several([]*idp{p}, global, drained, kept, renamed)); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		c *conn
		u *upstream
	}{{dc, du}, {kc, ku}, {sc, su}} {
		echoed(s.c, s.u)
	}
	if err := g.reload(several([]*idp{p}, global, renamed)); err != nil {
		t.Fatal(err)
	}
	dc.expectClose(1012)
	du.expectClose(1001)
	echoed(kc, ku)
	echoed(sc, su)
	dc.Close()
	du.Close()
	eventually(t, "the line about the end", func() bool {
		return slices.ContainsFunc(g.entries("connection closed"), func(e map[string]any) bool {
			return e["tunnel"] == "drained" && e["close_reason"] == "drain" && e["closed_by"] == "gate"
		})
	})
	// Without any gate at all; what lives on is still in nobody's way.
	if err := g.reload("{\nadmin 127.0.0.1:{{admin}}\nauto_https off\npersist_config off\n}\nhttp://127.0.0.1:{{port}} {\nrespond ok\n}\n"); err != nil {
		t.Fatal(err)
	}
	sc.expectClose(1012)
	su.expectClose(1001)
	echoed(kc, ku)
	if n := g.counted(t, "DELETE", "connections?tunnel=kept", "", "closed"); n != 1 {
		t.Errorf("%d closed", n)
	}
	kc.expectClose(1008)
	ku.expectClose(1001)
}

// S-203: a config that can't start, because an address is taken, ends no
// socket, whatever it would have removed, and leaves the drain to the old one.
func TestFailedStartDrainsNothing(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	gone := gated{name: "gone", gate: "on_removal drain", upstream: b.addr}
	const global = "ws_gate {\ndrain {\nspread 300ms\ngrace 2s\n}\n}"
	g := startSeveral(t, []*idp{p}, global, gone)
	c, u := pairWith(t, g, b, at("gone", p.token(g, nil)))
	taken := newBackend(t).addr
	for range 6 { // Caddy starts apps in an order by chance
		bad := several([]*idp{p}, global, gated{name: "other", upstream: b.addr}) + "http://" + taken + " {\nbind 127.0.0.1\nrespond ok\n}\n"
		if err := g.reload(bad); err == nil {
			t.Fatal("loaded, though an address is taken")
		}
		frame := masked(0x82, random(20))
		c.send(frame)
		u.expectBytes(frame)
	}
	time.Sleep(500 * time.Millisecond) // more than the spread
	u.send(unmasked(0x81, []byte("still here")))
	if f := c.readPonging(); string(f.payload) != "still here" {
		t.Fatalf("got %x", f.raw)
	}
	c2, u2 := pairWith(t, g, b, at("gone", p.token(g, nil)))
	g.stop()
	for _, s := range []struct {
		c *conn
		u *upstream
	}{{c, u}, {c2, u2}} {
		s.c.expectClose(1012)
		s.u.expectClose(1001)
		s.u.Close()
		s.c.Close()
	}
	select {
	case <-g.exited:
	case <-time.After(time.Minute):
		t.Fatal("the process does not end")
	}
}

// A backend that is slow to answer the handshake does not outlive the drain:
// its client gets no tunnel once the process stops.
func TestHandshakeDuringDrain(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	answer := make(chan struct{})
	var once sync.Once
	var slow atomic.Bool
	b.answers(func(u *upstream) string {
		if slow.Load() {
			<-answer
		}
		return accept(u)
	})
	t.Cleanup(func() { once.Do(func() { close(answer) }) })
	g := wiring{idp: p, upstream: b.addr, global: "ws_gate {\ndrain {\nspread 2s\ngrace 1s\n}\n}"}.start(t)
	var keep []*conn
	for range 4 { // so that the drain takes its time
		c, _ := pair(t, g, p, b)
		keep = append(keep, c)
	}
	slow.Store(true)
	c := g.connect(t)
	c.send([]byte(bearer(p.token(g, nil)).text(c.host)))
	eventually(t, "the handshake at the backend", func() bool { return len(b.requests()) == len(keep)+1 })
	g.stop()
	eventually(t, "the drain", func() bool { return len(g.entries("draining connections")) == 1 })
	once.Do(func() { close(answer) })
	if a := c.readAnswer("GET"); a.status == http.StatusSwitchingProtocols {
		c.expectClose(1012)
	} else if a.status != 0 && a.status != http.StatusServiceUnavailable && a.status != http.StatusBadGateway {
		t.Errorf("status %d", a.status)
	}
	for _, c := range keep {
		c.SetReadDeadline(time.Now().Add(patience))
		_, _ = io.Copy(io.Discard, c.br)
	}
	select {
	case <-g.exited:
	case <-time.After(time.Minute):
		t.Fatal("the process does not end")
	}
}
