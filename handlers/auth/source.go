package auth

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Source keeps the keys of one issuer. One goroutine fetches; readers take an
// atomic snapshot, so that no handshake with a known key ever waits for the
// network.
type Source struct {
	config SourceConfig
	read   origin // nil: a shared secret, which is never read again
	logger atomic.Pointer[zap.Logger]

	// current is the last good key set, nil before the first. Only load
	// writes it: NewSource, then the goroutine.
	current atomic.Pointer[keySet]

	// Owned by the goroutine (by NewSource before it runs).
	failures int    // in a row
	ignored  string // what was last logged as ignored

	// Life of the goroutine.
	stop    context.CancelFunc
	stopped context.Context
	first   chan struct{} // closed when the first fetch is over, well or not
	wake    chan struct{} // asks for a fetch now; holds one request
	done    sync.WaitGroup

	mu      sync.Mutex
	running bool
	// flight is closed when the fetch that is under way or asked for is over;
	// nil while there is none.
	flight chan struct{}
	// asked is when an unknown kid last asked for a fetch.
	asked time.Time
}

// NewSource makes a source. It reads the secret, the certificates and the key
// file now, and fails where they are unusable; it makes no request, and
// starts nothing.
func NewSource(c SourceConfig) (*Source, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Source{config: c.withDefaults(), first: make(chan struct{}), wake: make(chan struct{}, 1)}
	s.logger.Store(s.config.Logger)
	s.stopped, s.stop = context.WithCancel(context.Background())
	if len(c.Secret) > 0 {
		s.config.Secret = nil
		s.current.Store(newSecretSet(c.Secret))
		close(s.first)
		return s, nil
	}
	roots, err := readRoots(c)
	if err != nil {
		return nil, err
	}
	s.read = newOrigin(s.config, roots)
	if c.File != "" {
		if _, err := s.load(s.stopped); err != nil {
			return nil, fmt.Errorf("loading %q: %w", c.File, err)
		}
		close(s.first)
	}
	return s, nil
}

// Start begins to fetch in the background. A second call does nothing, nor
// does one after Stop.
func (s *Source) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running || s.read == nil || s.stopped.Err() != nil {
		return
	}
	s.running = true
	s.done.Go(s.run)
}

// Stop ends the goroutine and waits for it; a fetch under way is cancelled.
// The last keys go on serving until they are stale.
func (s *Source) Stop() {
	s.mu.Lock()
	s.stop()
	s.mu.Unlock()
	s.done.Wait()
	s.finish() // for those who wait for a source that never ran
}

// SetLogger replaces the logger: a config reload brings a new one for the
// source that outlives it.
func (s *Source) SetLogger(logger *zap.Logger) {
	if logger == nil {
		logger = zap.NewNop()
	}
	s.logger.Store(logger)
}

// Age is the time since the last good answer, and false before the first and
// for a shared secret.
func (s *Source) Age() (time.Duration, bool) {
	set := s.current.Load()
	if s.read == nil || set == nil {
		return 0, false
	}
	return time.Since(set.fetched), true
}

// run fetches until Stop. A key file was read by NewSource already.
func (s *Source) run() {
	next := time.Duration(0)
	if read := s.current.Load(); read != nil {
		next = min(s.config.Refresh, s.config.MaxStale/2)
		s.report(nil, read, nil, false, next)
	}
	timer := time.NewTimer(next)
	defer timer.Stop()
	for {
		select {
		case <-s.stopped.Done():
			return
		case <-timer.C:
		case <-s.wake:
		}
		s.begin()
		next = s.attempt()
		s.finish()
		timer.Reset(next)
	}
}

// begin notes that a fetch is under way. An unknown kid may have asked for it
// just now, and then waits for this one.
func (s *Source) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flight == nil {
		s.flight = make(chan struct{})
	}
	select {
	case <-s.wake:
	default:
	}
}

// finish releases everyone who waits for the fetch.
func (s *Source) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flight != nil {
		close(s.flight)
		s.flight = nil
	}
	select {
	case <-s.first:
	default:
		close(s.first)
	}
}

// attempt fetches once, tells how it went, and returns when to fetch next.
func (s *Source) attempt() time.Duration {
	before := s.current.Load()
	next, err := s.load(s.stopped)
	if s.stopped.Err() != nil {
		return 0
	}
	healed := s.failures > 0
	if err != nil {
		next = s.backoff()
		s.failures++
	} else {
		s.failures = 0
	}
	now := s.current.Load()
	s.report(before, now, err, healed, next)
	return next
}

// load reads the key set, and makes it the current one if it is good. It
// returns when to read again.
func (s *Source) load(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	text, fresh, err := s.read(ctx)
	if err != nil {
		return 0, err
	}
	set, err := parseKeySet(text)
	if err != nil {
		return 0, err
	}
	set.fetched, set.generation = time.Now(), 1
	if before := s.current.Load(); before != nil {
		set.generation = before.generation
		if set.digest != before.digest {
			set.generation++
		}
	}
	s.current.Store(set)
	// Keys must not go stale between two fetches that both succeed.
	return min(fresh, s.config.MaxStale/2), nil
}

// backoff is the wait after a failure: 1s, doubling up to refresh, less up to
// a quarter so that many gates do not knock together.
func (s *Source) backoff() time.Duration {
	wait := time.Second << min(s.failures, 20)
	wait = min(wait, s.config.Refresh)
	return wait - rand.N(wait/4) //nolint:gosec // jitter, not a secret
}

// report logs one fetch, and hands it to Observe.
func (s *Source) report(before, now *keySet, err error, healed bool, next time.Duration) {
	event := FetchEvent{Issuer: s.config.Issuer, Err: err, Age: -1}
	if now != nil {
		event.Keys, event.Age = len(now.keys), time.Since(now.fetched)
	}
	if s.config.Observe != nil {
		s.config.Observe(event)
	}
	logger := s.logger.Load().With(zap.String("issuer", s.config.Issuer), zap.String("origin", s.config.origin()))
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no complete answer within %s", s.config.Timeout)
		}
		logger.Warn("fetching keys failed", zap.Error(err), zap.Int("keys", event.Keys), zap.Duration("next_attempt", next))
		return
	}
	level := zap.DebugLevel
	if before == nil || before.generation != now.generation || healed {
		level = zap.InfoLevel
	}
	logger.Log(level, "keys fetched", zap.Int("keys", event.Keys), zap.Duration("next_refresh", next))
	if now.ignored != s.ignored && now.ignored != "" {
		logger.Warn("keys ignored", zap.String("reasons", now.ignored))
	}
	s.ignored = now.ignored
}
