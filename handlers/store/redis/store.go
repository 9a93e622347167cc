// Package redis is a store that several nodes share. Redis holds, under a
// prefix:
//
//	{<tunnel>}:leases:<hash>  who is connected under a key, by the time at which
//	                          the lease ends unless it is renewed (sorted set)
//	{<tunnel>}:order:<hash>   the same, by the time they came (sorted set)
//	{<tunnel>}:rate:<hash>    when a bucket will be full (string)
//	{<tunnel>}:evicted        who lost a place and has perhaps not heard of it
//	{all}:nodes               who lives, by the time at which that has to be
//	                          said again (sorted set)
//	{all}:revocations         what was said of each subject (hash), with
//	{all}:ends, {all}:version when it ends, and which state of it this is
//
// and carries commands through the channels db<database>:commands and
// db<database>:answers:<node>. Times are microseconds by the clock of Redis.
// What is in braces decides the slot in a Redis Cluster: one script needs its
// keys in one slot.
//
// Everything in Redis can be made again from what the nodes know, so that it
// may lose all of it: leases are renewed in whole, revocations are merged.
package redis

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/wsgate/caddy-wsgate/handlers/store"
)

// The scripts, each one step for Redis.
var (
	//go:embed acquire.lua
	acquireText string
	//go:embed update.lua
	updateText string
	//go:embed beat.lua
	beatText string
	//go:embed revoke.lua
	revokeText string

	acquireScript = goredis.NewScript(acquireText)
	updateScript  = goredis.NewScript(updateText)
	beatScript    = goredis.NewScript(beatText)
	revokeScript  = goredis.NewScript(revokeText)
)

// leaseTime is how long a lease lasts that nobody renews: that of a node that
// crashed. renewEvery leaves room for two renewals that fail.
const (
	leaseTime  = 25 * time.Second
	renewEvery = 7 * time.Second
)

// ErrAway refuses what can't be asked, where the operator wants it so.
var ErrAway = errors.New("redis is away")

// Store is a node's part of a shared store.
type Store struct {
	options Options
	client  goredis.UniversalClient
	self    string // tells this process from all others
	log     atomic.Pointer[zap.Logger]

	failed, strange, full, flooded complaint

	leaseTime, renewEvery time.Duration // tests have less

	// This node's own counts, which decide while Redis is away.
	own store.Memory

	state state

	mu     sync.Mutex // guards what follows
	leases map[string]*lease
	// What Redis has to be told of, by key and member: see changes.go.
	changed map[leaseKey]map[string]uint64
	changes uint64
	ahead   time.Duration            // how far the clock of Redis is ahead of ours
	timed   bool                     // that is known
	renew   bool                     // all leases, at the next beat
	asked   bool                     // for the revocations
	version string                   // of those that are known
	waiting map[string]chan<- notice // for answers, by number

	// Owned by Start and Close.
	started sync.Once
	stop    context.CancelFunc
	running sync.WaitGroup
	wake    chan struct{} // there is something to tell before the next beat
	doubt   chan struct{} // the next beat should come at once

	learned     chan struct{} // closed once revocations were asked for
	learnedOnce sync.Once
}

// lease is a connection of this node.
type lease struct {
	since int64 // µs by the clock of Redis
	keys  []leaseKey
}

// leaseKey is one cap's key in Redis.
type leaseKey struct{ tunnel, hash string }

// New makes a store, which does nothing before Start.
func New(o Options) (*Store, error) {
	universal, err := o.client()
	if err != nil {
		return nil, err
	}
	s := &Store{
		options: o,
		client:  goredis.NewUniversalClient(universal),
		self:    newSelf(),
		leases:  make(map[string]*lease),
		changed: make(map[leaseKey]map[string]uint64),
		waiting: make(map[string]chan<- notice),
		wake:    make(chan struct{}, 1),
		doubt:   make(chan struct{}, 1),
		learned: make(chan struct{}),

		leaseTime: leaseTime, renewEvery: renewEvery,
	}
	s.log.Store(zap.NewNop())
	return s, nil
}

// newSelf is a name that no other process has.
func newSelf() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails, see its documentation
	return hex.EncodeToString(b[:])
}

// Start connects, in the background. It may be called again.
func (s *Store) Start() {
	s.started.Do(func() {
		ctx, stop := context.WithCancel(context.Background())
		s.stop = stop
		open.add(s)
		s.running.Go(func() { s.keep(ctx) })
		s.running.Go(func() { s.listen(ctx) })
	})
}

// Close gives up all leases and ends the connections.
func (s *Store) Close() error {
	s.started.Do(func() {}) // never from now on
	if s.stop != nil {
		s.stop()
		s.running.Wait()
		open.remove(s)
		s.leave()
	}
	return s.client.Close()
}

// Acquire implements store.Store. While Redis is away, this node's own counts
// decide, or nothing is admitted.
func (s *Store) Acquire(ctx context.Context, r store.Request) (store.Verdict, error) {
	if s.state.away() {
		return s.alone(r)
	}
	keys := make([]leaseKey, len(r.Slots))
	for i, slot := range r.Slots {
		keys[i] = leaseKey{r.Tunnel, hashed(slot.Key)}
	}
	begin := time.Now()
	answer, err := s.ask(ctx, r, keys)
	if measured := s.options.Measured; measured != nil {
		measured(time.Since(begin), err)
	}
	if err != nil {
		s.forget(r.ID, keys) // it may have a place all the same
		// A deadline is how long Redis has to answer, as the timeout is.
		if errors.Is(ctx.Err(), context.Canceled) {
			return store.Verdict{}, ctx.Err()
		}
		s.suspect(err)
		return s.alone(r)
	}
	for _, id := range answer.verdict.Evicted {
		s.Release(id)
	}
	if answer.verdict.Admitted() && len(r.Slots) > 0 {
		s.own.Adopt(r.ID, r.Tunnel, slotKeys(r.Slots))
		s.hold(r.ID, keys, answer.since)
	}
	return answer.verdict, nil
}

// alone decides by this node's own counts.
func (s *Store) alone(r store.Request) (store.Verdict, error) {
	if s.options.Deny {
		return store.Verdict{}, ErrAway
	}
	verdict, err := s.own.Acquire(context.Background(), r)
	for _, id := range verdict.Evicted {
		s.Release(id)
	}
	if err == nil && verdict.Admitted() && len(r.Slots) > 0 {
		keys := make([]leaseKey, len(r.Slots))
		for i, slot := range r.Slots {
			keys[i] = leaseKey{r.Tunnel, hashed(slot.Key)}
		}
		s.register(r.ID, keys)
	}
	return verdict, err
}

// Adopt implements store.Store.
func (s *Store) Adopt(id, tunnel string, keys []string) {
	s.own.Adopt(id, tunnel, keys)
	all := make([]leaseKey, len(keys))
	for i, key := range keys {
		all[i] = leaseKey{tunnel, hashed(key)}
	}
	s.register(id, all)
}

// Release implements store.Store.
func (s *Store) Release(id string) {
	s.own.Release(id)
	s.drop(id)
}

// answer is what Redis says to a request.
type answer struct {
	verdict store.Verdict
	since   int64
}

// ask puts a request to Redis, in one round trip.
func (s *Store) ask(ctx context.Context, r store.Request, keys []leaseKey) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, s.options.Timeout)
	defer cancel()
	names := []string{s.key(r.Tunnel, "evicted")}
	args := []any{r.ID, s.latest(), s.leaseTime.Microseconds(), s.channel("commands"), len(r.Rates), len(r.Slots)}
	for _, rate := range r.Rates {
		names = append(names, s.key(r.Tunnel, "rate:"+hashed(rate.Key)))
		args = append(args, strconv.FormatFloat(float64(rate.Interval)/float64(time.Microsecond), 'f', 3, 64), rate.Burst)
	}
	for i, slot := range r.Slots {
		names = append(names, s.leaseKeys(keys[i])...)
		evict := 0
		if slot.Evict {
			evict = 1
		}
		changes := s.changesOf(keys[i])
		args = append(args, slot.Limit, evict, len(changes))
		for _, c := range changes {
			args = append(args, c.id, c.since)
		}
	}
	reply, err := acquireScript.Run(ctx, s.client, names, args...).Slice()
	if err != nil {
		return answer{}, err
	}
	return read(reply)
}

// latest is when a question put now is of no use any more, by the clock of
// Redis: one that stands in a buffer while Redis hangs must not take a place
// afterwards. Empty while that clock is not known.
func (s *Store) latest() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.timed {
		return ""
	}
	// The clock is known by half a round trip of the keeper's.
	return strconv.FormatInt(time.Now().Add(s.ahead+s.options.Timeout+patience).UnixMicro(), 10)
}

// errStrange is an answer that no script of ours gives.
var errStrange = errors.New("a strange answer")

// read reads the reply of acquire.lua.
func read(reply []any) (a answer, err error) {
	if len(reply) != 5 {
		return a, errStrange
	}
	limited, ok1 := reply[0].(int64)
	wait, ok2 := reply[1].(int64)
	full, ok3 := reply[2].(int64)
	text, ok4 := reply[3].(string)
	evicted, ok5 := reply[4].([]any)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return a, errStrange
	}
	if a.since, err = strconv.ParseInt(text, 10, 64); err != nil {
		return a, errStrange
	}
	a.verdict = store.Verdict{Limited: int(limited), Wait: time.Duration(wait) * time.Microsecond, Full: int(full)}
	for _, id := range evicted {
		text, ok := id.(string)
		if !ok {
			return a, errStrange
		}
		a.verdict.Evicted = append(a.verdict.Evicted, text)
	}
	return a, nil
}

// key is a name in Redis.
func (s *Store) key(group, name string) string {
	return s.options.Prefix + "{" + group + "}:" + name
}

// leaseKeys are the two sorted sets of a key.
func (s *Store) leaseKeys(k leaseKey) []string {
	return []string{s.key(k.tunnel, "leases:"+k.hash), s.key(k.tunnel, "order:"+k.hash)}
}

// hashed is what stands for a key in Redis. Keys hold users and whatever a
// placeholder says: of any length, and none of the business of those who look
// into Redis.
func hashed(key string) string {
	sum := sha256.Sum256([]byte(key))
	return base64.RawURLEncoding.EncodeToString(sum[:20])
}

func slotKeys(slots []store.Slot) []string {
	keys := make([]string, len(slots))
	for i, slot := range slots {
		keys[i] = slot.Key
	}
	return keys
}

// Interface guards.
var _ store.Shared = (*Store)(nil)
