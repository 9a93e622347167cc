// Package limit decides how much a key may have: how often it may try, by
// token buckets in a table that no number of keys can grow beyond its bound.
package limit

import (
	"hash/maphash"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate is so many events in a time, and at most so many at once.
type Rate struct {
	Number int           // events
	Per    time.Duration // in this time
	Burst  int           // at once; 0 is Number
}

// Limit is the rate in events a second.
func (r Rate) Limit() rate.Limit {
	return rate.Limit(float64(r.Number) / r.Per.Seconds())
}

// Size is the burst, or what it is by default.
func (r Rate) Size() int {
	if r.Burst == 0 {
		return r.Number
	}
	return r.Burst
}

// NewBucket makes a bucket that is full.
func (r Rate) NewBucket() *rate.Limiter { return rate.NewLimiter(r.Limit(), r.Size()) }

const (
	// MaxKeys is how many keys a table holds at most. A key takes about 170
	// bytes.
	MaxKeys = 1 << 16

	// samples is how many keys compete for being dropped when a table is full.
	samples = 8

	// swept is how many keys are looked at in one go to find those that need
	// no bucket any more.
	swept = 1024
)

// Table holds a token bucket for each key. A key whose bucket is full again
// is as good as one never seen, and is dropped. When more keys than MaxKeys
// are in use, the least busy of a random few makes room: keys that are made
// up, each used once, push each other out, and not one that is near its limit.
type Table struct {
	rate Rate
	seed maphash.Seed

	mu      sync.Mutex
	buckets map[uint64]int // index in entries
	entries []entry
	cursor  int // where the next sweep goes on
	sweeper *time.Timer
	closed  bool
}

// entry is one key's bucket.
type entry struct {
	key    uint64
	used   time.Time
	bucket *rate.Limiter
}

// NewTable makes an empty table.
func NewTable(r Rate) *Table {
	return &Table{rate: r, seed: maphash.MakeSeed(), buckets: make(map[uint64]int)}
}

// Allow takes one event from the key's bucket. If there is none, it tells how
// long it takes until there is one.
func (t *Table) Allow(key string, now time.Time) (ok bool, wait time.Duration) {
	hash := maphash.String(t.seed, key)
	t.mu.Lock()
	defer t.mu.Unlock() // a bucket that is dropped before it is used would be a second burst
	bucket := t.bucket(hash, now)
	if bucket.AllowN(now, 1) {
		return true, 0
	}
	missing := max(0, 1-bucket.TokensAt(now))
	return false, time.Duration(missing / float64(t.rate.Limit()) * float64(time.Second))
}

// Len is how many keys have a bucket.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.entries)
}

// Close ends the sweeping.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.sweeper != nil {
		t.sweeper.Stop()
	}
}

// bucket finds or makes the bucket of a key. mu is held.
func (t *Table) bucket(key uint64, now time.Time) *rate.Limiter {
	if i, ok := t.buckets[key]; ok {
		t.entries[i].used = now
		return t.entries[i].bucket
	}
	if len(t.entries) >= MaxKeys {
		t.drop(t.leastBusy(key, now))
	}
	e := entry{key: key, used: now, bucket: t.rate.NewBucket()}
	t.buckets[key] = len(t.entries)
	t.entries = append(t.entries, e)
	t.schedule()
	return e.bucket
}

// leastBusy picks, of a few entries, the one whose bucket is fullest, and of
// equally full ones the one that was not used for longest. The keys' hashes
// are random to everyone else, and so is the choice.
func (t *Table) leastBusy(random uint64, now time.Time) int {
	best, fullest := -1, -1.0
	for range samples {
		random = random*6364136223846793005 + 1442695040888963407 // Knuth's LCG
		i := int((random >> 33) % uint64(len(t.entries)))
		tokens := t.entries[i].bucket.TokensAt(now)
		if best < 0 || tokens > fullest || tokens == fullest && t.entries[i].used.Before(t.entries[best].used) {
			best, fullest = i, tokens
		}
	}
	return best
}

// drop takes an entry out. The last one takes its place.
func (t *Table) drop(i int) {
	last := len(t.entries) - 1
	delete(t.buckets, t.entries[i].key)
	if i != last {
		t.entries[i] = t.entries[last]
		t.buckets[t.entries[i].key] = i
	}
	t.entries[last] = entry{}
	t.entries = t.entries[:last]
}

// schedule has the table swept after the time that an empty bucket takes to
// fill, as long as there is anything in it. mu is held.
func (t *Table) schedule() {
	if t.sweeper != nil || t.closed {
		return
	}
	full := time.Duration(float64(t.rate.Size()) / float64(t.rate.Limit()) * float64(time.Second))
	t.sweeper = time.AfterFunc(min(max(full, 100*time.Millisecond), time.Minute), t.sweep)
}

// sweep drops the keys whose buckets are full, in steps that hold the lock
// for moments only.
func (t *Table) sweep() {
	now := time.Now()
	for t.sweepSome(now) {
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweeper = nil
	if len(t.entries) > 0 {
		t.schedule()
	} else if cap(t.entries) > swept {
		t.entries, t.buckets = nil, make(map[uint64]int)
	}
}

// sweepSome looks at some entries, and reports whether there are more.
func (t *Table) sweepSome(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for range swept {
		if t.cursor >= len(t.entries) {
			t.cursor = 0
			return false
		}
		if t.entries[t.cursor].bucket.TokensAt(now) >= float64(t.rate.Size()) {
			t.drop(t.cursor)
		} else {
			t.cursor++
		}
	}
	return true
}
