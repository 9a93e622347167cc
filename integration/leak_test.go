package integration

import (
	"fmt"
	"io"
	"sync"
	"testing"
	"time"
)

// S-206: goroutines and file descriptors return to where they were after 2,000
// sockets opened and closed in every way.
func TestLeaks(t *testing.T) {
	t.Parallel()
	sockets := 2000
	if testing.Short() {
		sockets = 200
	}
	p := newIDP(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			t.Parallel()
			b := newBackend(t)
			g := wiring{idp: p, upstream: b.addr, tls: secure}.start(t)
			cycle(t, g, p, b, 100) // warm: pools, timers, lazily started helpers
			fds, goroutines, profile := settled(g)
			cycle(t, g, p, b, sockets/2) // over plain and TLS together
			deadline := time.Now().Add(30 * time.Second)
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
		})
	}
}

// settled waits until fds and goroutines stop falling.
func settled(g *gate) (fds, goroutines int, profile string) {
	fds = g.fds()
	goroutines, profile = g.goroutines()
	for still := 0; still < 10; {
		time.Sleep(200 * time.Millisecond)
		nowFDs := g.fds()
		n, p := g.goroutines()
		if nowFDs < fds || n < goroutines {
			still = 0
		} else {
			still++
		}
		fds, goroutines, profile = min(fds, nowFDs), min(goroutines, n), p
	}
	return fds, goroutines, profile
}

// endings are the ways in which a socket ends.
var endings = []struct {
	name string
	end  func(c *conn, u *upstream)
}{
	{"clean, by the client", func(c *conn, u *upstream) {
		c.send(masked(0x88, closing(1000, "bye")))
		u.read()
		u.send(unmasked(0x88, closing(1000, "bye")))
		c.read()
		u.Close()
	}},
	{"clean, by the backend", func(c *conn, u *upstream) {
		u.send(unmasked(0x88, closing(1001, "x")))
		c.read()
		c.send(masked(0x88, closing(1001, "x")))
		u.read()
		u.Close()
	}},
	{"closed by the client", func(c *conn, _ *upstream) { c.Close() }},
	{"reset by the client", func(c *conn, _ *upstream) { c.reset() }},
	{"reset by the client in a frame", func(c *conn, _ *upstream) {
		c.send(unhex("82 FE 0400 00000000 01"))
		c.reset()
	}},
	{"half-closed by the client", func(c *conn, _ *upstream) { _ = c.closeWrite() }},
	{"half-closed by the backend", func(_ *conn, u *upstream) {
		if tcp, ok := u.Conn.(interface{ CloseWrite() error }); ok {
			_ = tcp.CloseWrite()
		}
	}},
	{"backend killed", func(_ *conn, u *upstream) { u.reset() }},
	{"backend killed in a frame", func(_ *conn, u *upstream) {
		u.send(unhex("82 7E 0400 01"))
		u.reset()
	}},
	{"backend killed while the client sends", func(c *conn, u *upstream) {
		go func() {
			c.SetWriteDeadline(time.Now().Add(patience))
			for {
				if _, err := c.Write(masked(0x82, make([]byte, 10_000))); err != nil {
					return
				}
			}
		}()
		u.reset()
	}},
	{"client that breaks a rule", func(c *conn, _ *upstream) { c.send(unhex("83 80 00000000")) }},
	{"backend that breaks a rule", func(_ *conn, u *upstream) { u.send(unhex("83 00")) }},
}

// cycle opens n sockets, some at a time, and ends each in one of the ways.
func cycle(t *testing.T, g *gate, p *idp, b *backend, n int) {
	t.Helper()
	token := p.mint("ES256", nil)
	g.guard(token)
	const together = 200 // some endings take the 5 s after which the gate cuts
	for first := 0; first < n; first += together {
		var wg sync.WaitGroup
		for i := first; i < min(n, first+together); i++ {
			c, u := pairWith(t, g, b, bearer(token))
			wg.Add(1)
			go func() {
				defer wg.Done()
				c.SetReadDeadline(time.Now().Add(patience))
				endings[i%len(endings)].end(c, u)
				// Both ends see the end, whoever made it; the gate must not need
				// theirs for it.
				c.SetReadDeadline(time.Now().Add(patience))
				if _, err := io.Copy(io.Discard, c.br); err != nil && !isReset(err) {
					t.Errorf("%s: the client's end stays: %v", endings[i%len(endings)].name, err)
				}
				u.SetReadDeadline(time.Now().Add(patience))
				if _, err := io.Copy(io.Discard, u.br); err != nil && !isReset(err) {
					t.Errorf("%s: the backend's end stays: %v", endings[i%len(endings)].name, err)
				}
				c.Close()
				u.Close()
			}()
		}
		// Refusals of every kind among them.
		g.try(t, hello())
		g.try(t, bearer("garbage"))
		g.try(t, bearer(token).without("Sec-WebSocket-Key"))
		g.try(t, bearer(token).fromOrigin("https://evil.test"))
		gone := g.connect(t)
		gone.send([]byte(bearer(token).text(gone.host))[:100])
		gone.reset()
		wg.Wait()
	}
}
