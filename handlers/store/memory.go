package store

import (
	"context"
	"sync"
)

// Memory is the store of a single process. Its zero value is ready for use.
// Keys without connections take no memory.
type Memory struct {
	mu     sync.Mutex
	queues map[string]*queue // by key
	places map[string]*place // the first of each connection, by id
}

// queue are the connections under one key, the oldest in front.
type queue struct {
	key         string
	first, last *place
	n           int
}

// place is where a connection stands under one key.
type place struct {
	id         string
	queue      *queue
	prev, next *place // in the queue
	also       *place // the same connection's, under another key
}

// Acquire implements Store. It never fails.
func (m *Memory) Acquire(_ context.Context, r Request) (Verdict, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	verdict := admitted
	for i, slot := range r.Slots {
		if !slot.Evict && m.count(within(r.Tunnel, slot.Key)) >= slot.Limit {
			verdict.Full = i
			return verdict, nil
		}
	}
	for _, slot := range r.Slots {
		key := within(r.Tunnel, slot.Key)
		// More than one where the cap was higher before.
		for m.count(key) >= slot.Limit {
			oldest := m.queues[key].first.id
			m.release(oldest)
			verdict.Evicted = append(verdict.Evicted, oldest)
		}
	}
	for _, slot := range r.Slots {
		m.enter(r.ID, within(r.Tunnel, slot.Key))
	}
	return verdict, nil
}

// within is a key of a tunnel, whose name has no NUL.
func within(tunnel, key string) string { return tunnel + "\x00" + key }

// Adopt implements Store.
func (m *Memory) Adopt(id, tunnel string, keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		m.enter(id, within(tunnel, key))
	}
}

// Release implements Store.
func (m *Memory) Release(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.release(id)
}

// Len is how many connections have places.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.places)
}

func (m *Memory) count(key string) int {
	if q := m.queues[key]; q != nil {
		return q.n
	}
	return 0
}

// enter counts a connection under a key, once.
func (m *Memory) enter(id, key string) {
	for p := m.places[id]; p != nil; p = p.also {
		if p.queue.key == key {
			return
		}
	}
	if m.queues == nil {
		m.queues = make(map[string]*queue)
		m.places = make(map[string]*place)
	}
	q := m.queues[key]
	if q == nil {
		q = &queue{key: key}
		m.queues[key] = q
	}
	p := &place{id: id, queue: q, prev: q.last, also: m.places[id]}
	if q.last == nil {
		q.first = p
	} else {
		q.last.next = p
	}
	q.last = p
	q.n++
	m.places[id] = p
}

func (m *Memory) release(id string) {
	for p := m.places[id]; p != nil; p = p.also {
		p.leave()
		if p.queue.n == 0 {
			delete(m.queues, p.queue.key)
		}
	}
	delete(m.places, id)
}

// leave takes the place out of its queue.
func (p *place) leave() {
	if p.prev == nil {
		p.queue.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		p.queue.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.queue.n--
}
