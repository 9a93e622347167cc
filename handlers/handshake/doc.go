// Package handshake judges the opening of a WebSocket, and the plain HTTP
// requests that stand in for one: the request itself (RFC 6455 §4.2.1), where
// it comes from (RFC 6454), the backend's answer (RFC 6455 §4.1), and the
// identity headers that tell the backend who is there.
//
// Everything here is a function over a request or a header map and knows
// nothing of Caddy. The order in which a gate calls it matters:
//
//  1. [Is] tells a handshake from plain HTTP; [Check] or [CheckPlain] refuses
//     what is malformed, [CheckOrigin] what comes from elsewhere.
//  2. Tokens are found and verified while the request is still as the client
//     sent it: the Connection field may name the very field that carries one.
//  3. [Clean] or [CleanPlain] takes away what is between the client and the
//     gate alone, so that no name in Connection can remove what follows.
//  4. [Identity.Strip], [Identity.Set] and, for plain HTTP,
//     [Identity.WrapTrailers] replace the client's copies by ours.
//  5. [CheckAnswer] judges the backend's 101.
package handshake

// Error is a refusal: the status to answer with and a short fixed text that
// says why. The text never quotes the client.
type Error struct {
	Status int
	Detail string
}

func (e *Error) Error() string { return e.Detail }
