package tunnel

import (
	"io"
	"syscall"
)

// pump relays one direction until its source has nothing more to say.
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
	}
	s.pumpEnded(f)
}

// relayEarly passes on what had arrived with the handshake.
//
//go:noinline
func (s *Socket) relayEarly(f *flow, early []byte) {
	for len(early) > 0 {
		b := takeBuffer()
		n := copy(b[headroom:], early)
		early = early[n:]
		s.relay(f, b, n)
	}
}

// step waits for bytes and relays them. It reports false at the end.
//
//go:noinline
func (s *Socket) step(f *flow) bool {
	if f.src.raw == nil {
		return s.stepRest(f)
	}
	if err := f.src.raw.Read(f.onReadable); err != nil {
		f.err = err
	}
	if f.n > 0 {
		s.relay(f, f.buf, f.n)
		f.buf, f.n = nil, 0
	}
	return f.err == nil
}

// readable takes a buffer only when the descriptor has bytes; without any it
// reports false, and the pump waits on without one.
func (f *flow) readable(fd uintptr) bool {
	b, ok := buffers.Get().(*buffer)
	if !ok {
		f.starved = true
		return true
	}
	for {
		n, err := readDescriptor(fd, b[headroom:])
		switch {
		case n > 0:
			f.buf, f.n = b, n
			return true
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			buffers.Put(b)
			return false
		case err == nil:
			err = io.EOF
		}
		buffers.Put(b)
		f.err = err
		return true
	}
}

// feed makes a buffer for the next step to find.
//
//go:noinline
func (f *flow) feed() {
	f.starved = false
	buffers.Put(new(buffer))
}

// stepRest is step for a connection that keeps a small buffer of its own.
//
//go:noinline
func (s *Socket) stepRest(f *flow) bool {
	b, n, err := f.src.readRest()
	if n > 0 {
		if b != nil {
			s.relay(f, b, n)
		} else {
			s.relayBytes(f, f.src.rest, n)
		}
	}
	if err != nil {
		f.err = err
	}
	return err == nil
}

// relay passes on the n bytes that were read into b, and gives b back.
//
//go:noinline
func (s *Socket) relay(f *flow, b *buffer, n int) {
	s.relayBytes(f, b[:], n)
	buffers.Put(b)
}

// relayBytes passes on the n bytes behind p's headroom, into which goes what
// the read before held back.
func (s *Socket) relayBytes(f *flow, p []byte, n int) {
	if f.in {
		s.life.Store(int64(s.now()))
	}
	if f.blind {
		return
	}
	p = p[headroom-f.nheld : headroom+n]
	copy(p, f.held[:f.nheld])
	f.nheld = 0
	if f.limiter != nil {
		s.relayLimited(f, p)
	} else {
		s.relayPiece(f, p)
	}
}

// relayPiece passes on what of p may go on, and acts on what p says.
func (s *Socket) relayPiece(f *flow, p []byte) *chunk {
	bytes, messages := f.bytes.Load(), f.messages.Load()
	c := f.scan(p)
	if c.closed {
		f.sourceClosed()
	}
	bytes, messages = f.bytes.Load()-bytes, f.messages.Load()-messages
	if s.policy.IdleTimeout > 0 && bytes+messages > 0 {
		s.data.Store(int64(s.now()))
	}
	if f.limiter != nil && !f.limiter.rest(f, f.limiter.passing(bytes)) {
		f.blind = true
		return c
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
	return c
}

// sourceClosed notes that src sent its close frame. With the second of the
// two the slots are free, before that frame goes on: a client may be back as
// soon as it has it.
func (f *flow) sourceClosed() {
	f.closeSeen.Store(true)
	if f.other().closeSeen.Load() {
		f.socket.freeSlots()
	}
}
