package handshake

import (
	"iter"
	"net/http"
	"strings"
)

// values returns every value of a field, whatever the spelling of its key.
// net/http stores canonical keys; Caddy's reverse_proxy stores the WebSocket
// fields of the requests it sends as RFC 6455 writes them ("Sec-WebSocket-Key"),
// where Header.Get finds nothing. It allocates only when two spellings meet.
func values(h http.Header, name string) []string {
	var all []string
	for key, lines := range h {
		if !equalFold(key, name) {
			continue
		}
		if all == nil {
			all = lines
			continue
		}
		all = append(all[:len(all):len(all)], lines...)
	}
	return all
}

// has tells whether the field is there at all, be it empty.
func has(h http.Header, name string) bool {
	for key := range h {
		if equalFold(key, name) {
			return true
		}
	}
	return false
}

// remove deletes a field in every case of its name.
func remove(h http.Header, name string) {
	for key := range h {
		if equalFold(key, name) {
			delete(h, key)
		}
	}
}

// elements walks a list field: the elements of all its lines in order, blanks
// around them gone, empty ones ignored (RFC 9110 §5.6.1.2).
func elements(lines []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, line := range lines {
			for element := range strings.SplitSeq(line, ",") {
				element = trim(element)
				if element != "" && !yield(element) {
					return
				}
			}
		}
	}
}

// trim removes optional whitespace, which is space and tab only (RFC 9110 §5.6.3).
func trim(s string) string { return strings.Trim(s, " \t") }

// hasToken tells whether a list field contains a token, in any case.
func hasToken(lines []string, token string) bool {
	for element := range elements(lines) {
		if equalFold(element, token) {
			return true
		}
	}
	return false
}

// onlyToken tells whether a list field is that token, once, and nothing else.
func onlyToken(lines []string, token string) bool {
	n := 0
	for element := range elements(lines) {
		if n++; n > 1 || !equalFold(element, token) {
			return false
		}
	}
	return n == 1
}

// equalFold compares in ASCII. strings.EqualFold takes the long s and the
// Kelvin sign for letters, so "web\u017focket" for websocket.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if lowerByte(a[i]) != lowerByte(b[i]) {
			return false
		}
	}
	return true
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
