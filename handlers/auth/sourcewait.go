package auth

import (
	"context"
	"fmt"
	"time"
)

// keys returns the key set that serves now. Before the first fetch is over, a
// caller waits for it, at most for the source's timeout. Without keys, or
// with keys older than max_stale, the error is [ErrKeysUnavailable].
func (s *Source) keys(ctx context.Context) (*keySet, error) {
	if set := s.current.Load(); set != nil {
		return s.unlessStale(set)
	}
	if err := s.wait(ctx, s.first); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeysUnavailable, err)
	}
	set := s.current.Load()
	if set == nil {
		return nil, ErrKeysUnavailable
	}
	return s.unlessStale(set)
}

func (s *Source) unlessStale(set *keySet) (*keySet, error) {
	if s.read != nil && time.Since(set.fetched) > s.config.MaxStale {
		return nil, ErrKeysUnavailable
	}
	return set, nil
}

// renewed is called with a key set that lacks a token's kid, and returns a
// newer one where there is any. All callers share one fetch, and only one
// fetch per cooldown is made for unknown kids, so that made-up kids cost an
// issuer next to nothing. A caller waits at most for the source's timeout.
func (s *Source) renewed(ctx context.Context, old *keySet) *keySet {
	if flight := s.ask(old); flight != nil && s.wait(ctx, flight) != nil {
		return old
	}
	return s.current.Load()
}

// ask returns the fetch to wait for, or nil when there is none to wait for.
func (s *Source) ask(old *keySet) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.Load() != old || !s.running || s.stopped.Err() != nil {
		return nil
	}
	if s.flight != nil {
		return s.flight
	}
	now := time.Now()
	if !s.asked.IsZero() && now.Sub(s.asked) < s.config.Cooldown {
		return nil
	}
	s.asked = now
	s.flight = make(chan struct{})
	s.wake <- struct{}{} // never blocks: flight is nil only when wake is empty
	return s.flight
}

// errWaited is part of the error of a handshake that waited in vain.
var errWaited = fmt.Errorf("waiting for keys: %w", context.DeadlineExceeded)

// wait waits for done, at most for the source's timeout.
func (s *Source) wait(ctx context.Context, done <-chan struct{}) error {
	timer := time.NewTimer(s.config.Timeout)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return errWaited
	case <-ctx.Done():
		return ctx.Err()
	}
}
