package auth

import (
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// This file is the fence around jwx: nothing else imports it, and what goes
// in was accepted by the strict parsers before. jwx never sees a token, only
// a signing input, and never a JWK as it was sent, only the members that make
// a public key.
//
// Its own parsers stay outside: jwt.Parse of v2.1.7 takes claims from the
// unsigned outer object of a JSON-serialized JWS, and jws.Verify parses the
// header once more and does not know crit.

// verifiers are jwx's signature checks by the name in a token's alg. They
// hold no state. RSASSA-PSS is not among them: see verifyPSS.
var verifiers = newVerifiers(map[string]jwa.SignatureAlgorithm{
	"HS256": jwa.HS256, "HS384": jwa.HS384, "HS512": jwa.HS512,
	"RS256": jwa.RS256, "RS384": jwa.RS384, "RS512": jwa.RS512,
	"ES256": jwa.ES256, "ES384": jwa.ES384, "ES512": jwa.ES512,
	"EdDSA": jwa.EdDSA,
	// RFC 9864 names the curve; the signature is the same.
	"Ed25519": jwa.EdDSA,
})

func newVerifiers(names map[string]jwa.SignatureAlgorithm) map[string]jws.Verifier {
	built := make(map[string]jws.Verifier, len(names))
	for name, algorithm := range names {
		verifier, err := jws.NewVerifier(algorithm)
		if err != nil {
			panic(fmt.Sprintf("jwx without %s: %v", name, err)) // a jwx that was built without it
		}
		built[name] = verifier
	}
	return built
}

var errUnverified = errors.New("the signature does not match")

// verifySignature checks a signature with exactly this algorithm and key. The
// key's type and curve fit the algorithm: keySet.candidates has seen to that.
func verifySignature(algorithm string, key crypto.PublicKey, signed, signature []byte) error {
	if hash, ok := pssHashes[algorithm]; ok {
		return verifyPSS(hash, key, signed, signature)
	}
	verifier, ok := verifiers[algorithm]
	if !ok {
		return errUnverified
	}
	if err := verifier.Verify(signed, signature, key); err != nil {
		return errUnverified
	}
	return nil
}

var pssHashes = map[string]crypto.Hash{"PS256": crypto.SHA256, "PS384": crypto.SHA384, "PS512": crypto.SHA512}

// verifyPSS stands in for jwx, which takes a salt of any length: the salt is
// as long as the hash (RFC 7518 §3.5).
func verifyPSS(hash crypto.Hash, key crypto.PublicKey, signed, signature []byte) error {
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return errUnverified
	}
	h := hash.New()
	h.Write(signed)
	options := rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	if rsa.VerifyPSS(public, hash, h.Sum(nil), signature, &options) != nil {
		return errUnverified
	}
	return nil
}

// parsePublicKey makes a Go key (*rsa.PublicKey, *ecdsa.PublicKey or
// ed25519.PublicKey) of one JWK.
func parsePublicKey(raw []byte) (crypto.PublicKey, error) {
	parsed, err := jwk.ParseKey(raw)
	if err != nil {
		return nil, err
	}
	return jwk.PublicRawKeyOf(parsed)
}
