package integration

import (
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// S-132: clients that never finish their handshake hold a connection and
// nothing else, and not for longer than Caddy's read_header timeout.
func TestSlowHandshakes(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	e := newEcho(t)
	g := wiring{
		idp: p, upstream: e.addr, gate: "max_connections 1 by ip",
		global: "servers {\ntimeouts {\nread_header 3s\n}\n}",
	}.start(t)
	h := bearer(p.token(g, nil))
	g.open(t, h).Close()
	var slow []*conn
	for range 100 {
		c := g.connect(t)
		text := h.text(c.host)
		c.send([]byte(text[:len(text)-4])) // all but the end
		slow = append(slow, c)
	}
	// They take no place under the cap.
	var c *conn
	eventually(t, "the one place is free", func() bool {
		var a answer
		c, a = g.attempt(h)
		return a.status == http.StatusSwitchingProtocols
	})
	for _, s := range slow {
		if err := s.ended(); err != nil {
			t.Fatal(err)
		}
	}
	if !c.alive(t) {
		t.Error("a live socket ended with them")
	}
	c.Close()
}

// S-198: a backend that is down costs an answer a handshake, and nothing is
// left of it.
func TestBackendDownStorm(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	g := wiring{idp: p, upstream: ln.Addr().String(), gate: "max_connections 1 by user"}.start(t)
	h := bearer(p.token(g, nil))
	g.refused(t, h, http.StatusBadGateway)
	before, _ := g.goroutines()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				// 429 where another has the only place at that moment.
				if a := g.try(t, h); a.status != http.StatusBadGateway && a.status != http.StatusTooManyRequests {
					t.Errorf("status %d", a.status)
				}
			}
		})
	}
	wg.Wait()
	g.refused(t, h, http.StatusBadGateway)
	eventually(t, "the goroutines are gone", func() bool {
		now, _ := g.goroutines()
		return now <= before+5
	})
}

// S-211: a secret that comes by a placeholder stays out of the config that
// Caddy shows.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	secret := base64.StdEncoding.EncodeToString([]byte("a secret of thirty-two bytes, ok"))
	b := newBackend(t)
	g := start(t, `{
	admin 127.0.0.1:{{admin}}
	auto_https off
	persist_config off
}
http://127.0.0.1:{{port}} {
	ws_gate /ws* {
		issuer any {
			secret {env.WSGATE_TEST_SECRET}
			audience any
		}
	}
	reverse_proxy /ws* `+b.addr+` {
		transport ws_tunnel
	}
}
`, "WSGATE_TEST_SECRET="+secret)
	g.guard(secret)
	for _, path := range []string{"/config/", "/config/apps", "/ws_gate/connections", "/ws_gate/revocations", "/metrics"} {
		resp, err := adminClient.Get("http://" + g.admin + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || strings.Contains(string(body), secret) || strings.Contains(string(body), "thirty-two") {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
}
