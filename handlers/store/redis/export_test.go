package redis

import (
	"context"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store"
)

// Hurry gives leases less time, before the store is started.
func (s *Store) Hurry(lease, renew time.Duration) { s.leaseTime, s.renewEvery = lease, renew }

// Crash ends the store as kill -9 does: it gives up nothing.
func (s *Store) Crash() {
	s.stop()
	s.running.Wait()
	open.remove(s)
	_ = s.client.Close()
}

// Learned reports whether the first beat is over.
func (s *Store) Learned() bool {
	select {
	case <-s.learned:
		return true
	default:
		return false
	}
}

// Changed is how much waits to be told.
func (s *Store) Changed() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ids := range s.changed {
		n += len(ids)
	}
	return n
}

// Leases are how many connections of this node have places.
func (s *Store) Leases() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.leases)
}

// Waiting is how many questions wait for answers.
func (s *Store) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}

// Handle does what a message on the channel asks for.
func (s *Store) Handle(text string) {
	free := make(chan struct{}, 1)
	s.handle(context.Background(), text, free)
	free <- struct{}{} // once it is answered
}

// Names in Redis.

func (s *Store) CommandsChannel() string { return s.channel("commands") }

func (s *Store) NameOfLeases(tunnel, key string) string { return s.key(tunnel, "leases:"+hashed(key)) }

func (s *Store) NameOfOrder(tunnel, key string) string { return s.key(tunnel, "order:"+hashed(key)) }

func (s *Store) NameOfRate(tunnel, key string) string { return s.key(tunnel, "rate:"+hashed(key)) }

// Encode and Decode are how a revocation is written.

func Encode(r store.Revocation) (subject, value string, err error) { return encode(r) }

func Decode(subject, value string) (store.Revocation, error) { return decode(subject, value) }

// ServerName is whom a TLS connection has to be to; false without TLS.
func (o Options) ServerName() (string, bool, error) {
	u, err := o.client()
	if err != nil || u.TLSConfig == nil {
		return "", false, err
	}
	return u.TLSConfig.ServerName, true, nil
}
