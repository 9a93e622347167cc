package handshake

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
)

// Identity lists the headers that tell the backend who is there.
type Identity []IdentityHeader

// IdentityHeader fills one header from one claim.
type IdentityHeader struct {
	// The name of the header, without underscores and dots.
	Header string

	// The path of the claim: a name, or names joined by dots.
	Claim string
}

// reserved are fields, folded, that an identity cannot be put in: HTTP or the
// handshake would break, or the proxy behind the gate drops or sets them.
var reserved = map[string]bool{
	"accept-encoding": true, "connection": true, "content-encoding": true, "content-length": true,
	"content-type": true, "cookie": true, "cookie2": true, "date": true, "expect": true,
	"host": true, "http2-settings": true, "keep-alive": true, "origin": true,
	"proxy-authenticate": true, "proxy-authorization": true, "proxy-connection": true,
	"set-cookie": true, "te": true, "trailer": true, "transfer-encoding": true,
	"upgrade": true, "via": true,
	"x-forwarded-for": true, "x-forwarded-host": true, "x-forwarded-proto": true,
}

// Validate tells whether every header can carry an identity: a token
// (RFC 9110 §5.6.2) without underscore or dot, which backends map to the same
// variable as a hyphen, not a field that the request needs, and no two alike.
func (id Identity) Validate() error {
	seen := make(map[string]string, len(id))
	for _, h := range id {
		folded := fold(h.Header)
		switch {
		case !httpguts.ValidHeaderFieldName(h.Header):
			return fmt.Errorf("validating identity header %q: not a header name", h.Header)
		case strings.ContainsAny(h.Header, "_."):
			return fmt.Errorf("validating identity header %q: '_' and '.' are not allowed, use '-'", h.Header)
		case reserved[folded], strings.HasPrefix(folded, "sec-"):
			return fmt.Errorf("validating identity header %q: the request needs this header itself", h.Header)
		case h.Claim == "":
			return fmt.Errorf("validating identity header %q: no claim", h.Header)
		case seen[folded] != "":
			return fmt.Errorf("validating identity header %q: the same as %q", h.Header, seen[folded])
		}
		seen[folded] = h.Header
	}
	return nil
}

// Strip deletes the client's copies of the headers in every spelling that a
// backend may take for them: CGI, WSGI, Rack and PHP turn case and punctuation
// into one and the same variable name.
func (id Identity) Strip(h http.Header) {
	for key := range h {
		if id.covers(key) {
			delete(h, key)
		}
	}
}

// covers tells whether a field is one of the headers, in any spelling.
func (id Identity) covers(key string) bool {
	for i := range id {
		if sameFolded(key, id[i].Header) {
			return true
		}
	}
	return false
}

// ErrClaimText is for a claim with a control character, a line or paragraph
// separator, or blanks around it. Its token is refused, not repaired.
var ErrClaimText = errors.New("claim does not fit into a header")

// Set writes the headers. For each it asks value for the claim's text and
// whether the claim is there; an absent one leaves the header absent. It stops
// at the first error, and the request must not be sent then. A text that no
// header can carry unchanged is [ErrClaimText].
func (id Identity) Set(h http.Header, value func(claim string) (string, bool, error)) error {
	for _, header := range id {
		text, ok, err := value(header.Claim)
		if err == nil && ok && !fitsHeader(text) {
			err = ErrClaimText
		}
		if err != nil {
			return fmt.Errorf("setting identity header %q: %w", header.Header, err)
		}
		key := textproto.CanonicalMIMEHeaderKey(header.Header)
		if !ok {
			delete(h, key)
			continue
		}
		h[key] = []string{text}
	}
	return nil
}

// fitsHeader keeps request splitting (CR, LF, NUL), and whatever else ends a
// line or a value somewhere, out of a header.
func fitsHeader(text string) bool {
	if !utf8.ValidString(text) || strings.TrimSpace(text) != text {
		return false
	}
	return !strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || r == '\u2028' || r == '\u2029'
	})
}

// fold maps a name to what all its spellings share: lower-case letters and
// digits, and one hyphen for every run of anything else.
func fold(name string) string {
	var b strings.Builder
	for i := 0; i < len(name); {
		var c byte
		c, i = foldNext(name, i)
		b.WriteByte(c)
	}
	return b.String()
}

// sameFolded compares two names folded, without allocating.
func sameFolded(a, b string) bool {
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		var c, d byte
		c, i = foldNext(a, i)
		d, j = foldNext(b, j)
		if c != d {
			return false
		}
	}
	return i == len(a) && j == len(b)
}

// foldNext returns the folded character at i and where the next one starts.
func foldNext(s string, i int) (byte, int) {
	if c := foldByte(s[i]); c != '-' {
		return c, i + 1
	}
	for i++; i < len(s) && foldByte(s[i]) == '-'; i++ {
	}
	return '-', i
}

func foldByte(c byte) byte {
	c = lowerByte(c)
	if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
		return c
	}
	return '-'
}
