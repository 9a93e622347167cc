package auth

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// The names of the kinds of carriers, as in [Presented.Source].
const (
	SourceHeader      = "header"
	SourceQuery       = "query"
	SourceCookie      = "cookie"
	SourceSubprotocol = "subprotocol"
)

// Carriers are the places in a request where a token may be. Which of them a
// gate reads is the operator's choice; a token anywhere else is not seen.
type Carriers struct {
	// Headers are names of header fields. In Authorization only the Bearer
	// scheme counts (RFC 6750 §2.1); any other header holds the token as its
	// whole value, or after "Bearer ".
	Headers []string
	// Query are names of query parameters (RFC 6750 §2.3), compared exactly
	// after percent-decoding.
	Query []string
	// Cookies are names of cookies, compared exactly.
	Cookies []string
	// Subprotocols are prefixes of entries in Sec-WebSocket-Protocol, compared
	// exactly. "bearer" takes the pair "bearer", "<jwt>" and the single entry
	// "bearer.<jwt>". A prefix that ends in a dot takes single entries only;
	// if it also begins with "base64url.", the token in it is base64url-encoded,
	// as Kubernetes' base64url.bearer.authorization.k8s.io. is.
	Subprotocols []string
}

// DefaultCarriers is what a gate without any from_* line reads: the
// Authorization header and the subprotocol "bearer".
func DefaultCarriers() Carriers {
	return Carriers{Headers: []string{"Authorization"}, Subprotocols: []string{"bearer"}}
}

// Presented is the one token that a request presents.
type Presented struct {
	// Token is its text, not yet judged in any way; it may be empty.
	Token string
	// Ambient is true when only cookies carried it: the browser added it by
	// itself, so that the request proves nothing about the page that made it.
	Ambient bool
	// Source is the kind of the first carrier that held it: "header", "query",
	// "cookie" or "subprotocol".
	Source string
	// PairPrefix is the prefix that the client offered as a subprotocol of its
	// own ("bearer"), which may be answered when the backend chooses none.
	PairPrefix string
}

// Find returns the token that r presents, and leaves r as it is. A carrier
// that is there counts even when it is empty, and twice when it is there
// twice. Two carriers with the very same token present one token. Errors:
// [ErrNoToken], [ErrSeveralTokens] (with PairPrefix nevertheless), [ErrLoneSubprotocol].
func (c *Carriers) Find(r *http.Request) (Presented, error) {
	f := finding{onlyCookies: true}
	for _, name := range c.Headers {
		f.begin(SourceHeader)
		findHeader(&f, r.Header, name)
	}
	for _, name := range c.Query {
		f.begin(SourceQuery)
		findQuery(&f, r.URL.RawQuery, name)
	}
	for _, name := range c.Cookies {
		f.begin(SourceCookie)
		findCookie(&f, r.Header["Cookie"], name)
	}
	lone := c.findSubprotocol(&f, r.Header[subprotocolHeader])
	switch {
	case f.several:
		return Presented{PairPrefix: f.presented.PairPrefix}, ErrSeveralTokens
	case lone:
		return Presented{}, ErrLoneSubprotocol
	case !f.found:
		return Presented{}, ErrNoToken
	}
	f.presented.Ambient = f.onlyCookies
	return f.presented, nil
}

// Strip removes every configured carrier that is in r, whatever it holds:
// header lines, query parameters (from r.URL.RawQuery and r.RequestURI),
// cookie pairs and subprotocol entries. Every other byte stays.
func (c *Carriers) Strip(r *http.Request) {
	for _, name := range c.Headers {
		stripHeader(r.Header, name)
	}
	if len(c.Query) > 0 {
		r.URL.RawQuery = stripQuery(r.URL.RawQuery, c.Query)
		// The request line is rewritten too: reverse proxies, logs and
		// FastCGI read it in place of the URL.
		if path, query, ok := strings.Cut(r.RequestURI, "?"); ok {
			if rest := stripQuery(query, c.Query); rest != query {
				r.RequestURI = path
				if rest != "" {
					r.RequestURI += "?" + rest
				}
			}
		}
	}
	if len(c.Cookies) > 0 {
		setLines(r.Header, "Cookie", stripCookies(r.Header["Cookie"], c.Cookies))
	}
	if len(c.Subprotocols) > 0 {
		c.stripSubprotocols(r.Header)
	}
}

// Validate refuses names that no request can carry, or that would break the
// handshake, and names that are configured twice.
func (c *Carriers) Validate() error {
	kinds := []struct {
		names []string
		check func(string) error
		fold  func(string) string
	}{
		{c.Headers, ValidateHeader, http.CanonicalHeaderKey},
		{c.Query, ValidateQuery, nil},
		{c.Cookies, ValidateCookie, nil},
		{c.Subprotocols, ValidateSubprotocol, nil},
	}
	for _, kind := range kinds {
		seen := make(map[string]bool, len(kind.names))
		for _, name := range kind.names {
			if err := kind.check(name); err != nil {
				return err
			}
			if kind.fold != nil {
				name = kind.fold(name)
			}
			if seen[name] {
				return fmt.Errorf("checking where tokens come from: %q is configured twice", name)
			}
			seen[name] = true
		}
	}
	return nil
}

// finding collects what the carriers of one request hold.
type finding struct {
	presented   Presented
	found       bool
	several     bool
	onlyCookies bool

	source string
	inThis bool // the source that is being read has held a token already
}

// begin starts the next configured source.
func (f *finding) begin(source string) {
	f.source, f.inThis = source, false
}

// add notes one carrier of the source that is being read.
func (f *finding) add(token string) {
	if f.inThis || (f.found && (token == "" || token != f.presented.Token)) {
		f.several = true
	}
	if !f.found {
		f.presented.Token, f.presented.Source = token, f.source
	}
	f.found, f.inThis = true, true
	if f.source != SourceCookie {
		f.onlyCookies = false
	}
}

// setLines replaces the lines of one header field, and deletes it when none
// are left.
func setLines(h http.Header, key string, lines []string) {
	if len(lines) == 0 {
		delete(h, key)
		return
	}
	h[key] = lines
}

// isToken tells whether s is a token of RFC 9110 §5.6.2, the form of header
// names, cookie names and subprotocols.
func isToken(s string) bool {
	for i := range len(s) {
		if !isTokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

func isTokenByte(b byte) bool {
	switch {
	case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0
}

var errNoName = errors.New("the name is empty")
