package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"sync"
	"testing"
	"time"
)

// The tests mint their own tokens, with the standard library alone: what the
// package verifies with is not what it is tested with.

const testIssuer = "https://id.example.com"

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

var (
	rsaKey1  = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(2048) })
	rsaKey2  = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(2048) })
	rsaSmall = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(1024) })
	p256Key1 = sync.OnceValue(func() *ecdsa.PrivateKey { return newEC(elliptic.P256()) })
	p256Key2 = sync.OnceValue(func() *ecdsa.PrivateKey { return newEC(elliptic.P256()) })
	p384Key  = sync.OnceValue(func() *ecdsa.PrivateKey { return newEC(elliptic.P384()) })
	p521Key  = sync.OnceValue(func() *ecdsa.PrivateKey { return newEC(elliptic.P521()) })
	edKey    = sync.OnceValue(func() ed25519.PrivateKey {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		must(err)
		return private
	})
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func newRSA(bits int) *rsa.PrivateKey {
	private, err := rsa.GenerateKey(rand.Reader, bits)
	must(err)
	return private
}

func newEC(curve elliptic.Curve) *ecdsa.PrivateKey {
	private, err := ecdsa.GenerateKey(curve, rand.Reader)
	must(err)
	return private
}

type object = map[string]any

// jwkOf is the JWK of a private key's public half, with more members added or
// replaced.
func jwkOf(private crypto.Signer, kid string, more ...object) object {
	jwk := object{}
	if kid != "" {
		jwk["kid"] = kid
	}
	switch public := private.Public().(type) {
	case *rsa.PublicKey:
		jwk["kty"], jwk["n"], jwk["e"] = "RSA", b64(public.N.Bytes()), b64(big.NewInt(int64(public.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		must(err)
		size := (len(point) - 1) / 2
		jwk["kty"], jwk["crv"] = "EC", public.Params().Name
		jwk["x"], jwk["y"] = b64(point[1:1+size]), b64(point[1+size:])
	case ed25519.PublicKey:
		jwk["kty"], jwk["crv"], jwk["x"] = "OKP", "Ed25519", b64(public)
	}
	for _, members := range more {
		maps.Copy(jwk, members)
	}
	return jwk
}

func jwks(keys ...object) string { return toJSON(object{"keys": keys}) }

func toJSON(v any) string {
	text, err := json.Marshal(v)
	must(err)
	return string(text)
}

// with copies an object, with some members replaced, and those that are
// `absent` removed.
func with(o object, changes object) object {
	o = maps.Clone(o)
	for name, value := range changes {
		if value == absent {
			delete(o, name)
		} else {
			o[name] = value
		}
	}
	return o
}

var absent struct{ absent bool }

// claimsNow are the claims of a token that every default takes.
func claimsNow() object {
	return object{
		"iss": testIssuer, "sub": "user-1", "aud": "chat",
		"exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
	}
}

// mint signs a token. Header and claims are JSON texts or objects.
func mint(alg string, key any, header, claims any) string {
	text := func(v any) string {
		if s, ok := v.(string); ok {
			return s
		}
		if o, ok := v.(object); ok && o["alg"] == nil && alg != "" {
			v = with(o, object{"alg": alg})
		}
		return toJSON(v)
	}
	claimsText, ok := claims.(string)
	if !ok {
		claimsText = toJSON(claims)
	}
	input := b64([]byte(text(header))) + "." + b64([]byte(claimsText))
	return input + "." + b64(sign(alg, key, []byte(input)))
}

var hashes = map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}

func sign(alg string, key any, input []byte) []byte {
	if alg == "EdDSA" || alg == "Ed25519" {
		return ed25519.Sign(key.(ed25519.PrivateKey), input)
	}
	hash := hashes[alg[2:]]
	h := hash.New()
	h.Write(input)
	digest := h.Sum(nil)
	var signature []byte
	var err error
	switch alg[:2] {
	case "HS":
		mac := hmac.New(hash.New, key.([]byte))
		mac.Write(input)
		return mac.Sum(nil)
	case "RS":
		signature, err = rsa.SignPKCS1v15(rand.Reader, key.(*rsa.PrivateKey), hash, digest)
	case "PS":
		signature, err = rsa.SignPSS(rand.Reader, key.(*rsa.PrivateKey), hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case "ES":
		private := key.(*ecdsa.PrivateKey)
		r, s, e := ecdsa.Sign(rand.Reader, private, digest)
		size := (private.Params().BitSize + 7) / 8
		err, signature = e, append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	}
	must(err)
	return signature
}

// fixedSource is a source whose keys are these, without any goroutine.
func fixedSource(keySetText string) *Source {
	s, err := NewSource(SourceConfig{Issuer: testIssuer, JWKS: "https://id.example.com/jwks", Timeout: 50 * time.Millisecond})
	must(err)
	set, err := parseKeySet(keySetText)
	must(err)
	set.fetched, set.generation = time.Now(), 1
	s.current.Store(set)
	return s
}

func secretSource(secret []byte) *Source {
	s, err := NewSource(SourceConfig{Secret: secret})
	must(err)
	return s
}

// verifierOf is a verifier for testIssuer and the audience chat.
func verifierOf(t testing.TB, keys *Source, change ...func(*Issuer, *VerifierConfig)) *Verifier {
	t.Helper()
	issuer := &Issuer{Name: testIssuer, Keys: keys, Audience: []string{"chat"}}
	config := VerifierConfig{Issuers: []*Issuer{issuer}}
	for _, f := range change {
		f(issuer, &config)
	}
	v, err := NewVerifier(config)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// wantDetail verifies a token and compares the cause of its refusal; "" wants
// it accepted.
func wantDetail(t *testing.T, v *Verifier, token, detail string) *Token {
	t.Helper()
	verified, err := v.Verify(context.Background(), token)
	if got := Detail(err); got != detail || (err == nil) != (detail == "") {
		t.Fatalf("Verify: %v (detail %q), want detail %q", err, got, detail)
	}
	if detail != "" && !errors.Is(err, ErrInvalidToken) && !errors.Is(err, ErrKeysUnavailable) {
		t.Fatalf("Verify: %v is neither an invalid token nor a lack of keys", err)
	}
	if (verified == nil) != (err != nil) {
		t.Fatalf("Verify: token %v with error %v", verified, err)
	}
	return verified
}
