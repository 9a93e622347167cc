package integration

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fullScale runs floods and herds at the size that the acceptance names; CI's
// two cores get a part of it.
var fullScale = os.Getenv("WSGATE_TEST_FULL") != ""

// hang answers no request for the keys until the test ends.
func hang(t *testing.T) func(w http.ResponseWriter, r *http.Request) bool {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	return func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}
}

// stream makes handshakes with good tokens until stop is called, and returns
// how many there were and how many were refused, with the slowest.
func (g *gate) stream(workers int, next func() handshake) (stop func() (made, refused int64, slowest time.Duration, first string)) {
	var made, refused, slowest atomic.Int64
	var first atomic.Value
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				begin := time.Now()
				c, a := g.attempt(next())
				took := int64(time.Since(begin))
				for was := slowest.Load(); took > was && !slowest.CompareAndSwap(was, took); was = slowest.Load() {
				}
				made.Add(1)
				if c == nil {
					refused.Add(1)
					first.CompareAndSwap(nil, fmt.Sprintf("status %d, %v: %s", a.status, a.err, shorten(a.text)))
					continue
				}
				c.Close()
			}
		})
	}
	return func() (int64, int64, time.Duration, string) {
		close(done)
		wg.Wait()
		text, _ := first.Load().(string)
		return made.Load(), refused.Load(), time.Duration(slowest.Load()), text
	}
}

// unharmed fails unless all of a stream's handshakes went through, soon.
func unharmed(t *testing.T, least int64, made, refused int64, slowest time.Duration, first string) {
	t.Helper()
	t.Logf("%d handshakes with good tokens, the slowest took %v", made, slowest)
	if refused > 0 {
		t.Errorf("%d of %d good tokens were refused, the first: %s", refused, made, first)
	}
	if made < least {
		t.Errorf("only %d handshakes with good tokens", made)
	}
	if slowest > 4*time.Second { // the endpoint's timeout is 5 s: nobody waited for it
		t.Errorf("a good token's handshake took %v", slowest)
	}
}

// withOwnIssuers is several for gates that each name their issuers.
func withOwnIssuers(all ...gated) string {
	const warm = "route /ws/warm* {\nws_gate {\n"
	return strings.Replace(several(nil, "", all...), warm,
		warm+"issuer any {\nsecret c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0\naudience any\n}\n", 1)
}

// Every issuer is for itself: whatever becomes of one's keys, the other's
// tokens do not notice; and no key verifies another's tokens.
func TestIssuersApart(t *testing.T) {
	t.Parallel()
	p, other := newIDP(t), newIDP(t)
	mine, theirs := newECKey("same"), newECKey("same") // one kid, two keys
	p.publish(mine)
	other.publish(theirs)
	e := newEcho(t)
	g := start(t, withOwnIssuers(gated{name: "a", upstream: e.addr, gate: fmt.Sprintf(
		"issuer %s {\njwks %s\naudience chat\nrefresh 1s\ntimeout 1s\nmax_stale 3s\ncooldown 1s\n}\nissuer %s {\njwks %s\naudience chat\nrefresh 10m\ntimeout 5s\n}\nissuer http://127.0.0.1:1/ {\naudience chat\ntimeout 1s\n}",
		p.issuer, p.jwksURL(), other.issuer, other.jwksURL())}))
	token := func(of *idp, k *signingKey, c claims) handshake {
		text := of.mintWith(k, c)
		g.guard(text)
		return at("a", text)
	}
	g.open(t, token(p, mine, nil))
	g.open(t, token(other, theirs, nil))

	t.Run("keys are bound to their issuer", func(t *testing.T) { // S-28
		for name, h := range map[string]handshake{
			"another's key":                     token(p, theirs, nil),
			"another's issuer":                  token(other, mine, nil),
			"issuer of one, key of the other":   token(p, theirs, claims{"azp": other.issuer}),
			"both issuers":                      token(p, mine, claims{"iss": []string{p.issuer, other.issuer}}),
			"issuer without keys":               token(p, mine, claims{"iss": "http://127.0.0.1:1"}),
			"no issuer, key of the first":       token(p, mine, claims{"iss": nil}),
			"issuer in another case":            token(p, mine, claims{"iss": strings.ToUpper(p.issuer)}),
			"issuer with a blank, and a prefix": token(p, mine, claims{"iss": p.issuer + " " + other.issuer}),
		} {
			t.Run(name, func(t *testing.T) { g.refused(t, h, http.StatusUnauthorized) })
		}
	})
	t.Run("S-74 an issuer that was never there", func(t *testing.T) {
		unavailable(t, g, token(p, mine, claims{"iss": "http://127.0.0.1:1/"}))
	})
	t.Run("S-55 one hangs, then is stale", func(t *testing.T) {
		good := token(other, theirs, nil)
		stop := g.stream(2, func() handshake { return good })
		p.answerWith(hang(t))
		gets := p.gets.Load()
		eventually(t, "a request that hangs", func() bool { return p.gets.Load() > gets })
		unknown := token(p, newECKey("unknown"), nil)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				// 401 while the last keys serve, 503 when they are stale.
				if a := g.try(t, unknown); a.status != http.StatusUnauthorized && a.status != http.StatusServiceUnavailable {
					t.Errorf("status %d", a.status)
				}
			})
		}
		wg.Wait()
		known := token(p, mine, nil)
		eventually(t, "503 after max_stale", func() bool { return g.try(t, known).status == http.StatusServiceUnavailable })
		made, refused, slowest, first := stop()
		unharmed(t, 5, made, refused, slowest, first)
		p.answerWith(nil)
		g.open(t, known) // heals
	})
	t.Run("one's endpoint is gone", func(t *testing.T) {
		p.server.CloseClientConnections()
		p.server.Listener.Close()
		for range 10 {
			g.open(t, token(other, theirs, nil)).Close()
		}
		if n := other.gets.Load(); n != 1 {
			t.Errorf("the healthy issuer got %d requests, want 1", n)
		}
	})
}

// S-62: an identity provider that publishes a new key before it signs with it,
// and takes the old one away when its last token has expired: no good token is
// refused at any moment. So does one that publishes and signs at once.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	p, e := newIDP(t), newEcho(t)
	keys := []*signingKey{newECKey("k0"), newECKey("k1"), newECKey("k2")}
	p.publish(keys[0])
	g := start(t, withOwnIssuers(gated{name: "a", upstream: e.addr, gate: fmt.Sprintf(
		"issuer %s {\njwks %s\naudience chat\nrefresh 1s\ncooldown 100ms\n}", p.issuer, p.jwksURL())}))
	g.open(t, at("a", p.mintWith(keys[0], nil))).Close()
	var signing atomic.Pointer[signingKey]
	signing.Store(keys[0])
	// Half of them come back with the token that they have had for a while.
	kept := p.mintWith(keys[0], nil)
	var mu sync.Mutex
	n := 0
	stop := g.stream(4, func() handshake {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%2 == 0 {
			return at("a", kept)
		}
		return at("a", p.mintWith(signing.Load(), nil))
	})
	refresh := func() {
		gets := p.gets.Load()
		eventually(t, "a refresh", func() bool { return p.gets.Load() > gets })
	}
	for i, k := range keys[1:] {
		p.publish(keys[i], k)
		if i == 1 {
			refresh() // time to be noticed; otherwise the kid makes the gate look
		}
		signing.Store(k)
		mu.Lock()
		kept = p.mintWith(k, nil)
		mu.Unlock()
		refresh()
		p.publish(k)
		refresh()
		old := at("a", p.mintWith(keys[i], nil))
		eventually(t, "401 for the old key", func() bool { return g.try(t, old).status == http.StatusUnauthorized })
	}
	made, refused, slowest, first := stop()
	unharmed(t, 10, made, refused, slowest, first)
	// A key that is gone takes the tokens with it that the gate remembered.
	p.publish(newECKey("k4"))
	eventually(t, "401 for a remembered token", func() bool { return g.try(t, at("a", kept)).status == http.StatusUnauthorized })
}

// S-63: a flood of made-up kids costs the issuer one fetch per cooldown, and
// the good tokens among it nothing.
func TestKidFloodUnderLoad(t *testing.T) {
	t.Parallel()
	const cooldown = 2 * time.Second
	flood := 2000
	if fullScale {
		flood = 10_000
	}
	p, e := newIDP(t), newEcho(t)
	g := start(t, withOwnIssuers(gated{name: "a", upstream: e.addr, gate: fmt.Sprintf(
		"issuer %s {\njwks %s\naudience chat\ncooldown %v\n}", p.issuer, p.jwksURL(), cooldown)}))
	good := at("a", p.token(g, nil))
	g.open(t, good).Close()
	gets, begin := p.gets.Load(), time.Now()
	// An endpoint that takes its time makes the flood wait, and nobody else.
	p.answerWith(func(http.ResponseWriter, *http.Request) bool {
		time.Sleep(200 * time.Millisecond)
		return false
	})
	fresh := func() handshake { return at("a", p.mint("ES256", nil)) }
	stop := g.stream(1, func() handshake { return fresh() })
	stopKept := g.stream(1, func() handshake { return good })
	private := newECKey("")
	var left atomic.Int64
	left.Store(int64(flood))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := left.Add(-1); i >= 0; i = left.Add(-1) {
				k := signingKey{fmt.Sprintf("kid-%d-%s", i, newKey()[:8]), "ES256", private.private}
				if _, a := g.attempt(at("a", p.mintWith(&k, nil))); a.status != http.StatusUnauthorized {
					t.Errorf("status %d, want 401: %v", a.status, a.err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	made, refused, slowest, first := stop()
	unharmed(t, 5, made, refused, slowest, first)
	made, refused, slowest, first = stopKept()
	unharmed(t, 5, made, refused, slowest, first)
	most := 1 + int64(time.Since(begin)/cooldown)
	if n := p.gets.Load() - gets; n < 1 || n > most {
		t.Errorf("%d tokens with unknown kids within %v made %d requests for the keys, want 1 to %d", flood, took, n, most)
	} else {
		t.Logf("%d tokens with unknown kids within %v made %d requests for the keys", flood, took, n)
	}
}

// S-66: however many handshakes come before the keys, they are fetched once,
// and none is refused.
func TestColdHerdAtScale(t *testing.T) {
	t.Parallel()
	p, e := newIDP(t), newEcho(t)
	release := make(chan struct{})
	p.answerWith(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return false
	})
	g := start(t, several([]*idp{p}, "", gated{name: "a", upstream: e.addr, gate: "from_header Authorization"}, gated{name: "b", upstream: e.addr}))
	tokens := []string{p.token(g, nil), p.token(g, claims{"sub": "bob"}), p.mint("RS256", nil)}
	herd := 300
	if fullScale {
		herd = 1000
	}
	results := make(map[int]int)
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range herd {
		wg.Go(func() {
			c, a := g.attempt(at([]string{"a", "b"}[i%2], tokens[i%len(tokens)]))
			if c != nil {
				c.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			results[a.status]++
		})
	}
	eventually(t, "a request for the keys", func() bool { return p.gets.Load() > 0 })
	time.Sleep(300 * time.Millisecond) // for the herd to gather
	close(release)
	wg.Wait()
	if time.Since(begin) < 4*time.Second { // within the timeout nobody may be sent away
		want(t, "cold handshakes", results, map[int]int{http.StatusSwitchingProtocols: herd})
	} else if results[101]+results[503] != herd {
		t.Errorf("answers %v", results)
	}
	if n := p.gets.Load(); n != 1 {
		t.Errorf("%d handshakes made %d requests for the keys, want 1", herd, n)
	}
	t.Logf("%d cold handshakes within %v: %v", herd, time.Since(begin), results)
}

// Sources of keys are shared, outlive reloads, and end with their last user.
func TestSourcesShared(t *testing.T) {
	t.Parallel()
	p, second, e := newIDP(t), newIDP(t), newEcho(t)
	quick := func(of *idp) string {
		return fmt.Sprintf("issuer %s {\njwks %s\naudience chat\nrefresh 1s\n}", of.issuer, of.jwksURL())
	}
	slow := fmt.Sprintf("issuer %s {\njwks %s\naudience chat\nrefresh 10m\n}", second.issuer, second.jwksURL())
	config := func(a, b, c string) string {
		gates := []gated{{name: "a", upstream: e.addr, gate: a}, {name: "b", upstream: e.addr, gate: b}, {name: "c", upstream: e.addr, gate: c}}
		return withOwnIssuers(slices.DeleteFunc(gates, func(g gated) bool { return g.gate == "" })...)
	}
	g := start(t, config(slow, slow, slow+"\non_reject close"))
	token := second.token(g, nil)
	for _, name := range []string{"a", "b", "c"} {
		g.open(t, at(name, token)).Close()
	}
	if n := second.gets.Load(); n != 1 {
		t.Errorf("three routes with one issuer made %d requests for the keys, want 1", n)
	}
	t.Run("a reload does not fetch again", func(t *testing.T) {
		second.answerWith(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true })
		for i := range 5 {
			if err := g.reload(config(slow, slow, slow+fmt.Sprintf("\nexpiry_grace %ds", i+1))); err != nil {
				t.Fatal(err)
			}
			g.open(t, at("a", token)).Close()
		}
		// Nor does one that fails, nor does it take the keys away.
		if err := g.reload(config(slow, slow, "no_such_option")); err == nil {
			t.Error("a wrong config was taken")
		}
		g.open(t, at("b", token)).Close()
		if n := second.gets.Load(); n != 1 {
			t.Errorf("after reloads there were %d requests for the keys, want 1", n)
		}
	})
	t.Run("gone with its last user", func(t *testing.T) {
		second.answerWith(nil)
		if err := g.reload(config(slow, quick(p), quick(p))); err != nil {
			t.Fatal(err)
		}
		g.open(t, at("b", p.token(g, nil))).Close()
		eventually(t, "a refresh", func() bool { return p.gets.Load() >= 2 })
		if err := g.reload(config(slow, quick(p), "")); err != nil { // one of two is gone
			t.Fatal(err)
		}
		gets := p.gets.Load()
		eventually(t, "a refresh", func() bool { return p.gets.Load() >= gets+2 })
		live := g.open(t, at("b", p.token(g, nil)))
		if err := g.reload(config(slow, "", "")); err != nil { // the other, too
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond) // for one that was on its way
		gets = p.gets.Load()
		time.Sleep(2500 * time.Millisecond)
		if n := p.gets.Load() - gets; n != 0 {
			t.Errorf("%d requests for keys that nobody uses", n)
		}
		live.send(masked(0x81, []byte("still here"))) // a socket needs no keys
		live.expectBytes(unmasked(0x81, []byte("still here")))
		_, profile := g.goroutines()
		for _, stack := range strings.Split(profile, "\n\n") { // "<number> @ …", and the calls
			if strings.Contains(stack, "(*Source).run") && !strings.HasPrefix(strings.TrimSpace(stack), "1 @") {
				t.Errorf("goroutines of sources that are gone: %s", stack)
			}
		}
		if strings.Count(profile, "(*Source).run+") != 1 {
			t.Errorf("sources that run:\n%s", profile)
		}
		if err := g.reload(config(slow, quick(p), "")); err != nil { // and back: fetched anew
			t.Fatal(err)
		}
		g.open(t, at("b", p.token(g, nil))).Close()
		if p.gets.Load() == gets {
			t.Error("the keys were not fetched anew")
		}
	})
}

// Discovery: its document is read with the keys, and its issuer must be the
// configured one exactly.
func TestDiscoveryShared(t *testing.T) {
	t.Parallel()
	p, liar, e := newIDP(t), newIDP(t), newEcho(t)
	configured := liar.issuer
	liar.issuer = p.issuer // its document says it is another
	discovers := func(issuer string) string {
		return "issuer " + issuer + " {\naudience chat\ntimeout 2s\n}"
	}
	g := start(t, withOwnIssuers(
		gated{name: "a", upstream: e.addr, gate: discovers(p.issuer)}, gated{name: "b", upstream: e.addr, gate: discovers(p.issuer)},
		gated{name: "liar", upstream: e.addr, gate: discovers(configured)}))
	for _, name := range []string{"a", "b"} {
		g.open(t, at(name, p.token(g, nil))).Close()
	}
	if d, n := p.discovered.Load(), p.gets.Load(); d != 1 || n != 1 {
		t.Errorf("%d requests for the discovery document and %d for the keys, want 1 and 1", d, n)
	}
	unavailable(t, g, at("liar", p.mint("ES256", claims{"iss": configured})))
	g.refused(t, at("liar", p.mint("ES256", nil)), http.StatusUnauthorized)
	if n := liar.gets.Load(); n != 0 {
		t.Errorf("%d requests for the keys of an issuer that is another", n)
	}
}
