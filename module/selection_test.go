package module

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func upstreams(t testing.TB, n int) (pool reverseproxy.UpstreamPool) {
	t.Helper()
	for i := range n {
		pool = append(pool, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: fmt.Sprintf("%s%d:1", t.Name(), i)})
	}
	return pool
}

// The upstream with the fewest live sockets is chosen, whatever ended before.
func TestLeastConn(t *testing.T) {
	pool := upstreams(t, 3)
	policy := new(LeastConn)
	open := make(map[string]int)
	for range 300 {
		up := policy.Select(pool, nil, nil)
		perUpstream.add(up.Dial, 1)
		open[up.Dial]++
	}
	for _, up := range pool {
		if open[up.Dial] != 100 {
			t.Fatalf("%v, want 100 each", open)
		}
	}
	// Some end, of one upstream more than of the others: it gets the next.
	perUpstream.add(pool[1].Dial, -50)
	perUpstream.add(pool[2].Dial, -10)
	for range 40 {
		if up := policy.Select(pool, nil, nil); up != pool[1] {
			t.Fatalf("%s was chosen, want %s", up.Dial, pool[1].Dial)
		}
		perUpstream.add(pool[1].Dial, 1)
	}
	for _, up := range pool {
		perUpstream.add(up.Dial, -perUpstream.count(up.Dial))
	}
	if n := len(perUpstream.counts); n != 0 {
		t.Errorf("%d counts are left: %v", n, perUpstream.counts)
	}
}

// Of equals each gets its turn, an idle one goes before all others, and of
// none there is none. Those that are not available: integration/balance_test.go.
func TestLeastConnEquals(t *testing.T) {
	pool := upstreams(t, 4)
	policy := new(LeastConn)
	chosen := make(map[string]int)
	for range 4000 {
		chosen[policy.Select(pool, nil, nil).Dial]++
	}
	for _, up := range pool {
		if n := chosen[up.Dial]; n < 500 {
			t.Errorf("%s was chosen %d times of 4000", up.Dial, n)
		}
	}
	idle := pool[rand.IntN(4)]
	for _, up := range pool {
		if up != idle {
			perUpstream.add(up.Dial, 5)
			defer perUpstream.add(up.Dial, -5)
		}
	}
	if up := policy.Select(pool, nil, nil); up != idle {
		t.Errorf("%s was chosen, want %s", up.Dial, idle.Dial)
	}
	if up := policy.Select(nil, nil, nil); up != nil {
		t.Errorf("%s of none", up.Dial)
	}
}

func TestLeastConnCaddyfile(t *testing.T) {
	for text, good := range map[string]bool{"ws_least_conn": true, "ws_least_conn 2": false} {
		if err := new(LeastConn).UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
}
