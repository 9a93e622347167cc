// Package tunnel relays one accepted WebSocket between its client and its
// backend, byte for byte, and keeps it honest while it lives.
//
// A [Socket] owns both connections from the moment the handshake is done. Two
// goroutines, one a direction, wait for bytes without holding a buffer, walk
// the frame headers that pass (RFC 6455 §5), and write what they read. A
// direction that is silent has none: all of these wait together. Between
// frames the gate puts in what is its own: pings to the client and close
// frames to either side. One timer a socket drives pings, the clock of life,
// idle and lifetime limits and, in the end, the cut.
//
// The package knows nothing of HTTP or Caddy: it is given two connections and
// a [Policy].
package tunnel
