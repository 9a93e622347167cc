package tunnel

import (
	"io"
	"syscall"
)

// pump relays one direction until its source has nothing more to say, or
// nothing for now: see park.
//
// Its goroutine is to keep the smallest stack there is, 2 KiB: one that grew
// once does not shrink as far again. So frames on the way from here to the
// kernel are small, and what needs more is done up here, when there is little
// on the stack: taking memory for a buffer, telling the observer.
func (s *Socket) pump(f *flow, early []byte) {
	s.relayEarly(f, early)
	for s.step(f) {
		if f.starved {
			f.feed()
		}
		if f.pong {
			s.tellPong(f)
		}
		if f.watched && !f.quiet {
			lot.ignore(f) // to be told twice of every packet costs
		}
		if f.parking && s.park(f) {
			return
		}
	}
	s.pumpEnded(f)
}

// relayEarly passes on what had arrived with the handshake.
//
//go:noinline
func (s *Socket) relayEarly(f *flow, early []byte) {
	for len(early) > 0 {
		b := takeBuffer()
		b.n = copy(b.bytes[headroom:], early)
		early = early[b.n:]
		s.relay(f, b)
	}
}

// step waits for bytes and relays them. It reports false at the end.
//
//go:noinline
func (s *Socket) step(f *flow) bool {
	raw := f.src().raw
	if raw == nil {
		return s.stepRest(f)
	}
	if err := raw.Read(f.onReadable); err != nil && !f.nudged(err) {
		f.stop(err)
	}
	if b := f.buf; b != nil {
		f.buf = nil
		s.relay(f, b)
	}
	return !f.over
}

// readable takes a buffer only when the descriptor has bytes; without any it
// reports false, and the pump waits on without one, or parks.
func (f *flow) readable(fd uintptr) bool {
	b, ok := buffers.Get().(*buffer)
	if !ok {
		f.starved = true
		return true
	}
	for {
		n, err := readDescriptor(fd, b.bytes[headroom:])
		switch {
		case n > 0:
			b.n = n
			f.buf = b
			return true
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			buffers.Put(b)
			f.parking = f.quiet
			return f.parking
		case err == nil:
			err = io.EOF
		}
		buffers.Put(b)
		f.stop(err)
		return true
	}
}

// stop notes that a read told of the end of src.
func (f *flow) stop(err error) { f.over, f.reset = true, isReset(err) }

// feed makes a buffer for the next step to find.
//
//go:noinline
func (f *flow) feed() {
	f.starved = false
	buffers.Put(newBuffer(bufferSize))
}

// stepRest is step for a connection that keeps a small buffer of its own.
//
//go:noinline
func (s *Socket) stepRest(f *flow) bool {
	src := f.src()
	b, err := src.readRest()
	switch {
	case b != src.rest:
		s.relay(f, b)
	case b.n > 0:
		s.relayBytes(f, b)
	}
	if err != nil {
		f.stop(err)
	}
	return err == nil
}

// relay passes on the bytes that were read into b, and gives b back.
//
//go:noinline
func (s *Socket) relay(f *flow, b *buffer) {
	s.relayBytes(f, b)
	buffers.Put(b)
}

// relayBytes passes on the bytes that were read into b. What the read before
// held back goes in front of them.
func (s *Socket) relayBytes(f *flow, b *buffer) {
	if f.in {
		s.life.Store(int64(s.now()))
	}
	if f.blind {
		return
	}
	p := b.bytes[headroom-int(f.nheld) : headroom+b.n]
	copy(p, f.held[:f.nheld])
	f.nheld = 0
	if f.limiter != nil {
		s.relayLimited(f, &b.chunk, p)
	} else {
		s.relayPiece(f, &b.chunk, p)
	}
}

// relayPiece passes on what of p may go on, and acts on what p says, which it
// leaves in c.
func (s *Socket) relayPiece(f *flow, c *chunk, p []byte) {
	bytes, messages := f.bytes.Load(), f.messages.Load()
	f.scan(c, p)
	if c.closed {
		f.sourceClosed()
	}
	bytes, messages = f.bytes.Load()-bytes, f.messages.Load()-messages
	if bytes+messages > 0 {
		f.quiet = false
		if s.policy.IdleTimeout > 0 {
			s.data.Store(int64(s.now()))
		}
	}
	if f.limiter != nil && !f.limiter.rest(f, f.limiter.passing(bytes)) {
		f.blind = true
		return
	}
	f.write(p[:c.keep], c)
	switch {
	case c.err != nil:
		f.blind = true
		s.violated(f, c.err)
	case c.limit != nil:
		f.blind = true
		s.exceeded(f, *c.limit)
	case c.closed:
		f.blind = true
		s.settle()
	}
}

// sourceClosed notes that src sent its close frame. With the second of the
// two the slots are free, before that frame goes on: a client may be back as
// soon as it has it.
func (f *flow) sourceClosed() {
	f.mark(closeSeen)
	if f.other().has(closeSeen) {
		f.socket.freeSlots()
	}
}

// pumpEnded passes on that the source of f is gone, and tidies up after the
// second.
func (s *Socket) pumpEnded(f *flow) {
	lot.leave(f)
	f.mark(ended)
	if f.in {
		grace := closeGrace
		if f.reset {
			grace = resetGrace
		}
		s.begin(&causeClientLost, grace)
		f.end(0, "")
	} else {
		s.begin(&causeBackendLost, closeGrace)
		var code uint16
		if !s.in.has(closeSeen | ended) {
			code = CodeBackendLost
		}
		f.end(code, causeBackendLost.Text)
	}
	// A reset that came just before the tunnel began reads as a plain end:
	// the server had taken its error.
	if f.reset || !f.in || f.src().broken() {
		s.freeSlots()
	}
	s.mu.Lock()
	s.pumps--
	last := s.pumps == 0
	if last {
		s.timer.Stop()
	}
	s.mu.Unlock()
	if last {
		s.finished()
	}
}
