package tunnel

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

var causeTest = Cause{By: ByGate, Reason: "drain", Code: CodeRestart, Text: "restarting"}

// everyKind runs a test over every kind of connection, on both sides.
func everyKind(t *testing.T, test func(t *testing.T, u func(Accepted) *tunnel)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			test(t, func(a Accepted) *tunnel { return over(t, a, k.pair, k.pair) })
		})
	}
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			test(t, func(a Accepted) *tunnel { return inMemory(t, a, 64<<10) })
		})
	})
}

// bubble runs a subtest with a clock of its own.
func bubble(t *testing.T, name string, test func(*testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// sample is frames of every size that matters, fragmented and with control
// frames between.
func sample(masked bool) []byte {
	var p []byte
	for _, n := range []int{0, 1, 125, 126, 512, 513, 1000, bufferSize, 65535, 65536, 200_000} {
		payload := make([]byte, n)
		for i := range payload {
			payload[i] = byte(rand.Uint32())
		}
		p = append(p, frame(0x82, payload, masked)...)
		p = append(p, frame(0x01, payload, masked)...)
		p = append(p, frame(0x89, []byte("ping"), masked)...)
		p = append(p, frame(0x00, nil, masked)...)
		p = append(p, frame(0x8A, make([]byte, pingSize), masked)...)
		p = append(p, frame(0x80, payload, masked)...)
	}
	return append(p, bytes.Repeat(frame(0x82, nil, masked), 10_000)...) // S-179
}

// Bytes arrive as they were sent, both ways at once, in writes of any size;
// what had come with the handshake is first.
func TestRelaysBytesAsTheyAre(t *testing.T) {
	everyKind(t, func(t *testing.T, start func(Accepted) *tunnel) {
		fromClient, fromBackend := sample(true), sample(false)
		const early = 100_003
		u := start(Accepted{ClientEarly: bytes.Clone(fromClient[:early]), BackendEarly: bytes.Clone(fromBackend[:early])})
		send := func(p *peer, b []byte) {
			for len(b) > 0 {
				n := min(1+rand.IntN(40_000), len(b))
				if _, err := p.conn.Write(b[:n]); err != nil {
					t.Errorf("%s: %v", p.name, err)
					return
				}
				b = b[n:]
			}
		}
		done := make(chan bool)
		for _, step := range []func(){
			func() { send(u.client, fromClient[early:]) },
			func() { send(u.backend, fromBackend[early:]) },
			func() { u.backend.expect(fromClient) },
			func() { u.client.expect(fromBackend) },
		} {
			go func() {
				defer func() { done <- true }()
				step()
			}()
		}
		for range 4 {
			<-done
		}
		want := Traffic{2*11 + 10_000, 3 * (1 + 125 + 126 + 512 + 513 + 1000 + bufferSize + 65535 + 65536 + 200_000)}
		if in, out := u.Traffic(); in != want || out != want {
			t.Errorf("counted %+v and %+v, not %+v", in, out, want)
		}
		// A frame byte by byte, S-152.
		for _, p := range []*peer{u.client, u.backend} {
			other := u.client
			if p == u.client {
				other = u.backend
			}
			f := p.frame(0x82, string(make([]byte, 300)))
			for i := range f {
				p.send(f[i : i+1])
			}
			other.expect(f)
		}
		u.client.conn.Close()
		u.backend.conn.Close()
		u.end()
	})
}

// Close frames pass unchanged, whatever is in them, and the answer too; the
// gate ends the client's stream at once and by itself. (S-170, S-171, S-174)
func TestCloseHandshake(t *testing.T) {
	payloads := map[string]uint16{
		"": CodeNoStatus, "\x03": CodeNoStatus, "\x03\xe8": 1000, "\x03\xe8bye": 1000, "\x0b\xb8": 3000, "\x13\x87": 4999,
		"\x03\xe9x": 1001, "\x00\x00": 0, "\x03\xe7": 999, "\x03\xec": 1004, "\x03\xed": 1005, "\x03\xee": 1006, "\x03\xf7": 1015,
		"\x03\xf8": 1016, "\x0b\xb7": 2999, "\x13\x88": 5000, "\xff\xff": 65535,
		"\x03\xe8" + string(make([]byte, 123)): 1000, "\x03\xe8\xc3\x28": 1000,
	}
	everyKind(t, func(t *testing.T, start func(Accepted) *tunnel) {
		for payload, code := range payloads {
			for _, byClient := range []bool{true, false} {
				u := start(Accepted{})
				first, second, by := u.client, u.backend, ByClient
				if !byClient {
					first, second, by = u.backend, u.client, ByBackend
				}
				f := first.frame(0x88, payload)
				data := first.frame(0x82, "before")
				first.send(data, f, first.frame(0x82, "behind"), first.frame(0x88, payload))
				second.expect(data, f)
				if n := u.released.Load(); n != 0 {
					t.Errorf("%x: released after the first close frame", payload)
				}
				answer := second.frame(0x88, payload)
				last := second.frame(0x81, "last words")
				second.send(last, answer, second.frame(0x82, "behind"))
				first.expect(last, answer)
				if n := u.released.Load(); n != 1 {
					t.Errorf("%x: released %d times after the second close frame", payload, n)
				}
				u.client.expectEnd() // the server closes first
				u.backend.conn.Close()
				u.client.conn.Close()
				u.endsBy(by, "normal", code)
			}
		}
	})
}

// A backend that waits for the client to end the stream first gets that end.
func TestCloseHandshakeBackendWaits(t *testing.T) {
	everyKind(t, func(t *testing.T, start func(Accepted) *tunnel) {
		u := start(Accepted{})
		u.client.send(closeFrame(1000, "", true))
		u.backend.next()
		u.backend.send(closeFrame(1000, "", false))
		u.client.next()
		u.client.expectEnd()
		u.client.conn.Close()
		u.backend.expectEnd()
		u.backend.conn.Close()
		u.endsBy(ByClient, "normal", 1000)
	})
}

// The gate closes: each side is told, answers go no further, and the slots
// are free at once.
func TestGateCloses(t *testing.T) {
	everyKind(t, func(t *testing.T, start func(Accepted) *tunnel) {
		u := start(Accepted{})
		if !u.Close(causeTest) {
			t.Error("not the first")
		}
		if n := u.released.Load(); n != 1 {
			t.Errorf("released %d times", n)
		}
		if u.Close(causeIdle) {
			t.Error("the first twice")
		}
		u.client.expectClose(CodeRestart, "restarting")
		u.backend.expectClose(CodeGoingAway, "")
		u.client.send(closeFrame(CodeRestart, "", true), u.client.frame(0x82, "behind"))
		u.backend.send(closeFrame(CodeGoingAway, "", false))
		u.client.expectEnd()
		u.client.conn.Close()
		u.backend.expectEnd()
		u.backend.conn.Close()
		u.endsBy(ByGate, "drain", CodeRestart)
		if u.Close(causeTest) {
			t.Error("closed after its end")
		}
	})
}

// A close by the gate waits for the frame to end, and no longer than its
// grace; each side by itself. (S-162, S-204)
func TestGateClosesWithinFrames(t *testing.T) {
	bubble(t, "the frame ends", func(t *testing.T) {
		u := inMemory(t, Accepted{}, 1000)
		f := u.backend.frame(0x81, "half a frame")
		u.backend.send(f[:5])
		u.client.expect(f[:5])
		u.Close(causeTest)
		u.backend.expectClose(CodeGoingAway, "")
		u.client.expectNothing(3 * time.Second)
		u.backend.send(f[5:], u.backend.frame(0x82, "too late"))
		u.client.expect(f[5:])
		u.client.expectClose(CodeRestart, "restarting")
		u.client.expectNothing(closeGrace - 3*time.Second - 1)
		u.client.expectGone()
		u.backend.expectGone()
		if s := u.endsBy(ByGate, "drain", CodeRestart); s.Duration != closeGrace {
			t.Errorf("after %v", s.Duration)
		}
	})
	bubble(t, "the frame does not end", func(t *testing.T) {
		u := inMemory(t, Accepted{}, 1000)
		f := u.client.frame(0x81, "half a frame")
		u.client.send(f[:8])
		u.backend.expect(f[:8])
		u.Close(causeTest)
		u.client.expectClose(CodeRestart, "restarting")
		if got := u.backend.expectGone(); len(got) > 0 {
			t.Errorf("the backend got %x", got)
		}
		u.client.expectGone()
		if s := u.endsBy(ByGate, "drain", CodeRestart); s.Duration != closeGrace {
			t.Errorf("after %v", s.Duration)
		}
	})
	bubble(t, "within a header", func(t *testing.T) {
		u := inMemory(t, Accepted{}, 1000)
		u.backend.send([]byte{0x82, 0x7F, 0})
		synctest.Wait()
		u.Close(causeTest)
		u.client.expectClose(CodeRestart, "restarting")
		u.backend.expectClose(CodeGoingAway, "")
		u.end()
	})
	bubble(t, "within a close frame", func(t *testing.T) {
		u := inMemory(t, Accepted{}, 1000)
		f := closeFrame(1000, "a long farewell", true)
		u.client.send(f[:10])
		u.backend.expect(f[:10])
		if u.Close(causeTest) {
			t.Error("the client's close frame was first")
		}
		u.client.send(f[10:])
		u.backend.expect(f[10:])
		u.backend.send(closeFrame(1000, "", false))
		u.client.expectClose(1000, "")
		u.client.expectEnd()
		u.client.conn.Close()
		u.backend.expectEnd()
		u.backend.conn.Close()
		u.endsBy(ByClient, "normal", 1000)
	})
}

// Neither of the gate's close frames is lost, and none comes twice, whoever
// else writes and answers at that moment.
func TestGateClosesRace(t *testing.T) {
	for i := range 300 {
		u := inMemory(t, Accepted{Policy: &Policy{PingInterval: time.Hour, PongTimeout: time.Hour}}, 100)
		started := make(chan bool)
		talk := func(p *peer) {
			started <- true
			f := p.frame(0x82, "hello")
			for range i % 7 {
				_, _ = p.conn.Write(f)
			}
			if i%3 == 1 {
				_, _ = p.conn.Write(closeFrame(1000, "own", p.masked))
			}
		}
		closes := make(chan []whole)
		listen := func(p *peer) {
			started <- true
			var found []whole
			defer func() { closes <- found }()
			for {
				w := p.next()
				if w.opcode() == opClose {
					found = append(found, w)
					if i%3 != 1 {
						_, _ = p.conn.Write(closeFrame(w.code(), "", p.masked))
					}
					break
				}
			}
			rest, _ := io.ReadAll(p.r)
			if len(rest) > 0 {
				t.Errorf("%s: got %x behind a close frame", p.name, rest)
			}
			p.conn.Close()
		}
		go talk(u.client)
		go talk(u.backend)
		go listen(u.client)
		go listen(u.backend)
		for range 4 {
			<-started
		}
		go u.want()
		u.Close(causeTest)
		u.client.conn.SetReadDeadline(time.Now().Add(4 * time.Second)) // before the cut
		u.backend.conn.SetReadDeadline(time.Now().Add(4 * time.Second))
		for range 2 {
			if found := <-closes; len(found) != 1 {
				t.Errorf("run %d: %d close frames", i, len(found))
			}
		}
		u.end()
		if t.Failed() {
			return
		}
	}
}

func (u *tunnel) want() { u.out.want(pendingPing) }

// A client that ends its stream is passed on as such, and the backend goes on
// for a while: half-close.
func TestClientEnds(t *testing.T) {
	everyKind(t, func(t *testing.T, start func(Accepted) *tunnel) {
		u := start(Accepted{})
		f := u.client.frame(0x82, "last words")
		u.client.send(f)
		u.client.closeWrite()
		u.backend.expect(f)
		u.backend.expectEnd()
		if n := u.released.Load(); n != 0 {
			t.Errorf("released %d times", n)
		}
		f = u.backend.frame(0x82, "answer")
		u.backend.send(f)
		u.client.expect(f)
		u.backend.conn.Close()
		u.client.expectEnd() // and no close frame
		u.endsBy(ByClient, "client_lost", 0)
	})
}

// What a half-closed socket still has to say is cut after the grace.
func TestClientEndsAndBackendDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: &Policy{PingInterval: time.Second, PongTimeout: time.Second}}, 1000)
		u.client.closeWrite()
		u.client.expectNothing(closeGrace - 1) // no ping either
		u.client.expectEnd()
		u.backend.expectEnd()
		if s := u.endsBy(ByClient, "client_lost", 0); s.Duration != closeGrace {
			t.Errorf("after %v", s.Duration)
		}
	})
}

// S-167
func TestClientResets(t *testing.T) {
	test := func(t *testing.T, u *tunnel) {
		f := u.client.frame(0x82, "half a frame")
		u.client.send(f[:8])
		u.backend.expect(f[:8])
		at := time.Now()
		u.client.reset()
		u.backend.expectEnd()
		if d := time.Since(at); d > 500*time.Millisecond {
			t.Errorf("passed on after %v", d)
		}
		if n := u.released.Load(); n != 1 {
			time.Sleep(50 * time.Millisecond)
			if n := u.released.Load(); n != 1 {
				t.Errorf("released %d times", n)
			}
		}
		u.endsBy(ByClient, "client_lost", 0) // though the backend does not close
		if d := time.Since(at); d > 1500*time.Millisecond {
			t.Errorf("ended after %v", d)
		}
	}
	t.Run("tcp", func(t *testing.T) { t.Parallel(); test(t, over(t, Accepted{}, tcpPair, tcpPair)) })
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, inMemory(t, Accepted{}, 1000)) })
	})
}

// A backend that vanishes gives the client 1014 at a frame boundary, and
// within a frame nothing but what it sent. (S-167, S-168, S-169)
func TestBackendVanishes(t *testing.T) {
	whole := frame(0x81, []byte("whole"), false)
	for _, c := range []struct {
		name string
		sent []byte
		code uint16
	}{
		{"at once", nil, CodeBackendLost},
		{"at a boundary", whole, CodeBackendLost},
		{"between fragments", frame(0x01, []byte("first"), false), CodeBackendLost},
		{"within a frame", append(bytes.Clone(whole), unhex(t, "827E0400 00010203040506070809")...), 0},
		{"within a header", append(bytes.Clone(whole), unhex(t, "827E04")...), 0},
		{"after one byte", []byte{0x82}, 0},
		{"before the payload", unhex(t, "8205"), 0},
		{"within a close frame", closeFrame(1000, "bye", false)[:5], 0},
		{"before the close code", closeFrame(1000, "bye", false)[:3], 0},
	} {
		for _, how := range []string{"end", "reset"} {
			test := func(t *testing.T, u *tunnel) {
				if c.sent != nil {
					u.backend.send(c.sent)
				}
				f := u.client.frame(0x82, "from the client")
				u.client.send(f)
				u.backend.expect(f)
				if how == "reset" {
					u.client.expect(c.sent[:max(0, len(c.sent)-8)]) // not overtaken by the reset
					time.Sleep(10 * time.Millisecond)
					u.backend.reset()
				} else {
					u.backend.conn.Close()
				}
				at := time.Now()
				if how == "reset" {
					u.client.expect(c.sent[max(0, len(c.sent)-8):])
				} else {
					u.client.expect(c.sent)
				}
				if c.code != 0 {
					u.client.expectClose(c.code, "backend lost")
					u.client.send(u.client.frame(0x82, "on its way"), closeFrame(c.code, "", true))
				}
				u.client.expectEnd()
				if d := time.Since(at); d > time.Second {
					t.Errorf("after %v", d)
				}
				if n := u.released.Load(); n != 1 {
					time.Sleep(50 * time.Millisecond)
					if n := u.released.Load(); n != 1 {
						t.Errorf("released %d times", n)
					}
				}
				u.client.conn.Close()
				s := u.end()
				if c.sent != nil && c.sent[0]&15 == opClose && len(c.sent) > 4 {
					if s.Reason != "normal" {
						t.Errorf("ended by %+v", s.Cause)
					}
				} else if s.Cause != causeBackendLost {
					t.Errorf("ended by %+v", s.Cause)
				}
			}
			t.Run(how+"/tcp/"+c.name, func(t *testing.T) { t.Parallel(); test(t, over(t, Accepted{}, tcpPair, tcpPair)) })
			t.Run(how+"/memory/"+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { test(t, inMemory(t, Accepted{}, 1000)) })
			})
		}
	}
}

// The answer to a close frame of the gate's goes no further, also to a backend
// that can still be written to.
func TestBackendEndsByHalf(t *testing.T) {
	everyKind(t, func(t *testing.T, start func(Accepted) *tunnel) {
		u := start(Accepted{})
		u.backend.closeWrite()
		u.client.expectClose(CodeBackendLost, "backend lost")
		f := u.client.frame(0x82, "on its way")
		u.client.send(f, closeFrame(CodeBackendLost, "", true))
		u.backend.expect(f)
		u.client.expectEnd()
		u.client.conn.Close()
		u.backend.expectEnd()
		u.endsBy(ByBackend, "backend_lost", CodeBackendLost)
	})
}

// A backend that does not answer a close frame, but only goes, is passed on
// as what it is.
func TestBackendEndsWithoutAnswer(t *testing.T) {
	everyKind(t, func(t *testing.T, start func(Accepted) *tunnel) {
		u := start(Accepted{})
		u.client.send(closeFrame(1000, "", true))
		u.backend.next()
		u.backend.conn.Close()
		u.client.expectEnd()
		u.client.conn.Close()
		u.endsBy(ByClient, "normal", 1000)
	})
}

// The backend's close frame arrives though the gate could not write to it any
// more.
func TestCloseFrameBehindFailedWrite(t *testing.T) {
	t.Run("tcp", func(t *testing.T) {
		t.Parallel()
		for range 20 {
			u := over(t, Accepted{}, tcpPair, tcpPair)
			f := closeFrame(1008, "no more", false)
			// Bytes that the backend has not read make its Close a reset.
			u.client.send(u.client.frame(0x82, "unread"))
			time.Sleep(time.Millisecond)
			u.backend.send(f)
			u.backend.conn.Close()
			_, _ = u.client.conn.Write(u.client.frame(0x82, "lost"))
			_, _ = u.client.conn.Write(u.client.frame(0x82, "lost"))
			u.client.expect(f)
			u.client.conn.Close()
			u.endsBy(ByBackend, "normal", 1008)
		}
	})
	bubble(t, "memory", func(t *testing.T) {
		u := inMemory(t, Accepted{}, 10_000)
		// The backend takes nothing, and its last words are under way.
		conn := u.backend.conn.(*memConn)
		conn.r.set(func() { conn.r.refused = net.ErrClosed })
		u.client.send(u.client.frame(0x82, "lost"))
		time.Sleep(2 * time.Second)
		last := u.backend.frame(0x81, "last words")
		f := closeFrame(1008, "no more", false)
		u.backend.send(last, f)
		u.backend.reset()
		u.client.expect(last, f)
		u.client.send(closeFrame(1008, "", true))
		u.client.expectEnd()
		u.client.conn.Close()
		u.endsBy(ByBackend, "normal", 1008)
	})

}

// A write that failed and a connection that says nothing more: the socket
// ends, and by whom is known.
func TestFailedWriteAndSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			toBackend bool
			cause     Cause
			after     time.Duration
		}{{true, causeBackendLost, closeGrace}, {false, causeClientLost, resetGrace}} {
			u := inMemory(t, Accepted{}, 10_000)
			to, from := u.backend, u.client
			if !c.toBackend {
				to, from = u.client, u.backend
			}
			conn := to.conn.(*memConn)
			conn.r.set(func() { conn.r.refused = net.ErrClosed })
			from.send(from.frame(0x82, "lost"))
			s := u.end()
			if s.Cause != c.cause || s.Duration != c.after {
				t.Errorf("ended by %+v after %v", s.Cause, s.Duration)
			}
		}
	})
}

// A side that breaks the rules is told so, the other that it is over; the
// frame is not passed on. (S-140 to S-149)
func TestViolations(t *testing.T) {
	for _, c := range []struct {
		name   string
		client string
		server string
		want   Violation
	}{
		{"unmasked", "81 05 48656c6c6f", "", errUnmasked},
		{"a request", "474554202f20485454502f312e310d0a0d0a", "", errOpcode},
		{"masked by the backend", "", "81 85 37fa213d 7f9f4d5158", errMasked},
		{"RSV1", "C1 80 00000000", "", errReservedBits},
		{"opcode 3", "", "83 00", errOpcode},
		{"fragmented ping", "09 80 00000000", "", errControlFinal},
		{"long ping", "89 FE 007E 00000000", "", errControlSize},
		{"2^63", "82 FF 8000000000000000 00000000", "", errLengthRange},
		{"2^64-1 of the backend", "", "82 7F FFFFFFFFFFFFFFFF", errLengthRange},
		{"continuation of nothing", "", "80 00", errContinuation},
	} {
		everyKind := func(t *testing.T, start func(Accepted) *tunnel) {
			u := start(Accepted{})
			before := u.client.frame(0x81, "before")
			if c.client != "" {
				u.client.send(before, unhex(t, c.client))
				u.backend.expect(before)
				u.client.expectClose(CodeProtocol, "protocol error")
				u.backend.expectClose(CodeGoingAway, "")
			} else {
				before = u.backend.frame(0x81, "before")
				u.backend.send(before, unhex(t, c.server))
				u.client.expect(before)
				u.client.expectClose(CodeGoingAway, "backend protocol error")
				u.backend.expectClose(CodeProtocol, "")
			}
			if n := u.released.Load(); n != 1 {
				t.Errorf("released %d times", n)
			}
			u.client.send(closeFrame(1002, "", true))
			u.client.expectEnd()
			if d := u.now(); d > time.Second {
				t.Errorf("after %v", d)
			}
			u.client.conn.Close()
			u.backend.expectEnd()
			u.backend.conn.Close()
			s := u.end()
			if s.By != ByGate || s.Reason != "protocol" || s.Violation != c.want {
				t.Errorf("ended by %+v, %v", s.Cause, s.Violation)
			}
		}
		t.Run(c.name+"/tcp", func(t *testing.T) {
			everyKind(t, func(a Accepted) *tunnel { return over(t, a, tcpPair, tcpPair) })
		})
		t.Run(c.name+"/memory", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				everyKind(t, func(a Accepted) *tunnel { return inMemory(t, a, 1000) })
			})
		})
	}
}

// A side that breaks the rules within a message is told at the boundary that
// there is; and the fragments before stay sent.
func TestViolationBetweenFragments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{}, 1000)
		f := u.client.frame(0x01, "first")
		u.client.send(f)
		u.backend.expect(f)
		u.client.send(u.client.frame(0x81, "second"))
		u.backend.expectClose(CodeGoingAway, "")
		u.client.expectClose(CodeProtocol, "protocol error")
		u.client.expectEnd()
		if s := u.end(); s.Violation != errInterleaved || s.In != (Traffic{1, 5}) {
			t.Errorf("ended with %+v", s)
		}
	})
}

// A backend that does not read doesn't keep the client from its close frame,
// nor one that does not get out of the gate's way.
func TestGateClosesBesideStuckSides(t *testing.T) {
	bubble(t, "backend", func(t *testing.T) {
		u := inMemory(t, Accepted{}, 1000)
		u.client.send(u.client.frame(0x82, string(make([]byte, 2000)))) // more than the way holds
		f := u.backend.frame(0x82, "half a frame")
		u.backend.send(f[:6])
		u.client.expect(f[:6])
		u.Close(causeTest)
		// The backend's frame ends, and the client gets its close frame,
		// though the way to the backend is full.
		for _, b := range f[6:] {
			u.backend.send([]byte{b})
		}
		u.client.expect(f[6:])
		u.client.expectClose(CodeRestart, "restarting")
		if d := u.now(); d > time.Second {
			t.Errorf("after %v", d)
		}
		if s := u.end(); s.Duration != closeGrace {
			t.Errorf("ended after %v", s.Duration)
		}
	})
	bubble(t, "client", func(t *testing.T) {
		u := inMemory(t, Accepted{}, 1000)
		go func() { _, _ = u.backend.conn.Write(u.backend.frame(0x82, string(make([]byte, 5000)))) }()
		synctest.Wait()
		u.Close(causeTest)
		u.backend.expectClose(CodeGoingAway, "")
		if d := u.now(); d > time.Second {
			t.Errorf("after %v", d)
		}
		if s := u.end(); s.Duration != closeGrace {
			t.Errorf("ended after %v", s.Duration)
		}
	})
}

// A client's close frame starts the clock though the backend reads nothing.
func TestCloseFrameToStuckBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: &Policy{PingInterval: time.Minute, PongTimeout: time.Minute}}, 1000)
		u.client.send(u.client.frame(0x82, string(make([]byte, 990))))
		synctest.Wait()
		u.client.send(closeFrame(1001, "leaving", true))
		if s := u.endsBy(ByClient, "normal", 1001); s.Duration != closeGrace {
			t.Errorf("ended after %v", s.Duration)
		}
	})
}

// TLS's end of the stream is written with a deadline of its own: a client
// that reads nothing doesn't hold up the end.
func TestStuckTLSClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate, peer := memPair(4000)
		tlsGate, tlsPeer := overTLS(gate, peer)
		gateBackend, backend := memPair(1000)
		u := connect(t, Accepted{Client: tlsGate, Backend: gateBackend}, tlsPeer, backend)
		go func() { _, _ = backend.Write(frame(0x82, make([]byte, 100_000), false)) }()
		synctest.Wait()
		u.Close(causeTest)
		u.backend.expectClose(CodeGoingAway, "")
		if s := u.end(); s.Duration != closeGrace {
			t.Errorf("ended after %v", s.Duration)
		}
	})
}

// Nothing is passed on behind a close frame, and no ping comes either. (S-170)
func TestNothingBehindCloseFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := &Policy{PingInterval: time.Second, PongTimeout: time.Second}
		u := inMemory(t, Accepted{Policy: policy}, 1000)
		u.client.send(closeFrame(1000, "", true))
		u.backend.next()
		u.client.send(u.client.frame(0x82, "behind"))
		u.client.expectNothing(closeGrace - time.Second)
		u.backend.expectNothing(time.Second - 1)
		u.client.expectGone()
		u.end()

		u = inMemory(t, Accepted{Policy: policy}, 1000)
		u.backend.send(closeFrame(1000, "", false), u.backend.frame(0x82, "behind"))
		u.client.next()
		u.client.expectNothing(closeGrace - 1)
		u.client.expectGone()
		u.end()
	})
}

// Sockets leave nothing behind, however they end. (S-206)
func TestNothingIsLeft(t *testing.T) {
	before := descriptors(t)
	for i := range 60 {
		u := over(t, Accepted{}, kinds[i%len(kinds)].pair, kinds[(i/4)%len(kinds)].pair)
		u.client.send(u.client.frame(0x82, "hello"))
		u.backend.next()
		switch i % 5 {
		case 0:
			u.client.conn.Close()
			u.backend.expectEnd()
			u.backend.conn.Close()
		case 1:
			u.backend.conn.Close()
			u.client.next()
			u.client.conn.Close()
		case 2:
			u.Close(causeTest)
			u.client.next()
			u.client.conn.Close()
			u.backend.next()
			u.backend.conn.Close()
		case 3:
			u.cut()
			u.client.expectGone()
			u.backend.expectGone()
		case 4:
			u.client.send(closeFrame(1000, "", true))
			u.backend.next()
			u.backend.send(closeFrame(1000, "", false))
			u.backend.conn.Close()
			u.client.next()
			u.client.expectEnd()
			u.client.conn.Close()
		}
		u.end()
		u.client.conn.Close()
		u.backend.conn.Close()
	}
	for range 40 {
		if descriptors(t) <= before {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%d descriptors before, %d after", before, descriptors(t))
}

// What came with the handshake and then nothing: an empty socket ends as well.
func TestEarlyBytesThenTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		early := append(frame(0x82, []byte("early"), false), closeFrame(1000, "", false)...)
		u := inMemory(t, Accepted{BackendEarly: early}, 1000)
		u.client.expect(early)
		u.client.send(closeFrame(1000, "", true))
		u.client.expectEnd()
		u.backend.next()
		u.backend.conn.Close()
		u.client.conn.Close()
		if s := u.endsBy(ByBackend, "normal", 1000); s.Out != (Traffic{1, 5}) {
			t.Errorf("counted %+v", s.Out)
		}
	})
}

func TestRegistry(t *testing.T) {
	var r Registry
	for i := range 3 {
		r.Add(&Socket{Identity: Identity{ID: fmt.Sprint(i)}})
	}
	r.Remove(&Socket{Identity: Identity{ID: "1"}})
	r.Remove(&Socket{Identity: Identity{ID: "1"}})
	if n := r.Len(); n != 2 {
		t.Errorf("%d sockets", n)
	}
}

// What a socket takes is what thousands of idle ones take. 768 bytes is a size
// of Go's allocator, the next one is 896.
func TestSocketStaysSmall(t *testing.T) {
	if size := unsafe.Sizeof(Socket{}); size > 768 {
		t.Errorf("%d bytes", size)
	}
}
