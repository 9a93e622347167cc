package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/wsgate/caddy-wsgate/handlers/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemory(t *testing.T) {
	testStore(t, func(*testing.T) store.Store { return new(store.Memory) })
}

// testStore holds a store to the contract of store.Store. newStore returns an
// empty one, which ends with the test.
func testStore(t *testing.T, newStore func(t *testing.T) store.Store) {
	for _, c := range contract {
		t.Run(c.name, func(t *testing.T) { c.test(t, asked{t, newStore(t)}) })
	}
}

// contract is what every store has to do.
var contract = []struct {
	name string
	test func(t *testing.T, s asked)
}{
	{"a cap holds and names the slot that is full", testCap},
	{"keys do not share a cap", testKeysApart},
	{"parallel requests for the last places", testParallelCap},
	{"places that come and go", testChurn},
	{"evict the oldest first", testEvictOrder},
	{"evict as many as a lowered cap needs", testEvictMany},
	{"evict nobody for one that is refused", testEvictNobody},
	{"an evicted connection loses all its places", testEvictedLosesAll},
	{"parallel evictions", testParallelEvict},
	{"release twice, or what has nothing", testReleaseTwice},
	{"several slots: all or nothing", testAllOrNothing},
	{"the same key under two caps", testSameKeyTwice},
	{"adopt beyond the limit, and once", testAdopt},
	{"no slots at all", testNoSlots},
	{"any bytes in a key", testStrangeKeys},
	{"as a plain list of connections would", testModel},
}

// asked is a store whose answers are compared.
type asked struct {
	t *testing.T
	store.Store
}

func (s asked) acquire(id string, slots ...store.Slot) store.Verdict {
	s.t.Helper()
	v, err := s.Acquire(context.Background(), store.Request{ID: id, Tunnel: "chat", Slots: slots})
	if err != nil {
		s.t.Fatalf("Acquire %s: %v", id, err)
	}
	if !v.Admitted() && (len(v.Evicted) > 0 || v.Full >= len(slots)) {
		s.t.Fatalf("Acquire %s: full is slot %d of %d, with %q evicted", id, v.Full, len(slots), v.Evicted)
	}
	return v
}

func (s asked) wantIn(id string, slots ...store.Slot) {
	s.t.Helper()
	if v := s.acquire(id, slots...); !v.Admitted() || len(v.Evicted) > 0 {
		s.t.Fatalf("%s: %+v, want admitted without evicting anyone", id, v)
	}
}

func (s asked) wantFull(id string, full int, slots ...store.Slot) {
	s.t.Helper()
	if v := s.acquire(id, slots...); v.Full != full {
		s.t.Fatalf("%s: %+v, want slot %d to be full", id, v, full)
	}
}

func (s asked) wantEvicted(id string, evicted []string, slots ...store.Slot) {
	s.t.Helper()
	if v := s.acquire(id, slots...); !v.Admitted() || !slices.Equal(v.Evicted, evicted) {
		s.t.Fatalf("%s: %+v, want admitted in place of %q", id, v, evicted)
	}
}

// wantCount finds out how many connections there are under a key, by asking.
func (s asked) wantCount(key string, n int) {
	s.t.Helper()
	if n > 0 {
		s.wantFull("probe", 0, reject(key, n))
	}
	s.wantIn("probe", reject(key, n+1))
	s.Release("probe")
}

func reject(key string, limit int) store.Slot { return store.Slot{Key: key, Limit: limit} }
func evict(key string, limit int) store.Slot {
	return store.Slot{Key: key, Limit: limit, Evict: true}
}

func testCap(t *testing.T, s asked) {
	s.wantIn("a", reject("u", 2))
	s.wantIn("b", reject("u", 2))
	s.wantFull("c", 0, reject("u", 2))
	s.wantFull("c", 1, reject("v", 1), reject("u", 2))
	s.Release("a")
	s.wantIn("c", reject("u", 2)) // S-189: at once
	s.wantFull("d", 0, reject("u", 2))
	s.wantIn("d", reject("u", 3)) // the cap was raised
	s.wantFull("e", 0, reject("u", 1))
	s.wantCount("u", 3)
}

func testKeysApart(t *testing.T, s asked) {
	for i := range 50 {
		s.wantIn("c"+strconv.Itoa(i), reject("u"+strconv.Itoa(i), 1))
	}
	s.wantFull("d", 0, reject("u7", 1))
}

// S-185: check and act are one step.
func testParallelCap(t *testing.T, s asked) {
	const requests, limit, rounds = 200, 5, 50
	for round := range rounds {
		key := "u" + strconv.Itoa(round)
		var in atomic.Int64
		together(requests, func(i int) {
			v, err := s.Acquire(context.Background(), store.Request{ID: fmt.Sprintf("%d-%d", round, i), Tunnel: "chat", Slots: []store.Slot{reject(key, limit)}})
			if err == nil && v.Admitted() {
				in.Add(1)
			}
		})
		if in.Load() != limit {
			t.Fatalf("round %d: %d of %d admitted, want %d", round, in.Load(), requests, limit)
		}
		s.wantCount(key, limit)
	}
}

// S-186: whatever the order, there are never more than the cap, and nothing
// remains.
func testChurn(t *testing.T, s asked) {
	const limit = 3
	var held [2]atomic.Int64
	together(8, func(worker int) {
		for i := range 300 {
			key := i % 2
			id := fmt.Sprintf("%d-%d", worker, i)
			v, err := s.Acquire(context.Background(), store.Request{ID: id, Tunnel: "chat", Slots: []store.Slot{reject("k"+strconv.Itoa(key), limit), reject("all", 2*limit)}})
			if err != nil || !v.Admitted() {
				s.Release(id) // as a handshake does that was refused
				continue
			}
			if n := held[key].Add(1); n > limit {
				t.Errorf("%d connections under a cap of %d", n, limit)
			}
			held[key].Add(-1)
			s.Release(id)
		}
	})
	for _, key := range []string{"k0", "k1", "all"} {
		s.wantCount(key, 0)
	}
}

func testEvictOrder(t *testing.T, s asked) {
	for _, id := range []string{"a", "b", "c"} {
		s.wantIn(id, evict("u", 3))
	}
	s.wantEvicted("d", []string{"a"}, evict("u", 3))
	s.Release("b")
	s.wantIn("e", evict("u", 3))
	s.wantEvicted("f", []string{"c"}, evict("u", 3))
	s.wantEvicted("g", []string{"d"}, evict("u", 3))
	s.wantCount("u", 3)
}

func testEvictMany(t *testing.T, s asked) {
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		s.wantIn(id, evict("u", 5))
	}
	s.wantEvicted("f", []string{"a", "b", "c", "d"}, evict("u", 2))
	s.wantCount("u", 2)
}

func testEvictNobody(t *testing.T, s asked) {
	s.wantIn("a", evict("u", 1), reject("ip", 1))
	s.wantIn("b", evict("v", 1))
	s.wantFull("c", 1, evict("v", 1), reject("ip", 1))
	s.wantFull("c", 0, reject("ip", 1), evict("v", 1))
	s.wantEvicted("d", []string{"b"}, evict("v", 1)) // b was there all the time
}

func testEvictedLosesAll(t *testing.T, s asked) {
	s.wantIn("a", evict("u", 1), reject("ip", 1))
	s.wantFull("b", 0, reject("ip", 1))
	s.wantEvicted("c", []string{"a"}, evict("u", 1))
	s.wantIn("b", reject("ip", 1))
	s.Release("a") // its socket ends only now: nothing of c's or b's goes
	s.wantCount("u", 1)
	s.wantCount("ip", 1)
}

// S-185 of evict_oldest: every one is admitted, all but the cap's number lose
// their places, each of them once.
func testParallelEvict(t *testing.T, s asked) {
	const requests, limit, rounds = 200, 5, 20
	for round := range rounds {
		key := "u" + strconv.Itoa(round)
		var mu sync.Mutex
		lost := make(map[string]int)
		together(requests, func(i int) {
			v, err := s.Acquire(context.Background(), store.Request{ID: fmt.Sprintf("%d-%d", round, i), Tunnel: "chat", Slots: []store.Slot{evict(key, limit)}})
			if err != nil || !v.Admitted() {
				t.Errorf("%+v, %v; want admitted", v, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range v.Evicted {
				lost[id]++
			}
		})
		for id, n := range lost {
			if n > 1 {
				t.Errorf("%s was evicted %d times", id, n)
			}
		}
		if len(lost) != requests-limit {
			t.Fatalf("round %d: %d lost their places, want %d", round, len(lost), requests-limit)
		}
		s.wantCount(key, limit)
	}
}

func testReleaseTwice(t *testing.T, s asked) {
	s.Release("nobody")
	s.wantIn("a", reject("u", 2), reject("ip", 9))
	s.wantIn("b", reject("u", 2), reject("ip", 9))
	s.Release("a")
	s.Release("a")
	s.wantCount("u", 1) // not b's place
	s.wantFull("c", 0, reject("u", 1))
	s.Release("c")
	s.wantCount("u", 1)
	together(20, func(int) { s.Release("b") })
	s.wantCount("u", 0)
	s.wantCount("ip", 0)
}

func testAllOrNothing(t *testing.T, s asked) {
	s.wantIn("a", reject("ip", 1))
	for i := range 10 {
		s.wantFull("r"+strconv.Itoa(i), 1, reject("u", 5), reject("ip", 1), reject("tenant", 5))
	}
	s.wantCount("u", 0) // S-186
	s.wantCount("tenant", 0)
	s.Release("a")
	s.wantIn("b", reject("u", 5), reject("ip", 1), reject("tenant", 5))
	for _, key := range []string{"u", "ip", "tenant"} {
		s.wantCount(key, 1)
	}
	s.Release("b")
	for _, key := range []string{"u", "ip", "tenant"} {
		s.wantCount(key, 0)
	}
}

func testSameKeyTwice(t *testing.T, s asked) {
	slots := []store.Slot{reject("u", 3), reject("u", 2)}
	s.wantIn("a", slots...)
	s.wantIn("b", slots...)
	s.wantCount("u", 2) // each counts once
	s.wantFull("c", 1, slots...)
	s.wantEvicted("c", []string{"a"}, evict("u", 2), evict("u", 2))
	s.wantCount("u", 2)
	s.Release("b")
	s.Release("c")
	s.wantCount("u", 0)
}

func testAdopt(t *testing.T, s asked) {
	s.wantIn("a", reject("u", 1))
	s.Adopt("a", "chat", []string{"u", "ip"}) // u counts it already
	s.Adopt("a", "chat", []string{"ip", "ip"})
	s.wantCount("u", 1)
	s.wantCount("ip", 1)
	for _, id := range []string{"b", "c", "d"} {
		s.Adopt(id, "chat", []string{"u"}) // whatever the cap: they are there
	}
	s.wantFull("e", 0, reject("u", 4))
	s.wantEvicted("e", []string{"a", "b", "c"}, evict("u", 2))
	s.wantCount("ip", 0) // adopted places go as all others do
	s.Release("d")
	s.Release("e")
	s.wantCount("u", 0)
	s.Adopt("f", "chat", nil)
	s.Release("f")
}

func testNoSlots(t *testing.T, s asked) {
	s.wantIn("a")
	s.Release("a")
}

func testStrangeKeys(t *testing.T, s asked) {
	keys := []string{"", " ", "a b", "a\x00b", "a\nb", "{u}", "é", "\xff", "a", "A", "a*", "a:b", "ключ"}
	for i, key := range keys {
		s.wantIn("c"+strconv.Itoa(i), reject(key, 1))
	}
	for _, key := range keys {
		s.wantCount(key, 1)
	}
}

// testModel compares the store with a list of connections in their order.
func testModel(t *testing.T, s asked) {
	type connection struct {
		id   string
		keys []string
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var all []connection
	under := func(key string) (ids []string) {
		for _, c := range all {
			if slices.Contains(c.keys, key) {
				ids = append(ids, c.id)
			}
		}
		return ids
	}
	drop := func(id string) {
		all = slices.DeleteFunc(all, func(c connection) bool { return c.id == id })
	}
	for step := range 3000 {
		if random.IntN(4) == 0 && len(all) > 0 {
			id := all[random.IntN(len(all))].id
			s.Release(id)
			drop(id)
			continue
		}
		c := connection{id: "c" + strconv.Itoa(step)}
		var slots []store.Slot
		for _, key := range []string{"u", "v", "ip"} {
			if random.IntN(2) == 0 {
				slots = append(slots, store.Slot{Key: key, Limit: 1 + random.IntN(5), Evict: random.IntN(2) == 0})
				c.keys = append(c.keys, key)
			}
		}
		want := store.Verdict{Limited: -1, Full: -1}
		for i, slot := range slots {
			if !slot.Evict && len(under(slot.Key)) >= slot.Limit {
				want.Full = i
				break
			}
		}
		if want.Admitted() {
			for _, slot := range slots {
				for ids := under(slot.Key); len(ids) >= slot.Limit; ids = under(slot.Key) {
					want.Evicted = append(want.Evicted, ids[0])
					drop(ids[0])
				}
			}
			all = append(all, c)
		}
		if got := s.acquire(c.id, slots...); got.Full != want.Full || !slices.Equal(got.Evicted, want.Evicted) {
			t.Fatalf("seed %d, step %d: %+v asked for, got %+v, want %+v", seed, step, slots, got, want)
		}
	}
}

// together runs f in n goroutines that begin at the same moment.
func together(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

// A store without connections holds nothing, whatever went through it.
func TestMemoryReturnsToZero(t *testing.T) {
	m := new(store.Memory)
	ctx := context.Background()
	for i := range 10_000 {
		id, key := "c"+strconv.Itoa(i), "u"+strconv.Itoa(i%4000)
		_, _ = m.Acquire(ctx, store.Request{ID: id, Tunnel: "chat", Slots: []store.Slot{reject(key, 1), evict("ip", 100)}})
		m.Adopt(id, "chat", []string{"ip", "tenant"})
	}
	for i := range 10_000 {
		m.Release("c" + strconv.Itoa(i))
	}
	if n := m.Len(); n != 0 {
		t.Errorf("%d connections remain", n)
	}
	if n := m.Keys(); n != 0 {
		t.Errorf("%d keys remain", n)
	}
}

func BenchmarkAcquire(b *testing.B) {
	m := new(store.Memory)
	slots := []store.Slot{reject("u", 5), evict("ip", 1000)}
	b.ReportAllocs()
	for b.Loop() {
		_, _ = m.Acquire(context.Background(), store.Request{ID: "c", Tunnel: "chat", Slots: slots})
		m.Release("c")
	}
}
