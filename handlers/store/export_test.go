package store

// Keys is how many keys have connections.
func (m *Memory) Keys() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queues)
}
