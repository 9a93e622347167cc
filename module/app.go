package module

import (
	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App ties the gates of a config to what outlives it. It needs no
// configuration; every gate loads it.
//
// Nothing touches the network before a config runs: keys are fetched from the
// App's start on, so that `caddy validate`, which only provisions, makes no
// request.
type App struct {
	ctx     caddy.Context
	gates   []*Gate
	sources []*auth.Source
	logger  *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "ws_gate",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision sets up a.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	// The logger of the gates, which sockets use when their config is gone.
	a.logger = ctx.Logger(new(Gate))
	return nil
}

// Start begins to fetch keys.
func (a *App) Start() error {
	log.Store(a.logger)
	a.warnOfTokensInLogs()
	for _, source := range a.sources {
		source.SetLogger(a.logger)
		source.Start()
	}
	for _, gate := range a.gates {
		gate.adopt()
	}
	return nil
}

// Stop does nothing: what is shared ends when its last user is cleaned up.
func (a *App) Stop() error { return nil }

// Interface guards.
var (
	_ caddy.App         = (*App)(nil)
	_ caddy.Provisioner = (*App)(nil)
)
