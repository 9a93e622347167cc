package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// beatEvery is how often a node tells that it lives and asks what is new.
// nodeTime is how long it is believed to live after that.
const (
	beatEvery = time.Second
	nodeTime  = 5 * time.Second
)

// patience is how long the keeper waits for an answer. It delays nobody, and on
// a busy machine a store that is slow is better than none.
const patience = time.Second

// retryFirst and retryMost are how soon a store that is away is tried again:
// the time doubles.
const (
	retryFirst = 100 * time.Millisecond
	retryMost  = time.Second
)

// complainEvery is how often what may come with every handshake or message is
// worth a line of the log.
const complainEvery = 10 * time.Second

// complaint is one kind of such lines.
type complaint struct {
	mu   sync.Mutex
	last time.Time
}

// due reports whether it is time for a line.
func (c *complaint) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.last) < complainEvery {
		return false
	}
	c.last = time.Now()
	return true
}

// state is whether Redis is there.
type state struct {
	mu        sync.Mutex
	since     time.Time // away since; zero: it is there
	suspicion error     // what failed since the last beat began
}

func (s *state) away() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.since.IsZero()
}

// Up reports whether Redis is there.
func (s *Store) Up() bool { return !s.state.away() }

// suspect notes that a question failed. Whether Redis is away, the keeper
// finds out, and says so: it may be that one connection or one key.
func (s *Store) suspect(err error) {
	s.state.mu.Lock()
	s.state.suspicion = err
	s.state.mu.Unlock()
	s.hurryBeat()
}

// suspicion is what failed since it was asked for last.
func (s *Store) suspicion() error {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	err := s.state.suspicion
	s.state.suspicion = nil
	return err
}

// complain tells of a question that failed though Redis is there.
func (s *Store) complain(err error) {
	if s.failed.due() {
		s.log.Load().Warn("asking redis failed", zap.String("for_now", s.policy()), zap.String("error", reason(err)))
	}
}

// setAway notes that Redis is away, and says so once.
func (s *Store) setAway(err error) {
	s.state.mu.Lock()
	first := s.state.since.IsZero()
	if first {
		s.state.since = time.Now()
	}
	s.state.mu.Unlock()
	if first {
		s.log.Load().Warn("redis is away", zap.String("until_it_is_back", s.policy()), zap.String("error", reason(err)))
	}
}

// setUp notes that Redis is there, and says so if it was away.
func (s *Store) setUp() (wasAway bool) {
	s.state.mu.Lock()
	since := s.state.since
	s.state.since = time.Time{}
	s.state.mu.Unlock()
	if !since.IsZero() {
		s.mu.Lock()
		n := len(s.leases)
		s.mu.Unlock()
		s.log.Load().Info("redis is back", zap.Duration("away", time.Since(since)), zap.Int("connections_registered", n))
	}
	return !since.IsZero()
}

// policy is what applies without Redis, for the log.
func (s *Store) policy() string {
	if s.options.Deny {
		return "on_error deny: handshakes get 503"
	}
	return "on_error local: this node's own counts apply"
}

// reason is an error for the log, in few words.
func reason(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, goredis.ErrPoolTimeout):
		return "no connection was free in time"
	}
	return strings.TrimPrefix(err.Error(), "redis: ")
}

// hurryBeat makes the keeper look at once whether Redis is there.
func (s *Store) hurryBeat() {
	select {
	case s.doubt <- struct{}{}:
	default:
	}
}

// keep keeps Redis and this node in agreement, until the store is closed.
func (s *Store) keep(ctx context.Context) {
	var renewed time.Time
	next, retry := time.Now(), retryFirst
	for {
		wake, doubt := s.wake, s.doubt
		if s.state.away() {
			wake, doubt = nil, nil // what there is to say has to wait
		}
		beat := true
		select {
		case <-ctx.Done():
			return
		case <-doubt:
		case <-time.After(time.Until(next)):
		case <-wake:
			beat = false
		}
		var suspicion error
		if beat {
			suspicion = s.suspicion()
		}
		err := s.round(ctx, beat, &renewed)
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil:
			s.setAway(err)
			s.forgetEnded()
			renewed = time.Time{} // who knows what it still holds
			next, retry = time.Now().Add(retry), min(2*retry, retryMost)
		case beat:
			if !s.setUp() && suspicion != nil {
				s.complain(suspicion)
			}
			next, retry = time.Now().Add(beatEvery), retryFirst
		}
		// Last: whoever waits for it asks next whether Redis is there.
		s.learnedOnce.Do(func() { close(s.learned) })
	}
}

// forgetEnded bounds what waits to be told: what Redis held of this node has
// ended by itself once it is away for long enough, and what is left is all
// said when it is back.
func (s *Store) forgetEnded() {
	s.state.mu.Lock()
	ended := time.Since(s.state.since) > s.leaseTime
	s.state.mu.Unlock()
	if ended {
		s.mu.Lock()
		clear(s.changed)
		s.mu.Unlock()
	}
}

// round is one step of the keeper. Without a beat it only tells what changed.
func (s *Store) round(ctx context.Context, beat bool, renewed *time.Time) error {
	if !beat {
		return s.tell(ctx, s.pending())
	}
	if err := s.beat(ctx); err != nil {
		return fmt.Errorf("telling that this node lives: %w", err)
	}
	s.mu.Lock()
	renew := s.renew
	s.renew = false
	s.mu.Unlock()
	if renew || time.Since(*renewed) >= s.renewEvery {
		if err := s.tell(ctx, s.renewals()); err != nil {
			return fmt.Errorf("renewing leases: %w", err)
		}
		*renewed = time.Now()
	}
	if err := s.tell(ctx, s.pending()); err != nil {
		return fmt.Errorf("registering leases: %w", err)
	}
	return nil
}

// beat tells that this node lives, and learns what is new.
func (s *Store) beat(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	keys := []string{s.key("all", "nodes"), s.key("all", "revocations"), s.key("all", "ends"), s.key("all", "version")}
	sent := time.Now()
	reply, err := beatScript.Run(short, s.client, keys, s.self+" "+s.options.Node, nodeTime.Microseconds()).StringSlice()
	if err != nil {
		return err
	}
	if len(reply) != 3 {
		return errStrange
	}
	now, err := strconv.ParseInt(reply[0], 10, 64)
	if err != nil {
		return errStrange
	}
	s.mu.Lock()
	s.ahead, s.timed = time.UnixMicro(now).Sub(sent.Add(time.Since(sent)/2)), true
	// Redis that forgot the node forgot its leases as well.
	s.renew = s.renew || reply[2] == "1"
	known := s.asked && s.version == reply[1]
	s.mu.Unlock()
	if known {
		return nil
	}
	return s.learn(ctx, reply[1])
}

// leave tells, once and for all, that this node and its connections are gone.
func (s *Store) leave() {
	if s.state.away() {
		return
	}
	s.mu.Lock()
	ids := slices.Collect(maps.Keys(s.leases))
	s.mu.Unlock()
	for _, id := range ids {
		if !open.holds(s, id) {
			s.drop(id)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	_ = s.tell(ctx, s.pending()) // what fails here ends by itself
	_ = s.client.ZRem(ctx, s.key("all", "nodes"), s.self+" "+s.options.Node).Err()
}
