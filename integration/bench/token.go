package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

const (
	issuerName = "https://bench.example/"
	audience   = "bench"
)

// issuer makes ES256 tokens; its public key lies in two files, for those who
// read JWKS and those who read PEM.
type issuer struct{ key *ecdsa.PrivateKey }

func jwksFile(dir string) string { return filepath.Join(dir, "jwks.json") }
func pemFile(dir string) string  { return filepath.Join(dir, "key.pem") }

func newIssuer(dir string) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	point, err := key.PublicKey.Bytes() // 0x04, x, y
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	set, err := json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "kid": "bench", "alg": "ES256", "use": "sig",
		"x": encode(point[1:33]), "y": encode(point[33:]),
	}}})
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	for file, content := range map[string][]byte{
		jwksFile(dir): set,
		pemFile(dir):  pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
	} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return nil, err
		}
	}
	return &issuer{key}, nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (i *issuer) token(n int) string {
	now := time.Now()
	input := encode([]byte(`{"alg":"ES256","kid":"bench","typ":"JWT"}`)) + "." + encode(fmt.Appendf(nil,
		`{"iss":%q,"aud":%q,"sub":"user-%d","iat":%d,"exp":%d,"jti":"%d"}`,
		issuerName, audience, n, now.Unix(), now.Add(24*time.Hour).Unix(), n))
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, digest[:])
	if err != nil {
		panic(err) // no randomness
	}
	return input + "." + encode(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// tokens are made before any measurement.
type tokens struct {
	all  []string
	used atomic.Int64
}

// handshakesPerTurn bounds a turn of the handshake load, so that loopback's
// ports and the tokens suffice.
const handshakesPerTurn = 6000

func newTokens(i *issuer, o options) *tokens {
	t := new(tokens)
	n := 1
	if !o.sameToken {
		n = 4*handshakesPerTurn + o.sockets
		if o.only != "" {
			n = 2*handshakesPerTurn + o.sockets
		}
	}
	for k := range n {
		t.all = append(t.all, i.token(k))
	}
	return t
}

// next is a token that was not used for a long time: what a proxy remembers of
// tokens does not help it, unless -same-token asks for that.
func (t *tokens) next() string {
	return t.all[int(t.used.Add(1))%len(t.all)]
}
