package redis_test

import (
	"context"
	"regexp"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

func rates(key string, interval time.Duration, burst int) []store.Rate {
	return []store.Rate{{Key: key, Interval: interval, Burst: burst}}
}

// calls is how often a command was called, as INFO commandstats has it.
func calls(info, command string) int {
	found := regexp.MustCompile(`cmdstat_` + command + `:calls=(\d+)`).FindStringSubmatch(info)
	if found == nil {
		return 0
	}
	n, _ := strconv.Atoi(found[1])
	return n
}

// ask asks for nothing but tokens.
func (n *node) ask(all ...store.Rate) store.Verdict {
	n.t.Helper()
	v, err := n.acquire(store.Request{Tunnel: "chat", Rates: all})
	if err != nil {
		n.t.Fatal(err)
	}
	return v
}

// Defect: each node has a bucket of its own, or two take the same token.
func TestBurstExceededByParallelNodes(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 3, patient)
	var in atomic.Int64
	together(300, func(i int) {
		v, err := nodes[i%3].Acquire(context.Background(), store.Request{Tunnel: "chat", Rates: rates("u", 24*time.Hour, 7)})
		if err != nil {
			t.Error(err)
		} else if v.Admitted() {
			in.Add(1)
		} else if v.Limited != 0 || v.Wait <= 23*time.Hour || v.Wait > 24*time.Hour {
			t.Errorf("refused with %+v", v)
		}
	})
	if in.Load() != 7 {
		t.Errorf("%d are in, want 7", in.Load())
	}
	if v := nodes[0].ask(rates("v", 24*time.Hour, 1)...); !v.Admitted() {
		t.Error("keys share a bucket")
	}
}

// Defect: whoever waits as long as told is refused once more, or could have
// come before.
func TestWaitIsWrong(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 2)
	rate := rates("u", 250*time.Millisecond, 3)
	for i := range 3 {
		if v := nodes[i%2].ask(rate...); !v.Admitted() {
			t.Fatalf("the burst is not given: %+v", v)
		}
	}
	for round := range 4 {
		begin := time.Now()
		v := nodes[round%2].ask(rate...)
		if v.Admitted() || v.Wait > 250*time.Millisecond {
			t.Fatalf("round %d: %+v", round, v)
		}
		if round%2 == 0 {
			time.Sleep(v.Wait) // it is this very time that is asked about
			if v := nodes[1].ask(rate...); !v.Admitted() {
				t.Errorf("refused after the wait, with another %s", v.Wait)
			}
			continue
		}
		// Asking all the time neither takes tokens nor hastens them.
		for !nodes[0].ask(rate...).Admitted() {
			if time.Since(begin) > 5*time.Second {
				t.Fatal("there is no token any more")
			}
		}
		if took := time.Since(begin); took < v.Wait {
			t.Errorf("admitted after %s, where the wait was %s", took, v.Wait)
		}
	}
}

// Defect: a request that one rate refuses costs a token of another.
func TestRefusedTakesToken(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	n := startNode(t, server.URL(), "a")
	short, long := store.Rate{Key: "short", Interval: time.Hour, Burst: 1}, store.Rate{Key: "long", Interval: time.Hour, Burst: 3}
	if v := n.ask(long, short); !v.Admitted() {
		t.Fatalf("%+v", v)
	}
	for range 5 {
		if v := n.ask(long, short); v.Limited != 1 {
			t.Fatalf("%+v, want the second to refuse", v)
		}
	}
	for range 2 {
		if v := n.ask(long); !v.Admitted() {
			t.Fatalf("%+v: a refused request took a token", v)
		}
	}
	if v := n.ask(short, long); v.Limited != 0 {
		t.Errorf("%+v, want the first to refuse", v)
	}
	// What a rate refuses has no place either.
	r := handshake("x", reject("u", 1))
	r.Rates = []store.Rate{short}
	if v, err := n.acquire(r); err != nil || v.Limited != 0 || v.Full != -1 {
		t.Errorf("%+v, %v", v, err)
	}
	n.wantCount("u", 0)
}

// Defect: numbers at the ends of what can be configured are errors in Redis,
// or let nobody in.
func TestExtremeRates(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	n := startNode(t, server.URL(), "a")
	for _, tc := range []struct {
		name  string
		rate  store.Rate
		limit int // of 50, at least
	}{
		{"1e6/1s", store.Rate{Interval: time.Microsecond, Burst: 1_000_000}, 50},
		{"1e6/1s burst 1", store.Rate{Interval: time.Microsecond, Burst: 1}, 50},
		{"more than one in a nanosecond", store.Rate{Interval: 0, Burst: 1}, 50},
		{"1/24h", store.Rate{Interval: 24 * time.Hour, Burst: 1}, 1},
		{"1/24h burst 2^31", store.Rate{Interval: 24 * time.Hour, Burst: 1 << 31}, 50},
		{"one in 292 years", store.Rate{Interval: 1<<63 - 1, Burst: 2}, 2},
	} {
		tc.rate.Key = tc.name
		in := 0
		for range 50 {
			if n.ask(tc.rate).Admitted() {
				in++
			}
		}
		if in != tc.limit {
			t.Errorf("%s: %d of 50 are in, want %d", tc.name, in, tc.limit)
		}
		if tc.limit < 50 {
			continue
		}
		// No bucket stays once it is full.
		if ttl := number(t, server.Do("PTTL", n.NameOfRate("chat", tc.name))); ttl == -1 {
			t.Errorf("%s: the bucket stays for good", tc.name)
		}
	}
}

// Defect: after a failover to a machine whose clock is behind, nobody gets in
// until that clock has caught up.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	n := startNode(t, server.URL(), "a")
	future := strconv.FormatFloat(clock(t, server)+float64(time.Hour.Microseconds()), 'f', 3, 64)
	server.Do("SET", n.NameOfRate("chat", "u"), future)
	if v := n.ask(rates("u", time.Second, 5)...); !v.Admitted() {
		t.Errorf("%+v", v)
	}
	if v := n.ask(rates("u", time.Second, 5)...); !v.Admitted() {
		t.Errorf("%+v", v)
	}
}
