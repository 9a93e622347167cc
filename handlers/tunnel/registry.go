package tunnel

import (
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

// Len is how many sockets live.
func (r *Registry) Len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.sockets)
}
