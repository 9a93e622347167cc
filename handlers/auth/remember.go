package auth

import (
	"crypto/sha256"
	"sync"
)

const (
	// memoryShards and shardSize bound the tokens that a verifier remembers
	// to 4096. One takes its payload, which is below 6 KiB and mostly some
	// hundred bytes, and some 150 bytes beside that.
	memoryShards = 16
	shardSize    = 256
)

type sum = [sha256.Size]byte

// tokenSum is a token's name in the memory. The memory keeps no token.
func tokenSum(token string) sum { return sha256.Sum256([]byte(token)) }

// remembered is a token whose signature was verified, and with which keys. Its
// claims are kept as their text, which takes a tenth of the room.
type remembered struct {
	payload    string
	issuer     *Issuer
	generation uint64 // of the issuer's keys
}

// memory spares the signature check for tokens that come again, as they do
// when every client of a restarted backend reconnects. What it knows of a
// token holds only as long as the issuer's keys are the same, and the claims
// are judged every time. A token that was refused is not remembered.
type memory struct {
	shards [memoryShards]shard
}

// shard replaces entries by the clock algorithm: the hand passes over those
// that were used since it last came by.
type shard struct {
	mu    sync.Mutex
	index map[sum]int
	slots []slot
	hand  int
}

type slot struct {
	sum  sum
	used bool
	remembered
}

func newMemory() *memory {
	m := &memory{}
	for i := range m.shards {
		m.shards[i].index = make(map[sum]int)
	}
	return m
}

func (m *memory) shard(s *sum) *shard { return &m.shards[s[0]%memoryShards] }

// find returns what is known of the token, if it was verified with the keys
// that hold now.
func (m *memory) find(s sum) (entry remembered, ok bool) {
	if entry, ok = m.shard(&s).get(s); !ok {
		return entry, false
	}
	// Not keys: a remembered token never waits for any.
	set := entry.issuer.Keys.current.Load()
	if set == nil || set.generation != entry.generation {
		return entry, false
	}
	_, err := entry.issuer.Keys.unlessStale(set)
	return entry, err == nil
}

func (m *memory) put(s sum, entry remembered) { m.shard(&s).put(s, entry) }

func (h *shard) get(s sum) (remembered, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, ok := h.index[s]
	if !ok {
		return remembered{}, false
	}
	h.slots[i].used = true
	return h.slots[i].remembered, true
}

func (h *shard) put(s sum, entry remembered) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, ok := h.index[s]
	switch {
	case ok:
	case len(h.slots) < shardSize:
		i = len(h.slots)
		h.slots = append(h.slots, slot{})
	default:
		for h.slots[h.hand].used {
			h.slots[h.hand].used = false
			h.hand = (h.hand + 1) % shardSize
		}
		i = h.hand
		h.hand = (h.hand + 1) % shardSize
		delete(h.index, h.slots[i].sum)
	}
	h.index[s] = i
	h.slots[i] = slot{sum: s, remembered: entry}
}
