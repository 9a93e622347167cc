package store

import (
	"container/list"
	"context"
	"sync"
)

// Memory is the store of a single process. Its zero value is ready for use.
// Keys without connections take no memory.
type Memory struct {
	mu     sync.Mutex
	queues map[string]*list.List // ids by key, the oldest in front
	places map[string][]place    // by id
}

// place is where a connection stands under one key.
type place struct {
	key     string
	element *list.Element
}

// Acquire implements Store. It never fails.
func (m *Memory) Acquire(_ context.Context, id string, slots []Slot) (Verdict, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, slot := range slots {
		if !slot.Evict && m.count(slot.Key) >= slot.Limit {
			return Verdict{Full: i}, nil
		}
	}
	var evicted []string
	for _, slot := range slots {
		// More than one where the cap was higher before.
		for m.count(slot.Key) >= slot.Limit {
			oldest, _ := m.queues[slot.Key].Front().Value.(string)
			m.release(oldest)
			evicted = append(evicted, oldest)
		}
	}
	for _, slot := range slots {
		m.enter(id, slot.Key)
	}
	return Verdict{Full: -1, Evicted: evicted}, nil
}

// Adopt implements Store.
func (m *Memory) Adopt(id string, keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		m.enter(id, key)
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
	if queue := m.queues[key]; queue != nil {
		return queue.Len()
	}
	return 0
}

// enter counts a connection under a key, once.
func (m *Memory) enter(id, key string) {
	for _, p := range m.places[id] {
		if p.key == key {
			return
		}
	}
	if m.queues == nil {
		m.queues = make(map[string]*list.List)
		m.places = make(map[string][]place)
	}
	queue := m.queues[key]
	if queue == nil {
		queue = list.New()
		m.queues[key] = queue
	}
	m.places[id] = append(m.places[id], place{key: key, element: queue.PushBack(id)})
}

func (m *Memory) release(id string) {
	for _, p := range m.places[id] {
		queue := m.queues[p.key]
		queue.Remove(p.element)
		if queue.Len() == 0 {
			delete(m.queues, p.key)
		}
	}
	delete(m.places, id)
}
