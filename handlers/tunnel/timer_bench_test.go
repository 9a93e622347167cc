package tunnel

import (
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkTimers compares what keeps the clocks of 100,000 sockets: a
// time.Timer for each, as socket.go has it, and one hashed wheel for all, with
// slots of 10 ms. Each socket's timer fires every 10 s and is set anew, which
// is more often than a ping every 30 s asks for. Run with -benchtime 1x: the
// numbers do not depend on b.N.
//
// What was found (Go 1.26, 2 cores, shared): a timer a socket takes 220 bytes
// and 3.3 µs of CPU a tick; a wheel that calls what is due by itself 150 bytes
// and 0.8 µs. But what is due can be a write to a client, which may block and
// must not hold up all others, so a tick needs a goroutine of its own, as
// time.AfterFunc starts one: then it is 1.3 µs. At 100,000 sockets with a ping
// every 30 s the wheel would save 0.7 % of one core and 7 MB of some 500. For
// that it is not worth a second clock, one lock for all sockets and a process
// that wakes 100 times a second with nothing to do: timers stay.
func BenchmarkTimers(b *testing.B) {
	const (
		sockets = timerSockets
		every   = 10 * time.Second
		watched = 10 * time.Second
	)
	for _, kind := range []struct {
		name string
		make func() clock
	}{
		{"timer a socket", func() clock {
			timers := make([]*time.Timer, sockets)
			return clock{
				start: func(i int, first time.Duration, tick func()) { timers[i] = time.AfterFunc(first, tick) },
				reset: func(i int, d time.Duration) { timers[i].Reset(d) },
				stop: func() {
					for _, t := range timers {
						t.Stop()
					}
				},
			}
		}},
		{"wheel", func() clock { return wheelClock(false) }},
		{"wheel, a goroutine a tick", func() clock { return wheelClock(true) }},
	} {
		b.Run(kind.name, func(b *testing.B) {
			for b.Loop() {
				before := liveBytes()
				c := kind.make()
				var mu sync.Mutex
				ticks, late, latest := 0, time.Duration(0), time.Duration(0)
				due := make([]time.Time, sockets)
				begin := time.Now()
				for i := range sockets {
					first := every * time.Duration(i) / sockets
					due[i] = begin.Add(first)
					c.start(i, first, func() {
						now := time.Now()
						mu.Lock()
						ticks++
						d := now.Sub(due[i])
						late, latest = late+d, max(latest, d)
						due[i] = now.Add(every)
						mu.Unlock()
						c.reset(i, every)
					})
				}
				after := liveBytes()
				cpu, from := processTime(), ticks
				time.Sleep(watched)
				cpu = processTime() - cpu
				mu.Lock()
				n := ticks - from
				b.ReportMetric(float64(cpu)/float64(n), "cpu-ns/tick")
				b.ReportMetric(float64(late.Microseconds())/float64(ticks), "late-us")
				b.ReportMetric(float64(latest.Microseconds()), "latest-us")
				mu.Unlock()
				b.ReportMetric(float64(after-before)/sockets, "B/socket")
				cpu = processTime()
				for i := range sockets {
					c.reset(i, every)
				}
				b.ReportMetric(float64(processTime()-cpu)/sockets, "cpu-ns/reset")
				c.stop()
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

const timerSockets = 100_000

// clock keeps the timers of all sockets.
type clock struct {
	start func(i int, first time.Duration, tick func())
	reset func(i int, d time.Duration)
	stop  func()
}

// wheelClock is a wheel that runs what is due itself, or in a goroutine each.
func wheelClock(goroutines bool) clock {
	w := newWheel(goroutines)
	all := make([]*wheelTimer, timerSockets)
	return clock{
		start: func(i int, first time.Duration, tick func()) {
			all[i] = &wheelTimer{tick: tick}
			w.set(all[i], first)
		},
		reset: func(i int, d time.Duration) { w.set(all[i], d) },
		stop:  w.stop,
	}
}

// liveBytes is what is in use after a collection.
func liveBytes() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// processTime is the processor time that this process has used.
func processTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// wheel is a hashed timing wheel, as simple as can be: lists of timers by the
// slot in which they are due, and a goroutine that walks the slots.
type wheel struct {
	mu      sync.Mutex
	slots   [4096]*wheelTimer // heads of lists
	now     int64             // slot that comes next, counted from the beginning
	stopped chan struct{}

	goroutines bool // a tick has one for itself
}

const wheelStep = 10 * time.Millisecond

// wheelTimer is one timer, in a list that is linked both ways.
type wheelTimer struct {
	tick       func()
	due        int64 // slot, counted from the beginning
	next, prev *wheelTimer
	listed     bool
}

func newWheel(goroutines bool) *wheel {
	w := &wheel{stopped: make(chan struct{}), goroutines: goroutines}
	go w.turn()
	return w
}

func (w *wheel) stop() { close(w.stopped) }

func (w *wheel) set(t *wheelTimer, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unlink(t)
	t.due = w.now + int64(d/wheelStep) + 1
	head := &w.slots[t.due%int64(len(w.slots))]
	t.next, t.prev, t.listed = *head, nil, true
	if *head != nil {
		(*head).prev = t
	}
	*head = t
}

// unlink takes t out of its list. mu is held.
func (w *wheel) unlink(t *wheelTimer) {
	if !t.listed {
		return
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.slots[t.due%int64(len(w.slots))] = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.next, t.prev, t.listed = nil, nil, false
}

// turn walks the slots as time goes on.
func (w *wheel) turn() {
	begin := time.Now()
	ticker := time.NewTicker(wheelStep)
	defer ticker.Stop()
	var due []*wheelTimer
	for {
		select {
		case <-w.stopped:
			return
		case <-ticker.C:
		}
		for until := int64(time.Since(begin) / wheelStep); ; {
			w.mu.Lock()
			if w.now > until {
				w.mu.Unlock()
				break
			}
			due = due[:0]
			for t := w.slots[w.now%int64(len(w.slots))]; t != nil; {
				next := t.next
				if t.due <= w.now {
					w.unlink(t)
					due = append(due, t)
				}
				t = next
			}
			w.now++
			w.mu.Unlock()
			for _, t := range due {
				if w.goroutines {
					go t.tick()
				} else {
					t.tick()
				}
			}
		}
	}
}
