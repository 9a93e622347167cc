package module

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/store"
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
	// Where live sockets are counted for the caps. Default: `memory`, in this
	// process.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=ws_gate.stores inline_key=module"`

	// How live sockets end when the process stops.
	Drain *Drain `json:"drain,omitempty"`

	store         store.Store
	remote        remoteStore // the same, where it is one
	spread, grace time.Duration

	ctx     caddy.Context
	emitter *emitter
	gates   []*Gate
	sources []*auth.Source
	logger  *zap.Logger

	drained  sync.Once
	previous *App // of the config before, while that may have to go on
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
	a.store = caps
	if a.StoreRaw != nil {
		module, err := ctx.LoadModule(a, "StoreRaw")
		if err != nil {
			return fmt.Errorf("loading store: %w", err)
		}
		a.store = module.(storeModule).Store()
		a.remote, _ = module.(remoteStore)
	}
	if a.Drain == nil {
		a.Drain = new(Drain)
	}
	a.spread = time.Duration(duration(&a.Drain.Spread, defaultSpread))
	a.grace = time.Duration(duration(&a.Drain.Grace, defaultGrace))
	if a.spread < 0 || a.grace < 0 {
		return errors.New("drain: a time is negative")
	}
	metrics.register(ctx.GetMetricsRegistry())
	iface, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("loading app events: %w", err)
	}
	a.emitter = &emitter{ctx: ctx, app: iface.(*caddyevents.App)}
	if err := a.emitter.app.On("stopping", stopping{a}); err != nil {
		return fmt.Errorf("subscribing to the stop of Caddy: %w", err)
	}
	// The logger of the gates, which sockets use when their config is gone.
	a.logger = ctx.Logger(new(Gate))
	return nil
}

// Start begins to fetch keys.
func (a *App) Start() error {
	a.previous = running.Load()
	a.run()
	a.warnOfTokensInLogs()
	for _, source := range a.sources {
		source.Start()
	}
	for _, gate := range a.gates {
		gate.adopt()
	}
	return nil
}

// run makes a the App of the config that runs.
func (a *App) run() {
	running.Store(a)
	log.Store(a.logger)
	emitting.Store(a.emitter)
	for _, source := range a.sources {
		source.SetLogger(a.logger)
	}
	if a.remote != nil {
		a.remote.Start()
	}
}

// Stop drains when the process stops. On a reload another App has started
// before; what is shared ends when its last user is cleaned up.
func (a *App) Stop() error {
	switch current := running.Load(); {
	case current != a:
		// A reload. Only now it is certain that the new config runs, since
		// all of its apps have started.
		if current != nil {
			current.previous = nil
			drainRemoved(current.gates, current.spread)
		}
	case a.previous != nil:
		// Another app of this config did not start: the one before goes on.
		a.previous.run()
		a.previous = nil
	case caddy.Exiting():
		a.drain()
		a.leave()
	default:
		drainRemoved(nil, a.spread)
		a.leave()
	}
	return nil
}

// leave ends a, with no other to follow. Sockets that go on log where Caddy
// does.
func (a *App) leave() {
	running.Store(nil)
	emitting.Store(nil)
	log.Store(caddy.Log().Named(string(new(Gate).CaddyModule().ID)))
}

// stopping hears that Caddy stops a config, before it stops any app. The
// order in which it stops these is by chance, and that of HTTP can wait long
// for requests: sockets drain before it, and handshakes are still answered.
type stopping struct{ app *App }

// Handle implements caddyevents.Handler.
func (s stopping) Handle(context.Context, caddy.Event) error {
	if caddy.Exiting() && running.Load() == s.app {
		s.app.drain()
	}
	return nil
}

// running is the App of the config that runs; nil without one.
var running atomic.Pointer[App]

// Interface guards.
var (
	_ caddy.App           = (*App)(nil)
	_ caddy.Provisioner   = (*App)(nil)
	_ caddyevents.Handler = stopping{}
)
