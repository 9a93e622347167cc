package tunnel

import (
	"crypto/rand"
	"encoding/binary"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// closeGrace is how long a socket lives on after its first close frame,
	// or after one side went away: for the close handshake, for a frame that
	// is still under way, for what is still to be delivered.
	closeGrace = 5 * time.Second

	// resetGrace is what remains when the client's connection broke: nothing
	// can reach the client any more.
	resetGrace = time.Second
)

// never is a time of life that no socket reaches.
const never = time.Duration(math.MaxInt64)

// Policy is how long a socket may live, and on what signs of life. One policy
// serves all sockets of a handler; it is not changed once in use.
type Policy struct {
	PingInterval time.Duration // 0: no pings, and no clock of life
	PongTimeout  time.Duration
	IdleTimeout  time.Duration // without a data message either way; 0: none

	// DrainOnRemoval says that the sockets end when nothing is configured any
	// more under their tunnel's name.
	DrainOnRemoval bool
}

// Identity is what logs, metrics and the admin API say of a socket.
type Identity struct {
	ID          string // unique, and later sockets sort behind earlier ones
	Tunnel      string
	User        string
	Issuer      string
	TokenID     string // jti, empty where the token has none
	SessionID   string // sid, likewise
	ClientIP    string
	Upstream    string
	Subprotocol string
	Expires     time.Time // of the token; zero where it is not known
}

// Accepted is a socket whose handshake is done.
type Accepted struct {
	Identity
	Policy *Policy

	// The two connections, and what had been read from them behind the
	// handshake. The socket owns them from here on.
	Client, Backend           net.Conn
	ClientEarly, BackendEarly []byte

	// Reserved are the frame bits that the negotiated extensions use.
	Reserved Reserved

	// Lifetime is how long the socket may live from now on, 0: forever; and
	// LifetimeCause whether it is the token that ends then (CauseExpired), or
	// the limit set by the operator (nil, for CauseLifetime).
	Lifetime      time.Duration
	LifetimeCause *Cause

	// Limits hold what the client sends.
	Limits Limits

	// Release gives back what the socket holds of others' (slots of caps). It
	// is called once: when the gate begins to close, when both sides sent
	// their close frames, when the backend is gone or the client's connection
	// broke, or else when the socket is cut. May be nil; must not block.
	Release func()

	// Observer is told what happens; may be nil.
	Observer Observer
}

// Observer is told of a socket's life. Its methods may be called from any
// goroutine and must not block.
type Observer interface {
	// Opened is called once, before anything passes.
	Opened(s *Socket)
	// Pong tells how long a ping of the gate's was under way.
	Pong(s *Socket, rtt time.Duration)
	// Closed is called once, when the socket holds nothing any more.
	Closed(s *Socket, end Summary)
}

// Summary is what there is to say of a socket that ended.
type Summary struct {
	Cause
	Violation error // the rule of RFC 6455 that was broken; nil for other causes
	Duration  time.Duration
	In, Out   Traffic
}

// Traffic counts one direction.
type Traffic struct {
	Messages uint64 // data messages, counted at their first frame
	Bytes    uint64 // payload of data frames as on the wire
}

// Socket is one live tunnel.
type Socket struct {
	Identity
	policy   *Policy
	observer Observer

	client, backend end
	in, out         flow
	number          uint64 // tells our pings from others'
	opened          time.Time

	// Signs of life, as times since opened.
	life    atomic.Int64  // the client was last known to live
	data    atomic.Int64  // last data message; kept only with an idle timeout
	ending  atomic.Bool   // a close frame was seen or is to be sent: no more pings
	carried atomic.Uint32 // data until the last ping, as a number that changes with it

	mu            sync.Mutex // guards what follows; held for moments only
	timer         *time.Timer
	nextPing      time.Duration
	lifetime      time.Duration // never without a limit
	lifetimeCause *Cause
	cutAt         time.Duration // never until the end begins
	waiting       waiting
	queue         [][]byte // messages of the operator's that wait
	cause         *Cause   // nil until the end begins
	lost          *Cause   // what a failed write tells; the cause if nothing better follows
	violation     error    // the rule that was broken first, if that is the cause
	release       func()
	pumps         int8
	severed       bool // both connections were cut
}

// Start takes over the connections of a and relays between them until either
// side, the gate or time ends it. It returns at once.
func Start(a Accepted) *Socket {
	s := newSocket(a)
	if s.observer != nil {
		s.observer.Opened(s)
	}
	s.launch(&s.in, a.ClientEarly)
	s.launch(&s.out, a.BackendEarly)
	return s
}

// launch begins to relay one direction. It takes no goroutine before there is
// something to relay.
func (s *Socket) launch(f *flow, early []byte) {
	if len(early) > 0 || f.src().raw == nil || !s.park(f) {
		go s.pump(f, early)
	}
}

// newSocket is a socket whose clock runs, but which moves nothing yet.
func newSocket(a Accepted) *Socket {
	s := &Socket{
		Identity:      a.Identity,
		policy:        a.Policy,
		observer:      a.Observer,
		client:        newEnd(a.Client),
		backend:       newEnd(a.Backend),
		number:        newNumber(),
		opened:        time.Now(),
		nextPing:      never,
		lifetime:      never,
		lifetimeCause: a.LifetimeCause,
		cutAt:         never,
		release:       a.Release,
		pumps:         2,
	}
	s.in = flow{socket: s, in: true, quiet: true, boundary: true, between: true, scanner: Scanner{Masked: true, Reserved: a.Reserved}}
	s.out = flow{socket: s, quiet: true, boundary: true, between: true, scanner: Scanner{Reserved: a.Reserved}}
	s.in.limiter = newLimiter(a.Limits)
	s.in.onReadable = s.in.readable
	s.out.onReadable = s.out.readable
	if s.lifetimeCause == nil {
		s.lifetimeCause = &CauseLifetime
	}
	if s.policy.PingInterval > 0 {
		s.nextPing = s.policy.PingInterval
	}
	if a.Lifetime > 0 {
		s.lifetime = a.Lifetime
	}
	s.mu.Lock()
	s.timer = time.AfterFunc(s.firstLook(), s.tick)
	s.mu.Unlock()
	return s
}

func newNumber() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, see its documentation
	return binary.BigEndian.Uint64(b[:])
}

// now is how long the socket has lived: a monotonic clock.
func (s *Socket) now() time.Duration { return time.Since(s.opened) }

// Ending reports whether the socket has begun to end.
func (s *Socket) Ending() bool { return s.ending.Load() }

// Opened is when the tunnel began.
func (s *Socket) Opened() time.Time { return s.opened }

// DrainOnRemoval reports whether the socket ends with its route.
func (s *Socket) DrainOnRemoval() bool { return s.policy.DrainOnRemoval }

// Cut ends both connections at once, without a close frame.
func (s *Socket) Cut() { s.cut() }

// LastSeen is when the client was last known to live.
func (s *Socket) LastSeen() time.Time {
	return s.opened.Add(time.Duration(s.life.Load()))
}

// Traffic counts what has passed so far in either direction.
func (s *Socket) Traffic() (in, out Traffic) { return s.in.traffic(), s.out.traffic() }

func (f *flow) traffic() Traffic {
	return Traffic{Messages: f.messages.Load(), Bytes: f.bytes.Load()}
}

// Close begins to end the socket by the gate's will: close frames go to both
// sides at the next frame boundary, and closeGrace later the connections are
// cut. It does not wait. It reports false if the socket was ending already.
func (s *Socket) Close(c Cause) bool {
	s.mu.Lock()
	first := s.began(&c, closeGrace)
	if first {
		// Known before the lock is free: a pump that ends now looks for it.
		s.in.pending.Or(pendingClose)
		s.out.pending.Or(pendingClose)
	}
	s.mu.Unlock()
	if !first {
		return false
	}
	s.freeSlots()
	// Each by itself: a side that does not read must not hold up the other.
	go s.in.flush()
	go s.out.flush()
	return true
}

// begin notes why the socket ends, unless that is known already, and sets the
// time that is left to it.
func (s *Socket) begin(c *Cause, grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began(c, grace)
}

// began is begin for those who hold mu.
func (s *Socket) began(c *Cause, grace time.Duration) (first bool) {
	s.ending.Store(true)
	if s.cause == nil {
		s.cause = c
		first = true
	}
	s.cutWithin(grace)
	return first
}

// cutWithin sets the time that is left to the connections, unless less is
// left already. mu is held.
func (s *Socket) cutWithin(grace time.Duration) {
	if at := s.now() + grace; at < s.cutAt && s.pumps > 0 {
		s.cutAt = at
		s.timer.Reset(grace)
	}
}

// closeFor is the close frame that the destination of f gets from the gate.
func (s *Socket) closeFor(f *flow) (code uint16, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.in {
		return s.cause.backendCode(), ""
	}
	return s.cause.Code, s.cause.Text
}

// violated ends a socket whose source broke the framing rules. No close frame
// is expected of it any more.
func (s *Socket) violated(f *flow, err error) {
	f.mark(closeSeen)
	cause := causeBackendProtocol
	if f.in {
		cause = causeClientProtocol
	}
	if s.Close(cause) {
		s.mu.Lock()
		s.violation = err
		s.mu.Unlock()
	}
	s.settle()
}

// exceeded ends a socket whose client went beyond a limit. What it sends from
// here on is not read as frames: the one that was refused may still come.
func (s *Socket) exceeded(f *flow, cause Cause) {
	f.mark(closeSeen)
	s.Close(cause)
	s.settle()
}

// settle ends the stream to a client that got a close frame and sent one.
// Towards the client the gate is the server, who closes first; the backend is
// the server of its own connection and does so itself (RFC 6455 §7.1.1), or
// else gets the client's end of the stream. It is called after either frame,
// and takes no lock: a pump must not wait for the other.
func (s *Socket) settle() {
	f := &s.out
	if f.has(closeSent) && s.in.has(closeSeen) && f.mark(settled) {
		f.want(pendingEnd)
	}
}

// writeFailed notes that the destination of f takes nothing any more. What it
// may have sent before is still read: its close frame can be among it.
func (s *Socket) writeFailed(f *flow) {
	lost, grace := &causeBackendLost, closeGrace
	if !f.in {
		lost, grace = &causeClientLost, resetGrace
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = lost
	}
	s.cutWithin(grace)
}

// finished lets go of everything.
func (s *Socket) finished() {
	s.cut()
	s.freeSlots()
	if s.observer == nil {
		return
	}
	s.mu.Lock()
	end := Summary{Cause: *s.cause, Violation: s.violation, Duration: s.now()}
	s.mu.Unlock()
	end.In, end.Out = s.Traffic()
	s.observer.Closed(s, end)
}

// cut ends both connections at once.
func (s *Socket) cut() {
	s.mu.Lock()
	if l := s.in.limiter; l != nil && l.cut != nil && !s.severed {
		close(l.cut)
	}
	s.severed = true
	s.mu.Unlock()
	s.client.cut()
	s.backend.cut()
	// The lot does not hear of descriptors that are gone.
	s.in.resume()
	s.out.resume()
}

// freeSlots gives back, once, what the socket holds of others'.
func (s *Socket) freeSlots() {
	s.mu.Lock()
	release := s.release
	s.release = nil
	s.mu.Unlock()
	if release != nil {
		release()
	}
}
