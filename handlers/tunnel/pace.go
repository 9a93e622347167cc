package tunnel

import (
	"time"

	"golang.org/x/time/rate"
)

// Pace is a rate that holds a client: so many messages or bytes.
type Pace struct {
	// Bucket is what is taken from; sockets may share one.
	Bucket *rate.Limiter
	// Close ends the socket when the bucket is empty. Otherwise the client is
	// not read until there is enough in it again.
	Close bool
}

// Limits hold what a client sends. All of them count data messages only.
type Limits struct {
	// MaxMessage is how many bytes a message may have on the wire, over all
	// its fragments. 0: any number.
	MaxMessage int64
	// Messages counts messages, at their first frame; nil: no limit.
	Messages *Pace
	// Bytes counts payload as it is on the wire; nil: no limit.
	Bytes *Pace
}

// limiter holds one socket to its limits. It belongs to the pump that reads
// the client.
type limiter struct {
	Limits
	size uint64        // of the current message, as far as its headers tell
	paid bool          // the frame that comes next was counted already
	cut  chan struct{} // closed when the socket is cut; made by the first wait; guarded by the socket's mu
}

// Causes by which a client's own doing ends its socket.
var (
	causeTooBig = Cause{By: ByGate, Reason: "too_big", Code: CodeTooBig, Text: "message too big"}
	causeRate   = Cause{By: ByGate, Reason: "rate", Code: CodePolicy, Text: "rate exceeded"}
)

// newLimiter is nil without any limit.
func newLimiter(l Limits) *limiter {
	if l == (Limits{}) {
		return nil
	}
	return &limiter{Limits: l}
}

// admit decides about a data frame by its header, before anything of it
// passes: it may pass now, or after a while, or it ends the socket.
func (l *limiter) admit(h Header) (wait time.Duration, cause *Cause) {
	if l.paid {
		l.paid = false
		return 0, nil
	}
	if h.Opcode != opContinuation {
		l.size = 0
	}
	// Neither side can overflow: a length is below 2^63.
	l.size = min(l.size, 1<<63) + h.Length
	if l.MaxMessage > 0 && l.size > uint64(l.MaxMessage) {
		return 0, &causeTooBig
	}
	now := time.Now()
	if b := l.Bytes; b != nil && b.Close && (h.Length > uint64(b.Bucket.Burst()) || !b.Bucket.AllowN(now, int(h.Length))) {
		return 0, &causeRate
	}
	m := l.Messages
	switch {
	case m == nil || h.Opcode == opContinuation:
	case !m.Close:
		wait = m.Bucket.ReserveN(now, 1).DelayFrom(now)
		l.paid = wait > 0
	case !m.Bucket.AllowN(now, 1):
		return 0, &causeRate
	}
	return wait, nil
}

// leastPiece is more than scan may hold back, so that every piece gets on.
const leastPiece = 512

// piece is how much of what was read is passed on in one go.
func (l *limiter) piece(n int) int {
	if l.Bytes == nil || l.Bytes.Close {
		return n
	}
	return min(n, max(l.Bytes.Bucket.Burst(), leastPiece))
}

// passing is how long so many payload bytes have to wait.
func (l *limiter) passing(n uint64) (wait time.Duration) {
	if l.Bytes == nil || l.Bytes.Close {
		return 0
	}
	now := time.Now()
	bucket := l.Bytes.Bucket
	for n > 0 {
		take := min(n, uint64(bucket.Burst()))
		wait = bucket.ReserveN(now, int(take)).DelayFrom(now)
		n -= take
	}
	return wait
}

// rest waits before more of f goes on. It reports false if the socket is cut
// meanwhile: then nothing more may. The client is not read while it waits, and
// its clock of life stands still as with a backend that does not read.
func (l *limiter) rest(f *flow, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	f.writing.Store(true)
	defer f.writing.Store(false)
	cut := f.socket.untilCut(l)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-cut:
		return false
	}
}

// untilCut is closed when the socket is cut.
func (s *Socket) untilCut(l *limiter) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.cut == nil {
		l.cut = make(chan struct{})
		if s.severed {
			close(l.cut)
		}
	}
	return l.cut
}

// relayLimited relays p for a client that has limits: in pieces that fit its
// rates, and waiting where it has to.
func (s *Socket) relayLimited(f *flow, c *chunk, p []byte) {
	for len(p) > 0 && !f.blind {
		n := f.limiter.piece(len(p))
		s.relayPiece(f, c, p[:n])
		if n == len(p) && c.wait == 0 {
			return
		}
		f.nheld = 0 // still stands in p
		if !f.limiter.rest(f, c.wait) {
			f.blind = true
		}
		p = p[c.next:]
	}
}
