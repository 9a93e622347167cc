package tunnel

import (
	"bytes"
	"encoding/hex"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// sink is a connection that keeps what is written to it.
type sink struct {
	net.Conn
	written []byte
	closed  bool
	during  func() // called once, while a write is under way
}

func (c *sink) Write(p []byte) (int, error) {
	if during := c.during; during != nil {
		c.during = nil
		during()
	}
	c.written = append(c.written, p...)
	return len(p), nil
}
func (c *sink) CloseWrite() error               { c.closed = true; return nil }
func (c *sink) Read([]byte) (int, error)        { return 0, io.EOF }
func (c *sink) Close() error                    { return nil }
func (c *sink) SetReadDeadline(time.Time) error { return nil }

// still is a socket without pumps: bytes are given to its flows by hand.
func still(t testing.TB, reserved Reserved) (s *Socket, client, backend *sink) {
	client, backend = new(sink), new(sink)
	s = newSocket(Accepted{Policy: &Policy{IdleTimeout: time.Hour}, Client: client, Backend: backend, Reserved: reserved})
	t.Cleanup(func() {
		s.mu.Lock()
		s.pumps = 0
		s.timer.Stop()
		s.mu.Unlock()
	})
	return s, client, backend
}

// feed gives p to f as one read would.
func feed(f *flow, p []byte) {
	b := takeBuffer()
	b.n = copy(b.bytes[headroom:], p)
	f.socket.relay(f, b)
}

// tape hands out the fuzzer's bytes as decisions; at its end all are 0.
type tape struct{ p []byte }

func (t *tape) upTo(n int) int {
	if len(t.p) == 0 {
		return 0
	}
	b := int(t.p[0])
	t.p = t.p[1:]
	return b % n
}

// size is a payload length: mostly small, with the edges of every form.
func (t *tape) size() int {
	switch n := t.upTo(32); n {
	case 28:
		return 125 + t.upTo(3)
	case 29:
		return 65535 + t.upTo(2)
	case 30:
		return 300 + 37*t.upTo(256)
	case 31:
		return bufferSize - 20 + t.upTo(40)
	default:
		return n
	}
}

// piece is part of a made stream: one frame, and whether the other side is to
// see it.
type piece struct {
	raw     []byte
	hidden  bool // a pong of ours
	message bool
	data    int
}

// stream makes a valid stream of frames.
func (t *tape) stream(masked, deflate bool, pong func() []byte) []piece {
	var pieces []piece
	open := false
	for len(t.p) > 0 && len(pieces) < 200 {
		fill := func(n int) []byte {
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(i*7 + len(pieces))
			}
			return p
		}
		rsv := byte(0)
		switch what := t.upTo(16); {
		case what < 9: // data
			op, final := byte(1+t.upTo(2)), byte(t.upTo(2)<<7)
			if open {
				op = 0
			} else if deflate && t.upTo(2) == 1 {
				rsv = bitRSV1
			}
			n := t.size()
			pieces = append(pieces, piece{raw: frame(final|rsv|op, fill(n), masked), message: !open, data: n})
			open = final == 0
		case what < 11:
			pieces = append(pieces, piece{raw: frame(0x89, fill(t.upTo(126)), masked)})
		case what < 13: // somebody else's pong, often as long as ours
			n := pingSize
			if t.upTo(2) == 1 {
				n = t.upTo(126)
			}
			pieces = append(pieces, piece{raw: frame(0x8A, fill(n), masked)})
		case what == 13 && t.upTo(8) == 1:
			n := t.upTo(126)
			pieces = append(pieces, piece{raw: frame(0x88, fill(n), masked)})
		default:
			if pong != nil {
				pieces = append(pieces, piece{raw: pong(), hidden: true})
			}
		}
	}
	return pieces
}

// FuzzRelay sends valid streams through a socket in chunks of any size, with
// pings and a close of the gate's wanted at any moment, and looks at every
// byte that comes out. (S-143, S-152, S-157, S-158, S-162, S-163, S-170,
// S-174, S-179)
func FuzzRelay(f *testing.F) {
	long := make([]byte, 400)
	for i := range long {
		long[i] = byte(i * 89)
	}
	f.Add([]byte{0, 0, 0, 0, 1, 5, 0, 1, 1, 6, 14, 14, 14}, []byte{1, 1, 1}, uint8(1), uint8(0))
	f.Add(long, bytes.Repeat([]byte{3, 250}, 200), uint8(3), uint8(0))
	f.Add(long, bytes.Repeat([]byte{3, 250}, 200), uint8(2), uint8(0))
	f.Add(long, bytes.Repeat([]byte{255, 1, 2}, 200), uint8(7), uint8(1))
	f.Add(long, bytes.Repeat([]byte{200, 100}, 50), uint8(0), uint8(30))
	f.Add(long, bytes.Repeat([]byte{0, 0, 255}, 300), uint8(1), uint8(90))
	f.Add(long, bytes.Repeat([]byte{255, 1, 2}, 200), uint8(11), uint8(0))
	f.Add(long, bytes.Repeat([]byte{255, 255}, 200), uint8(15), uint8(0))
	f.Add([]byte{11, 0, 11, 0, 13, 1, 2, 14, 0}, []byte{0}, uint8(3), uint8(9))
	f.Fuzz(func(t *testing.T, program, chunks []byte, flags, cut uint8) {
		in, deflate, closes := flags&1 != 0, flags&2 != 0, flags&4 != 0
		reserved := Reserved{}
		if deflate {
			reserved = PermessageDeflate
		}
		s, client, backend := still(t, reserved)
		flow, out := &s.out, client
		if in {
			flow, out = &s.in, backend
		}
		if in && flags&8 != 0 { // limits that never hold, but cut reads into pieces
			s.in.limiter = newLimiter(Limits{
				MaxMessage: 1 << 40,
				Messages:   &Pace{Bucket: rate.NewLimiter(rate.Inf, 1)},
				Bytes:      &Pace{Bucket: rate.NewLimiter(rate.Inf, 600)},
			})
		}
		tape := tape{program}
		pong := func() []byte {
			ping := appendPing(nil, s.number, time.Duration(len(tape.p)))
			return frame(0x8A, ping[2:], true)
		}
		if !in {
			pong = nil
		}
		pieces := tape.stream(in, deflate, pong)

		// What is sent, what is to come out, and where frames end in that.
		var sent, want []byte
		var messages, data uint64
		boundaries := map[int]bool{0: true}
		closed := false
		for _, p := range pieces {
			sent = append(sent, p.raw...)
			if closed || p.hidden {
				continue
			}
			want = append(want, p.raw...)
			boundaries[len(want)] = true
			if p.message {
				messages++
			}
			data += uint64(p.data)
			closed = p.raw[0]&15 == opClose
		}
		// The last frame may be cut off anywhere.
		cutOff := cut > 0 && len(sent) > 0 && !closed && !pieces[len(pieces)-1].hidden
		if cutOff {
			n := int(cut) % len(pieces[len(pieces)-1].raw)
			sent, want = sent[:len(sent)-n], want[:len(want)-n]
			messages, data = 0, 0
		}

		reader := tapeOf(chunks)
		closeAt := -1
		if closes {
			closeAt = reader.upTo(64)
		}
		for i := 0; len(sent) > 0; i++ {
			if i == closeAt {
				s.begin(&causeIdle, closeGrace)
				flow.want(pendingClose)
			}
			if !in && reader.upTo(3) != 1 {
				flow.want(pendingPing)
			}
			n := reader.upTo(256)
			if n > 250 {
				n = bufferSize - 1
			}
			n = min(n+1, len(sent))
			feed(flow, sent[:n])
			sent = sent[n:]
		}
		if cutOff {
			flow.end(CodeBackendLost, "backend lost")
		}

		got := out.written
		frames, size, broken := reference{in, reserved}.parse(got)
		if broken {
			t.Fatalf("what came out breaks a rule at %d of %d", size, len(got))
		}
		// Take out what is the gate's own.
		var rest []byte
		gateClosed := false
		for i, w := range frames {
			if w.ours(s) {
				if in || w.b0 != 0x89 {
					t.Fatalf("ping %#x, in: %v", w.b0, in)
				}
				if !boundaries[len(rest)] {
					t.Fatalf("a ping within a frame, at %d", len(rest))
				}
				continue
			}
			if c := w.code(); w.opcode() == opClose && w.b0 == 0x88 && i == len(frames)-1 && size == len(got) &&
				(c == CodeTimeout || c == CodeGoingAway && in || c == CodeBackendLost) && !bytes.HasPrefix(want[min(len(rest), len(want)):], w.raw) {
				gateClosed = true
				continue
			}
			rest = append(rest, w.raw...)
		}
		rest = append(rest, got[size:]...)
		switch {
		case !bytes.HasPrefix(want, rest):
			t.Fatalf("came out: %d bytes, to come: %d", len(rest), len(want))
		case gateClosed && !boundaries[len(rest)]:
			t.Fatalf("a close frame within a frame, at %d", len(rest))
		case gateClosed && !cutOff && closeAt < 0:
			t.Fatal("an unexpected close frame")
		case !gateClosed && len(rest) != len(want):
			t.Fatalf("came out: %d bytes, to come: %d", len(rest), len(want))
		case cutOff && !out.closed:
			t.Fatal("the end was not passed on")
		}
		if !gateClosed && !cutOff {
			if n := flow.traffic(); n != (Traffic{messages, data}) {
				t.Fatalf("counted %+v, were %d messages of %d bytes", n, messages, data)
			}
		}
	})
}

func tapeOf(p []byte) *tape { return &tape{p} }

// Every boundary takes a ping, also those between fragments (S-163), and no
// other place does (S-162).
func TestPingAtEveryBoundary(t *testing.T) {
	frames := [][]byte{
		frame(0x41, []byte("first"), false), frame(0x89, nil, false), frame(0x00, nil, false),
		frame(0x00, make([]byte, 200), false), frame(0x80, []byte("last"), false), frame(0x82, nil, false),
	}
	stream := bytes.Join(frames, nil)
	for at := range len(stream) + 1 {
		s, client, _ := still(t, PermessageDeflate)
		feed(&s.out, stream[:at])
		s.out.want(pendingPing)
		feed(&s.out, stream[at:])
		boundary := 0
		for _, f := range frames {
			head := 2
			if len(f) > 127 {
				head = 4
			}
			if at < boundary+head { // a header that was cut off has not gone on
				break
			}
			boundary += len(f)
		}
		got := client.written
		if len(got) != len(stream)+2+pingSize {
			t.Fatalf("at %d: %d bytes", at, len(got))
		}
		if ping := got[boundary:][:2]; ping[0] != 0x89 || ping[1] != pingSize {
			t.Fatalf("at %d: no ping at %d, but %x", at, boundary, ping)
		}
		if rest := append(got[:boundary:boundary], got[boundary+2+pingSize:]...); !bytes.Equal(rest, stream) {
			t.Fatalf("at %d: the stream has changed", at)
		}
	}
}

// A message of the operator's stands between two messages, never between the
// fragments of one, and loses nothing of what is around it.
func TestMessageAtEveryPlace(t *testing.T) {
	frames := [][]byte{
		frame(0x81, []byte("whole"), false), frame(0x01, []byte("first"), false), frame(0x89, nil, false),
		frame(0x00, nil, false), frame(0x80, []byte("last"), false), frame(0x82, nil, false),
	}
	between := []int{0, len(frames[0]), len(bytes.Join(frames[:5], nil)), len(bytes.Join(frames, nil))}
	stream, message := bytes.Join(frames, nil), TextMessage("from the operator")
	for at := range len(stream) + 1 {
		s, client, _ := still(t, Reserved{})
		feed(&s.out, stream[:at])
		s.mu.Lock()
		s.queue = append(s.queue, message)
		s.mu.Unlock()
		s.out.want(pendingMessage)
		s.out.want(pendingPing)
		feed(&s.out, stream[at:])
		place := between[0]
		for _, b := range between[1:] {
			if at >= place+2 { // with less of a header nothing has gone on
				place = b
			}
		}
		var got, rest []byte
		list, size, broken := reference{}.parse(client.written)
		for _, w := range list {
			switch {
			case w.ours(s):
			case bytes.Equal(w.raw, message):
				got = append(got, message...)
				if len(rest) != place {
					t.Errorf("at %d: the message is at %d, not at %d", at, len(rest), place)
				}
			default:
				rest = append(rest, w.raw...)
			}
		}
		if broken || size != len(client.written) || !bytes.Equal(rest, stream) || !bytes.Equal(got, message) {
			t.Fatalf("at %d: got %x", at, client.written)
		}
	}
}

// What is wanted while somebody else writes is put in by who writes.
func TestWantedDuringAWrite(t *testing.T) {
	s, client, _ := still(t, Reserved{})
	f := frame(0x82, []byte("data"), false)
	client.during = func() {
		s.out.want(pendingPing)
		if len(client.written) > 0 {
			t.Error("written within a write")
		}
	}
	feed(&s.out, f)
	frames, _, _ := reference{}.parse(client.written)
	if len(frames) != 2 || !bytes.Equal(frames[0].raw, f) || !frames[1].ours(s) {
		t.Errorf("got %x", client.written)
	}
}

// A ping that waits for a boundary is given up when a close frame comes first,
// from either side. (S-170)
func TestWaitingPingAndCloseFrame(t *testing.T) {
	f, last := frame(0x82, []byte("data"), false), closeFrame(1000, "", false)
	s, client, _ := still(t, Reserved{})
	feed(&s.out, f[:3])
	s.out.want(pendingPing)
	feed(&s.in, closeFrame(1000, "", true))
	feed(&s.out, f[3:])
	feed(&s.out, last)
	if want := append(bytes.Clone(f), last...); !bytes.Equal(client.written, want) || !client.closed {
		t.Errorf("got %x, closed: %v", client.written, client.closed)
	}
}

// A close frame of the gate's that was about to go still does when the source
// ends first, in place of a header that was cut off.
func TestWaitingCloseFrameAndTheEnd(t *testing.T) {
	for _, held := range [][]byte{nil, {0x82}} {
		s, _, backend := still(t, Reserved{})
		feed(&s.in, held)
		s.begin(&causeIdle, closeGrace)
		s.in.pending.Or(pendingClose)
		s.in.end(0, "")
		frames, size, broken := reference{masked: true}.parse(backend.written)
		if len(frames) != 1 || broken || size != len(backend.written) || frames[0].code() != CodeGoingAway || !backend.closed {
			t.Errorf("got %x, closed: %v", backend.written, backend.closed)
		}
	}
}

// A pong of ours is swallowed wherever reads cut it; it is neither data nor a
// message, whatever stood before it. (S-158)
func TestPongIsSwallowedAtEverySplit(t *testing.T) {
	for _, before := range [][]byte{nil, frame(0x81, []byte("Hello"), true), frame(0x01, []byte("Hello"), true), frame(0x89, nil, true)} {
		for _, after := range [][]byte{nil, frame(0x8A, make([]byte, pingSize), true)} {
			s, _, backend := still(t, Reserved{})
			s.out.want(pendingPing)
			pong := frame(0x8A, s.client.conn.(*sink).written[2:], true)
			stream := bytes.Join([][]byte{before, pong, after, pong}, nil)
			want := append(bytes.Clone(before), after...)
			for at := 1; at < len(stream); at++ {
				*backend = sink{}
				s.in.messages.Store(0)
				s.in.bytes.Store(0)
				s.in.scanner.open = false
				feed(&s.in, stream[:at])
				s.data.Store(0)
				feed(&s.in, stream[at:])
				if !bytes.Equal(backend.written, want) {
					t.Fatalf("split at %d: the backend got %x", at, backend.written)
				}
				wantTraffic := Traffic{}
				if len(before) > 6 {
					wantTraffic = Traffic{1, 5}
				}
				if got := s.in.traffic(); got != wantTraffic {
					t.Fatalf("split at %d: counted %+v", at, got)
				}
				if at >= len(before) && s.data.Load() != 0 {
					t.Fatalf("split at %d: a pong counts as data", at)
				}
			}
		}
	}
}

// Only a pong of this very socket's pings is ours. (S-157)
func TestForeignPongs(t *testing.T) {
	s, _, backend := still(t, Reserved{})
	other, _, _ := still(t, Reserved{})
	var want []byte
	for _, payload := range [][]byte{
		nil, []byte("x"), make([]byte, pingSize-1), make([]byte, pingSize), make([]byte, pingSize+1), make([]byte, 125),
		appendPing(nil, other.number, 0)[2:],
		append(appendPing(nil, s.number, 0)[2:], 0),
		appendPing(nil, s.number, 0)[2:][:pingSize-1],
	} {
		p := frame(0x8A, payload, true)
		want = append(want, p...)
		feed(&s.in, p)
	}
	// The right payload in another kind of frame is the client's own business.
	for _, b0 := range []byte{0x89, 0x82} {
		p := frame(b0, appendPing(nil, s.number, 0)[2:], true)
		want = append(want, p...)
		feed(&s.in, p)
	}
	if !bytes.Equal(backend.written, want) {
		t.Errorf("the backend got\n%s, not\n%s", hex.Dump(backend.written), hex.Dump(want))
	}
	// And from the backend nothing is.
	p := frame(0x8A, appendPing(nil, s.number, 0)[2:], false)
	feed(&s.out, p)
	if got := s.client.conn.(*sink).written; !bytes.Equal(got, p) {
		t.Errorf("the client got %x", got)
	}
}

// No two pings are equal, and their pongs tell the time.
func TestPings(t *testing.T) {
	seen := map[string]bool{}
	var block [pingSize]byte
	for i := range 1000 {
		p := appendPing(nil, 7, time.Duration(i))
		if seen[string(p)] {
			t.Fatal("a ping twice")
		}
		seen[string(p)] = true
		mask := [4]byte{1, 2, 3, byte(i)}
		for j := range p[2:] {
			p[2+j] ^= mask[j%4]
		}
		if sent, ours := openPong(block[:], p[2:], mask, 7); !ours || sent != time.Duration(i) {
			t.Fatalf("%v, %v", sent, ours)
		}
		if _, ours := openPong(block[:], p[2:], mask, 8); ours {
			t.Fatal("the pong of another socket")
		}
	}
}

// What is passed on costs no allocation.
func TestRelayAllocatesNothing(t *testing.T) {
	s, _, _ := still(t, Reserved{})
	s.client.conn, s.backend.conn = discard{}, discard{}
	pong := frame(0x8A, appendPing(nil, s.number, 0)[2:], true)
	in := bytes.Join([][]byte{frame(0x81, make([]byte, 100), true), pong, frame(0x82, nil, true), frame(0x89, nil, true), pong[:10]}, nil)
	out := bytes.Join([][]byte{frame(0x01, make([]byte, 100), false), frame(0x89, nil, false), frame(0x80, make([]byte, 1000), false)}, nil)
	b := newBuffer(bufferSize)
	run := func(f *flow, p []byte) {
		b.n = copy(b.bytes[headroom:], p)
		s.relayBytes(f, b)
	}
	n := testing.AllocsPerRun(1000, func() {
		run(&s.in, in)
		run(&s.in, pong[10:])
		run(&s.out, out)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// discard is a connection that takes everything.
type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }
func (discard) CloseWrite() error           { return nil }

func BenchmarkRelay(b *testing.B) {
	for _, c := range []struct {
		name string
		in   bool
		n    int
	}{{"in/128B", true, 128}, {"out/128B", false, 128}, {"in/16KiB", true, 16 << 10}, {"in/8x128B", true, 0}} {
		b.Run(c.name, func(b *testing.B) {
			s, _, _ := still(b, Reserved{})
			s.client.conn, s.backend.conn = discard{}, discard{}
			f := &s.out
			if c.in {
				f = &s.in
			}
			p := frame(0x82, make([]byte, c.n), c.in)
			if c.n == 0 {
				p = bytes.Repeat(frame(0x82, make([]byte, 128), c.in), 8)
			}
			buf := newBuffer(bufferSize)
			buf.n = copy(buf.bytes[headroom:], p)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				s.relayBytes(f, buf)
			}
		})
	}
}

func BenchmarkPing(b *testing.B) {
	var p [64]byte
	b.ReportAllocs()
	for b.Loop() {
		appendPing(p[:0], 1, 1)
	}
}
