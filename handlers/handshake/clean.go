package handshake

import "net/http"

// Fields that end at the next hop whether or not Connection names them
// (RFC 9110 §7.6.1; HTTP2-Settings: RFC 7540 §3.2.1).
var hopByHop = []string{"Keep-Alive", "Proxy-Connection", "HTTP2-Settings"}

// Fields that mean nothing in a request without a body. Expect would have the
// backend answer twice (RFC 9110 §10.1.1).
var aboutBody = []string{"Expect", "TE", "Trailer"}

// Clean takes from a checked handshake what belongs to the connection between
// the client and the gate: the fields that Connection names, Connection
// itself, and other hop-by-hop fields. It then says what it means to the next
// hop: exactly `Connection: Upgrade` and `Upgrade: websocket`.
//
// Fields that the handshake cannot do without stay, although Connection names
// them: Host, Upgrade and Sec-WebSocket-*. Fields that are set after Clean
// cannot be removed by the client any more.
func Clean(r *http.Request) {
	removeNamed(r.Header)
	removeAll(r.Header, hopByHop)
	removeAll(r.Header, aboutBody)
	remove(r.Header, fieldUpgrade)
	r.Header.Set(fieldConnection, fieldUpgrade)
	r.Header.Set(fieldUpgrade, protocolWebSocket)
}

// CleanPlain does the same for plain HTTP and leaves no Connection field.
func CleanPlain(r *http.Request) {
	removeNamed(r.Header)
	removeAll(r.Header, hopByHop)
}

func removeAll(h http.Header, names []string) {
	for _, name := range names {
		remove(h, name)
	}
}

// removeNamed deletes Connection and the fields that it names.
func removeNamed(h http.Header) {
	lines := values(h, fieldConnection)
	remove(h, fieldConnection)
	for name := range elements(lines) {
		if !essential(name) {
			remove(h, name)
		}
	}
}

// essential tells whether a handshake breaks without the field.
func essential(name string) bool {
	const prefix = "Sec-WebSocket-"
	return equalFold(name, "Host") || equalFold(name, fieldUpgrade) ||
		len(name) >= len(prefix) && equalFold(name[:len(prefix)], prefix)
}
