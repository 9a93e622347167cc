package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// identityProvider is as much of an OpenID provider as a gate needs: it says
// where its keys are, and signs tokens. It gives one to everybody who asks,
// with whatever they ask for, so it is good for a demo and nothing else.
type identityProvider struct {
	issuer string
	keys   map[string]signingKey // by algorithm
}

// signingKey is one private key and how it is announced.
type signingKey interface {
	// sign returns a JWS signature (RFC 7518 §3).
	sign(input []byte) ([]byte, error)

	// jwk returns the public half (RFC 7517).
	jwk() map[string]string
}

func newIdentityProvider(issuer string) (*identityProvider, error) {
	p := &identityProvider{issuer: issuer, keys: map[string]signingKey{}}
	for _, alg := range []string{"RS256", "ES256"} {
		key, err := newSigningKey(alg)
		if err != nil {
			return nil, err
		}
		p.keys[alg] = key
	}
	return p, nil
}

func (p *identityProvider) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", p.serveDiscovery)
	mux.HandleFunc("GET /jwks.json", p.serveKeys)
	mux.HandleFunc("GET /token", p.serveToken)
	mux.HandleFunc("POST /token", p.serveToken)
	mux.HandleFunc("POST /session", serveLogin)
	mux.HandleFunc("DELETE /session", serveLogout)
	return mux
}

func (p *identityProvider) serveDiscovery(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]any{
		"issuer":                                p.issuer,
		"jwks_uri":                              p.issuer + "/jwks.json",
		"token_endpoint":                        p.issuer + "/token",
		"response_types_supported":              []string{"token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256", "ES256"},
	})
}

func (p *identityProvider) serveKeys(w http.ResponseWriter, _ *http.Request) {
	var keys []map[string]string
	for alg, key := range p.keys {
		jwk := key.jwk()
		jwk["kid"], jwk["alg"], jwk["use"] = kid(alg), alg, "sig"
		keys = append(keys, jwk)
	}
	writeJSON(w, map[string]any{"keys": keys})
}

func (p *identityProvider) serveToken(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	token, err := p.token(r.Form, time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.WriteString(w, token+"\n")
}

// token makes a JWT. The form may say: sub, name and aud; exp, how long it is
// good for, in seconds or as a duration (5m); alg, RS256 or ES256; and bad,
// one of
//
//	expired   it was good until an hour ago
//	audience  it is for another service
//	key       another key than the announced one signed it
func (p *identityProvider) token(form url.Values, now time.Time) (string, error) {
	value := func(name, fallback string) string {
		if v := form.Get(name); v != "" {
			return v
		}
		return fallback
	}
	lifetime, err := seconds(value("exp", "300"))
	if err != nil {
		return "", err
	}
	alg := value("alg", "RS256")
	key, ok := p.keys[alg]
	if !ok {
		return "", fmt.Errorf("alg is RS256 or ES256, not %q", alg)
	}
	sub := value("sub", "demo")
	claims := map[string]any{
		"iss":  p.issuer,
		"sub":  sub,
		"name": value("name", sub),
		"aud":  value("aud", "demo"),
		"iat":  now.Unix(),
		"exp":  now.Add(lifetime).Unix(),
		"jti":  rand.Text(),
	}
	switch bad := form.Get("bad"); bad {
	case "":
	case "expired":
		claims["iat"], claims["exp"] = now.Add(-2*time.Hour).Unix(), now.Add(-time.Hour).Unix()
	case "audience":
		claims["aud"] = "another-service"
	case "key":
		if key, err = newSigningKey(alg); err != nil {
			return "", err
		}
	default:
		return "", fmt.Errorf("bad is expired, audience or key, not %q", bad)
	}
	return signJWT(key, map[string]any{"typ": "JWT", "alg": alg, "kid": kid(alg)}, claims)
}

// seconds reads a lifetime. A negative one makes a token that has expired.
func seconds(s string) (time.Duration, error) {
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("exp is a number of seconds or a duration, not %q", s)
	}
	return d, nil
}

// signJWT writes the compact form (RFC 7515 §7.1).
func signJWT(key signingKey, header, claims map[string]any) (string, error) {
	h, err := json.Marshal(header)
	if err != nil {
		return "", err
	}
	c, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	input := encode(h) + "." + encode(c)
	signature, err := key.sign([]byte(input))
	if err != nil {
		return "", err
	}
	return input + "." + encode(signature), nil
}

// kid names the one key of an algorithm.
func kid(alg string) string { return "demo-" + alg }

func newSigningKey(alg string) (signingKey, error) {
	if alg == "ES256" {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		return ecKey{key}, err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	return rsaKey{key}, err
}

type rsaKey struct{ *rsa.PrivateKey }

func (k rsaKey) sign(input []byte) ([]byte, error) {
	digest := sha256.Sum256(input)
	return rsa.SignPKCS1v15(nil, k.PrivateKey, crypto.SHA256, digest[:])
}

func (k rsaKey) jwk() map[string]string {
	return map[string]string{
		"kty": "RSA",
		"n":   encode(k.N.Bytes()),
		"e":   encode(big.NewInt(int64(k.E)).Bytes()),
	}
}

type ecKey struct{ *ecdsa.PrivateKey }

// sign puts the two numbers side by side (RFC 7518 §3.4).
func (k ecKey) sign(input []byte) ([]byte, error) {
	digest := sha256.Sum256(input)
	r, s, err := ecdsa.Sign(rand.Reader, k.PrivateKey, digest[:])
	if err != nil {
		return nil, err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signature, nil
}

func (k ecKey) jwk() map[string]string {
	point, err := k.PublicKey.Bytes() // 4, x, y
	if err != nil {
		panic(err) // not for a key that was just made
	}
	return map[string]string{
		"kty": "EC",
		"crv": "P-256",
		"x":   encode(point[1:33]),
		"y":   encode(point[33:]),
	}
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
