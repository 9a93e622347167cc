package redis

import (
	"slices"
	"sync"
)

// open are the stores of this process that run. A reload with other options
// starts a new one, which adopts the live connections before the old one is
// closed: their leases are not the old one's to give up.
var open running

type running struct {
	mu     sync.Mutex
	stores []*Store
}

func (r *running) add(s *Store) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stores = append(r.stores, s)
}

func (r *running) remove(s *Store) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stores = slices.DeleteFunc(r.stores, func(other *Store) bool { return other == s })
}

// holds reports whether one of them has the lease that s has. What tells one
// Redis from another are the prefix and the database: a host has many names.
func (r *running) holds(s *Store, id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.stores, func(other *Store) bool {
		other.mu.Lock()
		defer other.mu.Unlock()
		return other.leases[id] != nil && other.channel("") == s.channel("")
	})
}
