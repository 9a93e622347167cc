package module

import (
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
