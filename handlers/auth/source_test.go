package auth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// script stands for a JWKS endpoint in tests with a fake clock. Its answer
// may be changed at any time.
type script struct {
	mu      sync.Mutex
	text    string
	err     error
	fresh   time.Duration // 0: the source's own refresh
	delay   time.Duration // negative: never answers
	fetches int
	times   []time.Time
}

func (s *script) read(refresh time.Duration) origin {
	return func(ctx context.Context) (string, time.Duration, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.fetches++
		s.times = append(s.times, time.Now())
		text, err, fresh, delay := s.text, s.err, s.fresh, s.delay
		if delay != 0 {
			var answered <-chan time.Time
			if delay > 0 {
				answered = time.After(delay)
			}
			s.mu.Unlock()
			defer s.mu.Lock()
			select {
			case <-answered:
			case <-ctx.Done():
				return "", 0, ctx.Err()
			}
		}
		if fresh == 0 {
			fresh = refresh
		}
		return text, fresh, err
	}
}

func (s *script) set(change func(*script)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *script) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches
}

var errDown = errors.New("connection refused")

// inBubble runs a test on a fake clock, with a started source that reads from
// the script.
func inBubble(t *testing.T, e *script, config SourceConfig, test func(t *testing.T, s *Source)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		config.Issuer, config.JWKS = testIssuer, "https://id.example.com/jwks"
		s, err := NewSource(config)
		must(err)
		s.read = e.read(s.config.Refresh)
		s.Start()
		defer s.Stop()
		synctest.Wait() // the first fetch is over, or waits for its answer
		test(t, s)
	})
}

func tokenOf(kid string) string {
	return mint("ES256", p256Key1(), object{"kid": kid}, with(claimsNow(), object{"exp": time.Now().Add(1000 * time.Hour).Unix()}))
}

// S-52, S-74: the endpoint is down at the start. Handshakes are told so at
// once, and a good answer heals that.
func TestSourceDownAtStart(t *testing.T) {
	e := &script{err: errDown}
	inBubble(t, e, SourceConfig{}, func(t *testing.T, s *Source) {
		v := verifierOf(t, s)
		began := time.Now()
		for range 5 {
			if _, err := v.Verify(t.Context(), tokenOf("k")); !errors.Is(err, ErrKeysUnavailable) || errors.Is(err, ErrInvalidToken) {
				t.Fatal(err)
			}
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("waited %s for an endpoint that had failed", waited)
		}
		time.Sleep(10 * time.Second)
		e.set(func(e *script) { e.text, e.err = jwks(jwkOf(p256Key1(), "k")), nil })
		time.Sleep(16 * time.Second) // the longest wait so far was 8s
		wantDetail(t, v, tokenOf("k"), "")
		// From 1s on, doubling, less up to a quarter.
		e.set(func(e *script) {
			for i, wait := range []time.Duration{1, 2, 4, 8} {
				got := e.times[i+1].Sub(e.times[i])
				if wait *= time.Second; got > wait || got < wait*3/4 {
					t.Errorf("attempt %d came after %s, want up to %s", i+1, got, wait)
				}
			}
		})
	})
}

// The backoff ends at refresh, and begins anew after a success.
func TestSourceBackoffEnds(t *testing.T) {
	e := &script{err: errDown}
	inBubble(t, e, SourceConfig{Refresh: 5 * time.Second}, func(_ *testing.T, _ *Source) {
		time.Sleep(time.Minute)
		e.set(func(e *script) {
			for i := 4; i < len(e.times); i++ {
				if got := e.times[i].Sub(e.times[i-1]); got > 5*time.Second || got < 3750*time.Millisecond {
					t.Errorf("attempt %d came after %s", i, got)
				}
			}
			e.err, e.text = nil, everyKey()
		})
		time.Sleep(10 * time.Second)
		n := 0
		e.set(func(e *script) { e.err, n = errDown, e.fetches })
		time.Sleep(5*time.Second + 5*time.Second) // one refresh that fails, then 1s, 2s
		if got := e.count(); got < n+3 {
			t.Errorf("%d attempts after a failure that followed a success", got-n)
		}
	})
}

// S-54: the last good keys serve while the endpoint fails, up to max_stale.
func TestSourceStale(t *testing.T) {
	e := &script{text: jwks(jwkOf(p256Key1(), "k"))}
	inBubble(t, e, SourceConfig{Refresh: time.Minute, MaxStale: time.Hour}, func(t *testing.T, s *Source) {
		v := verifierOf(t, s)
		token := tokenOf("k")
		wantDetail(t, v, token, "")
		e.set(func(e *script) { e.err = errDown })
		time.Sleep(59 * time.Minute)
		wantDetail(t, v, token, "")
		wantDetail(t, v, tokenOf("k"), "")
		time.Sleep(2 * time.Minute)
		// A remembered token is refused like any other.
		for _, token := range []string{token, tokenOf("k")} {
			if _, err := v.Verify(t.Context(), token); !errors.Is(err, ErrKeysUnavailable) {
				t.Error(err)
			}
		}
		e.set(func(e *script) { e.err = nil })
		time.Sleep(time.Minute)
		wantDetail(t, v, token, "")
	})
}

// S-58 with a clock: answers without a usable key are failures, and change
// nothing.
func TestSourceKeepsGoodKeys(t *testing.T) {
	e := &script{text: jwks(jwkOf(p256Key1(), "k"))}
	inBubble(t, e, SourceConfig{Refresh: time.Minute}, func(t *testing.T, s *Source) {
		v := verifierOf(t, s)
		for _, text := range []string{`{"keys":[]}`, "<html>", "", `{"keys":[{"kty":"oct","k":"AAAA"}]}`, `{"keys":[` + strings.Repeat("{},", maxKeys+1) + `{}]}`} {
			e.set(func(e *script) { e.text = text })
			time.Sleep(5 * time.Minute)
			wantDetail(t, v, tokenOf("k"), "")
		}
		if age, ok := s.Age(); !ok || age < 20*time.Minute {
			t.Errorf("age %s, though no answer was good", age)
		}
	})
}

// S-62: a new key is found by its kid with one fetch; a removed one is gone
// after the next refresh, also for remembered tokens.
func TestSourceRotation(t *testing.T) {
	e := &script{text: jwks(jwkOf(p256Key1(), "k1"))}
	inBubble(t, e, SourceConfig{}, func(t *testing.T, s *Source) {
		v := verifierOf(t, s)
		old := tokenOf("k1")
		wantDetail(t, v, old, "")
		both := jwks(jwkOf(p256Key1(), "k1"), jwkOf(p256Key2(), "k2"))
		e.set(func(e *script) { e.text = both })
		fresh := mint("ES256", p256Key2(), object{"kid": "k2"}, claimsNow())
		wantDetail(t, v, fresh, "")
		wantDetail(t, v, old, "")
		if n := e.count(); n != 2 {
			t.Errorf("%d fetches", n)
		}
		e.set(func(e *script) { e.text = jwks(jwkOf(p256Key2(), "k2")) })
		wantDetail(t, v, old, "") // not known yet
		time.Sleep(DefaultRefresh + time.Second)
		wantDetail(t, v, old, "unknown kid")
		wantDetail(t, v, fresh, "")
	})
}

// A refresh that brings the same keys does not make tokens be forgotten.
func TestSourceGeneration(t *testing.T) {
	e := &script{text: jwks(jwkOf(p256Key1(), "a"), jwkOf(p256Key2(), "b"))}
	inBubble(t, e, SourceConfig{Refresh: time.Minute}, func(t *testing.T, s *Source) {
		before := s.current.Load()
		e.set(func(e *script) { e.text = jwks(jwkOf(p256Key2(), "b"), jwkOf(p256Key1(), "a")) })
		time.Sleep(61 * time.Second)
		after := s.current.Load()
		if before == after || before.generation != after.generation || !after.fetched.After(before.fetched) {
			t.Error("the same keys in another order are a new generation")
		}
		e.set(func(e *script) { e.text = jwks(jwkOf(p256Key2(), "a"), jwkOf(p256Key1(), "b")) })
		time.Sleep(time.Minute)
		if s.current.Load().generation == before.generation {
			t.Error("keys that changed places are the same generation")
		}
	})
}

// S-63: 10,000 made-up kids in 10 s cost one fetch, and nobody with a known
// key notices.
func TestSourceKidFlood(t *testing.T) {
	e := &script{text: jwks(jwkOf(p256Key1(), "k")), delay: 200 * time.Millisecond}
	inBubble(t, e, SourceConfig{}, func(t *testing.T, s *Source) {
		v := verifierOf(t, s)
		wantDetail(t, v, tokenOf("k"), "")
		rest := tokenOf("k")
		rest = rest[strings.IndexByte(rest, '.'):]
		began := time.Now()
		var flood sync.WaitGroup
		for i := range 10_000 {
			token := b64(fmt.Appendf(nil, `{"alg":"ES256","kid":"random-%d"}`, i)) + rest
			flood.Go(func() {
				if _, err := v.Verify(t.Context(), token); Detail(err) != "unknown kid" {
					t.Error(err)
				}
			})
			if i%100 == 0 {
				before := time.Now()
				wantDetail(t, v, tokenOf("k"), "")
				if time.Since(before) != 0 {
					t.Error("a known kid waited")
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		flood.Wait()
		if n := e.count(); n != 2 {
			t.Errorf("%d fetches in %s", n, time.Since(began))
		}
		// The next one is due after the cooldown.
		time.Sleep(DefaultCooldown)
		wantDetail(t, v, tokenOf("x"), "unknown kid")
		wantDetail(t, v, tokenOf("y"), "unknown kid")
		if n := e.count(); n != 3 {
			t.Errorf("%d fetches after the cooldown", n)
		}
	})
}

// S-66: a cold start with 1,000 handshakes at once is one fetch, which all
// wait for.
func TestSourceColdHerd(t *testing.T) {
	e := &script{text: jwks(jwkOf(p256Key1(), "k")), delay: 300 * time.Millisecond}
	inBubble(t, e, SourceConfig{}, func(t *testing.T, s *Source) {
		v := verifierOf(t, s)
		token := tokenOf("k")
		var herd sync.WaitGroup
		var accepted atomic.Int32
		for range 1000 {
			herd.Go(func() {
				if _, err := v.Verify(t.Context(), token); err == nil {
					accepted.Add(1)
				}
			})
		}
		herd.Wait()
		if accepted.Load() != 1000 || e.count() != 1 {
			t.Errorf("%d of 1000 accepted, %d fetches", accepted.Load(), e.count())
		}
	})
}

// S-55: an endpoint that hangs holds nobody with a known kid, and others no
// longer than the timeout; there is one fetch at a time.
func TestSourceHangs(t *testing.T) {
	e := &script{delay: -1}
	inBubble(t, e, SourceConfig{}, func(t *testing.T, s *Source) {
		v := verifierOf(t, s)
		took := func(verify func()) time.Duration {
			began := time.Now()
			verify()
			return time.Since(began)
		}
		unavailable := func() {
			if _, err := v.Verify(t.Context(), tokenOf("k")); !errors.Is(err, ErrKeysUnavailable) {
				t.Error(err)
			}
		}
		if d := took(unavailable); d != DefaultTimeout {
			t.Errorf("the first fetch was waited for %s", d)
		}
		if d := took(unavailable); d != 0 {
			t.Errorf("after it failed, a handshake waited %s", d)
		}
		e.set(func(e *script) { e.delay, e.text = 0, jwks(jwkOf(p256Key1(), "k")) })
		time.Sleep(10 * time.Second)
		e.set(func(e *script) { e.delay = -1 })
		before := e.count()
		var waiting sync.WaitGroup
		for i := range 100 {
			waiting.Go(func() {
				if d := took(func() { wantDetail(t, v, tokenOf(fmt.Sprint(i)), "unknown kid") }); d > DefaultTimeout {
					t.Errorf("an unknown kid waited %s", d)
				}
			})
		}
		if d := took(func() { wantDetail(t, v, tokenOf("k"), "") }); d != 0 {
			t.Errorf("a known kid waited %s", d)
		}
		waiting.Wait()
		if n := e.count() - before; n != 1 {
			t.Errorf("%d fetches for unknown kids", n)
		}
		// S-139: waiting ends with the client.
		time.Sleep(DefaultCooldown)
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		began := time.Now()
		if _, err := v.Verify(ctx, tokenOf("x")); Detail(err) != "unknown kid" || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// The wait for the first fetch ends with the client too.
func TestSourceFirstWaitEnds(t *testing.T) {
	inBubble(t, &script{delay: -1}, SourceConfig{}, func(t *testing.T, s *Source) {
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		began := time.Now()
		_, err := verifierOf(t, s).Verify(ctx, tokenOf("k"))
		if !errors.Is(err, ErrKeysUnavailable) || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// S-71: the endpoint's word on freshness counts within bounds, and never so
// long that good keys go stale.
func TestSourceSchedule(t *testing.T) {
	for _, row := range []struct {
		fresh, maxStale, want time.Duration
	}{
		{0, 0, DefaultRefresh},
		{time.Minute, 0, time.Minute},
		{24 * time.Hour, 0, 12 * time.Hour},
		{24 * time.Hour, 72 * time.Hour, 24 * time.Hour},
		{0, 10 * time.Minute, 5 * time.Minute},
	} {
		e := &script{text: everyKey(), fresh: row.fresh}
		inBubble(t, e, SourceConfig{MaxStale: row.maxStale}, func(t *testing.T, _ *Source) {
			time.Sleep(3*row.want + time.Second)
			e.set(func(e *script) {
				if len(e.times) != 4 || e.times[1].Sub(e.times[0]) != row.want {
					t.Errorf("%+v: %d fetches", row, len(e.times))
				}
			})
		})
	}
}

// Start and Stop any number of times, in any order.
func TestSourceLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &script{text: jwks(jwkOf(p256Key1(), "k"))}
		newSource := func() *Source {
			s, err := NewSource(SourceConfig{JWKS: "https://id.example.com/jwks"})
			must(err)
			s.read = e.read(time.Minute)
			return s
		}
		s := newSource()
		time.Sleep(time.Hour)
		if e.count() != 0 {
			t.Fatal("a source that was not started has fetched")
		}
		// Before the start, a handshake waits: it may come any moment.
		go func() { time.Sleep(time.Second); s.Start(); s.Start() }()
		wantDetail(t, verifierOf(t, s), tokenOf("k"), "")
		s.Stop()
		s.Stop()
		s.Start()
		time.Sleep(time.Hour)
		if n := e.count(); n != 1 {
			t.Errorf("%d fetches", n)
		}
		wantDetail(t, verifierOf(t, s), tokenOf("k"), "")
		wantDetail(t, verifierOf(t, s), tokenOf("x"), "unknown kid")

		never := newSource()
		began := time.Now()
		go never.Stop()
		if _, err := verifierOf(t, never).Verify(t.Context(), tokenOf("k")); !errors.Is(err, ErrKeysUnavailable) || time.Since(began) != 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		// A fetch that hangs does not hold Stop.
		e.set(func(e *script) { e.delay = -1 })
		hangs := newSource()
		hangs.Start()
		synctest.Wait()
		hangs.Stop()
		if time.Since(began) != 0 {
			t.Error("Stop waited for the endpoint")
		}
	})
}

// S-68, S-69, S-116: logs say what to do, once, and hold no secret.
func TestSourceLogs(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	var events []FetchEvent
	e := &script{text: jwks(jwkOf(p256Key1(), "k"), object{"kty": "oct", "k": "marker"}, object{"kty": "AKP"})}
	config := SourceConfig{
		Refresh: time.Minute, Logger: zap.New(core),
		Observe: func(event FetchEvent) { events = append(events, event) },
	}
	inBubble(t, e, config, func(t *testing.T, s *Source) {
		time.Sleep(3*time.Minute + time.Second) // four good fetches
		e.set(func(e *script) { e.err = errDown })
		time.Sleep(time.Minute) // a failure
		s.SetLogger(nil)
		time.Sleep(time.Hour)
		s.SetLogger(zap.New(core))
		e.set(func(e *script) { e.err = nil })
		time.Sleep(2 * time.Minute)
		s.Stop()
		if events[0].Result() != "success" || events[0].Keys != 1 || events[0].Age != 0 || events[0].Issuer != testIssuer {
			t.Errorf("first event %+v", events[0])
		}
		if events[4].Result() != "failure" || events[4].Keys != 1 || events[4].Age != time.Minute {
			t.Errorf("fifth event %+v", events[4])
		}
	})
	count := func(message string, level zapcore.Level) int {
		n := 0
		for _, entry := range logs.FilterMessage(message).All() {
			if entry.Level == level {
				n++
			}
		}
		return n
	}
	if n := count("keys fetched", zapcore.InfoLevel); n != 2 {
		t.Errorf("keys fetched: %d lines, want one at first and one after the failures", n)
	}
	if n := count("keys ignored", zapcore.WarnLevel); n != 1 { // S-08
		t.Errorf("keys ignored: %d lines", n)
	}
	if n := count("fetching keys failed", zapcore.WarnLevel); n == 0 {
		t.Error("no line about the failure")
	}
	for _, entry := range logs.All() {
		if line := fmt.Sprint(entry.Message, entry.ContextMap()); strings.Contains(line, "marker") || !strings.Contains(line, testIssuer) {
			t.Error(line)
		}
	}
}

// A key file is read at once, and again in the background.
func TestSourceFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "jwks.json")
		write := func(text string) { must(os.WriteFile(path, []byte(text), 0o600)) }
		config := SourceConfig{File: path, Refresh: time.Minute, MaxStale: time.Hour}
		for _, text := range []string{"", `{"keys":[]}`, "not JSON", strings.Repeat(" ", maxBody) + everyKey()} {
			if _, err := NewSource(config); err == nil {
				t.Errorf("%.20q accepted", text)
			}
			write(text)
		}
		if _, err := NewSource(SourceConfig{File: filepath.Dir(path)}); err == nil {
			t.Error("a directory accepted")
		}
		write(jwks(jwkOf(p256Key1(), "k")))
		s, err := NewSource(config)
		must(err)
		v := verifierOf(t, s)
		wantDetail(t, v, tokenOf("k"), "") // before Start
		s.Start()
		defer s.Stop()
		write("half a fi")
		time.Sleep(10 * time.Minute)
		wantDetail(t, v, tokenOf("k"), "")
		// An unknown kid has the file read again before its time.
		write(jwks(jwkOf(p256Key1(), "new")))
		wantDetail(t, v, tokenOf("new"), "")
		must(os.Remove(path))
		time.Sleep(59 * time.Minute)
		wantDetail(t, v, tokenOf("new"), "")
		time.Sleep(2 * time.Minute)
		if _, err := v.Verify(t.Context(), tokenOf("new")); !errors.Is(err, ErrKeysUnavailable) {
			t.Error(err)
		}
	})
}

// S-69: what a source cannot be.
func TestSourceConfigValidate(t *testing.T) {
	const good = "https://id.example.com/jwks"
	for name, c := range map[string]SourceConfig{
		"nothing":               {},
		"two origins":           {JWKS: good, File: "jwks.json"},
		"two URLs":              {JWKS: good, Discovery: testIssuer},
		"short secret":          {Secret: make([]byte, 31)},
		"http":                  {JWKS: "http://id.example.com/jwks"},
		"http on a private IP":  {JWKS: "http://10.0.0.1/jwks"},
		"http by a lookalike":   {JWKS: "http://localhost.example.com/jwks"},
		"file":                  {JWKS: "file:///etc/keys.json"},
		"ftp":                   {JWKS: "ftp://id.example.com/"},
		"no scheme":             {JWKS: "id.example.com/jwks"},
		"no host":               {JWKS: "https:///jwks"},
		"opaque":                {JWKS: "https:jwks"},
		"userinfo":              {JWKS: "https://user:marker@id.example.com/"},
		"user":                  {JWKS: "https://localhost@evil.example/"},
		"fragment":              {JWKS: good + "#a"},
		"empty fragment":        {JWKS: good + "#"},
		"metadata service":      {JWKS: "https://169.254.169.254/latest"},
		"metadata service http": {JWKS: "http://169.254.169.254/latest"},
		"mapped":                {JWKS: "https://[::ffff:169.254.169.254]/"},
		"link-local IPv6":       {JWKS: "https://[fe80::1]/"},
		"link-local with zone":  {JWKS: "https://[fe80::1%25eth0]/"},
		"NAT64":                 {JWKS: "https://[64:ff9b::169.254.169.254]/"},
		"control character":     {JWKS: "https://id.example.com/\n"},
		"issuer with query":     {Discovery: "https://id.example.com/?a"},
		"issuer over http":      {Discovery: "http://id.example.com/"},
		"refresh":               {JWKS: good, Refresh: 999 * time.Millisecond},
		"negative refresh":      {JWKS: good, Refresh: -time.Minute},
		"max_stale":             {JWKS: good, MaxStale: -1},
		"cooldown":              {JWKS: good, Cooldown: -1},
		"timeout":               {JWKS: good, Timeout: -1},
		"tls_ca with a file":    {File: "jwks.json", CAFile: "ca.pem"},
	} {
		err := c.Validate()
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "marker") {
			t.Errorf("%s: the error has a password in it: %v", name, err)
		}
		if _, err := NewSource(c); err == nil {
			t.Errorf("%s: NewSource accepted", name)
		}
	}
	for _, c := range []SourceConfig{
		{JWKS: good}, {JWKS: "http://localhost:1/"}, {JWKS: "http://127.0.0.1/"}, {JWKS: "http://[::1]:8080/k?a=b"},
		{JWKS: "HTTPS://id.example.com"}, {JWKS: "http://id.localhost/"}, {JWKS: "https://10.0.0.1/"},
		{Discovery: testIssuer}, {Discovery: testIssuer + "/realms/a/"}, {Discovery: "http://localhost:8080/realms/a"},
		{JWKS: good, Refresh: time.Second, MaxStale: time.Hour, Cooldown: time.Second, Timeout: time.Second},
		{Secret: make([]byte, 32)},
	} {
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestSourceConfigKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	must(os.WriteFile(path, []byte("one"), 0o600))
	base := SourceConfig{JWKS: "https://id.example.com/jwks", CAFile: path}
	key := base.Key()
	same := base
	same.Refresh, same.Logger, same.Observe = DefaultRefresh, zap.NewNop(), func(FetchEvent) {}
	if same.Key() != key {
		t.Error("a default that is written out, a logger or an observer makes another source")
	}
	secret := SourceConfig{Secret: []byte(strings.Repeat("s", 32))}
	other := SourceConfig{Secret: []byte(strings.Repeat("t", 32))}
	seen := map[string]bool{key: true, secret.Key(): true, other.Key(): true}
	for _, change := range []func(*SourceConfig){
		func(c *SourceConfig) { c.Issuer = "x" }, func(c *SourceConfig) { c.Refresh = time.Hour },
		func(c *SourceConfig) { c.JWKS += "x" }, func(c *SourceConfig) { c.CAFile = "" },
		func(c *SourceConfig) { c.Discovery, c.JWKS = c.JWKS, "" }, func(c *SourceConfig) { c.Timeout = time.Hour },
		func(c *SourceConfig) { c.Cooldown = time.Hour }, func(c *SourceConfig) { c.MaxStale = time.Hour },
	} {
		c := base
		change(&c)
		seen[c.Key()] = true
	}
	must(os.WriteFile(path, []byte("two"), 0o600))
	seen[base.Key()] = true
	if len(seen) != 12 {
		t.Errorf("%d keys for 12 configurations", len(seen))
	}
	if strings.Contains(secret.Key(), "ssss") {
		t.Error("the key reveals the secret")
	}
}

// A reload brings a new logger while the source fetches: for the race detector.
func TestSourceSetLoggerRace(t *testing.T) {
	e := &script{err: errDown}
	inBubble(t, e, SourceConfig{Refresh: time.Second}, func(_ *testing.T, s *Source) {
		var loggers sync.WaitGroup
		for range 4 {
			loggers.Go(func() {
				for range 20 {
					s.SetLogger(zap.NewNop())
					time.Sleep(500 * time.Millisecond)
				}
			})
		}
		loggers.Wait()
	})
}
