package limit

import (
	"fmt"
	"math"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// table is a table that ends with the test.
func table(t testing.TB, r Rate) *Table {
	t.Helper()
	all := NewTable(r)
	t.Cleanup(all.Close)
	return all
}

// admitted counts how many of n events at one moment get through.
func admitted(all *Table, key string, n int) (got int) {
	now := time.Now()
	for range n {
		if ok, _ := all.Allow(key, now); ok {
			got++
		}
	}
	return got
}

// S-195: the burst at once, then the rate, within 10 %, whatever the pressure.
func TestBurstThenRate(t *testing.T) {
	const span = 10 * time.Second
	for _, r := range []Rate{
		{Number: 10, Per: time.Second},
		{Number: 10, Per: time.Second, Burst: 25},
		{Number: 20, Per: time.Second, Burst: 1},
		{Number: 300, Per: time.Minute, Burst: 40},
		{Number: 1000, Per: time.Second, Burst: 10},
	} {
		t.Run(fmt.Sprintf("%d/%s burst %d", r.Number, r.Per, r.Burst), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := table(t, r)
				if got := admitted(all, "k", 10*r.Size()); got != r.Size() {
					t.Errorf("%d at once, want the burst of %d", got, r.Size())
				}
				got := 0
				for start := time.Now(); time.Since(start) < span; time.Sleep(time.Millisecond) {
					got += admitted(all, "k", 3)
				}
				want := float64(r.Number) * span.Seconds() / r.Per.Seconds()
				if math.Abs(float64(got)-want) > want/10 {
					t.Errorf("%d in %s behind the burst, want %.0f", got, span, want)
				}
			})
		})
	}
}

// S-195: who waits as long as told gets in; a hair sooner, not.
func TestWaitIsTrue(t *testing.T) {
	for _, r := range []Rate{
		{Number: 1, Per: time.Second},
		{Number: 3, Per: time.Second},
		{Number: 7, Per: time.Minute, Burst: 2},
		{Number: 20, Per: time.Second, Burst: 40},
		{Number: 999, Per: time.Second, Burst: 1},
		{Number: 1, Per: 24 * time.Hour, Burst: 3},
	} {
		t.Run(fmt.Sprintf("%d/%s burst %d", r.Number, r.Per, r.Burst), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := table(t, r)
				admitted(all, "k", r.Size())
				for range 5 {
					ok, wait := all.Allow("k", time.Now())
					if ok || wait <= 0 || wait > r.Per {
						t.Fatalf("Allow: %t, %s; want a refusal that tells the wait", ok, wait)
					}
					// Being refused costs nothing: the wait only gets shorter.
					time.Sleep(wait / 2)
					if ok, rest := all.Allow("k", time.Now()); ok || rest > wait-wait/2+time.Microsecond {
						t.Fatalf("half way: %t, %s left of %s", ok, rest, wait)
					}
					time.Sleep(wait - wait/2 - time.Microsecond)
					if got := admitted(all, "k", 1); got != 0 {
						t.Fatal("admitted before the wait was over")
					}
					time.Sleep(2 * time.Microsecond)
					if got := admitted(all, "k", 2); got != 1 {
						t.Fatalf("%d admitted after the wait, want 1", got)
					}
				}
			})
		})
	}
}

func TestKeysDoNotShareABucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := table(t, Rate{Number: 2, Per: time.Minute})
		for _, key := range []string{"a", "b", "", "a\x00", "A"} {
			if got := admitted(all, key, 5); got != 2 {
				t.Errorf("key %q: %d admitted, want 2", key, got)
			}
		}
	})
}

// A clock that is set back must neither fill a bucket nor lock its key out.
func TestClockGoesBack(t *testing.T) {
	all := table(t, Rate{Number: 1, Per: time.Second, Burst: 1})
	now := time.Now()
	if ok, _ := all.Allow("k", now); !ok {
		t.Fatal("refused at first")
	}
	if ok, wait := all.Allow("k", now.Add(-time.Hour)); ok || wait > time.Second {
		t.Errorf("an hour before: %t, %s; want refused for a second at most", ok, wait)
	}
	if ok, _ := all.Allow("k", now.Add(time.Second)); !ok {
		t.Error("refused a second later")
	}
}

// S-192: keys of an attacker's choice cost bounded memory, and push out one
// another rather than a key that is at its limit.
func TestMillionKeys(t *testing.T) {
	const keys, budget = 1_000_000, 64 << 20
	all := table(t, Rate{Number: 1, Per: time.Hour, Burst: 40})
	now := time.Now()
	if got := admittedAt(all, "busy", 100, now); got != 40 {
		t.Fatalf("%d admitted, want 40", got)
	}
	before := heap()
	slowest := time.Duration(0)
	for i := range keys {
		now = now.Add(time.Microsecond)
		start := time.Now()
		if ok, _ := all.Allow("made up "+strconv.Itoa(i), now); !ok {
			t.Fatalf("key %d refused at its first event", i)
		}
		slowest = max(slowest, time.Since(start))
		if i%1000 == 0 && admittedAt(all, "busy", 1, now) != 0 {
			t.Fatalf("the busy key was forgotten after %d others", i)
		}
	}
	after := heap()
	t.Logf("%d keys kept, %d KiB more heap, slowest Allow %s", all.Len(), int64(after-before)>>10, slowest)
	if n := all.Len(); n > MaxKeys {
		t.Errorf("%d keys kept, want at most %d", n, MaxKeys)
	}
	if after > before+budget {
		t.Errorf("%d MiB more heap, want at most %d", (after-before)>>20, budget>>20)
	}
	// A client that came only just before keeps its state as well.
	if got := admittedAt(all, "made up "+strconv.Itoa(keys-1), 100, now); got != 39 {
		t.Errorf("the last key had %d events left, want 39", got)
	}
}

func admittedAt(all *Table, key string, n int, now time.Time) (got int) {
	for range n {
		if ok, _ := all.Allow(key, now); ok {
			got++
		}
	}
	return got
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// S-192: what is not used any more is gone by itself, and so is the timer.
func TestSweepEmptiesTheTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := table(t, Rate{Number: 10, Per: time.Second, Burst: 20})
		for i := range 10_000 {
			all.Allow(strconv.Itoa(i), time.Now())
		}
		time.Sleep(time.Minute)
		if n := all.Len(); n != 0 {
			t.Errorf("%d keys kept a minute after", n)
		}
		all.mu.Lock()
		defer all.mu.Unlock()
		if all.sweeper != nil || cap(all.entries) > swept || len(all.buckets) != 0 {
			t.Errorf("an empty table holds a timer (%t), %d entries, %d buckets", all.sweeper != nil, cap(all.entries), len(all.buckets))
		}
	})
}

// A sweep must not give a busy key a new burst.
func TestSweepSparesBusyKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := table(t, Rate{Number: 60, Per: time.Minute, Burst: 30})
		admitted(all, "busy", 30)
		got := 0
		for range 600 { // ten minutes, and a sweep every half
			for i := range 5 {
				all.Allow("other "+strconv.Itoa(i), time.Now())
			}
			time.Sleep(time.Second)
			got += admitted(all, "busy", 2)
		}
		if got < 595 || got > 605 {
			t.Errorf("%d admitted in 600 s at one a second", got)
		}
	})
}

func TestCloseEndsTheTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := NewTable(Rate{Number: 1, Per: time.Second})
		all.Allow("k", time.Now())
		all.Close()
		all.Close()
		all.Allow("late", time.Now()) // a request of the config before
		time.Sleep(time.Hour)
		if n := all.Len(); n != 2 {
			t.Errorf("%d keys, want 2: a closed table is swept no more", n)
		}
	})
}

// Requests at the same moment get the burst and not one more, also while the
// table is swept (S-185 of rates).
func TestParallelEventsAreCounted(t *testing.T) {
	const events, burst = 200, 40
	for round := range 50 {
		all := table(t, Rate{Number: 1, Per: time.Hour, Burst: burst})
		var got atomic.Int64
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range events {
			wg.Go(func() {
				<-start
				if i%2 == 0 {
					for all.sweepSome(time.Now()) { //nolint:revive // to the end
					}
				}
				if ok, _ := all.Allow("k", time.Now()); ok {
					got.Add(1)
				}
			})
		}
		close(start)
		wg.Wait()
		if got.Load() != burst {
			t.Fatalf("round %d: %d admitted, want %d", round, got.Load(), burst)
		}
	}
}

// S-214: everything at once, for the race detector; the index stays sound.
func TestParallelKeys(t *testing.T) {
	all := table(t, Rate{Number: 1000, Per: time.Second, Burst: 2})
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 5000 {
				all.Allow(strconv.Itoa(i*(worker+1)%3000), time.Now())
				if i%100 == 0 {
					all.Len()
					for all.sweepSome(time.Now()) { //nolint:revive // to the end
					}
				}
			}
		})
	}
	wg.Wait()
	all.mu.Lock()
	defer all.mu.Unlock()
	if len(all.buckets) != len(all.entries) {
		t.Fatalf("%d keys in the index, %d in the list", len(all.buckets), len(all.entries))
	}
	for i, e := range all.entries {
		if all.buckets[e.key] != i {
			t.Fatalf("entry %d is indexed as %d", i, all.buckets[e.key])
		}
	}
}

func BenchmarkAllow(b *testing.B) {
	for _, keys := range []int{1, 1000, 2 * MaxKeys} {
		b.Run(strconv.Itoa(keys)+" keys", func(b *testing.B) {
			all := table(b, Rate{Number: 1, Per: time.Hour, Burst: 40})
			names := make([]string, keys)
			for i := range names {
				names[i] = "203.0.113." + strconv.Itoa(i)
				all.Allow(names[i], time.Now())
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				all.Allow(names[i%keys], time.Now())
			}
		})
	}
}
