package tunnel

import (
	"iter"
	"maps"
	"slices"
	"sync"
)

// Registry holds live sockets by their id. Its zero value is ready for use.
type Registry struct {
	mu      sync.RWMutex
	sockets map[string]*Socket
}

// Add enters a socket.
func (r *Registry) Add(s *Socket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sockets == nil {
		r.sockets = make(map[string]*Socket)
	}
	r.sockets[s.ID] = s
}

// Remove takes a socket out.
func (r *Registry) Remove(s *Socket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sockets, s.ID)
}

// Get finds a socket by its id; nil if there is none.
func (r *Registry) Get(id string) *Socket {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.sockets[id]
}

// All yields the sockets that were live when it began, in no order. Nothing
// is locked while it runs.
func (r *Registry) All() iter.Seq[*Socket] {
	r.mu.RLock()
	all := slices.Collect(maps.Values(r.sockets))
	r.mu.RUnlock()
	return slices.Values(all)
}

// Len is how many sockets live.
func (r *Registry) Len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.sockets)
}
