package tunnel

import "time"

// waiting is what a look saw of the way to the client.
type waiting struct {
	stuck bool  // data stands between the client and a ping, or waits itself
	taken int64 // bytes that left the send queue, as far as that can be known
}

// pingOnWire is how much of the send queue one ping takes at most, with the
// record of TLS around it.
const pingOnWire = 128

// minApart is how far apart two looks are at least.
const minApart = 10 * time.Millisecond

// apart is the time between two looks at a client that has something to take:
// several within the time it has to show life, and one at least between a
// ping and the end of that time.
func (p *Policy) apart() time.Duration {
	return max(min(p.patience()/8, p.PongTimeout/4), minApart)
}

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
	if s.cause != nil || s.cutAt != never {
		cut := now >= s.cutAt
		switch {
		case !cut:
			s.timer.Reset(s.cutAt - now)
		case s.cause == nil:
			s.cause = s.lost
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
		s.settleDown()
	}
}

// look decides what is due at this age: an end, a ping, or nothing; and when
// to look again. mu is held.
func (s *Socket) look(now time.Duration) (cause *Cause, ping bool, next time.Duration) {
	if now >= s.lifetime {
		return s.lifetimeCause, false, never
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
		watch = min(watch, now+s.policy.apart())
	}
	return nil, ping, min(next, due, s.nextPing, watch)
}

// watch looks for life beside the bytes that the client sends, and says when
// to look again.
//
// While a write to the backend is in progress the gate does not read the
// client: it can't show life, and the clock stands still. (A client that has
// left meanwhile refuses the next pings, and that write fails.) While a ping
// can't get through because data stands before it, the client can't answer:
// then its taking of data is life.
func (s *Socket) watch(now time.Duration) (again time.Duration) {
	again = never
	if s.in.writing.Load() {
		s.life.Store(int64(now))
		again = now + s.policy.apart()
	}
	before := s.waiting
	s.waiting = s.out.waiting()
	if before.stuck && s.waiting.taken > before.taken {
		s.life.Store(int64(now))
	}
	if s.waiting.stuck {
		again = now + s.policy.apart()
	}
	return again
}

// waiting looks at what dst has still to take. A ping waits for a frame to
// end, or behind data: in the pump or, where the system tells, in the send
// queue. One that stands there alone does not count: the taking of a ping is
// no life.
func (f *flow) waiting() waiting {
	pinged := f.pinged.Load()
	w := waiting{
		stuck: f.writing.Load() || f.pending.Load()&pendingPing != 0,
		taken: f.sent.Load(),
	}
	if backlog, known := f.dst().backlog(); known {
		w.taken -= int64(backlog)
		w.stuck = w.stuck || w.taken+pingOnWire < pinged
	}
	return w
}

// tookPong reports whether a pong answers a ping of ours; then it goes no
// further.
func (f *flow) tookPong(payload []byte, mask [4]byte) bool {
	// held is empty meanwhile, and a block on the stack would escape.
	sent, ours := openPong(f.held[:], payload, mask, f.socket.number)
	if ours {
		f.pong, f.rtt = true, f.socket.now()-sent
	}
	return ours
}

// tellPong tells the observer of the pong that came last.
//
//go:noinline
func (s *Socket) tellPong(f *flow) {
	f.pong = false
	if s.observer != nil {
		s.observer.Pong(s, f.rtt)
	}
}
