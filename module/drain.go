package module

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// Drain is how live sockets end when the process stops.
type Drain struct {
	// Close frames (1012 to clients, 1001 to backends) are spread over this
	// time, in no order, so that clients do not all come back at once.
	// Default: 10s.
	Spread *caddy.Duration `json:"spread,omitempty"`

	// Then this long for close handshakes; then the sockets are cut. Default:
	// 5s.
	Grace *caddy.Duration `json:"grace,omitempty"`
}

// Defaults of Drain.
const (
	defaultSpread = 10 * time.Second
	defaultGrace  = 5 * time.Second
)

// causeDrain ends a socket whose process stops, or whose route is gone.
var causeDrain = tunnel.Cause{By: tunnel.ByGate, Reason: "drain", Code: tunnel.CodeRestart, Text: "service restart"}

// draining is set once the process begins to stop.
var draining atomic.Bool

// errDraining refuses handshakes from then on.
var errDraining = errors.New("the process is stopping")

// checkDraining refuses handshakes while the process stops.
func (g *Gate) checkDraining(v *visit) error {
	if v.handshake && draining.Load() {
		return errDraining
	}
	return nil
}

// drainingAnswer spreads those who come back: Retry-After is 1 to 5 seconds.
func drainingAnswer() answer {
	return answer{
		status: http.StatusServiceUnavailable, reason: reasonDraining,
		header: http.Header{"Retry-After": {strconv.Itoa(1 + rand.IntN(5))}}, //nolint:gosec // jitter is no secret
	}
}

// drain ends every socket of the process, once, and returns when all are gone.
func (a *App) drain() { a.drained.Do(a.drainAll) }

func (a *App) drainAll() {
	draining.Store(true)
	sockets := slices.Collect(live.All())
	if len(sockets) > 0 {
		a.logger.Info("draining connections", zap.Int("connections", len(sockets)), zap.Duration("spread", a.spread))
	}
	closeSpread(sockets, a.spread)
	end := time.Now().Add(a.grace)
	for live.Len() > 0 && time.Now().Before(end) {
		time.Sleep(drainStep)
	}
	for s := range live.All() {
		s.Cut()
	}
	// Those that were cut still have their line in the log, and their event.
	for end := time.Now().Add(lastWords); live.Len() > 0 && time.Now().Before(end); {
		time.Sleep(drainStep)
	}
	events.flush(lastWords)
}

// lastWords is how long the stop of the process waits for what is written
// about the end of sockets.
const lastWords = 500 * time.Millisecond

// drainStep is how finely the drain looks whether it is done.
const drainStep = 20 * time.Millisecond

// closeSpread ends the sockets one after the other, in no order, evenly over
// the time, and stops early when none is left.
func closeSpread(sockets []*tunnel.Socket, spread time.Duration) {
	rand.Shuffle(len(sockets), func(i, j int) { sockets[i], sockets[j] = sockets[j], sockets[i] })
	begin := time.Now()
	for i, s := range sockets {
		due := begin.Add(spread * time.Duration(i) / time.Duration(len(sockets)))
		for wait := time.Until(due); wait > 0 && live.Len() > 0; wait = time.Until(due) {
			time.Sleep(min(wait, drainStep))
		}
		s.Close(causeDrain)
	}
}

// drainRemoved ends the sockets whose gate is in no config any more and asked
// for that. remaining are the tunnels that the config that runs now has.
func drainRemoved(remaining []*Gate, spread time.Duration) {
	kept := make(map[string]bool)
	for _, g := range remaining {
		kept[g.TunnelName] = true
	}
	var gone []*tunnel.Socket
	for s := range live.All() {
		if s.DrainOnRemoval() && !kept[s.Tunnel] {
			gone = append(gone, s)
		}
	}
	if len(gone) > 0 {
		go closeSpread(gone, spread)
	}
}
