package store

// Keys is how many keys have connections.
func (m *Memory) Keys() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queues)
}

// Len is how many revocations are kept, those that were lifted among them.
func (s *Revocations) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.by)
}
