package auth

import (
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
)

// vectors is the part of Wycheproof's JOSE files that is read here.
type vectors struct {
	TestGroups []struct {
		Comment string
		Private json.RawMessage
		Public  json.RawMessage
		Tests   []struct {
			TcID    int
			Comment string
			JWS     any // text, or an object in the JSON serialization
			Result  string
			Flags   []string
		}
	}
}

func readVectors(t *testing.T, name string) vectors {
	t.Helper()
	text, err := fs.ReadFile(wycheproof.TestVectors, name)
	must(err)
	var v vectors
	must(json.Unmarshal(text, &v))
	return v
}

// verifyVector verifies a JWS as Verify does, up to its payload, which is no
// set of claims in these vectors.
func verifyVector(set *keySet, secret bool, jws any) error {
	token, ok := jws.(string)
	if !ok {
		return errMalformed
	}
	encodedHeader, encodedPayload, encodedSignature, err := split(token)
	if err != nil {
		return err
	}
	protected, err := decodePart(encodedHeader)
	if err != nil {
		return err
	}
	c := &compact{signed: []byte(encodedHeader + "." + encodedPayload)}
	if c.header, err = parseHeader(string(protected)); err != nil {
		return err
	}
	if _, err = decodePart(encodedPayload); err != nil {
		return err
	}
	if c.signature, err = decodePart(encodedSignature); err != nil {
		return err
	}
	issuer := &Issuer{Algorithms: defaultAlgorithms(secret)}
	if err := issuer.checkHeader(&c.header); err != nil {
		return err
	}
	return set.verify(c)
}

// vectorKeys makes the key set that a group's key belongs in: a secret for a
// lone symmetric key, as `secret` configures it, otherwise a fetched set.
func vectorKeys(private, public json.RawMessage) (set *keySet, secret bool, err error) {
	if public == nil {
		public = private
	}
	var entry struct {
		Kty, K, Use, Alg string
		KeyOps           []string `json:"key_ops"`
	}
	must(json.Unmarshal(public, &entry))
	if entry.Kty == "oct" {
		k, err := strictBase64.DecodeString(entry.K)
		if err != nil {
			return nil, true, err
		}
		source, err := NewSource(SourceConfig{Secret: k})
		if err != nil {
			return nil, true, err
		}
		return source.current.Load(), true, nil
	}
	text := string(public)
	if entry.Kty != "" {
		text = `{"keys":[` + text + `]}`
	}
	set, err = parseKeySet(text)
	return set, false, err
}

// tolerated are vectors that we judge otherwise than Wycheproof, by tcId, each
// with its reason.
type tolerated map[int]string

// S-50: no false accept among Wycheproof's JWS vectors.
func TestWycheproofJWS(t *testing.T) {
	const (
		empty     = "a token has claims, so its payload is not empty"
		otherAlg  = "a key that names an alg verifies only that one (PS256, the token has PS384)"
		unknown   = "the key names an alg that does not exist (ES521); JWK vector 19 wants just that refused"
		lenient   = "the vector wants a character outside the alphabet ignored (S-45)"
		mislabels = "the padding that the comment speaks of is not in the file: the text is canonical and its MAC is right"
	)
	runVectors(t, "json_web_signature_test.json", 401, tolerated{
		259: empty, 264: empty, 268: empty, 272: empty, 320: empty, 325: empty,
		346: otherAlg, 350: otherAlg, 347: unknown, 351: unknown, 372: lenient, 373: lenient,
	}, tolerated{367: mislabels, 370: mislabels})
}

// S-50: no false accept among Wycheproof's JWK vectors; S-15: nor of the key
// with the ROCA weakness, vector 7.
func TestWycheproofJWK(t *testing.T) {
	const symmetric = "a key set holds no symmetric keys (S-08)"
	runVectors(t, "json_web_key_test.json", 26, tolerated{2: symmetric, 13: symmetric, 14: symmetric, 15: symmetric}, nil)
}

func runVectors(t *testing.T, name string, atLeast int, refusals, accepts tolerated) {
	count, accepted := 0, 0
	for _, group := range readVectors(t, name).TestGroups {
		set, secret, err := vectorKeys(group.Private, group.Public)
		for _, vector := range group.Tests {
			count++
			result := err
			if result == nil {
				result = verifyVector(set, secret, vector.JWS)
			}
			want := vector.Result == "valid"
			if refusals[vector.TcID] != "" {
				want = false
			}
			if accepts[vector.TcID] != "" {
				want = true
			}
			if (result == nil) != want {
				t.Errorf("%d (%s, %s, %v): %v, accepted: want %v", vector.TcID, group.Comment, vector.Comment, vector.Flags, result, want)
			}
			if result == nil {
				accepted++
			}
		}
	}
	if count < atLeast {
		t.Errorf("%d vectors, want at least %d", count, atLeast)
	}
	t.Logf("%d vectors: %d accepted, %d refused; tolerated: %d refusals, %d accepts", count, accepted, count-accepted, len(refusals), len(accepts))
}
