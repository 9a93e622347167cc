package redis

import (
	"context"
	"slices"
	"strconv"
	"time"
)

// batch is how many leases one script takes.
const batch = 256

// change is a lease of which Redis has to be told.
type change struct {
	key   leaseKey
	id    string
	since string // empty: it is over
	mark  uint64
}

// hold notes a lease that Redis has given.
func (s *Store) hold(id string, keys []leaseKey, since int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[id] = &lease{since: since, keys: keys}
}

// register notes a lease of which Redis is still to be told.
func (s *Store) register(id string, keys []leaseKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[id]
	if l == nil {
		l = &lease{since: time.Now().Add(s.ahead).UnixMicro()}
		s.leases[id] = l
	}
	for _, key := range keys {
		if !slices.Contains(l.keys, key) {
			l.keys = append(l.keys, key)
			s.change(key, id)
		}
	}
}

// drop ends a lease.
func (s *Store) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.leases[id]; l != nil {
		delete(s.leases, id)
		for _, key := range l.keys {
			s.change(key, id)
		}
	}
}

// forget makes sure that Redis holds no lease of a handshake whose answer was
// lost.
func (s *Store) forget(id string, keys []leaseKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		s.change(key, id)
	}
}

// change notes that Redis has to be told. mu is held.
func (s *Store) change(key leaseKey, id string) {
	if s.changed[key] == nil {
		s.changed[key] = make(map[string]uint64)
	}
	s.changes++
	s.changed[key][id] = s.changes
	s.hurry()
}

// hurry makes the keeper look at once.
func (s *Store) hurry() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// changesOf are what Redis does not know yet of a key: who asks for a place
// says it along, so that a place is free for whoever asks after it was given
// back.
func (s *Store) changesOf(key leaseKey) []change {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []change
	for id, mark := range s.changed[key] {
		if all = append(all, s.describe(key, id, mark)); len(all) == batch {
			break
		}
	}
	return all
}

// describe is what is true of a lease now. mu is held.
func (s *Store) describe(key leaseKey, id string, mark uint64) change {
	c := change{key: key, id: id, mark: mark}
	if l := s.leases[id]; l != nil && slices.Contains(l.keys, key) {
		c.since = strconv.FormatInt(l.since, 10)
	}
	return c
}

// pending are the changes that wait, and renewals are all leases with them:
// one way to say a lease serves to register it, to renew it and to bring it
// back after Redis forgot it.
func (s *Store) pending() (all []change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, ids := range s.changed {
		for id, mark := range ids {
			all = append(all, s.describe(key, id, mark))
		}
	}
	return all
}

func (s *Store) renewals() (all []change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, l := range s.leases {
		for _, key := range l.keys {
			all = append(all, s.describe(key, id, s.changed[key][id]))
		}
	}
	return all
}

// tell tells Redis. It is the keeper's alone: of two words on one lease the
// later one must be the last.
func (s *Store) tell(ctx context.Context, all []change) error {
	// One script, one tunnel: one slot of a Cluster.
	byTunnel := make(map[string][]change)
	for _, c := range all {
		byTunnel[c.key.tunnel] = append(byTunnel[c.key.tunnel], c)
	}
	for tunnel, changes := range byTunnel {
		for some := range slices.Chunk(changes, batch) {
			if err := s.tellSome(ctx, tunnel, s.current(some)); err != nil {
				return err
			}
		}
	}
	return nil
}

// current drops what changed since it was collected: it is pending, or it will
// be.
func (s *Store) current(all []change) []change {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := make([]change, 0, len(all))
	for _, c := range all {
		now = append(now, s.describe(c.key, c.id, s.changed[c.key][c.id]))
	}
	return now
}

func (s *Store) tellSome(ctx context.Context, tunnel string, changes []change) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	names := make([]string, 0, 1+2*len(changes))
	args := make([]any, 0, 1+2*len(changes))
	names, args = append(names, s.key(tunnel, "evicted")), append(args, s.leaseTime.Microseconds())
	for _, c := range changes {
		names = append(names, s.leaseKeys(c.key)...)
		args = append(args, c.id, c.since)
	}
	lost, err := updateScript.Run(ctx, s.client, names, args...).StringSlice()
	if err != nil {
		return err
	}
	s.told(changes)
	for _, id := range lost {
		s.evict(id)
	}
	return nil
}

// told forgets changes that Redis knows now, unless there are newer ones.
func (s *Store) told(changes []change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		ids := s.changed[c.key]
		if mark, waits := ids[c.id]; waits && mark == c.mark {
			delete(ids, c.id)
			if len(ids) == 0 {
				delete(s.changed, c.key)
			}
		}
	}
}

// evict ends a connection that lost its place, if it is one of ours.
func (s *Store) evict(id string) {
	s.Release(id)
	if s.options.Evicted != nil {
		s.options.Evicted(id)
	}
}
