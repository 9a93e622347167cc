package auth

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

const authorizationHeader = "Authorization"

// reservedHeaders cannot carry a token: stripping them would break the
// handshake, or another carrier reads them.
var reservedHeaders = []string{
	"Connection", "Content-Length", "Cookie", "Host", "Origin", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// ValidateHeader refuses a from_header that is no field name, or one of those
// that make the handshake.
func ValidateHeader(name string) error {
	if name == "" {
		return fmt.Errorf("checking from_header: %w", errNoName)
	}
	if !isToken(name) {
		return fmt.Errorf("checking from_header: %q is not a header name", name)
	}
	key := http.CanonicalHeaderKey(name)
	if slices.Contains(reservedHeaders, key) || strings.HasPrefix(key, "Sec-Websocket-") {
		return fmt.Errorf("checking from_header: %q cannot carry a token", name)
	}
	return nil
}

// findHeader notes each line of the header field as one carrier.
func findHeader(f *finding, h http.Header, name string) {
	key := http.CanonicalHeaderKey(name)
	for _, line := range h[key] {
		if token, ok := bearer(line); ok {
			f.add(token)
		} else if key != authorizationHeader {
			f.add(line)
		}
	}
}

// stripHeader deletes the lines that findHeader reads. Other schemes of
// Authorization stay: they are not ours to judge.
func stripHeader(h http.Header, name string) {
	key := http.CanonicalHeaderKey(name)
	lines, ok := h[key]
	if !ok {
		return
	}
	if key != authorizationHeader {
		delete(h, key)
		return
	}
	setLines(h, key, slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		_, ok := bearer(line)
		return ok
	}))
}

// bearer returns what follows the Bearer scheme, whose name is
// case-insensitive and ends in 1*SP (RFC 9110 §11.4). The bare scheme and a
// tab behind it are a carrier too, with a token that is empty or malformed.
func bearer(line string) (string, bool) {
	const scheme = "bearer"
	if len(line) < len(scheme) || !strings.EqualFold(line[:len(scheme)], scheme) {
		return "", false
	}
	rest := line[len(scheme):]
	if rest != "" && rest[0] != ' ' && rest[0] != '\t' {
		return "", false
	}
	return strings.TrimLeft(rest, " "), true
}
