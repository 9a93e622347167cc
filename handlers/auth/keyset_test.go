package auth

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// One entry beside a good key: what becomes of it, and that the good key
// stays (S-08, S-13 to S-17, S-60).
func TestParseKeySetEntries(t *testing.T) {
	modulus := func(bits int) string {
		n := new(big.Int).SetBit(new(big.Int).Rsh(rsaKey1().N, uint(2048-bits)), 0, 1)
		return b64(n.Bytes())
	}
	identity := make([]byte, 32)
	identity[0] = 1
	rsaWith := func(more object) object { return jwkOf(rsaKey1(), "new", more) }
	ecWith := func(more object) object { return jwkOf(p256Key1(), "new", more) }
	edWith := func(x []byte) object { return jwkOf(edKey(), "new", object{"x": b64(x)}) }
	for _, row := range []struct {
		name    string
		entry   any
		used    bool
		ignored string
	}{
		{"RSA", rsaWith(nil), true, ""},
		{"RSA with use", rsaWith(object{"use": "sig", "alg": "RS256", "x5c": []string{"x"}, "x5t": "y"}), true, ""},
		{"EC", ecWith(nil), true, ""},
		{"Ed25519", edWith(edKey().Public().(ed25519.PublicKey)), true, ""},
		{"RSA with padding", rsaWith(object{"e": "AQAB=="}), true, ""},
		// S-08
		{"oct", object{"kty": "oct", "kid": "new", "alg": "HS256", "k": b64(make([]byte, 32))}, false, errSymmetricKey.Error()},
		{"private RSA key", rsaWith(object{"d": b64([]byte{1})}), false, errPrivateKey.Error()},
		// S-13
		{"short Ed25519", edWith([]byte{0, 0, 0}), false, errPoint.Error()},
		{"long Ed25519", edWith(make([]byte, 33)), false, errPoint.Error()},
		{"identity", edWith(identity), false, errPoint.Error()},
		{"Ed448", object{"kty": "OKP", "crv": "Ed448", "x": b64(make([]byte, 57))}, false, errUnknownCurve.Error()},
		{"X25519", object{"kty": "OKP", "crv": "X25519", "x": b64(bytes.Repeat([]byte{9}, 32))}, false, errUnknownCurve.Error()},
		// S-14
		{"RSA 512", rsaWith(object{"n": modulus(512)}), false, errWeakRSA.Error()},
		{"RSA 1024", jwkOf(rsaSmall(), "new"), false, errWeakRSA.Error()},
		{"RSA 1536", rsaWith(object{"n": modulus(1536)}), false, errWeakRSA.Error()},
		{"RSA 2047", rsaWith(object{"n": modulus(2047)}), false, errWeakRSA.Error()},
		{"RSA 16384", rsaWith(object{"n": b64(bytes.Repeat([]byte{0xff}, 2048))}), false, errWeakRSA.Error()},
		{"RSA even", rsaWith(object{"n": b64(append(rsaKey1().N.Bytes()[:255], 2))}), false, errWeakRSA.Error()},
		{"e 1", rsaWith(object{"e": b64([]byte{1})}), false, errExponent.Error()},
		{"e 2", rsaWith(object{"e": b64([]byte{2})}), false, errExponent.Error()},
		{"e 0", rsaWith(object{"e": b64([]byte{0})}), false, errExponent.Error()},
		{"e even", rsaWith(object{"e": b64([]byte{1, 0, 0})}), false, errExponent.Error()},
		{"e 2^32+1", rsaWith(object{"e": b64([]byte{1, 0, 0, 0, 1})}), false, errExponent.Error()},
		{"e 2^64+65537", rsaWith(object{"e": b64([]byte{1, 0, 0, 0, 0, 0, 1, 0, 1})}), false, errExponent.Error()},
		{"e 3", rsaWith(object{"e": b64([]byte{3})}), true, ""},
		// S-16
		{"use enc", rsaWith(object{"use": "enc"}), false, ""},
		{"use null", rsaWith(object{"use": nil}), false, ""},
		{"use Sig", rsaWith(object{"use": "Sig"}), false, ""},
		// S-17
		{"key_ops verify", rsaWith(object{"key_ops": []string{"sign", "verify"}}), true, ""},
		{"key_ops encrypt", rsaWith(object{"key_ops": []string{"encrypt"}}), false, ""},
		{"key_ops sign", rsaWith(object{"key_ops": []string{"sign"}}), false, ""},
		{"key_ops empty", rsaWith(object{"key_ops": []string{}}), false, ""},
		{"key_ops string", rsaWith(object{"key_ops": "verify"}), false, ""},
		// S-60
		{"post-quantum", object{"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"}, false, errUnknownType.Error()},
		{"unknown kty", object{"kty": "XYZ"}, false, errUnknownType.Error()},
		{"kty case", rsaWith(object{"kty": "rsa"}), false, errUnknownType.Error()},
		{"kty number", object{"kty": 1}, false, errUnknownType.Error()},
		{"no member", object{}, false, errUnknownType.Error()},
		{"not an object", "RSA", false, errBadMember.Error()},
		{"null", nil, false, errBadMember.Error()},
		{"ambiguous", jsonText(`{"kty":"RSA","kty":"EC"}`), false, errBadMember.Error()},
		{"lone surrogate", jsonText(`{"kty":"RSA","x":"\ud800"}`), false, errBadMember.Error()},

		{"kid number", rsaWith(object{"kid": 1}), false, errBadMember.Error()},
		{"alg number", rsaWith(object{"alg": 1}), false, errBadMember.Error()},
		{"alg none", rsaWith(object{"alg": "none"}), false, errWrongAlgorithm.Error()},
		{"alg of another kind", rsaWith(object{"alg": "ES256"}), false, errWrongAlgorithm.Error()},
		{"alg HS256", rsaWith(object{"alg": "HS256"}), false, errWrongAlgorithm.Error()},
		{"alg of another curve", ecWith(object{"alg": "ES384"}), false, errWrongAlgorithm.Error()},
		{"alg for encryption", rsaWith(object{"alg": "RSA-OAEP"}), false, errWrongAlgorithm.Error()},
		{"no n", rsaWith(object{"n": ""}), false, errBadMember.Error()},
		{"n number", rsaWith(object{"n": 5}), false, errBadMember.Error()},
		{"n not base64", rsaWith(object{"n": "+/+/"}), false, errBadMember.Error()},
		{"no y", ecWith(object{"y": nil}), false, errBadMember.Error()},
		{"point off the curve", ecWith(object{"y": b64(bytes.Repeat([]byte{1}, 32))}), false, errPoint.Error()},
		{"point at infinity", ecWith(object{"x": b64(make([]byte, 32)), "y": b64(make([]byte, 32))}), false, errPoint.Error()},
		{"coordinate too long", ecWith(object{"x": b64(bytes.Repeat([]byte{0xff}, 40))}), false, errPoint.Error()},
		{"curve of another key", ecWith(object{"crv": "P-384"}), false, errPoint.Error()},
		{"secp256k1", ecWith(object{"crv": "secp256k1"}), false, errUnknownCurve.Error()},
		{"P-224", ecWith(object{"crv": "P-224"}), false, errUnknownCurve.Error()},
	} {
		t.Run(row.name, func(t *testing.T) {
			entry := toJSON(row.entry)
			set, err := parseKeySet(`{"keys":[` + entry + `,` + toJSON(jwkOf(p256Key2(), "good")) + `]}`)
			if err != nil {
				t.Fatal(err)
			}
			if used := len(set.keys) == 2; used != row.used || len(set.byKid["good"]) != 1 {
				t.Errorf("used: %v, keys %d", used, len(set.keys))
			}
			if want := row.ignored; (want == "") != (set.ignored == "") || !strings.Contains(set.ignored, want) {
				t.Errorf("ignored %q, want %q", set.ignored, want)
			}
		})
	}
}

// S-58: what is not a key set at all, and what has no usable key.
func TestParseKeySetRefuses(t *testing.T) {
	good := toJSON(jwkOf(p256Key1(), "k"))
	for _, text := range []string{
		"", "<html>", "null", "[]", "{}", `{"keys":null}`, `{"keys":{}}`, `{"keys":[]}`, `{"keys":[` + good + `}`,
		`{"keys":[` + good + `]`, `{"keys":[` + good + `]}x`, `{"Keys":[` + good + `]}`,
		`{"keys":[` + good + `],"keys":[]}`, `{"keys":[],"keys":[` + good + `]}`, `[` + good + `]`, good,
		"\ufeff" + `{"keys":[` + good + `]}`, string(utf16Of(`{"keys":[` + good + `]}`)),
		`{"keys":[{"kty":"oct","k":"AAAA"}]}`, `{"keys":[` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `]}`,
		`{"keys":[` + strings.Repeat("{},", maxKeys) + good + `]}`, // S-72
	} {
		if _, err := parseKeySet(text); err == nil {
			t.Errorf("%.60q accepted", text)
		}
	}
	if _, err := parseKeySet(`{"keys":[` + strings.Repeat("{},", maxKeys-1) + good + `]}`); err != nil {
		t.Error(err)
	}
	if _, err := parseKeySet(`{"a":{"b":1,"b":2},"keys":[` + good + `],"z":"\ud800"}`); err != nil {
		t.Errorf("what stands beside the keys is not looked at: %v", err)
	}
}

func utf16Of(s string) []byte {
	var b []byte
	for i := range len(s) {
		b = append(b, s[i], 0)
	}
	return b
}

// S-18: the order in a set means nothing.
func TestKeySetOrder(t *testing.T) {
	entries := []object{jwkOf(rsaKey1(), "k"), jwkOf(rsaKey2(), "k"), jwkOf(p256Key1(), ""), jwkOf(rsaKey1(), "k", object{"alg": "PS256"})}
	one, err := parseKeySet(jwks(entries...))
	must(err)
	slices.Reverse(entries)
	other, err := parseKeySet(jwks(append(entries, entries[0])...))
	must(err)
	if one.digest != other.digest || len(one.keys) != 4 || len(other.keys) != 4 {
		t.Error("the same keys in another order are another set")
	}
	fewer, err := parseKeySet(jwks(entries[1:]...))
	must(err)
	if fewer.digest == one.digest {
		t.Error("fewer keys are the same set")
	}
}

// S-13: the points of small order, computed here from the curve's equation
// and doubling, are all refused, as is every y that is not below p.
func TestSoundEd25519(t *testing.T) {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	encode := func(y *big.Int, sign byte) ed25519.PublicKey {
		b := y.FillBytes(make([]byte, 32))
		slices.Reverse(b)
		b[31] |= sign << 7
		return b
	}
	small := smallOrderY(p)
	if len(small) != 5 {
		t.Fatalf("%d y of small order", len(small))
	}
	for _, y := range small {
		for sign := range byte(2) {
			if soundEd25519(encode(y, sign)) {
				t.Errorf("y = %d with sign %d accepted", y, sign)
			}
		}
	}
	for i := range int64(19) {
		if soundEd25519(encode(new(big.Int).Add(p, big.NewInt(i)), 0)) {
			t.Errorf("y = p+%d accepted", i)
		}
	}
	if !soundEd25519(encode(new(big.Int).Sub(p, big.NewInt(2)), 0)) {
		t.Error("y = p-2 refused")
	}
}

// smallOrderY solves for the y of all points of the curve -x² + y² = 1 + d·x²·y²
// whose order divides 8: 1 (order 1), -1 (order 2), 0 (order 4), and those of
// order 8.
func smallOrderY(p *big.Int) []*big.Int {
	mod := func(x *big.Int) *big.Int { return x.Mod(x, p) }
	found := []*big.Int{big.NewInt(0), big.NewInt(1), new(big.Int).Sub(p, big.NewInt(1))}
	// d = -121665/121666
	d := mod(new(big.Int).Mul(big.NewInt(-121665), new(big.Int).ModInverse(big.NewInt(121666), p)))
	// A point of order 8 has y(2P) = (y²+x²)/(2+x²-y²) = 0, so x² = -y². On
	// the curve, -x² + y² = 1 + d·x²·y² becomes d·y⁴ + 2·y² - 1 = 0.
	root := new(big.Int).ModSqrt(mod(new(big.Int).Add(big.NewInt(1), d)), p)
	inverse := new(big.Int).ModInverse(d, p)
	for _, sign := range []int64{1, -1} {
		square := mod(new(big.Int).Mul(inverse, new(big.Int).Add(big.NewInt(-1), new(big.Int).Mul(big.NewInt(sign), root))))
		if y := new(big.Int).ModSqrt(square, p); y != nil {
			found = append(found, y, new(big.Int).Sub(p, y))
		}
	}
	return found
}

// FuzzJWKS: whatever an endpoint sends, the keys that come out are usable,
// and encoding/json would have read the document too.
func FuzzJWKS(f *testing.F) {
	f.Add(everyKey())
	f.Add(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAA"},{"kty":"oct","k":"AA"},{}]}`)
	f.Add(`{"keys":[{"kty":"RSA","n":"` + b64(rsaKey1().N.Bytes()) + `","e":"AQAB","alg":"RS256"}],"keys":[]}`)
	f.Add(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`)
	token, err := parseCompact(mint("ES256", p256Key2(), object{"kid": "p256"}, claimsNow()))
	must(err)
	f.Fuzz(func(t *testing.T, text string) {
		set, err := parseKeySet(text)
		if err != nil {
			if set != nil {
				t.Error("a set with an error")
			}
			return
		}
		if !json.Valid([]byte(text)) {
			t.Errorf("%q is not JSON", text)
		}
		if len(set.keys) == 0 || len(set.keys) > maxKeys {
			t.Errorf("%d keys", len(set.keys))
		}
		for _, k := range set.keys {
			if kind, err := kindOf(k.public); err != nil || kind != k.kind || kind == kindSecret {
				t.Errorf("key of kind %d: %d, %v", k.kind, kind, err)
			}
		}
		for _, algorithm := range []string{"ES256", "RS256", "PS256", "EdDSA", "HS256", "ES512"} {
			token.header.algorithm = algorithm
			if err := set.verify(token); err == nil || !errors.Is(err, ErrInvalidToken) {
				t.Errorf("%s: %v", algorithm, err)
			}
		}
	})
}

func BenchmarkParseKeySet(b *testing.B) {
	for _, n := range []int{4, maxKeys} {
		keys := make([]object, n)
		for i := range keys {
			keys[i] = jwkOf(rsaKey1(), fmt.Sprint(i))
		}
		text := jwks(keys...)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := parseKeySet(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
