package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// A token that comes again is the same one, as long as nothing has changed.
func TestRemembered(t *testing.T) {
	source := fixedSource(jwks(jwkOf(p256Key1(), "k")))
	v := verifierOf(t, source, func(_ *Issuer, c *VerifierConfig) { c.Leeway = 10 * time.Second })
	now := time.Now()
	v.now = func() time.Time { return now }
	claims := with(claimsNow(), object{"exp": now.Unix() + 100, "nbf": now.Unix(), "iat": now.Unix()})
	token := mint("ES256", p256Key1(), object{"kid": "k"}, claims)
	first := wantDetail(t, v, token, "")
	known := func() bool { return v.recall(tokenSum(token)) != nil }
	if !known() {
		t.Error("not remembered")
	}
	if again := wantDetail(t, v, token, ""); !reflect.DeepEqual(again, first) {
		t.Errorf("remembered as %+v, was %+v", again, first)
	}
	// Another text is another token, even where it says the same.
	wantDetail(t, v, mint("ES256", p256Key1(), object{"kid": "k"}, claims), "")
	if v.remembered.size() != 2 {
		t.Error("two signatures are one token")
	}
	// S-34, S-35: times are looked at every time, to the second.
	for offset, detail := range map[time.Duration]string{
		0: "", -10 * time.Second: "", -12 * time.Second: "not yet valid",
		109 * time.Second: "", 111 * time.Second: "expired",
	} {
		v.now = func() time.Time { return now.Add(offset) }
		wantDetail(t, v, token, detail)
	}
	v.now = func() time.Time { return now }
	// Another snapshot with other keys.
	set, err := parseKeySet(jwks(jwkOf(p256Key2(), "k")))
	must(err)
	set.fetched, set.generation = time.Now(), 2
	source.current.Store(set)
	wantDetail(t, v, token, "bad signature")
	// And back: what was remembered of another generation does not count.
	set, err = parseKeySet(jwks(jwkOf(p256Key1(), "k")))
	must(err)
	set.fetched, set.generation = time.Now(), 3
	source.current.Store(set)
	if known() {
		t.Error("remembered over a change of keys")
	}
	wantDetail(t, v, token, "")
}

// A refused token leaves nothing behind (S-192).
func TestRefusedIsNotRemembered(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	for _, claims := range []object{claimsNow(), with(claimsNow(), object{"aud": "x"}), with(claimsNow(), object{"exp": 1})} {
		_, _ = v.Verify(context.Background(), mint("ES256", p256Key2(), object{"kid": "k"}, claims))
	}
	_, _ = v.Verify(context.Background(), mint("ES256", p256Key1(), object{"kid": "k"}, with(claimsNow(), object{"aud": "x"})))
	if n := v.remembered.size(); n != 0 {
		t.Errorf("%d tokens remembered", n)
	}
}

func (m *memory) size() int {
	n := 0
	for i := range m.shards {
		n += len(m.shards[i].index)
	}
	return n
}

// The memory is bounded, keeps what is used, and loses nothing it says it has.
func TestMemoryBound(t *testing.T) {
	issuer := &Issuer{Keys: secretSource(make([]byte, 32))}
	m := newMemory()
	entry := func(i int) (sum, remembered) {
		return sha256.Sum256(fmt.Append(nil, i)), remembered{
			payload: fmt.Sprint(i), issuer: issuer, generation: issuer.Keys.current.Load().generation,
		}
	}
	favourite, kept := entry(-1)
	m.put(favourite, kept)
	for i := range 20_000 {
		m.put(entry(i))
		m.put(entry(i)) // again: takes no second slot
		if _, ok := m.find(favourite); !ok {
			t.Fatalf("the one that is used is lost after %d", i)
		}
	}
	if n := m.size(); n != memoryShards*shardSize {
		t.Errorf("%d tokens", n)
	}
	for i := range 20_000 {
		s, _ := entry(i)
		if found, ok := m.find(s); ok && found.payload != fmt.Sprint(i) {
			t.Fatalf("%s in place of %d", found.payload, i)
		}
	}
}

// S-214: verification, refreshes and the memory together.
func TestVerifyParallel(t *testing.T) {
	source := fixedSource(jwks(jwkOf(p256Key1(), "k")))
	v := verifierOf(t, source)
	tokens := []string{tokenOf("k"), tokenOf("k"), tokenOf("x"), "x.y.z"}
	var workers sync.WaitGroup
	for i := range 8 {
		workers.Go(func() {
			for j := range 50 {
				_, _ = v.Verify(context.Background(), tokens[(i+j)%len(tokens)])
				if i == 0 {
					set := *source.current.Load()
					set.generation++
					source.current.Store(&set)
				}
			}
		})
	}
	workers.Wait()
}

// distinct mints n tokens that the memory has not seen.
func distinct(n int) []string {
	tokens := make([]string, n)
	for i := range tokens {
		tokens[i] = mint("ES256", p256Key1(), object{"kid": "k"}, with(claimsNow(), object{
			"jti": fmt.Sprint(i), "scope": "chat:read chat:write", "realm_access": object{"roles": []string{"a", "b"}},
		}))
	}
	return tokens
}

func BenchmarkVerifyES256(b *testing.B) {
	v := verifierOf(b, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	tokens := distinct(1000)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if i%len(tokens) == 0 {
			v.remembered = newMemory()
		}
		if _, err := v.Verify(context.Background(), tokens[i%len(tokens)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// BenchmarkVerifyBad is what a stranger's token costs: never more than a good
// one, and nothing of it is kept.
func BenchmarkVerifyBad(b *testing.B) {
	good := distinct(1)[0]
	for name, token := range map[string]string{
		"signature":   mint("ES256", p256Key2(), object{"kid": "k"}, claimsNow()),
		"unknown kid": mint("ES256", p256Key2(), object{"kid": "x"}, claimsNow()),
		"algorithm":   mint("HS256", make([]byte, 32), object{"kid": "k"}, claimsNow()),
		"form":        good + "=",
		"dots":        strings.Repeat(".", maxToken),
		"too long":    strings.Repeat("a", 1<<20),
	} {
		b.Run(name, func(b *testing.B) {
			v := verifierOf(b, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(context.Background(), token); err == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
}

func BenchmarkVerifyRemembered(b *testing.B) {
	v := verifierOf(b, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	tokens := distinct(1000)
	for _, token := range tokens {
		if _, err := v.Verify(context.Background(), token); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := v.Verify(context.Background(), tokens[i%len(tokens)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// The two ways into jwx, for the choice that jwx.go has made, and what the
// parsing before it costs.
func BenchmarkSignature(b *testing.B) {
	token := distinct(1)[0]
	c, err := parseCompact(token)
	must(err)
	public := p256Key1().Public()
	b.Run("jws.NewVerifier", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(verifySignature("ES256", public, c.signed, c.signature))
		}
	})
	b.Run("jws.Verify", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := jws.Verify([]byte(token), jws.WithKey(jwa.ES256, public))
			must(err)
		}
	})
	b.Run("crypto/ecdsa", func(b *testing.B) {
		b.ReportAllocs()
		r, s := new(big.Int).SetBytes(c.signature[:32]), new(big.Int).SetBytes(c.signature[32:])
		for b.Loop() {
			digest := sha256.Sum256(c.signed)
			if !ecdsa.Verify(p256Key1().Public().(*ecdsa.PublicKey), digest[:], r, s) {
				b.Fatal("does not verify")
			}
		}
	})
	b.Run("parseCompact", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := parseCompact(token)
			must(err)
		}
	})
}
