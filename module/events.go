package module

import (
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
)

// Events of Caddy's events app. Each has the fields of the log line of the
// same kind.
const (
	eventOpened  = "ws_gate.opened"
	eventClosed  = "ws_gate.closed"
	eventRefused = "ws_gate.refused"
)

// maxEvents is how many events may wait for slow subscribers. More are
// dropped: a subscriber must not hold up a handshake, nor fill the memory.
const maxEvents = 4096

// emitter is where events go that the running config wants to hear of.
type emitter struct {
	ctx caddy.Context
	app *caddyevents.App
}

// event is one on its way.
type event struct {
	to   *emitter
	name string
	data map[string]any
}

var (
	emitting   atomic.Pointer[emitter] // of the config that runs; nil without one
	eventQueue = make(chan event, maxEvents)
	runEvents  = sync.OnceFunc(func() { go emitEvents() })
)

// emitEvents hands events to their subscribers, one after the other, for as
// long as the process lives.
func emitEvents() {
	for e := range eventQueue {
		e.to.app.Emit(e.to.ctx, e.name, e.data)
	}
}

// emit sends an event on its way, if anybody listens. The data is made only
// then.
func emit(name string, data func() map[string]any) {
	to := emitting.Load()
	if to == nil || !to.app.ShouldEmit(name) {
		return
	}
	runEvents()
	select {
	case eventQueue <- event{to, name, data()}:
	default:
	}
}
