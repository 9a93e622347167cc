package tunnel

import "time"

// waiting is what the last look saw of a write to the client that did not
// get on.
type waiting struct {
	turn    uint64 // of the write; 0: there was none
	backlog int    // bytes in the send queue
}

// A client whose write waits is looked at this many times within the time it
// has to show life, at least looksApart apart.
const (
	looks      = 8
	looksApart = 10 * time.Millisecond
)

// patience is how long a client may show no life.
func (p *Policy) patience() time.Duration { return p.PingInterval + p.PongTimeout }

// firstLook is the age at which there is first something to do.
func (s *Socket) firstLook() time.Duration {
	next := min(s.nextPing, s.lifetime)
	if s.policy.IdleTimeout > 0 {
		next = min(next, s.policy.IdleTimeout)
	}
	if s.policy.PingInterval > 0 {
		next = min(next, s.policy.patience())
	}
	return next
}

// tick does what is due and sets the timer for what is due next.
func (s *Socket) tick() {
	now := s.now()
	s.mu.Lock()
	if s.pumps == 0 {
		s.mu.Unlock()
		return
	}
	if s.cause.Reason != "" || s.cutAt != never {
		cut := now >= s.cutAt
		if !cut {
			s.timer.Reset(s.cutAt - now)
		}
		s.mu.Unlock()
		if cut {
			s.cut()
		}
		return
	}
	cause, ping, next := s.look(now)
	s.timer.Reset(max(next-now, time.Millisecond))
	s.mu.Unlock()
	switch {
	case cause != nil:
		s.Close(*cause)
	case ping:
		s.out.want(pendingPing)
	}
}

// look decides what is due at this age: an end, a ping, or nothing; and when
// to look again. mu is held.
func (s *Socket) look(now time.Duration) (cause *Cause, ping bool, next time.Duration) {
	if now >= s.lifetime {
		return &s.lifetimeCause, false, never
	}
	next = s.lifetime
	if s.policy.IdleTimeout > 0 {
		due := time.Duration(s.data.Load()) + s.policy.IdleTimeout
		if now >= due {
			return &causeIdle, false, never
		}
		next = min(next, due)
	}
	if s.policy.PingInterval == 0 {
		return nil, false, next
	}
	watch := s.watch(now)
	due := time.Duration(s.life.Load()) + s.policy.patience()
	if now >= due {
		return &causePing, false, never
	}
	if now >= s.nextPing {
		ping = true
		// Whatever was missed (a suspended machine) is not made up for.
		s.nextPing = max(s.nextPing+s.policy.PingInterval, now+s.policy.PingInterval/2)
	}
	return nil, ping, min(next, due, s.nextPing, watch)
}

// watch looks for life beside the bytes that the client sends, and says when
// to look again.
//
// While a write to the backend is in progress the gate does not read the
// client: it can't show life, and the clock stands still. While a write to
// the client is in progress, its bytes leaving the send queue are life: a
// slow reader is alive, and its pongs are stuck behind that very write.
func (s *Socket) watch(now time.Duration) (again time.Duration) {
	again = never
	soon := now + max(s.policy.patience()/looks, looksApart)
	if s.in.turns.Load()&1 != 0 {
		s.life.Store(int64(now))
		again = soon
	}
	turn := s.out.turns.Load()
	if turn&1 == 0 {
		if s.waiting.turn != 0 {
			s.life.Store(int64(now)) // what waited is through
			s.waiting = waiting{}
		}
		return again
	}
	backlog, known := s.client.backlog()
	before := s.waiting
	s.waiting = waiting{turn: turn, backlog: backlog}
	if before.turn != 0 && (turn != before.turn || known && backlog < before.backlog) {
		s.life.Store(int64(now))
	}
	return soon
}

// tookPong reports whether a pong answers a ping of ours; then it goes no
// further.
func (s *Socket) tookPong(payload []byte, mask [4]byte) bool {
	sent, ours := openPong(payload, mask, s.number)
	if ours && s.observer != nil {
		s.observer.Pong(s, s.now()-sent)
	}
	return ours
}
