package integration

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// signingKey is a key of an identity provider.
type signingKey struct {
	kid, alg string
	private  crypto.Signer
}

func newECKey(kid string) *signingKey {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return &signingKey{kid, "ES256", private}
}

// commonKeys are shared by all tests, since making an RSA key takes long.
var commonKeys = sync.OnceValue(func() map[string]*signingKey {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return map[string]*signingKey{
		"RS256": {"rsa-1", "RS256", rsaKey},
		"ES256": newECKey("ec-1"),
		"EdDSA": {"ed-1", "EdDSA", edKey},
	}
})

// algorithms are those that every identity provider of the tests signs with.
var algorithms = []string{"RS256", "ES256", "EdDSA"}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// jwk is the public key as a member of a JWKS.
func (k *signingKey) jwk() map[string]any {
	m := map[string]any{"kid": k.kid, "alg": k.alg, "use": "sig"}
	switch public := k.private.Public().(type) {
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(public.N.Bytes()), b64(big.NewInt(int64(public.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := public.Bytes() // 0x04, x, y
		if err != nil {
			panic(err)
		}
		m["kty"], m["crv"], m["x"], m["y"] = "EC", "P-256", b64(point[1:33]), b64(point[33:])
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", b64(public)
	}
	return m
}

// sign makes the signature part over the first two.
func (k *signingKey) sign(input string) []byte {
	digest := sha256.Sum256([]byte(input))
	switch private := k.private.(type) {
	case *rsa.PrivateKey:
		sig, err := rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest[:])
		if err != nil {
			panic(err)
		}
		return sig
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
		if err != nil {
			panic(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case ed25519.PrivateKey:
		return ed25519.Sign(private, []byte(input))
	}
	panic("unknown key type")
}

// compact signs header and payload exactly as they are written.
func (k *signingKey) compact(header, payload string) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(k.sign(input))
}

// hs256 signs header and payload with a shared secret.
func hs256(secret []byte, header, payload string) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + b64(mac.Sum(nil))
}

// claims override the usual ones; nil removes one.
type claims map[string]any

// idp is a scripted identity provider: discovery and a JWKS.
type idp struct {
	t      testing.TB
	url    string
	issuer string
	caFile string // set when it speaks TLS

	gets       atomic.Int64 // requests for the JWKS
	discovered atomic.Int64 // requests for the discovery document

	mu     sync.Mutex
	keys   []*signingKey
	script func(w http.ResponseWriter, r *http.Request) bool // answers in place of the JWKS if it returns true
	server *httptest.Server
}

// newIDP starts an identity provider on loopback, over plain HTTP.
func newIDP(t testing.TB) *idp { return newIDPOn(t, false, "") }

func newIDPOn(t testing.TB, secure bool, addr string) *idp {
	t.Helper()
	p := &idp{t: t}
	for _, alg := range algorithms {
		p.keys = append(p.keys, commonKeys()[alg])
	}
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	if addr != "" {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		p.server.Listener.Close()
		p.server.Listener = ln
	}
	if secure {
		p.server.TLS = serverTLS(t)
		p.server.StartTLS()
		p.caFile = filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(p.caFile, testAuthority().pem, 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		p.server.Start()
	}
	p.url = p.server.URL
	p.issuer = p.url + "/"
	t.Cleanup(func() {
		p.server.CloseClientConnections()
		p.server.Close()
	})
	return p
}

func (p *idp) jwksURL() string { return p.url + "/jwks.json" }

// publish replaces the keys of the set.
func (p *idp) publish(keys ...*signingKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
}

// answerWith sets a script that answers in place of the JWKS; nil ends it.
func (p *idp) answerWith(script func(w http.ResponseWriter, r *http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.script = script
}

func (p *idp) set() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	members := []map[string]any{}
	for _, k := range p.keys {
		members = append(members, k.jwk())
	}
	content, err := json.Marshal(map[string]any{"keys": members})
	if err != nil {
		panic(err)
	}
	return content
}

func (p *idp) serve(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		p.discovered.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": p.issuer, "jwks_uri": p.jwksURL()})
	case "/jwks.json":
		p.gets.Add(1)
		p.mu.Lock()
		script := p.script
		p.mu.Unlock()
		if script != nil && script(w, r) {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(p.set())
	default:
		http.NotFound(w, r)
	}
}

// usual are the claims of a good token with those of c over them.
func (p *idp) usual(c claims) string {
	now := time.Now().Unix()
	all := claims{
		"iss": p.issuer, "aud": "chat", "sub": "alice", "iat": now, "exp": now + 3600,
		"jti": fmt.Sprintf("id-%s", rand.Text()),
	}
	maps.Copy(all, c)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return string(payload)
}

// mint makes a token with the usual claims, those of c over them.
func (p *idp) mint(alg string, c claims) string {
	return p.mintWith(commonKeys()[alg], c)
}

func (p *idp) mintWith(k *signingKey, c claims) string {
	return k.compact(fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, k.alg, k.kid), p.usual(c))
}

// token is a good token, and the word to the gate not to log it.
func (p *idp) token(g *gate, c claims) string {
	token := p.mint("ES256", c)
	g.guard(token)
	return token
}
