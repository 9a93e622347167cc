package integration

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// talk sends numbered messages and waits for each to come back, until told to
// stop.
func (c *conn) talk(t *testing.T, i int, stop <-chan struct{}, said *atomic.Int64) {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-time.After(rand.N(2 * time.Second)):
		}
		text := fmt.Sprintf("%d says %d %s", i, n, strings.Repeat("x", rand.IntN(300)))
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(masked(0x81, []byte(text))); err != nil {
			t.Errorf("socket %d: writing message %d: %v", i, n, err)
			return
		}
		for {
			f, err := readFrame(c.br)
			if err != nil {
				t.Errorf("socket %d: message %d is lost: %v", i, n, err)
				return
			}
			if f.first == 0x89 {
				_, _ = c.Write(masked(0x8A, f.payload))
				continue
			}
			if f.first != 0x81 || string(f.payload) != text {
				t.Errorf("socket %d: got %x %.60q in place of message %d", i, f.first, f.payload, n)
				return
			}
			break
		}
		said.Add(1)
	}
}

// S-199: 1,000 sockets, ten reloads in a row with other limits, issuers and
// upstreams, under echo traffic: no message lost, no socket closed, caps count
// what is there, and nothing of the old configs stays.
func TestReloadsUnderTraffic(t *testing.T) {
	t.Parallel()
	const sockets, reloads = 1000, 10
	issuers := []*idp{newIDP(t), newIDP(t), newIDP(t)}
	backends := []*backend{newBackend(t), newBackend(t), newBackend(t)}
	for _, b := range backends {
		b.echoes()
	}
	site := func(i int) string {
		names := []*idp{issuers[0]}
		if i%3 != 0 {
			names = append(names, issuers[i%3])
		}
		return several(names, "", gated{
			name: "r", upstream: backends[i%3].addr,
			gate: fmt.Sprintf("max_connections %d by user\nmax_connections %d by ip\nmessage_rate %d/1s\nmax_message_size %dKiB\nping_interval %dms\npong_timeout 1m\nhandshake_rate %d/1s",
				sockets+i, 2*sockets+i, 1000+i, 100+i, 200+10*i, 5000+i),
		})
	}
	g := start(t, site(0))
	token := issuers[0].token(g, nil)
	g.refused(t, at("warm", token), http.StatusNoContent)
	var said atomic.Int64
	var talkers sync.WaitGroup
	stop := make(chan struct{})
	for i := range sockets {
		c, a := g.attempt(at("r", token))
		if c == nil {
			t.Fatalf("socket %d: status %d, %v", i, a.status, a.err)
		}
		defer c.Close()
		talkers.Go(func() { c.talk(t, i, stop, &said) })
	}
	eventually(t, "traffic", func() bool { return said.Load() > sockets })
	goroutines, _ := g.goroutines()
	var memory int
	for i := 1; i <= reloads; i++ {
		if err := g.reload(site(i)); err != nil {
			t.Errorf("reload %d: %v", i, err)
		}
		// The new config's caps count the old sockets, one by one.
		open, dials := 0, backends[i%3].dials.Load()
		var more []*conn
		for range i + 1 {
			var c *conn
			var a answer
			// A connection that the listener of the config before had taken is
			// reset (SO_REUSEPORT).
			eventually(t, "an answer", func() bool {
				c, a = g.attempt(at("r", token))
				return a.status != 0
			})
			if c != nil {
				open++
				more = append(more, c)
			} else if a.status != http.StatusTooManyRequests {
				t.Errorf("reload %d: status %d, %v", i, a.status, a.err)
			}
		}
		if open != i {
			t.Errorf("reload %d: %d more sockets, want %d", i, open, i)
		}
		if n := backends[i%3].dials.Load() - dials; n != int64(open) {
			t.Errorf("reload %d: %d sockets at the new upstream, want %d", i, n, open)
		}
		for _, c := range more {
			c.finish(t)
		}
		if i == 3 {
			memory = g.live()
		}
		now := said.Load()
		eventually(t, "traffic goes on", func() bool { return said.Load() > now+sockets/10 })
	}
	// A config of this size takes about half a megabyte.
	eventually(t, fmt.Sprintf("no memory of old configs beside the %d bytes after 3 reloads", memory), func() bool {
		return g.live() < memory+4<<20
	})
	eventually(t, "no goroutine of old configs", func() bool {
		now, _ := g.goroutines()
		return now < goroutines+60 // key sources of two more issuers, requests
	})
	close(stop)
	talkers.Wait()
	t.Logf("%d messages; %d bytes in use after 3 reloads, %d now", said.Load(), memory, g.live())
	if n := len(g.entries("connection closed")); n != reloads*(reloads+1)/2 {
		t.Errorf("%d sockets were closed, want the %d of this test", n, reloads*(reloads+1)/2)
	}
	if got := g.scrape(t)[`caddy_ws_gate_connections{tunnel="r"}`]; got != sockets {
		t.Errorf("%v sockets live, want %d", got, sockets)
	}
}

// Limits and issuers of a new config hold for new handshakes; a socket keeps
// what it was accepted with.
func TestReloadChangesTheRest(t *testing.T) {
	t.Parallel()
	first, second := newIDP(t), newIDP(t)
	b := newBackend(t)
	one, two := wiring{idp: first, upstream: b.addr, gate: "max_message_size 10"}, wiring{idp: second, upstream: b.addr, gate: "max_message_size 1000"}
	g := one.start(t)
	c, u := pair(t, g, first, b)
	if err := g.reload(two.caddyfile()); err != nil {
		t.Fatal(err)
	}
	newer, nu := pair(t, g, second, b)
	g.refused(t, bearer(first.token(g, nil)), http.StatusUnauthorized)
	frame := masked(0x82, random(500))
	newer.send(frame)
	nu.expectBytes(frame)
	short := masked(0x82, random(10))
	c.send(short)
	u.expectBytes(short)
	c.send(frame)
	c.expectClose(1009)
}
