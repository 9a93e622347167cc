package tunnel

import (
	"sync"
	"sync/atomic"
)

// What may wait for a frame boundary in a flow.
const (
	pendingPing uint32 = 1 << iota
	pendingClose
)

// flow is one direction of a socket: it reads frames from src and writes them
// to dst. One pump owns its reading side; whoever holds mu may write.
type flow struct {
	socket   *Socket
	src, dst *end
	in       bool // from the client to the backend

	// Read state, the pump's own.
	scanner    Scanner
	held       [headroom]byte // bytes of a frame that can't go on yet
	nheld      int
	closing    bool   // the current frame is a close frame
	data       bool   // the current frame carries data
	code       uint16 // close code of the source
	blind      bool   // what the source says no longer counts
	onReadable func(fd uintptr) bool
	buf        *buffer
	n          int
	err        error

	// Write state.
	mu        sync.Mutex    // orders what is written to dst
	boundary  bool          // dst stands between two frames
	shut      bool          // nothing more is written to dst
	closeSent bool          // dst got a close frame
	finished  bool          // dst got the end of the stream
	pending   atomic.Uint32 // what waits for a boundary
	turns     atomic.Uint64 // odd while a write is in progress

	// What both sides of the flow look at.
	closeSeen atomic.Bool // src sent a close frame
	answered  atomic.Bool // the gate sent src a close frame of its own
	ended     atomic.Bool // src has nothing more to say

	// Counters, written by the pump.
	messages atomic.Uint64 // data messages, counted at their first frame
	bytes    atomic.Uint64 // payload bytes of data frames
}

// chunk is what scan made of the bytes of one read.
type chunk struct {
	keep     int   // so many leading bytes may go on
	boundary int   // where among them a frame begins or ends first, -1: nowhere
	closed   bool  // a close frame of the source is complete, nothing counts behind it
	err      error // behind keep the source broke a rule
}

// scan walks the frames of p, which goes on where the last call stopped. It
// takes the pongs that answer our pings out of p, and holds back what can't
// be judged before more bytes are there.
func (f *flow) scan(p []byte) chunk {
	c := chunk{boundary: -1}
	i := f.skip(p)
	c.keep = i
	for f.scanner.boundary() {
		if c.boundary < 0 {
			c.boundary = c.keep
		}
		if f.closing {
			c.closed = true
			return c
		}
		h, ok, err := f.scanner.Next(p[i:])
		if err != nil {
			c.err = err
			return c
		}
		if ok && len(p)-i < h.Size+f.wants(h) {
			f.scanner.left, ok = 0, false
		}
		if !ok {
			f.nheld = copy(f.held[:], p[i:])
			return c
		}
		payload := p[i+h.Size:]
		switch h.Opcode {
		case opPong:
			if f.in && h.Length == pingSize && f.socket.tookPong(payload, h.Mask) {
				i += h.Size + f.skip(payload)
				continue
			}
		case opClose:
			f.sawClose(h, payload)
			if f.answered.Load() {
				c.closed = true // the answer to ours: it goes no further
				return c
			}
		case opText, opBinary:
			f.messages.Add(1)
		}
		f.data = !h.control()
		n := h.Size + f.skip(payload)
		if c.keep != i {
			copy(p[c.keep:], p[i:i+n])
		}
		c.keep += n
		i += n
	}
	return c
}

// skip passes over what p has of the current frame's payload.
func (f *flow) skip(p []byte) int {
	n := f.scanner.skip(len(p))
	if f.data && n > 0 {
		f.bytes.Add(uint64(n))
	}
	return n
}

// wants is how much of a frame's payload must be there to judge it.
func (f *flow) wants(h Header) int {
	switch {
	case h.Opcode == opPong && f.in && h.Length == pingSize:
		return pingSize
	case h.Opcode == opClose:
		return int(min(h.Length, 2))
	}
	return 0
}

// sawClose notes the close frame that begins with h, RFC 6455 §5.5.1.
func (f *flow) sawClose(h Header, payload []byte) {
	f.closing = true
	f.code = CodeNoStatus
	if h.Length >= 2 {
		f.code = uint16(payload[0]^h.Mask[0])<<8 | uint16(payload[1]^h.Mask[1])
	}
	f.socket.ending.Store(true) // no ping of ours from here on
}

// write passes on the bytes of a chunk, with what waits for a boundary put in
// at the first there is.
func (f *flow) write(p []byte, c chunk) {
	f.mu.Lock()
	if f.pending.Load() != 0 && c.boundary >= 0 && !f.closed(c) {
		f.send(p[:c.boundary])
		p = p[c.boundary:]
		f.inject()
	}
	f.send(p)
	if f.closed(c) && !f.shut {
		f.shut, f.closeSent = true, true
	}
	f.boundary = f.scanner.boundary()
	f.mu.Unlock()
	if f.pending.Load() != 0 {
		f.flush()
	}
	if f.socket.ending.Load() {
		f.socket.settle()
	}
}

// closed reports whether c ends with a close frame that goes on to dst.
func (f *flow) closed(c chunk) bool { return c.closed && !f.answered.Load() }

// send writes p to dst. mu is held.
func (f *flow) send(p []byte) {
	if f.shut || len(p) == 0 {
		return
	}
	f.turns.Add(1)
	_, err := f.dst.conn.Write(p)
	f.turns.Add(1)
	if err != nil {
		f.shut = true
		f.socket.writeFailed(f)
	}
}

// want asks for something to be put in at the next boundary, now if dst
// stands at one.
func (f *flow) want(what uint32) {
	f.pending.Or(what)
	f.flush()
}

// flush puts in what waits, if dst stands at a boundary and nobody writes.
// Whoever writes looks for what waits when done, so nothing is left behind.
func (f *flow) flush() {
	for f.pending.Load() != 0 && f.mu.TryLock() {
		atBoundary := f.boundary || f.shut
		if atBoundary {
			f.inject()
		}
		f.mu.Unlock()
		if !atBoundary {
			return
		}
		if f.socket.ending.Load() {
			f.socket.settle()
		}
	}
}

// inject writes what waits. dst stands at a boundary and mu is held.
func (f *flow) inject() {
	what := f.pending.Swap(0)
	var frame [2 + 4 + maxControl]byte
	switch {
	case f.shut:
	case what&pendingClose != 0:
		code, text := f.socket.closeFor(f)
		f.other().answered.Store(true)
		f.send(appendClose(frame[:0], code, text, f.in))
		f.shut, f.closeSent = true, true
	case what&pendingPing != 0 && !f.socket.ending.Load():
		f.send(appendPing(frame[:0], f.socket.number, f.socket.now()))
	}
}

// end passes on that src has nothing more to say: what was held back, then
// the code if dst stands between frames and one is given, then the end of the
// stream.
func (f *flow) end(code uint16, text string) {
	f.mu.Lock()
	if f.nheld > 0 {
		f.boundary = false
		f.send(f.held[:f.nheld])
		f.nheld = 0
	}
	if f.boundary && !f.shut && code != 0 {
		var frame [2 + 4 + maxControl]byte
		f.other().answered.Store(true)
		f.send(appendClose(frame[:0], code, text, f.in))
		f.closeSent = true
	}
	f.shut = true
	f.finish()
	f.mu.Unlock()
}

// other is the flow in the opposite direction.
func (f *flow) other() *flow {
	if f.in {
		return &f.socket.out
	}
	return &f.socket.in
}

// finish passes the end of the stream on to dst, once. mu is held.
func (f *flow) finish() {
	if !f.finished {
		f.finished = true
		f.dst.closeWrite()
	}
}
