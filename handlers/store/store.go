// Package store keeps what a gate has to know beyond any one config, request
// or socket: who is connected under which key, and which tokens are revoked.
// The memory store serves one process; a store that several nodes share fits
// behind the same interface.
package store

import (
	"context"
	"time"
)

// Request asks for what one handshake needs.
type Request struct {
	// ID is the connection's, unique among all nodes. Only requests with slots
	// need one.
	ID string

	// Tunnel is the gate's name. Keys of different tunnels never meet.
	Tunnel string

	// Rates are those that count on all nodes together. Whoever asks has held
	// the request to the same rates on its own node before: a store of one
	// process has nothing to add and admits them all.
	Rates []Rate

	// Slots are the caps.
	Slots []Slot
}

// Rate is a token bucket under a key.
type Rate struct {
	// Key is what is counted, within the tunnel.
	Key string
	// Interval is the time in which the bucket gains one token.
	Interval time.Duration
	// Burst is how many it holds, at least 1.
	Burst int
}

// Slot is one place that a connection needs under one cap.
type Slot struct {
	// Key is what is counted, within the tunnel: connections under the same
	// key share the cap.
	Key string
	// Limit is how many there may be, at least 1.
	Limit int
	// Evict makes room by evicting the oldest connections under the key,
	// where there would be none.
	Evict bool
}

// Verdict is the answer to a request.
type Verdict struct {
	// Limited is the index of a rate without a token, or -1. Rates come before
	// slots, each in their order.
	Limited int
	// Wait is how long it takes until that rate has one.
	Wait time.Duration
	// Full is the index of a slot without room, or -1.
	Full int
	// Evicted are the connections that lost their places to the one that was
	// admitted. Whoever asked has to end those of its own node.
	Evicted []string
}

// admitted is a verdict without any objection.
var admitted = Verdict{Limited: -1, Full: -1}

// Admitted reports whether the connection has its places.
func (v Verdict) Admitted() bool { return v.Limited < 0 && v.Full < 0 }

// Store counts connections. Its methods may be called at the same time.
type Store interface {
	// Acquire takes a token of every rate, and a place under every slot for
	// the connection of this id, or no place at all. It is one step: of
	// connections that ask at the same time for the last place, one gets it.
	Acquire(ctx context.Context, r Request) (Verdict, error)

	// Adopt counts a live connection under keys that nobody asked for when it
	// was accepted, whatever the limits. Keys it is counted under already stay
	// as they are. It does not wait.
	Adopt(id, tunnel string, keys []string)

	// Release gives back all places of a connection. It does nothing for one
	// that has none, so that it can be called wherever a connection may end.
	// It does not wait.
	Release(id string)
}

// Shared is a store that several nodes share, and by which they hear of each
// other.
type Shared interface {
	Store

	// Learn waits, no longer than the store's timeout, until what other nodes
	// revoked before this one started is known. The error says that the store
	// is away and requests are to be refused until it is back.
	Learn(ctx context.Context) error

	// Revoke makes the store take over what the set of revocations has just
	// been told. An error says that other nodes learn of it later, when the
	// store is back.
	Revoke(ctx context.Context, changed Revocation) error

	// Gather puts a question, a JSON text, to all other nodes, and returns the
	// answers that came in time. An error says which nodes did not answer, or that the store is
	// away; what came is good all the same.
	Gather(ctx context.Context, question []byte) (answers [][]byte, err error)
}
