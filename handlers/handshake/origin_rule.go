package handshake

import "net/http"

// OriginPolicy is the whole rule about where a request may come from.
type OriginPolicy struct {
	// The allow-list for requests that say where they come from.
	Origins *Origins

	// Refuses what needs an Origin and has none. By default only a request whose
	// token is ambient needs one.
	DenyMissing bool
}

// CheckOrigin applies a policy to a request and returns nil or an *[Error]
// with status 403. Scheme and host are those of the request as the client made
// it, for same_origin.
//
// A request that has an Origin is judged by it. Without one:
//
//   - a handshake passes unless the policy denies it, for clients that are no
//     browsers send none (RFC 6455 §10.2); but never with an ambient token,
//     one that a browser attaches by itself (a cookie and nothing else);
//   - a plain GET or HEAD cannot be held to that, since browsers send no Origin
//     with those to their own site: it is judged by Sec-Fetch-Site where
//     present, and passes where absent, whatever carries its token;
//   - any other plain request counts as a handshake does.
func CheckOrigin(r *http.Request, policy OriginPolicy, scheme, host string, ambient bool) error {
	if lines := values(r.Header, fieldOrigin); len(lines) > 0 {
		if !policy.Origins.Allows(RequestOrigin{lines, scheme, host}) {
			return foreign("origin not allowed")
		}
		return nil
	}
	if !Is(r) && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		return checkFetchSite(values(r.Header, "Sec-Fetch-Site"))
	}
	if ambient {
		return foreign("cookie without origin")
	}
	if policy.DenyMissing {
		return foreign("no origin")
	}
	return nil
}

// checkFetchSite refuses cross-site requests, and values that no browser sends
// (Fetch Metadata §2.3).
func checkFetchSite(lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	if len(lines) == 1 {
		switch lines[0] {
		case "same-origin", "same-site", "none":
			return nil
		}
	}
	return foreign("cross-site request")
}

func foreign(detail string) error { return &Error{http.StatusForbidden, detail} }
