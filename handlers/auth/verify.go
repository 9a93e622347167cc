package auth

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// DefaultUserClaim is the claim that names the user.
const DefaultUserClaim = "sub"

// maxTime is the last second of the year 9999, the end of RFC 3339 times.
const maxTime = 253402300799

// VerifierConfig is what one gate demands of a token.
type VerifierConfig struct {
	// Issuers are those whose tokens are taken, each with its own keys.
	Issuers []*Issuer
	// Leeway is added to exp, and taken from nbf and iat, for clocks that
	// differ. Default 0.
	Leeway time.Duration
	// UserClaim is the path of the claim that names the user. Default "sub".
	UserClaim string
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	VerifierConfig

	byName     map[string]*Issuer
	any        *Issuer // the only issuer, when it is Any
	remembered *memory
	now        func() time.Time
}

// Token is what a verified token says.
type Token struct {
	// Issuer is the claim iss; with an issuer that is Any, "" if it has none.
	Issuer string
	// User is the claim that names the user, as its text.
	User string
	// ID and SessionID are the claims jti and sid, or "".
	ID, SessionID string
	// Expires is the claim exp itself, without leeway.
	Expires time.Time
	// Claims are all claims.
	Claims *Claims
}

// NewVerifier makes a verifier, and refuses a configuration that could take
// what nobody meant to be taken.
func NewVerifier(c VerifierConfig) (*Verifier, error) {
	if len(c.Issuers) == 0 {
		return nil, errors.New("setting up verification: no issuer is configured")
	}
	if c.Leeway < 0 {
		return nil, fmt.Errorf("setting up verification: leeway %s is negative", c.Leeway)
	}
	if c.UserClaim == "" {
		c.UserClaim = DefaultUserClaim
	}
	v := &Verifier{VerifierConfig: c, byName: make(map[string]*Issuer), remembered: newMemory(), now: time.Now}
	v.Issuers = nil
	for _, configured := range c.Issuers {
		issuer, err := configured.prepared()
		if err != nil {
			return nil, err
		}
		switch _, twice := v.byName[issuer.Name]; {
		case issuer.Any && len(c.Issuers) > 1:
			return nil, errors.New("setting up verification: issuer any must be the only one")
		case issuer.Any:
			v.any = issuer
		case twice:
			return nil, fmt.Errorf("setting up verification: issuer %q is configured twice", issuer.Name)
		default:
			v.byName[issuer.Name] = issuer
		}
		v.Issuers = append(v.Issuers, issuer)
	}
	return v, nil
}

// Verify returns what the token says, if it is good now: its form, issuer,
// algorithm and type, its signature, its times, its audience and its user, in
// this order. The error is a cause of [ErrInvalidToken], or
// [ErrKeysUnavailable]. It waits for keys at most for the source's timeout,
// and not longer than ctx lives.
func (v *Verifier) Verify(ctx context.Context, token string) (*Token, error) {
	if len(token) > maxToken {
		return nil, errTooLong
	}
	if _, _, _, err := split(token); err != nil {
		return nil, err // before anything is made of it (S-44)
	}
	sum := tokenSum(token)
	if known := v.recall(sum); known != nil {
		return known, nil
	}
	c, err := parseCompact(token)
	if err != nil {
		return nil, err
	}
	issuer, err := v.issuerOf(c)
	if err != nil {
		return nil, err
	}
	set, err := issuer.checkSignature(ctx, c)
	if err != nil {
		return nil, err
	}
	// The clock is read again: keys may have been waited for.
	verified, err := v.judge(issuer, c.payload, v.now())
	if err != nil {
		return nil, err
	}
	v.remembered.put(sum, remembered{payload: c.text, issuer: issuer, generation: set.generation})
	return verified, nil
}

// recall returns a token whose signature needs no second look, if it is good
// now; nil for all others.
func (v *Verifier) recall(s sum) *Token {
	known, ok := v.remembered.find(s)
	if !ok {
		return nil
	}
	payload, err := parseObject(known.payload)
	if err != nil {
		return nil // never: it was parsed before
	}
	token, err := v.judge(known.issuer, payload, v.now())
	if err != nil {
		return nil
	}
	return token
}

// issuerOf finds the issuer by the exact text of iss, and has it look at the
// header.
func (v *Verifier) issuerOf(c *compact) (*Issuer, error) {
	issuer := v.any
	if issuer == nil {
		name, ok := c.payload["iss"].(string)
		if !ok || v.byName[name] == nil {
			return nil, errIssuer
		}
		issuer = v.byName[name]
	}
	return issuer, issuer.checkHeader(&c.header)
}

// judge looks at the claims, whose signature was verified.
func (v *Verifier) judge(issuer *Issuer, payload map[string]any, now time.Time) (*Token, error) {
	validity, err := validityOf(payload)
	if err != nil {
		return nil, err
	}
	if err := validity.check(now, v.Leeway); err != nil {
		return nil, err
	}
	if !issuer.takesAudience(payload["aud"]) {
		return nil, errAudience
	}
	claims := &Claims{root: payload}
	user, err := claims.user(v.UserClaim)
	if err != nil {
		return nil, err
	}
	name := issuer.Name // the same text, but one for all sockets
	if issuer.Any {
		name, _ = payload["iss"].(string)
		name = strings.Clone(name) // not a piece of the payload, which would stay with it
	}
	return &Token{
		Issuer: name, User: user, ID: claims.text("jti"), SessionID: claims.text("sid"),
		Expires: validity.expires, Claims: claims,
	}, nil
}

// validity is when a token is good (RFC 7519 §4.1.4 to §4.1.6). notBefore and
// issued are zero when the token does not say.
type validity struct {
	expires, notBefore, issued time.Time
}

// validityOf reads the times of a token. Without exp it would be good for
// ever, so exp is required.
func validityOf(payload map[string]any) (v validity, err error) {
	var ok bool
	if v.expires, ok = timeOf(payload["exp"]); !ok || v.expires.Unix() == 0 && v.expires.Nanosecond() == 0 {
		return v, errTime
	}
	for _, claim := range []struct {
		name string
		at   *time.Time
	}{{"nbf", &v.notBefore}, {"iat", &v.issued}} {
		value, present := payload[claim.name]
		if !present {
			continue
		}
		if *claim.at, ok = timeOf(value); !ok {
			return v, errTime
		}
	}
	return v, nil
}

// check tells whether a token is good at this time. The very second of exp is
// too late, that of nbf is not too early.
func (v *validity) check(now time.Time, leeway time.Duration) error {
	switch {
	case !now.Before(v.expires.Add(leeway)):
		return errExpired
	case v.notBefore.After(now.Add(leeway)):
		return errNotYetValid
	case v.issued.After(now.Add(leeway)):
		return errFutureIssue
	}
	return nil
}

// timeOf reads a NumericDate (RFC 7519 §2): seconds since 1970, possibly with
// a fraction, up to the year 9999.
func timeOf(value any) (time.Time, bool) {
	seconds, ok := jsonFloat(value)
	if !ok || seconds < 0 || seconds > maxTime {
		return time.Time{}, false
	}
	whole, fraction := math.Modf(seconds)
	return time.Unix(int64(whole), int64(fraction*1e9)), true
}

// takesAudience tells whether aud, a string or an array of strings, has one
// of the configured audiences in it (RFC 7519 §4.1.3).
func (i *Issuer) takesAudience(aud any) bool {
	if i.AnyAudience {
		return true
	}
	switch aud := aud.(type) {
	case string:
		return slices.Contains(i.Audience, aud)
	case []any:
		found := false
		for _, element := range aud {
			name, ok := element.(string)
			if !ok {
				return false
			}
			found = found || slices.Contains(i.Audience, name)
		}
		return found
	}
	return false
}
