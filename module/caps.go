package module

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// caps counts the connections of this process, where no other store is
// configured. It outlives configs, as the connections do.
var caps store.Store = new(store.Memory)

// capRetry is the answer's guess at when one of the sockets under a cap may
// be gone.
const capRetry = 5 * time.Second

// place is what a handshake holds under the caps until a socket holds it.
type place struct {
	id     string
	store  store.Store
	cancel context.CancelFunc // ends the handshake

	// Guarded by places.mu.
	evicted bool
	opened  bool
}

// places are the handshakes that hold places and have no socket yet.
var places = struct {
	mu  sync.Mutex
	ids map[string]*place
}{ids: make(map[string]*place)}

// errStore refuses a handshake that can't be counted.
var errStore = errors.New("asking the store")

// takeSlots takes a place under every cap, before anything is dialled, and
// ends those that had to make room.
func (g *Gate) takeSlots(v *visit) error {
	var slots []store.Slot
	if v.handshake {
		for _, m := range g.MaxConnections {
			n, err := m.limit(v)
			if err != nil {
				return err
			}
			slots = append(slots, store.Slot{Key: capKey(m.By, v.key(m.By)), Limit: n, Evict: m.OnFull == onFullEvict})
		}
	}
	if len(slots) > 0 {
		ctx, cancel := context.WithCancel(v.r.Context())
		v.r = v.r.WithContext(ctx)
		v.place = &place{id: v.id, store: g.store, cancel: cancel}
		// Before it has a place: whoever evicts it must find it.
		places.mu.Lock()
		places.ids[v.id] = v.place
		places.mu.Unlock()
	}
	if len(slots)+len(v.rates) == 0 {
		return nil
	}
	evicted, err := g.ask(v, v.rates, slots)
	if err != nil && v.place.lost() {
		return errEvicted // which ended the question
	}
	for _, id := range evicted {
		evict(id)
	}
	return err
}

// ask asks the store for a token of each rate and a place under each cap.
func (g *Gate) ask(v *visit, rates []countedRate, slots []store.Slot) (evicted []string, err error) {
	request := store.Request{ID: v.id, Tunnel: g.TunnelName, Slots: slots}
	for _, r := range rates {
		rate := r.rate()
		request.Rates = append(request.Rates, store.Rate{
			Key: r.name + "\x00" + r.key, Interval: max(1, rate.Per/time.Duration(rate.Number)), Burst: rate.Size(),
		})
	}
	verdict, err := v.askStore(g.store, request)
	switch {
	case err != nil:
		return nil, err
	case verdict.Limited >= 0:
		r := rates[verdict.Limited]
		return nil, r.refusal(needsToken(r.By), verdict.Wait)
	case verdict.Full >= 0:
		m := g.MaxConnections[verdict.Full]
		return nil, &limitError{
			reason: reasonCap, known: true, wait: capRetry,
			detail: "max_connections by " + m.By,
			hint:   fmt.Sprintf("at most %d connections", slots[verdict.Full].Limit),
		}
	}
	return verdict.Evicted, nil
}

// capKey is the key under which the connections of a tunnel that are alike in
// this value count.
func capKey(by, value string) string { return by + "\x00" + value }

// evict ends a connection that lost its place: its socket, or the handshake
// that may yet become one.
func evict(id string) {
	places.mu.Lock()
	p := places.ids[id]
	if p != nil {
		p.evicted = true
		p.cancel()
	}
	places.mu.Unlock()
	// A socket may have come of it just now: see open.
	if s := live.Get(id); s != nil {
		s.Close(causeEvicted)
	}
}

// causeEvicted ends a socket that made room for a newer one.
var causeEvicted = tunnel.Cause{By: tunnel.ByGate, Reason: "evicted", Code: tunnel.CodePolicy, Text: "replaced by a newer connection"}

// lost reports whether the handshake was evicted.
func (p *place) lost() bool {
	if p == nil {
		return false
	}
	places.mu.Lock()
	defer places.mu.Unlock()
	return p.evicted
}

// errEvicted refuses a handshake that lost its place before its 101.
var errEvicted = &limitError{reason: reasonCap, known: true, wait: capRetry, detail: "evicted during the handshake", hint: "replaced by a newer connection"}

// hand gives the place over to a socket, which releases it when it ends. It
// reports false if the place was lost meanwhile.
func (p *place) hand() bool {
	places.mu.Lock()
	defer places.mu.Unlock()
	delete(places.ids, p.id)
	p.opened = true
	return !p.evicted
}

// releaseSlots is what a socket calls when its places are free: also one that
// came without any, since a later config may count it, see adopt.
func (g *Gate) releaseSlots(id string) func() {
	from := g.store
	return func() { from.Release(id) }
}

// leave gives the place back, unless a socket has it.
func (p *place) leave() {
	places.mu.Lock()
	delete(places.ids, p.id)
	opened := p.opened
	places.mu.Unlock()
	p.cancel()
	if !opened {
		p.store.Release(p.id)
	}
}

// adopt counts the live sockets of this gate's tunnel under the caps it has
// now: those that came with an earlier config may not be counted by what this
// one counts by.
func (g *Gate) adopt() {
	if len(g.MaxConnections) == 0 {
		return
	}
	// The oldest first, as they came: it is the oldest that are evicted.
	byAge := func(a, b *tunnel.Socket) int { return strings.Compare(a.ID, b.ID) }
	for _, s := range slices.SortedFunc(live.All(), byAge) {
		if s.Tunnel != g.TunnelName {
			continue
		}
		var keys []string
		for _, m := range g.MaxConnections {
			switch m.By {
			case byUser:
				keys = append(keys, capKey(byUser, userKey(s.Issuer, s.User)))
			case byIP:
				keys = append(keys, capKey(byIP, addressKey(s.ClientIP)))
			}
		}
		g.store.Adopt(s.ID, s.Tunnel, keys)
		if s.Ending() {
			g.store.Release(s.ID)
		}
	}
}
