// Package store keeps what the caps of a gate count, apart from any one
// config or socket: who is connected under which key. The memory store serves
// one process; a store that several nodes share fits behind the same
// interface.
package store

import "context"

// Slot is one place that a connection needs under one cap.
type Slot struct {
	// Key is what is counted: connections under the same key share the cap.
	Key string
	// Limit is how many there may be, at least 1.
	Limit int
	// Evict makes room by evicting the oldest connections under the key,
	// where there would be none.
	Evict bool
}

// Verdict is the answer to a connection that asks for places.
type Verdict struct {
	// Full is the index of a slot without room, or -1 when the connection
	// was admitted.
	Full int
	// Evicted are the connections that lost their places, all of them, to the
	// one that was admitted. Whoever asked has to end them.
	Evicted []string
}

// Admitted reports whether the connection has its places.
func (v Verdict) Admitted() bool { return v.Full < 0 }

// Store counts connections. Its methods may be called at the same time.
type Store interface {
	// Acquire takes a place under every slot for the connection of this id,
	// or none at all. It is one step: of connections that ask at the same
	// time for the last place, one gets it.
	Acquire(ctx context.Context, id string, slots []Slot) (Verdict, error)

	// Adopt counts a live connection under keys that nobody asked for when it
	// was accepted, whatever the limits. Keys it is counted under already stay
	// as they are.
	Adopt(id string, keys []string)

	// Release gives back all places of a connection. It does nothing for one
	// that has none, so that it can be called wherever a connection may end.
	Release(id string)
}
