package auth

import "errors"

// What a request can fail with. Every error of [Carriers.Find] and
// [Verifier.Verify] is one of these, or wraps one.
var (
	// ErrNoToken: no configured carrier is in the request.
	ErrNoToken = errors.New("no token presented")
	// ErrSeveralTokens: one carrier is there twice, or two hold different
	// tokens (RFC 6750 §2 allows one method per request).
	ErrSeveralTokens = errors.New("several tokens presented")
	// ErrLoneSubprotocol: the client offers nothing but "bearer.<jwt>". Nothing
	// of that can be answered, and a browser fails a socket whose offer is not
	// answered, so the client is asked for one more subprotocol.
	ErrLoneSubprotocol = errors.New("offer one more subprotocol beside the token")
	// ErrInvalidToken: the token is refused. [Detail] tells why, to the log only.
	ErrInvalidToken = errors.New("invalid token")
	// ErrKeysUnavailable: the issuer's keys were never fetched, or are too old.
	ErrKeysUnavailable = errors.New("keys of the issuer are unavailable")
)

// refusal is one cause of [ErrInvalidToken]. Its text is fixed: nothing that a
// client sent is in it.
type refusal struct{ detail string }

func (r *refusal) Error() string { return "invalid token: " + r.detail }

func (r *refusal) Unwrap() error { return ErrInvalidToken }

// The causes for which a token is refused; the texts are the log's details.
var (
	errTooLong       = &refusal{"too long"}
	errMalformed     = &refusal{"malformed"}
	errAmbiguous     = &refusal{"ambiguous JSON"}
	errHeader        = &refusal{"bad header"}
	errCritical      = &refusal{"unsupported header parameter"}
	errType          = &refusal{"typ"}
	errAlgorithm     = &refusal{"algorithm not allowed"}
	errIssuer        = &refusal{"unknown issuer"}
	errUnknownKid    = &refusal{"unknown kid"}
	errNoKey         = &refusal{"no key for this algorithm"}
	errSignature     = &refusal{"bad signature"}
	errTime          = &refusal{"bad time claim"}
	errExpired       = &refusal{"expired"}
	errNotYetValid   = &refusal{"not yet valid"}
	errFutureIssue   = &refusal{"issued in the future"}
	errAudience      = &refusal{"audience"}
	errUserClaim     = &refusal{"user claim"}
	errIdentityClaim = &refusal{"identity claim"}
)

// Detail is the log's word for why a request was refused, such as "expired",
// "bad signature" or "unknown kid": short, fixed English, never a part of the
// token. It is empty for an error that is not of this package.
func Detail(err error) string {
	var r *refusal
	if errors.As(err, &r) {
		return r.detail
	}
	for _, known := range []error{ErrNoToken, ErrSeveralTokens, ErrLoneSubprotocol, ErrInvalidToken, ErrKeysUnavailable} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return ""
}
