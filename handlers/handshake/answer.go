package handshake

import (
	"crypto/sha1" //nolint:gosec // RFC 6455 §1.3 defines the accept key by SHA-1
	"encoding/base64"
	"iter"
	"net/http"
	"slices"
	"strings"
)

// acceptGUID is what a server appends to the key (RFC 6455 §1.3).
const acceptGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// AcceptKey returns the Sec-WebSocket-Accept that answers a key
// (RFC 6455 §4.2.2, 5).
func AcceptKey(key string) string {
	sum := sha1.Sum([]byte(key + acceptGUID)) //nolint:gosec // see the import
	return base64.StdEncoding.EncodeToString(sum[:])
}

// CheckAnswer holds a backend's 101 to RFC 6455 §4.1, given the header of the
// request as it went to the backend: the token's subprotocol, taken away by
// then, was not offered. It returns nil or an *[Error] with status 502.
//
// What a client would do on its own is done here, because the gate becomes a
// tunnel at a 101: one that no WebSocket server wrote (an endpoint that echoes
// a status, a cache) would open a raw connection behind the gate.
func CheckAnswer(req, res http.Header) error {
	if !onlyToken(values(res, fieldUpgrade), protocolWebSocket) {
		return unfit("answer does not upgrade to websocket")
	}
	if !hasToken(values(res, fieldConnection), fieldUpgrade) {
		return unfit("answer has no upgrade in connection")
	}
	key, accept := values(req, fieldKey), values(res, fieldAccept)
	if len(key) != 1 || len(accept) != 1 || trim(accept[0]) != AcceptKey(key[0]) {
		return unfit("answer has a wrong accept")
	}
	if err := checkSubprotocol(values(req, fieldProtocol), values(res, fieldProtocol)); err != nil {
		return err
	}
	offered := Extensions(req)
	for _, name := range Extensions(res) {
		if !slices.Contains(offered, name) {
			return unfit("answer has an extension that was not offered")
		}
	}
	return nil
}

// checkSubprotocol wants none, or one line with one value out of the offer;
// case counts, for these are opaque strings (RFC 6455 §4.1, 6).
func checkSubprotocol(offered, chosen []string) error {
	if len(chosen) == 0 {
		return nil
	}
	if len(chosen) == 1 {
		for name := range elements(offered) {
			if name == trim(chosen[0]) {
				return nil
			}
		}
	}
	return unfit("answer has a subprotocol that was not offered")
}

// Extensions returns the names of the extensions that a request offers or an
// answer agrees to, in order and without their parameters (RFC 6455 §9.1).
func Extensions(h http.Header) []string {
	var names []string
	for _, line := range values(h, fieldExtensions) {
		for element := range splitUnquoted(line) {
			name, _, _ := strings.Cut(element, ";")
			if name = trim(name); name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// splitUnquoted splits at the commas outside quoted strings: a parameter may
// be one (RFC 6455 §9.1), and what looks like a name in it is none.
func splitUnquoted(line string) iter.Seq[string] {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := 0; i < len(line); i++ {
			switch {
			case quoted && line[i] == '\\':
				i++
			case line[i] == '"':
				quoted = !quoted
			case line[i] == ',' && !quoted:
				if !yield(line[start:i]) {
					return
				}
				start = i + 1
			}
		}
		yield(line[start:])
	}
}

func unfit(detail string) error { return &Error{http.StatusBadGateway, detail} }
