package tunnel

import (
	"sync"
	"sync/atomic"
	"time"
)

// What may wait for a frame boundary in a flow.
const (
	pendingPing    uint32 = 1 << iota
	pendingClose          // a close frame of the gate's
	pendingEnd            // the end of the stream, once both close frames went by
	pendingMessage        // messages of the operator's; these wait for the end of a message
)

// flow is one direction of a socket: it reads frames from src and writes them
// to dst. One pump owns its reading side; whoever holds mu may write.
type flow struct {
	socket *Socket
	in     bool // from the client to the backend

	// Read state, the pump's own.
	closing    bool // the current frame is a close frame
	data       bool // the current frame carries data
	blind      bool // what the source says no longer counts
	starved    bool // there are bytes, but no buffer was left over
	over       bool // src has nothing more to say
	reset      bool // and did not end with a FIN
	pong       bool // a ping of ours was answered
	quiet      bool // src has sent no data for long, and parks when it is silent
	parking    bool // now
	watched    bool // the lot hears of src
	nheld      uint8
	place      uint32         // in the lot, 0 without
	held       [headroom]byte // bytes of a frame that can't go on yet
	rtt        time.Duration  // after which our ping was answered
	scanner    Scanner
	limiter    *limiter // nil without limits
	onReadable func(fd uintptr) bool
	buf        *buffer

	// Write state.
	mu       sync.Mutex    // orders what is written to dst
	boundary bool          // dst stands between two frames
	between  bool          // and these are not of one message
	shut     bool          // nothing more is written to dst
	finished bool          // dst got the end of the stream
	pending  atomic.Uint32 // what waits for a boundary
	sent     atomic.Int64  // bytes written to dst
	pinged   atomic.Int64  // of these, up to the end of the last ping
	writing  atomic.Bool   // the pump has bytes that dst has not taken yet

	// What both sides of the flow look at.
	marks atomic.Uint32

	// Counters, written by the pump.
	messages atomic.Uint64 // data messages, counted at their first frame
	bytes    atomic.Uint64 // payload bytes of data frames
}

// What has happened to a flow, mostly for good.
const (
	closeSent uint32 = 1 << iota // dst got a close frame
	closeSeen                    // src sent a close frame, or broke a rule
	answered                     // the gate sent src a close frame of its own
	settled                      // dst gets the end of the stream
	ended                        // the pump passed on that src has nothing more to say
	parked                       // no pump has the flow; this one comes and goes
)

// has reports whether this has happened.
func (f *flow) has(mark uint32) bool { return f.marks.Load()&mark != 0 }

// mark notes that this has happened, and reports whether it is for the first
// time.
func (f *flow) mark(mark uint32) bool { return f.marks.Or(mark)&mark == 0 }

// src is what f reads from.
func (f *flow) src() *end {
	if f.in {
		return &f.socket.client
	}
	return &f.socket.backend
}

// dst is what f writes to.
func (f *flow) dst() *end { return f.other().src() }

// other is the flow in the opposite direction.
func (f *flow) other() *flow {
	if f.in {
		return &f.socket.out
	}
	return &f.socket.in
}

// chunk is what scan made of the bytes of one read.
type chunk struct {
	keep     int   // so many leading bytes may go on
	boundary int   // where among them a frame begins or ends first, -1: nowhere
	between  int   // where a message does, -1: nowhere
	closed   bool  // the source sent a close frame, nothing counts behind it
	passed   bool  // that frame is complete, and the last that goes on
	err      error // behind keep the source broke a rule

	// With limits only.
	next  int           // where in the bytes the scan stopped
	wait  time.Duration // so long the frame there has to wait
	limit *Cause        // or that frame ends the socket
}

// scan walks the frames of p, which goes on where the last call stopped, and
// says in c what it found. It takes the pongs that answer our pings out of p,
// and holds back what can't be judged before more bytes are there.
func (f *flow) scan(c *chunk, p []byte) {
	*c = chunk{boundary: -1, between: -1}
	i := f.skip(p)
	c.keep = i
	for f.scanner.boundary() {
		if c.boundary < 0 {
			c.boundary = c.keep
		}
		if c.between < 0 && !f.scanner.open {
			c.between = c.keep
		}
		if f.closing {
			c.closed, c.passed = true, true
			return
		}
		var before Scanner
		if f.limiter != nil {
			before = f.scanner
		}
		h, ok, err := f.scanner.Next(p[i:])
		if err != nil {
			c.err = err
			return
		}
		c.next = i
		if f.limiter != nil && ok && !h.control() {
			if c.wait, c.limit = f.limiter.admit(h); c.wait > 0 || c.limit != nil {
				f.scanner = before
				return
			}
		}
		if ok && len(p)-i < h.Size+f.wants(h) {
			f.scanner.left, ok = 0, false
		}
		if !ok {
			f.nheld = uint8(copy(f.held[:], p[i:]))
			return
		}
		payload := p[i+h.Size:]
		switch h.Opcode {
		case opPong:
			if f.in && h.Length == pingSize && f.tookPong(payload, h.Mask) {
				i += h.Size + f.scanner.skip(len(payload))
				continue
			}
		case opClose:
			f.sawClose(h, payload)
			if f.has(answered) {
				c.closed = true // the answer to ours: it goes no further
				return
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
	c.next = i
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
	code := uint16(CodeNoStatus)
	if h.Length >= 2 {
		code = uint16(payload[0]^h.Mask[0])<<8 | uint16(payload[1]^h.Mask[1])
	}
	by := ByBackend
	if f.in {
		by = ByClient
	}
	// Before the frame is passed on: that can take as long as dst likes.
	f.socket.begin(causeClosed(by, code), closeGrace)
}

// write passes on the bytes of a chunk, with what waits for a boundary put in
// at the first there is.
func (f *flow) write(p []byte, c *chunk) {
	f.writing.Store(true)
	f.mu.Lock()
	if pending := f.pending.Load(); pending != 0 && c.boundary >= 0 && !c.passed {
		at := c.boundary
		if pending&pendingMessage != 0 && pending&pendingClose == 0 && c.between >= 0 {
			at = c.between
		}
		f.send(p[:at])
		p = p[at:]
		f.boundary, f.between = true, at == c.between
		f.inject()
	}
	f.send(p)
	if c.passed && !f.shut {
		f.shut = true
		f.mark(closeSent)
	}
	f.boundary = f.scanner.boundary()
	f.between = f.boundary && !f.scanner.open
	f.mu.Unlock()
	f.writing.Store(false)
	if f.pending.Load() != 0 {
		f.flush()
	}
	if f.socket.ending.Load() {
		f.socket.settle()
	}
}

// send writes p to dst. mu is held.
func (f *flow) send(p []byte) {
	if f.shut || len(p) == 0 {
		return
	}
	n, err := f.dst().conn.Write(p)
	f.sent.Add(int64(n))
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
	for {
		waits := f.pending.Load()
		if waits == 0 || !f.mu.TryLock() {
			return
		}
		did := f.inject()
		f.mu.Unlock()
		if !did && f.pending.Load() == waits {
			return // nothing fits here, and nothing came that would
		}
		if f.socket.ending.Load() {
			f.socket.settle()
		}
	}
}

// inject writes what waits and may be written where dst stands, and reports
// whether that was anything. mu is held.
func (f *flow) inject() bool {
	var fits uint32
	if f.boundary || f.shut {
		fits = pendingPing | pendingClose | pendingEnd
	}
	if f.between || f.shut {
		fits |= pendingMessage
	}
	what := f.pending.And(^fits) & fits
	if what == 0 {
		return false
	}
	var frame [2 + 4 + maxControl]byte
	if what&pendingMessage != 0 {
		for _, message := range f.socket.queued() {
			f.send(message)
		}
	}
	switch {
	case f.shut:
	case what&pendingClose != 0:
		code, text := f.socket.closeFor(f)
		f.sendClose(frame[:0], code, text)
	case what&pendingPing != 0 && !f.socket.ending.Load():
		f.send(appendPing(frame[:0], f.socket.number, f.socket.now()))
		f.pinged.Store(f.sent.Load())
	}
	if what&pendingEnd != 0 {
		f.finish()
	}
	return true
}

// sendClose writes a close frame of the gate's, made in p, the last that dst
// gets. dst stands at a boundary and mu is held.
func (f *flow) sendClose(p []byte, code uint16, text string) {
	f.other().mark(answered)
	f.send(appendClose(p, code, text, f.in))
	f.shut = true
	f.mark(closeSent)
}

// end passes on that src has nothing more to say: a close frame of the gate's
// that waits; or else what was held back, then the code if dst stands between
// frames and one is given; then the end of the stream.
func (f *flow) end(code uint16, text string) {
	f.mu.Lock()
	if f.boundary && f.pending.Load() != 0 {
		f.inject()
	}
	if f.nheld > 0 {
		f.boundary = false
		f.send(f.held[:f.nheld])
		f.nheld = 0
	}
	if f.boundary && !f.shut && code != 0 {
		var frame [2 + 4 + maxControl]byte
		f.sendClose(frame[:0], code, text)
	}
	f.shut = true
	// With both ends of the stream here the connections are closed next, which
	// says the same; but not in TLS, whose end is a message of its own.
	if f.dst().raw == nil || !f.other().has(ended) {
		f.finish()
	}
	f.mu.Unlock()
}

// finish passes the end of the stream on to dst, once. mu is held.
func (f *flow) finish() {
	if !f.finished {
		f.finished = true
		f.dst().closeWrite()
	}
}
