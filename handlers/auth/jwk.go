package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
)

// keyKind is a type of key together with its curve, which is what an
// algorithm has to fit.
type keyKind int

const (
	kindSecret keyKind = iota + 1
	kindRSA
	kindP256
	kindP384
	kindP521
	kindEd25519
)

// algorithms are the JWS algorithms that a gate can be configured for, with
// the one kind of key that each takes (RFC 7518 §3.1, RFC 8037 §3.1, RFC 9864).
// "none" is not one, and ES256K has no key kind here.
var algorithms = map[string]keyKind{
	"HS256": kindSecret, "HS384": kindSecret, "HS512": kindSecret,
	"RS256": kindRSA, "RS384": kindRSA, "RS512": kindRSA,
	"PS256": kindRSA, "PS384": kindRSA, "PS512": kindRSA,
	"ES256": kindP256, "ES384": kindP384, "ES512": kindP521,
	"EdDSA": kindEd25519, "Ed25519": kindEd25519,
}

// key is one key that may verify signatures.
type key struct {
	kid        string // empty: none
	algorithm  string // the only one that the JWK allows; empty: any that fits its kind
	kind       keyKind
	public     crypto.PublicKey
	thumbprint [sha256.Size]byte
}

// fits tells whether the key may verify a signature of that algorithm.
func (k *key) fits(algorithm string) bool {
	return algorithms[algorithm] == k.kind && (k.algorithm == "" || k.algorithm == algorithm)
}

// Why an entry of a key set is not used. The texts are for the operator's log.
var (
	errNotForSignatures = errors.New("not for verifying signatures")
	errBadMember        = errors.New("missing or malformed member")
	errPrivateKey       = errors.New("private key, which a key set must not hold")
	errSymmetricKey     = errors.New("symmetric key, which a key set must not hold")
	errUnknownType      = errors.New("unknown key type")
	errUnknownCurve     = errors.New("unknown curve")
	errWrongAlgorithm   = errors.New("alg is unknown or does not fit the key")
	errWeakRSA          = errors.New("RSA modulus below 2048 bits, above 8192, or with a known weakness")
	errExponent         = errors.New("RSA exponent out of range")
	errPoint            = errors.New("public point not on its curve, or of small order")
)

// newKey makes a key of one JWK (RFC 7517 §4), or tells why not.
func newKey(entry map[string]any) (*key, error) {
	if err := forVerifying(entry); err != nil {
		return nil, err
	}
	k := &key{}
	var ok bool
	if k.kid, ok = optionalText(entry, "kid"); !ok {
		return nil, errBadMember
	}
	if k.algorithm, ok = optionalText(entry, "alg"); !ok {
		return nil, errBadMember
	}
	members, err := publicMembers(entry)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(members)
	if err != nil {
		return nil, errBadMember
	}
	k.thumbprint = sha256.Sum256(raw)
	public, err := parsePublicKey(raw)
	if err != nil {
		return nil, errBadMember
	}
	if k.kind, err = kindOf(public); err != nil {
		return nil, err
	}
	k.public = public
	if k.algorithm != "" && algorithms[k.algorithm] != k.kind {
		return nil, errWrongAlgorithm
	}
	return k, nil
}

// forVerifying refuses keys with another purpose (RFC 7517 §4.2 and §4.3), and
// keys that are no secret any more.
func forVerifying(entry map[string]any) error {
	if use, present := entry["use"]; present && use != "sig" {
		return errNotForSignatures
	}
	if operations, present := entry["key_ops"]; present {
		if list, _ := operations.([]any); !slices.Contains(list, any("verify")) {
			return errNotForSignatures
		}
	}
	if entry["kty"] == "oct" {
		return errSymmetricKey
	}
	if _, present := entry["d"]; present {
		return errPrivateKey
	}
	return nil
}

// publicMembers are the members that make the public key, and no others, so
// that jwx has nothing else to interpret.
func publicMembers(entry map[string]any) (map[string]string, error) {
	var names []string
	switch kty, ok := entry["kty"].(string); {
	case !ok:
		return nil, errUnknownType
	case kty == "RSA":
		names = []string{"n", "e"}
	case kty == "EC":
		names = []string{"x", "y"}
	case kty == "OKP":
		names = []string{"x"}
	default:
		return nil, errUnknownType
	}
	members := map[string]string{"kty": entry["kty"].(string)}
	if members["kty"] != "RSA" {
		curve, _ := entry["crv"].(string)
		if !slices.Contains([]string{"P-256", "P-384", "P-521", "Ed25519"}, curve) {
			return nil, errUnknownCurve
		}
		members["crv"] = curve
	}
	for _, name := range names {
		text, _ := entry[name].(string)
		// Padding is a common mistake of issuers, and harmless.
		octets, err := decodePart(strings.TrimRight(text, "="))
		if err != nil || len(octets) == 0 {
			return nil, errBadMember
		}
		if name == "e" && !saneExponent(octets) {
			return nil, errExponent
		}
		members[name] = strictBase64.EncodeToString(octets)
	}
	return members, nil
}

// kindOf tells what a key is, and refuses keys that verify what they should
// not. Those checks are not jwx's.
func kindOf(public crypto.PublicKey) (keyKind, error) {
	switch public := public.(type) {
	case *rsa.PublicKey:
		bits := public.N.BitLen()
		if bits < 2048 || bits > 8192 || public.N.Bit(0) == 0 || isROCA(public.N) {
			return 0, errWeakRSA
		}
		return kindRSA, nil
	case *ecdsa.PublicKey:
		if _, err := public.ECDH(); err != nil { // checks that the point is on the curve
			return 0, errPoint
		}
		switch public.Curve {
		case elliptic.P256():
			return kindP256, nil
		case elliptic.P384():
			return kindP384, nil
		case elliptic.P521():
			return kindP521, nil
		}
	case ed25519.PublicKey:
		if len(public) != ed25519.PublicKeySize || !soundEd25519(public) {
			return 0, errPoint
		}
		return kindEd25519, nil
	}
	return 0, errUnknownCurve
}

// saneExponent takes odd RSA exponents from 3 to 2^31-1. It looks at the
// octets, since jwx keeps the low 64 bits of whatever comes.
func saneExponent(octets []byte) bool {
	e := new(big.Int).SetBytes(octets)
	return e.IsInt64() && e.Int64() >= 3 && e.Int64() <= 1<<31-1 && e.Bit(0) == 1
}

// optionalText is a member that is a string or absent.
func optionalText(entry map[string]any, name string) (string, bool) {
	value, present := entry[name]
	if !present {
		return "", true
	}
	text, ok := value.(string)
	return text, ok
}
