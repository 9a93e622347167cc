package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"
)

// everyKey is a key set with one key of each kind; the kids tell which.
func everyKey() string {
	return jwks(
		jwkOf(rsaKey1(), "rsa"), jwkOf(p256Key1(), "p256"), jwkOf(p384Key(), "p384"),
		jwkOf(p521Key(), "p521"), jwkOf(edKey(), "ed"),
	)
}

func TestVerifyAlgorithms(t *testing.T) {
	v := verifierOf(t, fixedSource(everyKey()))
	for _, row := range []struct {
		alg, kid string
		key      any
	}{
		{"RS256", "rsa", rsaKey1()}, {"RS384", "rsa", rsaKey1()}, {"RS512", "rsa", rsaKey1()},
		{"PS256", "rsa", rsaKey1()}, {"PS384", "rsa", rsaKey1()}, {"PS512", "rsa", rsaKey1()},
		{"ES256", "p256", p256Key1()}, {"ES384", "p384", p384Key()}, {"ES512", "p521", p521Key()},
		{"EdDSA", "ed", edKey()}, {"Ed25519", "ed", edKey()},
	} {
		t.Run(row.alg, func(t *testing.T) {
			token := mint(row.alg, row.key, object{"kid": row.kid}, with(claimsNow(), object{"jti": "j", "sid": "s"}))
			got := wantDetail(t, v, token, "")
			if got.Issuer != testIssuer || got.User != "user-1" || got.ID != "j" || got.SessionID != "s" {
				t.Errorf("token %+v", got)
			}
			wantDetail(t, v, mint(row.alg, row.key, object{}, claimsNow()), "")

			// S-10: no signature; S-45: the same signature spelled otherwise.
			head := token[:strings.LastIndexByte(token, '.')+1]
			wantDetail(t, v, head, "malformed")
			wantDetail(t, v, head+b64(make([]byte, 64)), "bad signature")
			wantDetail(t, v, head+b64([]byte{0}), "bad signature")
		})
	}
	secret := []byte(strings.Repeat("s", 32))
	hs := verifierOf(t, secretSource(secret))
	for _, alg := range []string{"HS256", "HS384", "HS512"} {
		wantDetail(t, hs, mint(alg, secret, object{"kid": "any"}, claimsNow()), "")
		wantDetail(t, hs, mint(alg, []byte("another"), object{}, claimsNow()), "bad signature")
		wantDetail(t, v, mint(alg, secret, object{}, claimsNow()), "algorithm not allowed")
	}
	wantDetail(t, hs, mint("ES256", p256Key1(), object{}, claimsNow()), "algorithm not allowed")
}

// S-04: alg none in every spelling, with and without a third part.
func TestVerifyNone(t *testing.T) {
	v := verifierOf(t, fixedSource(everyKey()))
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "none ", "", "es256", "ES256 "} {
		input := b64([]byte(toJSON(object{"alg": alg}))) + "." + b64([]byte(toJSON(claimsNow())))
		for _, token := range []string{input, input + ".", input + ".AAAA", input + ".."} {
			if _, err := v.Verify(context.Background(), token); err == nil {
				t.Errorf("alg %q accepted", alg)
			}
		}
	}
}

// S-05: everything a public key can be written as, used as an HMAC secret.
func TestVerifyKeyConfusion(t *testing.T) {
	public := rsaKey1().Public().(*rsa.PublicKey)
	spki, err := x509.MarshalPKIXPublicKey(public)
	must(err)
	pkcs1 := x509.MarshalPKCS1PublicKey(public)
	spkiPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	v := verifierOf(t, fixedSource(jwks(jwkOf(rsaKey1(), "k"))))
	for _, secret := range [][]byte{
		spkiPEM, []byte(strings.TrimSpace(string(spkiPEM))), spki, pkcs1,
		pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: pkcs1}),
		public.N.Bytes(), []byte(toJSON(jwkOf(rsaKey1(), "k"))), []byte(b64(public.N.Bytes())), {},
	} {
		for _, alg := range []string{"HS256", "HS384", "HS512"} {
			wantDetail(t, v, mint(alg, secret, object{"kid": "k"}, claimsNow()), "algorithm not allowed")
		}
	}
}

// S-07: the algorithm comes from the configuration and the key, not the token.
func TestVerifyKeyAlgorithm(t *testing.T) {
	only := func(algorithms ...string) func(*Issuer, *VerifierConfig) {
		return func(i *Issuer, _ *VerifierConfig) { i.Algorithms = algorithms }
	}
	for _, row := range []struct {
		name   string
		jwk    object
		only   []string
		alg    string
		detail string
	}{
		{"key without alg", jwkOf(rsaKey1(), "k"), []string{"RS256"}, "RS256", ""},
		{"not configured", jwkOf(rsaKey1(), "k"), []string{"RS256"}, "PS256", "algorithm not allowed"},
		{"not configured hash", jwkOf(rsaKey1(), "k"), []string{"RS256"}, "RS512", "algorithm not allowed"},
		{"the key's own alg", jwkOf(rsaKey1(), "k", object{"alg": "PS256"}), nil, "RS256", "no key for this algorithm"},
		{"the key's own alg fits", jwkOf(rsaKey1(), "k", object{"alg": "PS256"}), nil, "PS256", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			v := verifierOf(t, fixedSource(jwks(row.jwk)), only(row.only...))
			wantDetail(t, v, mint(row.alg, rsaKey1(), object{"kid": "k"}, claimsNow()), row.detail)
		})
	}
	// A curve that does not fit: ES384 with a P-256 key.
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	wantDetail(t, v, mint("ES384", p256Key1(), object{"kid": "k"}, claimsNow()), "no key for this algorithm")
}

// S-11: r and s at the edges, and signatures of the wrong length.
func TestVerifyECDSAEdges(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	good := mint("ES256", p256Key1(), object{"kid": "k"}, claimsNow())
	head := good[:strings.LastIndexByte(good, '.')+1]
	n := p256Key1().Params().N
	edges := []*big.Int{big.NewInt(0), big.NewInt(1), new(big.Int).Sub(n, big.NewInt(1)), n}
	for _, r := range edges {
		for _, s := range edges {
			signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
			wantDetail(t, v, head+b64(signature), "bad signature")
		}
	}
	signature, err := strictBase64.DecodeString(good[len(head):])
	must(err)
	wantDetail(t, v, head+b64(signature[:63]), "bad signature")
	wantDetail(t, v, head+b64(append([]byte{0}, signature...)), "bad signature")
	wantDetail(t, v, head+b64(append(signature, 0)), "bad signature")
	// ASN.1, as other protocols write it.
	h := crypto.SHA256.New()
	h.Write([]byte(head[:len(head)-1]))
	der, err := ecdsa.SignASN1(rand.Reader, p256Key1(), h.Sum(nil))
	must(err)
	wantDetail(t, v, head+b64(der), "bad signature")
}

// S-46: a salt that is not as long as the hash.
func TestVerifyPSSSalt(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(rsaKey1(), "k"))))
	input := b64([]byte(`{"alg":"PS256","kid":"k"}`)) + "." + b64([]byte(toJSON(claimsNow())))
	h := crypto.SHA256.New()
	h.Write([]byte(input))
	for salt, detail := range map[int]string{
		rsa.PSSSaltLengthEqualsHash: "", 32: "", 20: "bad signature", 64: "bad signature",
		rsa.PSSSaltLengthAuto: "bad signature", // the longest that fits
	} {
		signature, err := rsa.SignPSS(rand.Reader, rsaKey1(), crypto.SHA256, h.Sum(nil), &rsa.PSSOptions{SaltLength: salt})
		must(err)
		wantDetail(t, v, input+"."+b64(signature), detail)
	}
}

// Every row is a header or a set of claims that is signed well, and refused
// all the same.
func TestVerifyHeader(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	for _, row := range []struct{ name, header, detail string }{
		{"plain", `{"alg":"ES256","kid":"k"}`, ""},
		{"unknown parameters are ignored", `{"alg":"ES256","kid":"k","cty":"JWT","x":{"y":[1]}}`, ""},
		// S-20: kid of another type.
		{"kid number", `{"alg":"ES256","kid":1}`, "bad header"},
		{"kid null", `{"alg":"ES256","kid":null}`, "bad header"},
		{"kid bool", `{"alg":"ES256","kid":true}`, "bad header"},
		{"kid array", `{"alg":"ES256","kid":["k"]}`, "bad header"},
		{"kid object", `{"alg":"ES256","kid":{}}`, "bad header"},
		{"kid empty", `{"alg":"ES256","kid":""}`, "bad header"},
		// S-19: kid as a path, a query, a line, an address.
		{"kid path", `{"alg":"ES256","kid":"../../../../dev/null"}`, "unknown kid"},
		{"kid SQL", `{"alg":"ES256","kid":"' OR 1=1--"}`, "unknown kid"},
		{"kid NUL", `{"alg":"ES256","kid":"k\u0000"}`, "unknown kid"},
		{"kid CRLF", `{"alg":"ES256","kid":"k\r\n\u001b[31m"}`, "unknown kid"},
		{"kid URL", `{"alg":"ES256","kid":"http://169.254.169.254/"}`, "unknown kid"},
		{"kid long", `{"alg":"ES256","kid":"` + strings.Repeat("k", 5000) + `"}`, "unknown kid"},
		// S-23: critical extensions.
		{"crit", `{"alg":"ES256","kid":"k","crit":["exp2"]}`, "unsupported header parameter"},
		{"crit empty", `{"alg":"ES256","kid":"k","crit":[]}`, "unsupported header parameter"},
		{"crit alg", `{"alg":"ES256","kid":"k","crit":["alg"]}`, "unsupported header parameter"},
		{"crit string", `{"alg":"ES256","kid":"k","crit":"b64"}`, "unsupported header parameter"},
		{"crit null", `{"alg":"ES256","kid":"k","crit":null}`, "unsupported header parameter"},
		{"b64", `{"alg":"ES256","kid":"k","b64":true}`, "unsupported header parameter"},
		// S-25: compression and encryption.
		{"zip", `{"alg":"ES256","kid":"k","zip":"DEF"}`, "unsupported header parameter"},
		{"enc", `{"alg":"dir","enc":"A256GCM"}`, "unsupported header parameter"},
		{"PBES2", `{"alg":"PBES2-HS256+A128KW","p2c":2147483648}`, "algorithm not allowed"},
		// S-27: types of tokens, by default.
		{"typ JWT", `{"alg":"ES256","kid":"k","typ":"JWT"}`, ""},
		{"typ at+jwt", `{"alg":"ES256","kid":"k","typ":"at+jwt"}`, ""},
		{"typ number", `{"alg":"ES256","kid":"k","typ":5}`, "typ"},
		{"typ empty", `{"alg":"ES256","kid":"k","typ":""}`, "typ"},
		{"typ null", `{"alg":"ES256","kid":"k","typ":null}`, "typ"},
		{"DPoP proof", `{"alg":"ES256","kid":"k","typ":"dpop+jwt"}`, "typ"},
		{"logout token", `{"alg":"ES256","kid":"k","typ":"Application/Logout+JWT"}`, "typ"},
		{"security event", `{"alg":"ES256","kid":"k","typ":"secevent+jwt"}`, "typ"},
		// S-37: duplicates, also by escapes; a second alg.
		{"duplicate alg", `{"alg":"none","alg":"ES256","kid":"k"}`, "ambiguous JSON"},
		{"duplicate kid", `{"alg":"ES256","kid":"x","\u006bid":"k"}`, "ambiguous JSON"},
		{"other case is another name", `{"Alg":"none","alg":"ES256","kid":"k"}`, ""},
		{"not an object", `["alg","ES256"]`, "malformed"},
		{"no alg", `{"kid":"k"}`, "bad header"},
		{"alg array", `{"alg":["ES256"],"kid":"k"}`, "bad header"},
		{"trailing data", `{"alg":"ES256","kid":"k"}{}`, "malformed"},
		{"BOM", "\ufeff" + `{"alg":"ES256","kid":"k"}`, "malformed"},
		{"invalid UTF-8", `{"alg":"ES256","kid":"k","x":"` + "\xff" + `"}`, "ambiguous JSON"},
	} {
		t.Run(row.name, func(t *testing.T) {
			wantDetail(t, v, mint("ES256", p256Key1(), row.header, claimsNow()), row.detail)
		})
	}
}

// S-22: a token that brings its own key. There is nothing that could fetch:
// the only transport of the package belongs to sources.
func TestVerifyEmbeddedKey(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	for _, header := range []object{
		{"jwk": jwkOf(p256Key2(), "k")}, {"jwk": jwkOf(p256Key2(), ""), "kid": "k"},
		{"jku": "http://127.0.0.1:1/jwks", "kid": "k"}, {"x5u": "http://127.0.0.1:1/x5u", "kid": "k"},
		{"x5c": []string{"MIIB"}, "kid": "k"},
	} {
		wantDetail(t, v, mint("ES256", p256Key2(), header, claimsNow()), "bad signature")
		wantDetail(t, v, mint("ES256", p256Key1(), header, claimsNow()), "") // ignored, not refused
	}
}

func TestVerifyTyp(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))), func(i *Issuer, _ *VerifierConfig) {
		i.Typ = []string{"AT+JWT", "application/JWT"}
	})
	for typ, detail := range map[any]string{ // S-27
		"at+jwt": "", "application/at+jwt": "", "Application/AT+JWT": "", "jwt": "", "JWT": "",
		"id+jwt": "typ", "x/at+jwt": "typ", "application/x/at+jwt": "typ", "dpop+jwt": "typ", 5: "typ", absent: "typ",
	} {
		header := with(object{"kid": "k"}, object{"typ": typ})
		wantDetail(t, v, mint("ES256", p256Key1(), header, claimsNow()), detail)
	}
}

func TestVerifyClaims(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	now := time.Now().Unix()
	for _, row := range []struct {
		name   string
		claims object
		detail string
	}{
		// S-28
		{"no iss", object{"iss": absent}, "unknown issuer"},
		{"iss trailing slash", object{"iss": testIssuer + "/"}, "unknown issuer"},
		{"iss case", object{"iss": strings.ToUpper(testIssuer)}, "unknown issuer"},
		{"iss array", object{"iss": []string{testIssuer}}, "unknown issuer"},
		{"iss blank", object{"iss": " " + testIssuer}, "unknown issuer"},
		{"iss null", object{"iss": nil}, "unknown issuer"},
		{"iss foreign", object{"iss": "https://evil.example"}, "unknown issuer"},
		// S-29
		{"no aud", object{"aud": absent}, "audience"},
		{"aud foreign", object{"aud": "b"}, "audience"},
		{"aud empty", object{"aud": []any{}}, "audience"},
		{"aud nested", object{"aud": []any{[]any{"chat"}}}, "audience"},
		{"aud number", object{"aud": 1}, "audience"},
		{"aud case", object{"aud": "Chat"}, "audience"},
		{"aud null", object{"aud": nil}, "audience"},
		{"aud object", object{"aud": object{"chat": true}}, "audience"},
		{"aud mixed types", object{"aud": []any{"chat", 1}}, "audience"},
		{"aud any of", object{"aud": []any{"b", "chat"}}, ""},
		// S-31
		{"no exp", object{"exp": absent}, "bad time claim"},
		{"exp null", object{"exp": nil}, "bad time claim"},
		{"exp string", object{"exp": "9999999999"}, "bad time claim"},
		{"exp bool", object{"exp": true}, "bad time claim"},
		{"exp zero", object{"exp": 0}, "bad time claim"},
		{"exp negative", object{"exp": -1}, "bad time claim"},
		{"exp beyond", object{"exp": 253402300800}, "bad time claim"},
		{"exp at the end", object{"exp": 253402300799}, ""},
		{"exp infinite", object{"exp": jsonText("1e400")}, "bad time claim"},
		{"exp almost zero", object{"exp": jsonText("1e-400")}, "bad time claim"},
		{"exp with exponent", object{"exp": jsonText("2.5e11")}, ""},
		{"exp past", object{"exp": now - 1}, "expired"},
		// S-35
		{"nbf future", object{"nbf": now + 60}, "not yet valid"},
		{"nbf past", object{"nbf": now - 60}, ""},
		{"nbf zero, as Keycloak writes", object{"nbf": 0}, ""},
		{"nbf string", object{"nbf": "1"}, "bad time claim"},
		{"nbf null", object{"nbf": nil}, "bad time claim"},
		{"nbf beyond", object{"nbf": 253402300800}, "bad time claim"},
		{"iat future", object{"iat": now + 500}, "issued in the future"},
		{"iat string", object{"iat": "x"}, "bad time claim"},
		{"no iat", object{"iat": absent}, ""},
		// S-41
		{"no sub", object{"sub": absent}, "user claim"},
		{"sub null", object{"sub": nil}, "user claim"},
		{"sub empty", object{"sub": ""}, "user claim"},
		{"sub blank", object{"sub": " "}, "user claim"},
		{"sub blanks around", object{"sub": "a "}, "user claim"},
		{"sub array", object{"sub": []any{"admin"}}, "user claim"},
		{"sub object", object{"sub": object{}}, "user claim"},
		{"sub number is its text", object{"sub": 1}, ""},
		{"sub 10 KB", object{"sub": strings.Repeat("a", 10_000)}, "too long"},
		// S-108
		{"sub CRLF", object{"sub": "a\r\nX-Admin: 1"}, "user claim"},
		{"sub NUL", object{"sub": "a\x00"}, "user claim"},
		{"sub VT", object{"sub": "a\vb"}, "user claim"},
		{"sub line separator", object{"sub": "a\u2028b"}, "user claim"},
		{"sub C1", object{"sub": "a\u0085b"}, "user claim"},
		// S-51: claims are data.
		{"sub placeholder", object{"sub": "{env.HOME}"}, ""},
		{"sub template", object{"sub": "{{"}, ""},
		// Claim names compare exactly.
		{"Exp is not exp", object{"exp": absent, "Exp": now + 60}, "bad time claim"},
		{"AUD is not aud", object{"aud": absent, "AUD": "chat"}, "audience"},
	} {
		t.Run(row.name, func(t *testing.T) {
			wantDetail(t, v, mint("ES256", p256Key1(), object{"kid": "k"}, with(claimsNow(), row.claims)), row.detail)
		})
	}
	// S-37: duplicate claims, whose meaning is anybody's guess.
	for _, duplicate := range []string{
		`"sub":"u1","sub":"admin"`, `"sub":"u1","\u0073ub":"admin"`, `"sub":"u","exp":1`, `"sub":"u","a":{"b":1,"b":2}`,
		`"sub":"\ud800"`, `"sub":"\ufffd"`, "\"sub\":\"\xff\"",
	} {
		text := fmt.Sprintf(`{"iss":%q,"aud":"chat","exp":%d,%s}`, testIssuer, now+60, duplicate)
		wantDetail(t, v, mint("ES256", p256Key1(), object{"kid": "k"}, text), "ambiguous JSON")
	}
}

type jsonText string

func (j jsonText) MarshalJSON() ([]byte, error) { return []byte(j), nil }

// S-34 and S-35: the boundaries, to the second.
func TestVerifyTimeBoundaries(t *testing.T) {
	const now = 1_800_000_000
	for _, row := range []struct {
		leeway        time.Duration
		claim         string
		from, through int64 // offsets that are accepted
	}{
		{0, "exp", 1, 60},
		{10 * time.Second, "exp", -9, 60},
		{0, "nbf", -60, 0},
		{10 * time.Second, "nbf", -60, 10},
		{0, "iat", -60, 0},
		{10 * time.Second, "iat", -60, 10},
	} {
		v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))), func(_ *Issuer, c *VerifierConfig) { c.Leeway = row.leeway })
		v.now = func() time.Time { return time.Unix(now, 0) }
		for offset := int64(-12); offset <= 12; offset++ {
			claims := with(claimsNow(), object{"exp": now + 100, "iat": now, row.claim: now + offset})
			_, err := v.Verify(context.Background(), mint("ES256", p256Key1(), object{"kid": "k"}, claims))
			if want := row.from <= offset && offset <= row.through; (err == nil) != want {
				t.Errorf("%s = now%+d with leeway %s: %v", row.claim, offset, row.leeway, err)
			}
		}
	}
}

// S-01, S-42, S-44, S-45: what is not the strict compact form.
func TestVerifyForm(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	good := mint("ES256", p256Key1(), object{"kid": "k"}, claimsNow())
	part := strings.Split(good, ".")
	flattened := toJSON(object{
		"payload": part[1], "protected": part[0], "signature": part[2],
		"sub": "admin", "exp": 9999999999, "aud": "chat", "iss": testIssuer,
	})
	last := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", good[len(good)-1])
	for name, row := range map[string]struct{ token, detail string }{
		"good":               {good, ""},
		"empty":              {"", "malformed"},
		"flattened JSON":     {flattened, "malformed"},
		"flattened, blanks":  {"\n\t" + flattened, "malformed"},
		"general JSON":       {`{"payload":"` + part[1] + `","signatures":[{"protected":"` + part[0] + `","signature":"` + part[2] + `"}]}`, "malformed"},
		"leading blank":      {" " + good, "malformed"},
		"trailing blank":     {good + " ", "malformed"},
		"line break inside":  {part[0] + "\n." + part[1] + "." + part[2], "malformed"},
		"line break in part": {good[:len(good)-4] + "\r\n" + good[len(good)-4:], "malformed"},
		"padding":            {good + "==", "malformed"},
		"standard alphabet":  {part[0] + "." + part[1] + ".+/" + part[2][2:], "malformed"},
		"last bits":          {good[:len(good)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last+1]), "malformed"},
		"two parts":          {part[0] + "." + part[1], "malformed"},
		"four parts":         {good + ".AAAA", "malformed"},
		"five parts (JWE)":   {good + ".AAAA.AAAA", "malformed"},
		"no header":          {"." + part[1] + "." + part[2], "malformed"},
		"no payload":         {part[0] + ".." + part[2], "malformed"},
		"dots":               {strings.Repeat(".", maxToken), "malformed"},
		"more dots":          {strings.Repeat(".", 1_000_000), "too long"},
		"1 MB":               {strings.Repeat("a", 1_000_000), "too long"},
		"a byte too long":    {strings.Repeat("a", maxToken+1), "too long"},
		"NUL":                {part[0] + "." + part[1] + "." + "\x00", "malformed"},
		"payload not object": {mint("ES256", p256Key1(), object{"kid": "k"}, `["iss"]`), "malformed"},
		"payload nested":     {mint("ES256", p256Key1(), object{"kid": "k"}, `{"a":`+strings.Repeat("[", 2000)+strings.Repeat("]", 2000)+`}`), "malformed"},
	} {
		t.Run(name, func(t *testing.T) { wantDetail(t, v, row.token, row.detail) })
	}
	// S-44: a flood of dots is not worth an allocation a dot.
	flood := strings.Repeat(".", maxToken)
	if n := testing.AllocsPerRun(100, func() { _, _ = v.Verify(context.Background(), flood) }); n > 4 {
		t.Errorf("%v allocations for a flood of dots", n)
	}
}

// The largest token that is taken.
func TestVerifyLongest(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	token, pad := "", 5700
	for ; len(token) < maxToken-2; pad++ {
		token = mint("ES256", p256Key1(), object{"kid": "k"}, with(claimsNow(), object{"pad": strings.Repeat("p", pad)}))
	}
	if len(token) > maxToken {
		t.Fatalf("the test minted %d bytes", len(token))
	}
	wantDetail(t, v, token, "")
}

// S-18 and S-21: several keys that may be meant.
func TestVerifyCandidates(t *testing.T) {
	rsa1, rsa2, ec := jwkOf(rsaKey1(), "k1"), jwkOf(rsaKey2(), "k1"), jwkOf(p256Key1(), "k1")
	for _, set := range []string{jwks(rsa1, rsa2, ec), jwks(ec, rsa2, rsa1), jwks(rsa2, ec, rsa1, rsa1)} {
		v := verifierOf(t, fixedSource(set))
		wantDetail(t, v, mint("RS256", rsaKey1(), object{"kid": "k1"}, claimsNow()), "")
		wantDetail(t, v, mint("RS256", rsaKey2(), object{"kid": "k1"}, claimsNow()), "")
		wantDetail(t, v, mint("ES256", p256Key1(), object{"kid": "k1"}, claimsNow()), "")
		wantDetail(t, v, mint("ES256", p256Key2(), object{"kid": "k1"}, claimsNow()), "bad signature")
	}
	// Keys without kid serve tokens with any, and the other way round.
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), ""), jwkOf(p256Key2(), "named"))))
	wantDetail(t, v, mint("ES256", p256Key1(), object{"kid": "other"}, claimsNow()), "")
	wantDetail(t, v, mint("ES256", p256Key2(), object{}, claimsNow()), "")
	wantDetail(t, v, mint("ES256", p256Key1(), object{"kid": "named"}, claimsNow()), "bad signature")
	wantDetail(t, v, mint("ES256", p256Key2(), object{"kid": "other"}, claimsNow()), "unknown kid")
}

// S-21: a token without kid costs at most four signature checks, however many
// keys there are.
func TestVerifyCandidatesBound(t *testing.T) {
	keys := make([]*key, 1000)
	checked := 0
	for i := range keys {
		keys[i] = &key{kid: fmt.Sprint(i), kind: kindEd25519, public: countingKey{&checked}, thumbprint: [32]byte{byte(i >> 8), byte(i)}}
	}
	token := mint("EdDSA", edKey(), object{}, claimsNow())
	c, err := parseCompact(token[:len(token)-8] + "AAAAAAAA")
	must(err)
	if err := newKeySet(keys).verify(c); Detail(err) != "bad signature" {
		t.Error(err)
	}
	if checked != maxCandidates {
		t.Errorf("%d signatures checked", checked)
	}
}

// countingKey counts how often jwx asks for its public half.
type countingKey struct{ n *int }

func (c countingKey) Public() crypto.PublicKey { *c.n++; return edKey().Public() }

func (c countingKey) Sign(_ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	return nil, nil
}

// Keys are bound to their issuer.
func TestVerifyIssuersApart(t *testing.T) {
	other := "https://other.example.com"
	v, err := NewVerifier(VerifierConfig{Issuers: []*Issuer{
		{Name: testIssuer, Keys: fixedSource(jwks(jwkOf(p256Key1(), "k"))), Audience: []string{"chat"}},
		{Name: other, Keys: fixedSource(jwks(jwkOf(p256Key2(), "k"))), AnyAudience: true},
	}})
	must(err)
	wantDetail(t, v, mint("ES256", p256Key1(), object{"kid": "k"}, claimsNow()), "")
	wantDetail(t, v, mint("ES256", p256Key2(), object{"kid": "k"}, claimsNow()), "bad signature")
	claims := with(claimsNow(), object{"iss": other, "aud": absent})
	wantDetail(t, v, mint("ES256", p256Key2(), object{"kid": "k"}, claims), "")
	wantDetail(t, v, mint("ES256", p256Key1(), object{"kid": "k"}, claims), "bad signature")
}

func TestVerifyIssuerAny(t *testing.T) {
	secret := []byte(strings.Repeat("s", 40))
	v := verifierOf(t, secretSource(secret), func(i *Issuer, c *VerifierConfig) {
		i.Name, i.Any, i.Audience, i.AnyAudience = "", true, nil, true
		c.UserClaim = "user.id"
	})
	for iss, name := range map[any]string{absent: "", "x": "x", 5: "", nil: ""} {
		claims := with(claimsNow(), object{"iss": iss, "user": object{"id": 7}})
		got := wantDetail(t, v, mint("HS256", secret, object{}, claims), "")
		if got.Issuer != name || got.User != "7" {
			t.Errorf("iss %v: %+v", iss, got)
		}
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	keys, secret := fixedSource(everyKey()), secretSource(make([]byte, 32))
	discovery, err := NewSource(SourceConfig{Discovery: testIssuer})
	must(err)
	good := Issuer{Name: testIssuer, Keys: keys, Audience: []string{"chat"}}
	change := func(f func(*Issuer)) *Issuer { i := good; f(&i); return &i }
	for name, issuers := range map[string][]*Issuer{
		"no issuer":          nil,
		"no name":            {change(func(i *Issuer) { i.Name = "" })},
		"no keys":            {change(func(i *Issuer) { i.Keys = nil })},
		"no audience":        {change(func(i *Issuer) { i.Audience = nil })},
		"two audiences":      {change(func(i *Issuer) { i.AnyAudience = true })},
		"empty audience":     {change(func(i *Issuer) { i.Audience = []string{""} })},
		"any with a name":    {change(func(i *Issuer) { i.Any = true })},
		"any not alone":      {&good, change(func(i *Issuer) { i.Name, i.Any = "", true })},
		"any with discovery": {change(func(i *Issuer) { i.Name, i.Any, i.Keys = "", true, discovery })},
		"twice":              {&good, &good},
		"alg none":           {change(func(i *Issuer) { i.Algorithms = []string{"none"} })},
		"alg case":           {change(func(i *Issuer) { i.Algorithms = []string{"rs256"} })},
		"alg ES256K":         {change(func(i *Issuer) { i.Algorithms = []string{"ES256K"} })},
		"HS without secret":  {change(func(i *Issuer) { i.Algorithms = []string{"ES256", "HS256"} })},
		"RS with secret":     {change(func(i *Issuer) { i.Keys, i.Algorithms = secret, []string{"RS256"} })},
		"typ dpop":           {change(func(i *Issuer) { i.Typ = []string{"application/DPoP+jwt"} })},
		"typ empty":          {change(func(i *Issuer) { i.Typ = []string{""} })},
	} {
		if _, err := NewVerifier(VerifierConfig{Issuers: issuers}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewVerifier(VerifierConfig{Issuers: []*Issuer{&good}, Leeway: -1}); err == nil {
		t.Error("negative leeway accepted")
	}
}

// S-49 and S-116: an error says nothing of the token.
func TestErrorsAreFixedTexts(t *testing.T) {
	v := verifierOf(t, fixedSource(jwks(jwkOf(p256Key1(), "k"))))
	for _, token := range []string{
		mint("ES256", p256Key2(), object{"kid": "k", "x": "marker"}, with(claimsNow(), object{"sub": "marker"})),
		mint("ES256", p256Key1(), object{"kid": "marker"}, claimsNow()),
		mint("ES256", p256Key1(), object{"kid": "k"}, with(claimsNow(), object{"aud": "marker"})),
		"marker.marker.marker", "marker",
	} {
		_, err := v.Verify(context.Background(), token)
		if err == nil || strings.Contains(err.Error(), "marker") || len(err.Error()) > 60 {
			t.Errorf("%v", err)
		}
	}
	if Detail(fmt.Errorf("something: %w", context.Canceled)) != "" {
		t.Error("a foreign error has a detail")
	}
}
