//go:build linux

package tunnel

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

// parking are the kinds of connections that park.
var parking = map[string]bool{"tcp": true, "unix": true}

// inLot is how many flows have no pump.
func (u *tunnel) inLot() (n int) {
	for _, f := range []*flow{&u.in, &u.out} {
		if f.has(parked) {
			n++
		}
	}
	return n
}

func (u *tunnel) awaitInLot(n int) {
	u.t.Helper()
	for range 1000 {
		if u.inLot() == n {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	u.t.Fatalf("%d flows are parked, want %d", u.inLot(), n)
}

// A socket without data has no goroutine, and gets none by pings and pongs.
// One with data has, until it is silent for long. What comes in between is
// passed on as ever.
func TestParking(t *testing.T) {
	for _, k := range kinds {
		if !parking[k.name] {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			u := over(t, Accepted{Policy: &Policy{PingInterval: time.Hour, PongTimeout: time.Hour}}, k.pair, k.pair)
			u.awaitInLot(2)
			for range 3 { // its own ping and the client's, answered
				pongs := u.pongs.Load()
				u.want()
				u.client.pong()
				for u.pongs.Load() == pongs {
					time.Sleep(time.Millisecond)
				}
				u.awaitInLot(2)
			}
			for round := range 3 {
				f := u.client.frame(0x82, "data")
				u.client.send(f)
				u.backend.expect(f)
				u.awaitInLot(1) // the client's direction has its goroutine again
				g := u.backend.frame(0x82, "answer")
				u.backend.send(g)
				u.client.expect(g)
				u.awaitInLot(0)
				if round > 0 {
					u.settleDown() // there was data since the last ping
					time.Sleep(10 * time.Millisecond)
					u.awaitInLot(0)
				} else {
					u.settleDown()
				}
				u.settleDown()
				u.awaitInLot(2)
			}
			u.client.conn.Close()
			u.backend.conn.Close()
			u.end()
		})
	}
}

// Whatever ends a parked socket ends it as it ends any other.
func TestParkedSocketEnds(t *testing.T) {
	for name, end := range map[string]func(*tunnel){
		"cut":           func(u *tunnel) { u.Cut() },
		"client gone":   func(u *tunnel) { u.client.conn.Close(); u.backend.conn.Close() },
		"client reset":  func(u *tunnel) { u.client.reset(); u.backend.conn.Close() },
		"backend gone":  func(u *tunnel) { u.backend.conn.Close(); u.client.conn.Close() },
		"cut and close": func(u *tunnel) { u.Close(causeTest); u.Cut() },
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				u := over(t, Accepted{Policy: everySoOften}, tcpPair, tcpPair)
				if rand.IntN(2) == 0 {
					u.awaitInLot(2) // or just while it parks
				}
				end(u)
				u.end()
			}
		})
	}
	for range 1000 {
		lot.mu.Lock()
		left := len(lot.flows)
		lot.mu.Unlock()
		if left == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("flows are left in the lot")
}

// Many sockets park and go on at the same moments, while pings nudge them and
// some are cut: no byte is lost, and nothing is left.
func TestParkingUnderLoad(t *testing.T) {
	const sockets = 40
	var all sync.WaitGroup
	before := runtime.NumGoroutine()
	for i := range sockets {
		u := over(t, Accepted{Policy: everySoOften}, tcpPair, tcpPair)
		done := make(chan struct{})
		var nudging sync.WaitGroup
		nudging.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Duration(rand.IntN(300)) * time.Microsecond):
					u.settleDown()
					u.in.nudge()
					u.out.nudge()
				}
			}
		})
		all.Go(func() {
			for range 200 {
				f := u.client.frame(0x82, "to the backend")
				u.client.send(f)
				u.backend.expect(f)
				g := u.backend.frame(0x81, "to the client")
				u.backend.send(g)
				u.client.expect(g)
				if rand.IntN(10) == 0 {
					time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
				}
			}
			if i%2 == 0 {
				u.Cut()
			} else {
				u.client.conn.Close()
				u.backend.conn.Close()
			}
			close(done)
			nudging.Wait()
			u.end()
		})
	}
	all.Wait()
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}
