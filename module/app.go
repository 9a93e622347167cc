package module

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App ties the gates of a config to what outlives it. It needs no
// configuration; every gate loads it. When the process stops, it drains the
// live sockets; handshakes get 503 meanwhile.
//
// Nothing touches the network before a config runs: keys are fetched from the
// App's start on, so that `caddy validate`, which only provisions, makes no
// request.
type App struct {
	// How live sockets end when the process stops.
	Drain *Drain `json:"drain,omitempty"`

	spread, grace time.Duration

	ctx     caddy.Context
	emitter *emitter
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
	if a.Drain == nil {
		a.Drain = new(Drain)
	}
	a.spread = time.Duration(duration(&a.Drain.Spread, defaultSpread))
	a.grace = time.Duration(duration(&a.Drain.Grace, defaultGrace))
	if a.spread < 0 || a.grace < 0 {
		return errors.New("drain: a time is negative")
	}
	metrics.register(ctx.GetMetricsRegistry())
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("loading app events: %w", err)
	}
	a.emitter = &emitter{ctx: ctx, app: events.(*caddyevents.App)}
	// The logger of the gates, which sockets use when their config is gone.
	a.logger = ctx.Logger(new(Gate))
	return nil
}

// Start begins to fetch keys.
func (a *App) Start() error {
	running.Store(a)
	log.Store(a.logger)
	emitting.Store(a.emitter)
	a.warnOfTokensInLogs()
	for _, source := range a.sources {
		source.SetLogger(a.logger)
		source.Start()
	}
	for _, gate := range a.gates {
		gate.adopt()
	}
	drainRemoved(a.gates, a.spread)
	return nil
}

// Stop drains when the process stops. On a reload another App has started
// before; what is shared ends when its last user is cleaned up.
func (a *App) Stop() error {
	emitting.CompareAndSwap(a.emitter, nil)
	if !running.CompareAndSwap(a, nil) {
		return nil
	}
	if caddy.Exiting() {
		a.drainAll()
	} else {
		drainRemoved(nil, a.spread)
	}
	return nil
}

// running is the App of the config that runs; nil without one.
var running atomic.Pointer[App]

// Interface guards.
var (
	_ caddy.App         = (*App)(nil)
	_ caddy.Provisioner = (*App)(nil)
)
