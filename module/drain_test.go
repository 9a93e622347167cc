package module

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// drained is what became of one socket.
type drained struct {
	i    int
	at   time.Duration
	code int
}

// drainBubble drains n sockets whose clients answer the close frame, and some
// more whose clients don't read, all on the bubble's clock.
func drainBubble(t *testing.T, n, stuck int, spread, grace time.Duration) (ended []drained, took time.Duration) {
	t.Helper()
	t.Cleanup(func() { draining.Store(false) })
	var mu sync.Mutex
	var all sync.WaitGroup
	begin := time.Now()
	for i := range n + stuck {
		nearClient, client := net.Pipe()
		nearBackend, backend := net.Pipe()
		tunnel.Start(tunnel.Accepted{
			Identity: tunnel.Identity{ID: fmt.Sprint(i), Tunnel: "drain"}, Policy: new(tunnel.Policy),
			Client: nearClient, Backend: nearBackend, Observer: observer{},
		})
		all.Go(func() {
			got := make([]byte, 8) // a masked close frame without a reason
			_, err := io.ReadFull(backend, got)
			if i >= n {
				// The gate would wait for a lock, and synctest knows of none.
				_, _ = io.Copy(io.Discard, backend)
			}
			backend.Close()
			if i < n && (err != nil || got[0] != 0x88 || got[1] != 0x82 || int(got[6]^got[2])<<8|int(got[7]^got[3]) != tunnel.CodeGoingAway) {
				t.Errorf("backend %d got %x", i, got)
			}
		})
		all.Go(func() {
			if i >= n {
				time.Sleep(spread + grace + time.Minute)
				client.Close()
				return
			}
			head := make([]byte, 2)
			if _, err := io.ReadFull(client, head); err != nil || head[0] != 0x88 {
				t.Errorf("client %d got %x, %v", i, head, err)
				return
			}
			payload := make([]byte, head[1])
			_, _ = io.ReadFull(client, payload)
			mu.Lock()
			ended = append(ended, drained{i, time.Since(begin), int(payload[0])<<8 | int(payload[1])})
			mu.Unlock()
			_, _ = client.Write([]byte{0x88, 0x82, 0, 0, 0, 0, payload[0], payload[1]})
			client.Close()
		})
	}
	synctest.Wait()
	a := &App{spread: spread, grace: grace, logger: zap.NewNop()}
	a.drain()
	took = time.Since(begin)
	if live.Len() != 0 {
		t.Errorf("%d sockets are left", live.Len())
	}
	a.drain() // once
	if again := time.Since(begin) - took; again != 0 {
		t.Errorf("a second drain took %v", again)
	}
	all.Wait()
	return ended, took
}

// S-213: closes are spread evenly over the time, in no order, and the drain is
// over with the last.
func TestDrainSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, spread = 1000, 10 * time.Second
		ended, took := drainBubble(t, n, 0, spread, time.Minute)
		if len(ended) != n {
			t.Fatalf("%d close frames", len(ended))
		}
		var slots [10]int
		var order []int
		for _, d := range ended {
			if d.code != tunnel.CodeRestart {
				t.Fatalf("close code %d", d.code)
			}
			slots[min(d.at*10/spread, 9)]++
			order = append(order, d.i)
		}
		for i, n := range slots {
			if n < 90 || n > 110 {
				t.Errorf("slot %d of %v", i, slots)
			}
		}
		if slices.IsSorted(order) {
			t.Error("in order of their beginning")
		}
		if took > spread+time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// S-204: clients that don't read get the time of grace, and no more.
func TestDrainCuts(t *testing.T) {
	for _, grace := range []time.Duration{time.Second, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			const spread = 4 * time.Second
			ended, took := drainBubble(t, 20, 20, spread, grace)
			if len(ended) != 20 {
				t.Errorf("%d close frames, want 20", len(ended))
			}
			// 100 ms: the steps in which it looks.
			if took < spread/2 || took > spread+grace+100*time.Millisecond {
				t.Errorf("took %v with %v of grace", took, grace)
			}
		})
	}
}

// Without any socket nothing is waited for.
func TestDrainOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if _, took := drainBubble(t, 0, 0, time.Hour, time.Hour); took != 0 {
			t.Errorf("took %v", took)
		}
	})
	// One that has nobody to wait for does not wait for its turn either.
	synctest.Test(t, func(t *testing.T) {
		if ended, took := drainBubble(t, 1, 0, time.Hour, time.Hour); took > time.Second || len(ended) != 1 {
			t.Errorf("took %v", took)
		}
	})
}

// Retry-After is spread too, so that those who are refused meanwhile do not
// all come back at once.
func TestDrainingAnswer(t *testing.T) {
	seen := make(map[int]bool)
	for range 1000 {
		a := drainingAnswer()
		n, err := strconv.Atoi(a.header.Get("Retry-After"))
		if err != nil || n < 1 || n > 5 || a.status != 503 || a.reason != reasonDraining {
			t.Fatalf("%+v", a)
		}
		seen[n] = true
	}
	if len(seen) != 5 {
		t.Errorf("Retry-After was one of %v", seen)
	}
}

// Handshakes are refused while the process stops; requests are not.
func TestCheckDraining(t *testing.T) {
	g := new(Gate)
	draining.Store(true)
	defer draining.Store(false)
	if err := g.checkDraining(&visit{handshake: true}); err != errDraining { //nolint:errorlint // the very one
		t.Errorf("handshake: %v", err)
	}
	if err := g.checkDraining(&visit{}); err != nil {
		t.Errorf("request: %v", err)
	}
}

// Of the sockets whose tunnel is gone those end that are to, and no others.
func TestDrainRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drains := &tunnel.Policy{DrainOnRemoval: true}
		sockets := make(map[string]*tunnel.Socket)
		var far []net.Conn
		for id, a := range map[string]tunnel.Accepted{
			"kept":    {Identity: tunnel.Identity{Tunnel: "kept"}, Policy: drains},
			"stays":   {Identity: tunnel.Identity{Tunnel: "gone"}, Policy: new(tunnel.Policy)},
			"drained": {Identity: tunnel.Identity{Tunnel: "gone"}, Policy: drains},
		} {
			nearClient, client := net.Pipe()
			nearBackend, backend := net.Pipe()
			a.ID, a.Client, a.Backend, a.Observer = id, nearClient, nearBackend, observer{}
			sockets[id] = tunnel.Start(a)
			far = append(far, client, backend)
		}
		drainRemoved([]*Gate{{TunnelName: "kept"}, {TunnelName: "new"}}, time.Second)
		time.Sleep(2 * time.Second)
		for id, s := range sockets {
			if s.Ending() != (id == "drained") {
				t.Errorf("%s ends: %t", id, s.Ending())
			}
		}
		drainRemoved(nil, time.Second)
		time.Sleep(2 * time.Second)
		if !sockets["kept"].Ending() || sockets["stays"].Ending() {
			t.Error("the last gate is gone")
		}
		for _, conn := range far {
			conn.Close()
		}
		synctest.Wait()
		if live.Len() != 0 {
			t.Errorf("%d sockets are left", live.Len())
		}
	})
}
