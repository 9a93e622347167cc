package module

import (
	"context"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/store"
)

func init() {
	caddy.RegisterModule(new(MemoryStore))
}

// storeModule is a module of the namespace ws_gate.stores.
type storeModule interface {
	// Store is where caps are counted. It outlives the config.
	Store() store.Store
}

// remoteStore is a module whose store is somewhere else.
type remoteStore interface {
	// Start connects, in the background, and takes over the log. It may be
	// called again.
	Start()

	// Up reports whether the store can be reached.
	Up() bool
}

// MemoryStore is the store of a single node, and the default: caps are counted
// in the process. It takes no configuration.
type MemoryStore struct{}

// CaddyModule returns the Caddy module information.
func (*MemoryStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "ws_gate.stores.memory",
		New: func() caddy.Module { return new(MemoryStore) },
	}
}

// Store implements the interface of stores.
func (*MemoryStore) Store() store.Store { return caps }

// storePatience bounds how long a handshake waits for the store, however often
// it asks.
const storePatience = time.Second

// askStore puts a request to the store, within the patience of a handshake.
func (v *visit) askStore(s store.Store, r store.Request) (store.Verdict, error) {
	ctx, cancel := v.storeContext()
	defer cancel()
	verdict, err := s.Acquire(ctx, r)
	if err != nil {
		return verdict, fmt.Errorf("%w: %w", errStore, err)
	}
	return verdict, nil
}

func (v *visit) storeContext() (context.Context, context.CancelFunc) {
	if v.askedStore.IsZero() {
		v.askedStore = time.Now()
	}
	return context.WithDeadline(v.r.Context(), v.askedStore.Add(storePatience))
}

// releaseAdopted gives back what a socket holds that was counted by a later
// config than its own, or while it ended.
func releaseAdopted(id string) {
	if app := running.Load(); app != nil {
		app.store.Release(id)
	}
	caps.Release(id)
}

// Interface guards.
var _ storeModule = (*MemoryStore)(nil)
