package integration

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// spread opens n sockets and says how many are at each backend.
func spreadOver(t *testing.T, g *gate, name, token string, backends []*backend, n int) (conns []*conn, ups []*upstream, counts []int) {
	t.Helper()
	counts = make([]int, len(backends))
	for range n {
		c, a := g.attempt(at(name, token))
		if c == nil {
			t.Fatalf("status %d %s, %v", a.status, a.body, a.err)
		}
		t.Cleanup(func() { c.Close() })
		c.t = t
		conns = append(conns, c)
		for i, b := range backends {
			select {
			case u := <-b.arrivals:
				u.t = t
				counts[i]++
				ups = append(ups, u)
			default:
			}
		}
		if len(ups) != len(conns) { // the 101 came before the backend's goroutine told
			eventually(t, "the socket at a backend", func() bool {
				for i, b := range backends {
					select {
					case u := <-b.arrivals:
						u.t = t
						counts[i]++
						ups = append(ups, u)
						return true
					default:
					}
				}
				return false
			})
		}
	}
	return conns, ups, counts
}

// ws_least_conn, and least_conn within ws_proxy, spread sockets evenly, also
// after some have ended and over a reload.
func TestLeastConn(t *testing.T) {
	t.Parallel()
	for name, policy := range map[string]func(upstreams string) string{
		"reverse_proxy": func(upstreams string) string {
			return "reverse_proxy " + upstreams + " {\nlb_policy ws_least_conn\ntransport ws_tunnel\n}"
		},
		"ws_proxy": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newIDP(t)
			backends := []*backend{newBackend(t), newBackend(t), newBackend(t)}
			upstreams := backends[0].addr + " " + backends[1].addr + " " + backends[2].addr
			var config string
			if policy != nil {
				config = several([]*idp{p}, "", gated{name: "l", before: policy(upstreams)})
			} else {
				config = several([]*idp{p}, "") + fmt.Sprintf("http://127.0.0.1:{{port}}/ws/l {\nws_proxy %s {\nissuer %s {\njwks %s\naudience chat\n}\ntunnel_name l\nlb_policy least_conn\n}\n}\n",
					upstreams, p.issuer, p.jwksURL())
			}
			g := start(t, config)
			token := p.token(g, nil)
			g.refused(t, at("warm", token), http.StatusNoContent)
			conns, ups, counts := spreadOver(t, g, "l", token, backends, 30)
			if fmt.Sprint(counts) != "[10 10 10]" {
				t.Errorf("spread %v, want 10 each", counts)
			}
			live := func() map[string]float64 {
				values := make(map[string]float64)
				for series, value := range g.scrape(t) {
					if rest, ok := strings.CutPrefix(series, `caddy_ws_gate_upstream_connections{tunnel="l",upstream="`); ok {
						values[strings.TrimSuffix(rest, `"}`)] = value
					}
				}
				return values
			}
			if got := live(); len(got) != 3 || got[backends[0].addr] != 10 || got[backends[2].addr] != 10 {
				t.Errorf("the metric says %v", got)
			}
			if n := len(g.listed(t, "&tunnel=l", 100)); n != 30 {
				t.Errorf("%d are listed", n)
			}
			// 8 of the first and 4 of the second end.
			gone := map[string]int{backends[0].addr: 8, backends[1].addr: 4}
			for i, u := range ups {
				if address := u.LocalAddr().String(); gone[address] > 0 {
					gone[address]--
					conns[i].Close()
					u.Close()
				}
			}
			eventually(t, "12 are gone", func() bool {
				got := live()
				return got[backends[0].addr] == 2 && got[backends[1].addr] == 6 && got[backends[2].addr] == 10
			})
			if err := g.reload(config); err != nil {
				t.Fatal(err)
			}
			_, _, counts = spreadOver(t, g, "l", token, backends, 12)
			if fmt.Sprint(counts) != "[8 4 0]" {
				t.Errorf("spread %v, want 8, 4 and 0", counts)
			}
			_, _, counts = spreadOver(t, g, "l", token, backends, 6)
			if fmt.Sprint(counts) != "[2 2 2]" {
				t.Errorf("spread %v, want 2 each", counts)
			}
		})
	}
}

// nowhere is an address at which nobody listens.
func nowhere(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// What reverse_proxy does for requests it does in front of the tunnel too.
func TestProxyFeatures(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	good, sick := newBackend(t), newBackend(t)
	unix := newUnixBackend(t)
	var healthy atomic.Bool
	sick.answers(func(u *upstream) string {
		switch {
		case u.req.URL.Path == "/health" && healthy.Load():
			return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
		case u.req.URL.Path == "/health":
			return "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
		case u.req.Header.Get("X-Fail") != "":
			return "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"
		}
		return accept(u)
	})
	_, port, _ := net.SplitHostPort(good.addr)
	proxy := func(upstreams, options string) string {
		return "reverse_proxy " + upstreams + " {\n" + options + "\ntransport ws_tunnel {\ndial_timeout 2s\n}\n}"
	}
	down := nowhere(t)
	g := startSeveral(t, []*idp{p}, "",
		gated{name: "retries", before: proxy(down+" "+good.addr, "lb_policy round_robin\nlb_retries 2")},
		gated{name: "duration", before: proxy(down+" "+good.addr, "lb_policy round_robin\nlb_try_duration 5s\nlb_try_interval 20ms")},
		gated{name: "passive", before: proxy(down+" "+good.addr, "lb_policy first\nfail_duration 1m\nmax_fails 1")},
		gated{name: "status", before: proxy(sick.addr+" "+good.addr, "lb_policy first\nfail_duration 1m\nmax_fails 1\nunhealthy_status 5xx")},
		gated{name: "active", before: proxy(sick.addr+" "+good.addr, "lb_policy first\nhealth_uri /health\nhealth_interval 100ms\nhealth_timeout 2s")},
		gated{name: "least", before: proxy(sick.addr+" "+good.addr, "lb_policy ws_least_conn\nhealth_uri /health\nhealth_interval 100ms\nhealth_timeout 2s")},
		gated{name: "dynamic", before: proxy("", "dynamic a localhost "+port+" {\nversions ipv4\n}")},
		gated{name: "headers", before: proxy(good.addr, "header_up X-Added {http.auth.user.id}\nheader_up -X-Secret")},
		gated{name: "unix", before: proxy(unix.addr, "")},
		gated{name: "nobody", before: proxy(down, "")},
		gated{name: "slow", before: proxy(down, "lb_try_duration 300ms\nlb_try_interval 50ms")},
	)
	token := p.token(g, nil)
	works := func(t *testing.T, name string, b *backend, lines ...string) *upstream {
		t.Helper()
		b.pairing.Lock()
		defer b.pairing.Unlock()
		c, a := g.attempt(at(name, token, lines...))
		if c == nil {
			t.Fatalf("%s: status %d, %v", name, a.status, a.err)
		}
		c.t = t
		defer c.Close()
		u := b.next(t)
		defer u.Close()
		frame := masked(0x82, random(10))
		c.send(frame)
		u.expectBytes(frame)
		u.send(unmasked(0x81, []byte("back")))
		if f := c.readPonging(); string(f.payload) != "back" {
			t.Fatalf("%s: got %x", name, f.raw)
		}
		c.answer = a
		return u
	}
	t.Run("retries", func(t *testing.T) {
		for range 3 {
			works(t, "retries", good)
		}
	})
	t.Run("try duration", func(t *testing.T) {
		for range 3 {
			works(t, "duration", good)
		}
	})
	t.Run("passive health", func(t *testing.T) {
		a := g.try(t, at("passive", token))
		if a.status != http.StatusBadGateway {
			t.Fatalf("status %d, want 502 of the first upstream", a.status)
		}
		for range 3 {
			works(t, "passive", good)
		}
	})
	t.Run("unhealthy status", func(t *testing.T) {
		if a := g.try(t, at("status", token, "X-Fail: 1")); a.status != http.StatusInternalServerError {
			t.Fatalf("status %d, want the upstream's 500", a.status)
		}
		works(t, "status", good)
	})
	t.Run("active health", func(t *testing.T) {
		marked := func() bool {
			for _, b := range []*backend{good, sick} {
				for len(b.arrivals) > 0 {
					(<-b.arrivals).Close()
				}
			}
			c, _ := g.attempt(at("active", token))
			if c == nil {
				return false
			}
			defer c.Close()
			select {
			case u := <-sick.arrivals:
				u.Close()
				return true
			case u := <-good.arrivals:
				u.Close()
				return false
			case <-time.After(time.Second):
				return false
			}
		}
		eventually(t, "the sick one is out", func() bool { return !marked() })
		works(t, "active", good)
		for range 4 {
			works(t, "least", good)
		}
		healthy.Store(true)
		eventually(t, "it is back", marked)
	})
	t.Run("dynamic upstreams", func(t *testing.T) {
		works(t, "dynamic", good)
		eventually(t, "the address in the log", func() bool {
			for _, e := range g.entries("connection closed") {
				if e["tunnel"] == "dynamic" {
					return e["upstream"] == "127.0.0.1:"+port
				}
			}
			return false
		})
	})
	t.Run("headers", func(t *testing.T) {
		u := works(t, "headers", good, "X-Secret: x", "X-Added: forged")
		for name, want := range map[string]string{"X-Added": "[X-Added: alice]", "X-User-Id": "[X-User-Id: alice]", "X-Secret": "[]"} {
			if got := fmt.Sprint(values(u, name)); got != want {
				t.Errorf("the backend got %s, want %s", got, want)
			}
		}
	})
	t.Run("unix socket", func(t *testing.T) {
		works(t, "unix", unix)
	})
	t.Run("nobody", func(t *testing.T) {
		for _, name := range []string{"nobody", "slow"} {
			if a := g.try(t, at(name, token)); a.status != http.StatusBadGateway {
				t.Errorf("%s: status %d, want 502", name, a.status)
			}
		}
		eventually(t, "the lines", func() bool { return g.refusals("nobody")["backend"] == 1 && g.refusals("slow")["backend"] == 1 })
	})
}
