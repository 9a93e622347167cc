package handshake

import (
	"encoding/base64"
	"net/http"
	"slices"
)

const (
	fieldConnection = "Connection"
	fieldUpgrade    = "Upgrade"
	fieldOrigin     = "Origin"
	fieldAccept     = "Sec-WebSocket-Accept"
	fieldExtensions = "Sec-WebSocket-Extensions"
	fieldKey        = "Sec-WebSocket-Key"
	fieldProtocol   = "Sec-WebSocket-Protocol"
	fieldVersion    = "Sec-WebSocket-Version"

	protocolWebSocket = "websocket"
	version           = "13"
	keyLength         = 16
)

// Is tells whether a request means to open a WebSocket: its Upgrade field
// lists websocket in any case, it carries a Sec-WebSocket-Key, be it empty, or
// it is an extended CONNECT. It is deliberately wider than what [Check]
// accepts, so that a broken handshake is refused as one and never reaches the
// backend as plain HTTP.
func Is(r *http.Request) bool {
	return hasToken(values(r.Header, fieldUpgrade), protocolWebSocket) ||
		has(r.Header, fieldKey) ||
		IsExtendedConnect(r)
}

// IsExtendedConnect tells whether a request bootstraps another protocol on a
// stream of HTTP/2 (RFC 8441 §4) or HTTP/3 (RFC 9220 §3), whichever protocol
// that is.
//
// Go's HTTP/2 server keeps the pseudo-header in the header map; quic-go puts
// its value in place of r.Proto. Caddy's reverse_proxy reads both the same way
// and turns such a request into an HTTP/1.1 upgrade, so a gate that looks only
// at Upgrade lets it through.
func IsExtendedConnect(r *http.Request) bool {
	if r.Method != http.MethodConnect {
		return false
	}
	switch r.ProtoMajor {
	case 2:
		return has(r.Header, ":protocol")
	case 3:
		return r.Proto != "HTTP/3.0"
	}
	return false
}

// Check holds an opening handshake to RFC 6455 §4.2.1 and returns nil or an
// *[Error]: 405 for another method than GET, 426 for another version than 13,
// 400 for anything else. An answer with 405 needs an Allow field, one with 426
// a Sec-WebSocket-Version field (§4.4).
//
// An extended CONNECT has no key and no Upgrade field to check: ask
// [IsExtendedConnect] first.
func Check(r *http.Request) error {
	if r.Method != http.MethodGet { // case counts: RFC 9110 §9.1
		return &Error{http.StatusMethodNotAllowed, "method is not GET"}
	}
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 {
		return malformed("protocol is not HTTP/1.1")
	}
	if r.Host == "" || len(values(r.Header, "Host")) > 1 {
		return malformed("not exactly one host")
	}
	// RFC 6455 lets Upgrade list more; no client does. A second protocol could
	// be switched to by a backend that prefers it (h2c), so it is refused.
	if !onlyToken(values(r.Header, fieldUpgrade), protocolWebSocket) {
		return malformed("upgrade is not websocket alone")
	}
	if !hasToken(values(r.Header, fieldConnection), fieldUpgrade) {
		return malformed("no upgrade in connection")
	}
	if err := checkKey(values(r.Header, fieldKey)); err != nil {
		return err
	}
	// GET with a body is legal HTTP, but behind an upgrade its bytes are read as
	// frames by one side and as a body by the other.
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		return malformed("handshake with a body")
	}
	if !slices.Equal(values(r.Header, fieldVersion), []string{version}) {
		return &Error{http.StatusUpgradeRequired, "version is not 13"}
	}
	return nil
}

// checkKey wants one line that decodes to 16 bytes (RFC 6455 §4.2.1, 5). The
// unused last bits may be anything: the key is a nonce, not a secret.
func checkKey(lines []string) error {
	if len(lines) != 1 {
		return malformed("not exactly one key")
	}
	key := lines[0]
	if len(key) != base64.StdEncoding.EncodedLen(keyLength) {
		return malformed("key is not 16 bytes")
	}
	var raw [keyLength + 2]byte // two padding characters may hide two more bytes
	if n, err := base64.StdEncoding.Decode(raw[:], []byte(key)); err != nil || n != keyLength {
		return malformed("key is not 16 bytes")
	}
	return nil
}

// CheckPlain holds a request that is not a handshake to what may pass on to a
// backend as plain HTTP. It returns nil or an *[Error] with status 400 for one
// that asks for another protocol (h2c smuggling: a backend that switches is
// out of the gate's sight) or for a tunnel by CONNECT.
func CheckPlain(r *http.Request) error {
	if r.Method == http.MethodConnect {
		return malformed("method is CONNECT")
	}
	if has(r.Header, fieldUpgrade) {
		return malformed("upgrade to another protocol")
	}
	return nil
}

// Offered returns the subprotocols that a handshake offers, in order of
// preference (RFC 6455 §4.2.1, 8).
func Offered(r *http.Request) []string {
	return slices.Collect(elements(values(r.Header, fieldProtocol)))
}

func malformed(detail string) error { return &Error{http.StatusBadRequest, detail} }
