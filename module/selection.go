package module

import (
	"math/rand/v2"
	"net/http"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func init() {
	caddy.RegisterModule(new(LeastConn))
}

// LeastConn is a load balancing policy that selects the upstream with the
// fewest live sockets, and of several the one by chance. The policy
// `least_conn` of reverse_proxy sees only handshakes, since tunnels leave the
// request. Requests under way count too, so that a burst of handshakes is
// spread. In a ws_proxy block `lb_policy least_conn` means this one.
type LeastConn struct{}

// CaddyModule returns the Caddy module information.
func (*LeastConn) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.selection_policies.ws_least_conn",
		New: func() caddy.Module { return new(LeastConn) },
	}
}

// UnmarshalCaddyfile sets up the policy from Caddyfile tokens. It takes no
// arguments.
func (*LeastConn) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the policy's name
	if d.NextArg() {
		return d.ArgErr()
	}
	return nil
}

// Select implements reverseproxy.Selector.
func (*LeastConn) Select(pool reverseproxy.UpstreamPool, _ *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	var best *reverseproxy.Upstream
	least, equals := 0, 0
	for _, upstream := range pool {
		if !upstream.Available() {
			continue
		}
		n := perUpstream.count(upstream.String()) + upstream.NumRequests()
		switch {
		case best == nil || n < least:
			best, least, equals = upstream, n, 1
		case n == least:
			equals++
			if rand.IntN(equals) == 0 { //nolint:gosec // which of equals is no secret
				best = upstream
			}
		}
	}
	return best
}

// perUpstream counts the live sockets of this process by upstream.
var perUpstream = upstreamCounts{counts: make(map[string]int)}

type upstreamCounts struct {
	mu     sync.Mutex
	counts map[string]int
}

func (u *upstreamCounts) add(address string, n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.counts[address] += n; u.counts[address] <= 0 {
		delete(u.counts, address)
	}
}

func (u *upstreamCounts) count(address string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.counts[address]
}

// Interface guards.
var (
	_ reverseproxy.Selector = (*LeastConn)(nil)
	_ caddyfile.Unmarshaler = (*LeastConn)(nil)
)
