package integration

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// unavailable is the answer while an issuer's keys are not there: S-52, S-74.
func unavailable(t *testing.T, g *gate, h handshake) {
	t.Helper()
	a := g.try(t, h)
	if a.status != http.StatusServiceUnavailable {
		t.Fatalf("status %d, want 503\n%s", a.status, a.text)
	}
	if n, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || n < 1 {
		t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
	}
	if all := a.text + a.body; strings.Contains(all, "jwks") || strings.Contains(all, "127.0.0.1") || strings.Contains(all, "refused") {
		t.Errorf("the answer tells of the inside: %s", all)
	}
}

// S-52: an identity provider that is down at the start costs 503, and heals by
// itself.
func TestKeysDownAtStart(t *testing.T) {
	t.Parallel()
	addr := "127.0.0.1:" + strconv.Itoa(freePort(t))
	url := "http://" + addr
	b := newBackend(t)
	for _, source := range []string{"jwks " + url + "/jwks.json", ""} {
		name := map[bool]string{true: "discovery", false: "jwks"}[source == ""]
		t.Run(name, func(t *testing.T) {
			g := wiring{upstream: b.addr, gate: fmt.Sprintf("issuer %s/ {\n%s\naudience chat\n}", url, source)}.start(t)
			mint := func() string {
				return commonKeys()["ES256"].compact(`{"alg":"ES256","kid":"ec-1"}`,
					fmt.Sprintf(`{"iss":"%s/","aud":"chat","sub":"alice","exp":%d}`, url, time.Now().Add(time.Hour).Unix()))
			}
			b.untouched(t, func() {
				for range 3 {
					unavailable(t, g, bearer(mint()))
				}
			})
			t.Run("and then up", func(t *testing.T) {
				p := newIDPOn(t, false, addr)
				seen(t, g, b, bearer(mint()))
				if n := p.gets.Load(); n != 1 {
					t.Errorf("%d requests for the keys", n)
				}
			})
			eventually(t, "a warning in the log that keys cannot be fetched", func() bool {
				return slices.ContainsFunc(g.lines(), func(line string) bool {
					return strings.Contains(line, `"level":"warn"`) && strings.Contains(line, "http.handlers.ws_gate")
				})
			})
		})
	}
}

// S-54: keys that were good serve on while the endpoint fails, up to max_stale.
func TestKeysDownLater(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, issuer: "refresh 1s\nmax_stale 6s"}.start(t)
	token := p.token(g, nil)
	seen(t, g, b, bearer(token))
	down := time.Now()
	p.answerWith(func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, `{"keys":[]}`, http.StatusInternalServerError)
		return true
	})
	gets := p.gets.Load()
	eventually(t, "two attempts to refresh", func() bool { return p.gets.Load() >= gets+2 })
	if time.Since(down) < 5*time.Second {
		seen(t, g, b, bearer(token))
	}
	eventually(t, "503 after max_stale", func() bool { return g.try(t, bearer(token)).status == http.StatusServiceUnavailable })
	if d := time.Since(down); d < 4*time.Second {
		t.Errorf("503 after %v, max_stale is 6s", d)
	}
	b.untouched(t, func() { unavailable(t, g, bearer(token)) })
	p.answerWith(nil)
	seen(t, g, b, bearer(token)) // heals
}

// S-58: answers that are no key set never replace one.
func TestBadKeySets(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, issuer: "refresh 1s"}.start(t)
	token := p.token(g, nil)
	seen(t, g, b, bearer(token))
	good := string(p.set())
	for name, script := range map[string]func(w http.ResponseWriter){
		"HTML":      func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>down</html>") },
		"204":       func(w http.ResponseWriter) { w.WriteHeader(204) },
		"500":       func(w http.ResponseWriter) { w.WriteHeader(500); _, _ = io.WriteString(w, good) },
		"truncated": func(w http.ResponseWriter) { _, _ = io.WriteString(w, good[:len(good)/2]) },
		"no keys":   func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"keys":[]}`) },
		"redirect":  func(w http.ResponseWriter) { w.Header().Set("Location", "/elsewhere"); w.WriteHeader(302) },
		"huge": func(w http.ResponseWriter) { // S-56
			_, _ = io.WriteString(w, `{"keys":[{"kty":"RSA","k":"`)
			for range 400 {
				if _, err := io.WriteString(w, strings.Repeat("A", 16<<10)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			tried := make(chan struct{}, 100)
			p.answerWith(func(w http.ResponseWriter, _ *http.Request) bool {
				script(w)
				select {
				case tried <- struct{}{}:
				default:
				}
				return true
			})
			select {
			case <-tried:
			case <-time.After(patience):
				t.Fatal("no refresh")
			}
			seen(t, g, b, bearer(token))
			p.answerWith(nil)
			gets := p.gets.Load()
			eventually(t, "a good answer", func() bool { return p.gets.Load() > gets })
		})
	}
}

// S-60: a key of an unknown type does not spoil the set.
func TestUnknownKeyTypes(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	p.answerWith(func(w http.ResponseWriter, _ *http.Request) bool {
		good := strings.TrimSuffix(strings.TrimPrefix(string(p.set()), `{"keys":[`), "]}")
		_, _ = io.WriteString(w, `{"keys":[{"kty":"AKP","alg":"ML-DSA-44","kid":"pq","pub":"AAAA"},{"kty":"XYZ"},{},{"kty":"oct","kid":"o1","alg":"HS256","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},`+
			`{"kty":"OKP","crv":"Ed25519","kid":"short","x":"AAAA"},`+good+`]}`)
		return true
	})
	g := wiring{idp: p, upstream: b.addr}.start(t)
	for _, alg := range algorithms {
		seen(t, g, b, bearer(p.mint(alg, nil)))
	}
	b.untouched(t, func() { // S-08: no secret from a public place
		g.refused(t, bearer(hs256([]byte("secretsecretsecretsecretsecret"[:30]), `{"alg":"HS256","kid":"o1"}`, p.usual(nil))), http.StatusUnauthorized)
	})
}

// S-62: a new key is there with one fetch, an old one goes with the next
// refresh.
func TestRotation(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	first, second := newECKey("k1"), newECKey("k2")
	p.publish(first)
	t.Run("new key", func(t *testing.T) {
		g := wiring{idp: p, upstream: b.addr, issuer: "refresh 10m"}.start(t)
		seen(t, g, b, bearer(p.mintWith(first, nil)))
		gets := p.gets.Load()
		p.publish(first, second)
		seen(t, g, b, bearer(p.mintWith(second, nil)))
		seen(t, g, b, bearer(p.mintWith(second, nil)))
		seen(t, g, b, bearer(p.mintWith(first, nil)))
		if n := p.gets.Load() - gets; n != 1 {
			t.Errorf("%d requests for the keys, want 1", n)
		}
	})
	t.Run("old key", func(t *testing.T) {
		g := wiring{idp: p, upstream: b.addr, issuer: "refresh 1s"}.start(t)
		seen(t, g, b, bearer(p.mintWith(first, nil)))
		p.publish(second)
		eventually(t, "401 for a key that is gone", func() bool {
			return g.try(t, bearer(p.mintWith(first, nil))).status == http.StatusUnauthorized
		})
		seen(t, g, b, bearer(p.mintWith(second, nil)))
	})
}

// S-63: unknown kids cost one fetch per cooldown, and good tokens nothing.
func TestUnknownKidFlood(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, issuer: "cooldown 10m"}.start(t)
	token := p.token(g, nil)
	seen(t, g, b, bearer(token))
	gets := p.gets.Load()
	b.untouched(t, func() {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for j := range 15 {
					k := *commonKeys()["ES256"]
					k.kid = fmt.Sprintf("kid-%d-%d", i, j)
					if a := g.try(t, bearer(p.mintWith(&k, nil))); a.status != http.StatusUnauthorized {
						t.Errorf("status %d, want 401", a.status)
					}
				}
			}()
		}
		wg.Wait()
	})
	if n := p.gets.Load() - gets; n > 1 {
		t.Errorf("300 tokens with unknown kids made %d requests", n)
	}
	seen(t, g, b, bearer(token))
}

// S-66: thousands of first handshakes, one fetch.
func TestColdHerd(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	e := newEcho(t)
	p.answerWith(func(http.ResponseWriter, *http.Request) bool {
		time.Sleep(300 * time.Millisecond)
		return false
	})
	g := wiring{idp: p, upstream: e.addr}.start(t)
	token := p.token(g, nil)
	var wg sync.WaitGroup
	for range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := g.connect(t)
			c.send([]byte(bearer(token).text(c.host)))
			if a := c.readAnswer("GET"); a.status != 101 && a.status != 503 {
				t.Errorf("status %d, want 101 or 503", a.status)
			}
			c.Close()
		}()
	}
	wg.Wait()
	g.open(t, bearer(token))
	if n := p.gets.Load(); n != 1 {
		t.Errorf("%d requests for the keys, want 1", n)
	}
}

// S-55: an endpoint that hangs delays nobody who needs no new key.
func TestHangingEndpoint(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, issuer: "timeout 2s\nrefresh 10m"}.start(t)
	token := p.token(g, nil)
	seen(t, g, b, bearer(token))
	release := make(chan struct{})
	defer close(release)
	p.answerWith(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	})
	gets := p.gets.Load()
	unknown := newECKey("unknown")
	begin := time.Now()
	var wg sync.WaitGroup
	for range 5 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if a := g.try(t, bearer(p.mintWith(unknown, nil))); a.status != http.StatusUnauthorized {
				t.Errorf("unknown kid: status %d, want 401", a.status)
			}
		}()
	}
	seen(t, g, b, bearer(token)) // meanwhile
	wg.Wait()
	if d := time.Since(begin); d > 12*time.Second {
		t.Errorf("tokens with an unknown kid were answered after %v, timeout is 2s", d)
	}
	if n := p.gets.Load() - gets; n != 1 {
		t.Errorf("%d requests at once, want 1", n)
	}
}

// Tokens that must not get in, the short table: the module's own tests have
// the long one.
func TestBadTokens(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	seen(t, g, b, bearer(p.token(g, nil)))
	es := commonKeys()["ES256"]
	now := time.Now().Unix()
	good := p.mint("ES256", nil)
	parts := strings.Split(good, ".")
	hdr := `{"alg":"ES256","kid":"ec-1"}`
	rsaJWK := fmt.Sprint(commonKeys()["RS256"].jwk()["n"])
	var answers []answer
	for _, c := range []struct{ name, token string }{
		{"S-01 JSON serialization", fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q,"sub":"admin"}`, parts[1], parts[0], parts[2])},
		{"S-04 none, no signature", b64([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."},
		{"S-04 none, two parts", b64([]byte(`{"alg":"none"}`)) + "." + parts[1]},
		{"S-04 nOnE, any signature", b64([]byte(`{"alg":"nOnE"}`)) + "." + parts[1] + "." + parts[2]},
		{"S-05 public key as secret", hs256([]byte(rsaJWK), `{"alg":"HS256","kid":"rsa-1"}`, p.usual(nil))},
		{"S-10 no signature", parts[0] + "." + parts[1] + "."},
		{"S-11 zero signature", parts[0] + "." + parts[1] + "." + b64(make([]byte, 64))},
		{"another key of the same kid", p.mintWith(newECKey("ec-1"), nil)},
		{"S-22 embedded key", newECKey("x").compact(`{"alg":"ES256","kid":"ec-1","jwk":{"kty":"EC"},"jku":"`+p.url+`/evil.json"}`, p.usual(nil))},
		{"S-23 crit", es.compact(`{"alg":"ES256","kid":"ec-1","crit":["exp2"],"exp2":1}`, p.usual(nil))},
		{"b64", es.compact(`{"alg":"ES256","kid":"ec-1","b64":true}`, p.usual(nil))},
		{"S-25 five parts", good + ".a.b"},
		{"S-27 logout token", es.compact(`{"alg":"ES256","kid":"ec-1","typ":"logout+jwt"}`, p.usual(nil))},
		{"S-28 no issuer", p.mint("ES256", claims{"iss": nil})},
		{"S-28 foreign issuer", p.mint("ES256", claims{"iss": "https://other.example/"})},
		{"S-28 issuer without its slash", p.mint("ES256", claims{"iss": p.url})},
		{"S-28 issuer in an array", p.mint("ES256", claims{"iss": []string{p.issuer}})},
		{"S-29 no audience", p.mint("ES256", claims{"aud": nil})},
		{"S-29 foreign audience", p.mint("ES256", claims{"aud": []string{"a", "b"}})},
		{"S-29 audience in another case", p.mint("ES256", claims{"aud": "Chat"})},
		{"S-29 audience within an array", p.mint("ES256", claims{"aud": [][]string{{"chat"}}})},
		{"S-31 no exp", p.mint("ES256", claims{"exp": nil})},
		{"S-31 exp as a string", p.mint("ES256", claims{"exp": fmt.Sprint(now + 3600)})},
		{"S-34 expired", p.mint("ES256", claims{"exp": now - 1})},
		{"S-35 not yet", p.mint("ES256", claims{"nbf": now + 300})},
		{"S-37 sub twice", es.compact(hdr, strings.Replace(p.usual(nil), "{", `{"sub":"u1",`, 1))},
		{"S-37 sub twice, escaped", es.compact(hdr, strings.Replace(p.usual(nil), "{", `{"s\u0075b":"u1",`, 1))},
		{"S-37 alg twice", es.compact(`{"alg":"ES256","alg":"ES256","kid":"ec-1"}`, p.usual(nil))},
		{"S-41 no sub", p.mint("ES256", claims{"sub": nil})},
		{"S-41 empty sub", p.mint("ES256", claims{"sub": ""})},
		{"S-41 sub of an array", p.mint("ES256", claims{"sub": []string{"admin"}})},
		{"S-42 9 KiB", p.mint("ES256", claims{"x": strings.Repeat("x", 9<<10)})},
		{"S-44 dots", strings.Repeat(".", 5000)},
		{"S-45 padding", good + "="},
		{"S-45 another last character", good[:len(good)-1] + string(rune(good[len(good)-1]+1))},
		{"S-20 kid of a number", es.compact(`{"alg":"ES256","kid":1}`, p.usual(nil))},
		{"trailing data", es.compact(hdr, p.usual(nil)+"{}")},
		{"invalid UTF-8", es.compact(hdr, strings.Replace(p.usual(nil), "alice", "ali\xc3\x28", 1))},
		{"no JSON", es.compact(hdr, "sub=alice")},
		{"garbage", "garbage"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.guard(c.token)
			b.untouched(t, func() {
				a := g.refused(t, bearer(c.token), http.StatusUnauthorized)
				if w := a.header.Get("Www-Authenticate"); !strings.HasPrefix(w, "Bearer ") || !strings.Contains(w, `error="invalid_token"`) {
					t.Errorf("WWW-Authenticate %q", w)
				}
				answers = append(answers, a)
			})
		})
	}
	for i, a := range answers { // S-49: one answer for all
		a.header.Del("Date")
		answers[0].header.Del("Date")
		if fmt.Sprint(a.header) != fmt.Sprint(answers[0].header) || a.body != answers[0].body {
			t.Errorf("answer %d differs: %v %q, the first is %v %q", i, a.header, a.body, answers[0].header, answers[0].body)
			break
		}
	}
	t.Run("no token", func(t *testing.T) {
		a := g.refused(t, hello(), http.StatusUnauthorized)
		if w := a.header.Get("Www-Authenticate"); w != `Bearer realm="default"` {
			t.Errorf("WWW-Authenticate %q", w)
		}
	})
	t.Run("within leeway", func(t *testing.T) { // S-34
		text := strings.Replace(wiring{idp: p, upstream: b.addr}.caddyfile(), "leeway 0s", "leeway 30s", 1)
		run := start(t, text)
		seen(t, run, b, bearer(p.mint("ES256", claims{"exp": time.Now().Unix() - 5})))
		seen(t, run, b, bearer(p.mint("ES256", claims{"nbf": time.Now().Unix() + 10, "iat": time.Now().Unix() + 10})))
		run.refused(t, bearer(p.mint("ES256", claims{"exp": time.Now().Unix() - 120})), http.StatusUnauthorized)
	})
	t.Run("an audience among several", func(t *testing.T) { // S-29
		seen(t, g, b, bearer(p.mint("ES256", claims{"aud": []string{"other", "chat"}})))
	})
}
