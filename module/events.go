package module

import (
	"sync"
	"sync/atomic"
	"time"

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

// emitting is the emitter of the config that runs; nil without one.
var emitting atomic.Pointer[emitter]

// event is one on its way.
type event struct {
	name string
	data map[string]any
}

// eventQueue holds the events that wait. A goroutine delivers them, one after
// the other, as long as there are any.
type eventQueue struct {
	mu         sync.Mutex
	waiting    []event
	delivering bool
}

// events are those of this process.
var events eventQueue

// put appends an event, unless too many wait already.
func (q *eventQueue) put(e event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) >= maxEvents {
		return
	}
	q.waiting = append(q.waiting, e)
	if !q.delivering {
		q.delivering = true
		go q.deliver()
	}
}

// deliver hands events to the subscribers of the config that runs by then: the
// one that ran when they were put may be gone.
func (q *eventQueue) deliver() {
	for e, ok := q.next(); ok; e, ok = q.next() {
		if to := emitting.Load(); to != nil {
			to.app.Emit(to.ctx, e.name, e.data)
		}
	}
}

func (q *eventQueue) next() (event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.delivering, q.waiting = false, nil
		return event{}, false
	}
	e := q.waiting[0]
	q.waiting = q.waiting[1:]
	return e, true
}

// flush waits until all are delivered, but not longer than this.
func (q *eventQueue) flush(most time.Duration) {
	for end := time.Now().Add(most); q.busy() && time.Now().Before(end); {
		time.Sleep(drainStep)
	}
}

func (q *eventQueue) busy() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.delivering
}

// emit sends an event on its way, if anybody listens. The data is made only
// then.
func emit(name string, data func() map[string]any) {
	to := emitting.Load()
	if to == nil || !to.app.ShouldEmit(name) {
		return
	}
	events.put(event{name, data()})
}
