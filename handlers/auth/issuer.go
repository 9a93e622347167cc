package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Issuer is one whose tokens are taken, and what they must look like.
type Issuer struct {
	// Name is the exact text of the claim iss. Its keys verify no other
	// issuer's tokens.
	Name string
	// Any takes tokens whatever their iss, for home-made ones. Name is empty
	// then, and Keys must not come from discovery.
	Any bool
	// Keys is where the issuer's keys come from.
	Keys *Source
	// Audience are the values of aud that are taken, any of them. Required,
	// unless AnyAudience.
	Audience    []string
	AnyAudience bool
	// Algorithms are the values of alg that are taken. Default: with a secret
	// HS256, HS384 and HS512, otherwise every asymmetric algorithm.
	Algorithms []string
	// Typ are the values of typ that are taken, without regard to case and a
	// leading "application/"; a token without typ is then refused. Default:
	// any, and none, but dpop+jwt, logout+jwt and secevent+jwt.
	Typ []string
}

// otherPurposes are types of tokens that an issuer signs with the same keys,
// and that are never access tokens (RFC 8725 §3.11): RFC 9449, OpenID Connect
// Back-Channel Logout 1.0, RFC 8417.
var otherPurposes = []string{"dpop+jwt", "logout+jwt", "secevent+jwt"}

// prepared returns the issuer with its defaults filled in.
func (i *Issuer) prepared() (*Issuer, error) {
	p := *i
	switch {
	case p.Any && p.Name != "":
		return nil, fmt.Errorf("setting up issuer %q: issuer any has no name", p.Name)
	case !p.Any && p.Name == "":
		return nil, errors.New("setting up an issuer: it has no name")
	case p.Keys == nil:
		return nil, fmt.Errorf("setting up issuer %q: it has no keys", p.Name)
	case p.Any && p.Keys.config.Discovery != "":
		return nil, errors.New("setting up issuer any: it needs jwks, jwks_file or secret")
	case p.AnyAudience == (len(p.Audience) > 0):
		return nil, fmt.Errorf("setting up issuer %q: it needs an audience, or audience any", p.Name)
	case slices.Contains(p.Audience, ""):
		return nil, fmt.Errorf("setting up issuer %q: an audience is empty", p.Name)
	}
	secret := p.Keys.read == nil
	if err := ValidateAlgorithms(p.Algorithms, secret); err != nil {
		return nil, fmt.Errorf("setting up issuer %q: %w", p.Name, err)
	}
	if len(p.Algorithms) == 0 {
		p.Algorithms = defaultAlgorithms(secret)
	}
	p.Typ = nil
	for _, typ := range i.Typ {
		folded := mediaType(typ)
		if folded == "" || slices.Contains(otherPurposes, folded) {
			return nil, fmt.Errorf("setting up issuer %q: typ %q is never an access token", p.Name, typ)
		}
		p.Typ = append(p.Typ, folded)
	}
	return &p, nil
}

// ValidateAlgorithms refuses names that are no JWS algorithm for signatures,
// and mixtures: HS256, HS384 and HS512 go with a secret, and nothing else
// does. Otherwise a public key could serve as a secret (RFC 8725 §2.1).
func ValidateAlgorithms(names []string, secret bool) error {
	for _, name := range names {
		kind, known := algorithms[name]
		switch {
		case !known:
			return fmt.Errorf("checking algorithms: %q is not one that can be verified", name)
		case secret && kind != kindSecret:
			return fmt.Errorf("checking algorithms: %q cannot be verified with a secret", name)
		case !secret && kind == kindSecret:
			return fmt.Errorf("checking algorithms: %q needs a secret", name)
		}
	}
	return nil
}

func defaultAlgorithms(secret bool) []string {
	var names []string
	for name, kind := range algorithms {
		if (kind == kindSecret) == secret {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// checkHeader compares alg and typ with what is configured. The token's own
// word on its algorithm never widens that (RFC 8725 §3.1).
func (i *Issuer) checkHeader(h *header) error {
	if !slices.Contains(i.Algorithms, h.algorithm) {
		return errAlgorithm
	}
	if slices.Contains(otherPurposes, h.typ) || (len(i.Typ) > 0 && !slices.Contains(i.Typ, h.typ)) {
		return errType
	}
	return nil
}

// checkSignature verifies with the issuer's keys, and returns the set that
// they are from. A kid that is not in the set may be a new one, so the set is
// renewed once, as far as the source's cooldown allows.
func (i *Issuer) checkSignature(ctx context.Context, c *compact) (*keySet, error) {
	set, err := i.Keys.keys(ctx)
	if err != nil {
		return nil, err
	}
	err = set.verify(c)
	if errors.Is(err, errUnknownKid) {
		if fresh := i.Keys.renewed(ctx, set); fresh != set {
			set, err = fresh, fresh.verify(c)
		}
	}
	return set, err
}
