package tunnel

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// everySoOften are the contract's defaults.
var everySoOften = &Policy{PingInterval: 30 * time.Second, PongTimeout: 10 * time.Second}

// A client that is silent is gone after interval and timeout, having been
// asked once; and the backend is told. (S-182)
func TestSilentClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften}, 1000)
		u.client.patience = time.Minute
		if w := u.client.next(); !w.ours(u.Socket) || w.b0 != 0x89 || u.now() != 30*time.Second {
			t.Errorf("got %x after %v", w.raw, u.now())
		}
		u.client.expectClose(CodeTimeout, "ping timeout")
		if u.now() != 40*time.Second {
			t.Errorf("after %v", u.now())
		}
		if n := u.released.Load(); n != 1 {
			t.Errorf("released %d times", n)
		}
		u.backend.expectClose(CodeGoingAway, "")
		if s := u.endsBy(ByGate, "ping_timeout", CodeTimeout); s.Duration != 40*time.Second+closeGrace {
			t.Errorf("after %v", s.Duration)
		}
	})
}

// A client that answers stays, and the backend sees nothing of it. (S-158)
func TestClientThatAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften}, 1000)
		u.client.patience = time.Minute
		for i := range 100 {
			u.client.pong()
			if want := time.Duration(i+1) * everySoOften.PingInterval; u.now() != want {
				t.Fatalf("ping %d after %v", i, u.now())
			}
		}
		u.backend.expectNothing(time.Second)
		if n := u.pongs.Load(); n != 100 {
			t.Errorf("%d pongs", n)
		}
		if in, out := u.Traffic(); in != (Traffic{}) || out != (Traffic{}) {
			t.Errorf("counted %+v, %+v", in, out)
		}
		if at := u.LastSeen().Sub(u.Socket.Opened()); at != 100*everySoOften.PingInterval {
			t.Errorf("last seen after %v", at)
		}
	})
}

// A client may answer only the last of several pings, or answer late.
func TestClientThatAnswersTheLastPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: &Policy{PingInterval: 10 * time.Second, PongTimeout: 45 * time.Second}}, 1000)
		u.client.patience = time.Minute
		for range 10 {
			for range 4 {
				if w := u.client.next(); !w.ours(u.Socket) {
					t.Fatalf("got %x", w.raw)
				}
			}
			u.client.pong()
		}
		u.backend.expectNothing(time.Second)
	})
}

// Any byte of the client's is life, also within a frame (S-154); a pong of
// somebody else's too (S-157).
func TestAnyByteIsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften}, 1000)
		f := u.client.frame(0x82, string(make([]byte, 20)))
		for _, b := range f {
			time.Sleep(39 * time.Second)
			u.client.send([]byte{b})
		}
		u.backend.expect(f)
		time.Sleep(39 * time.Second)
		pong := u.client.frame(0x8A, "")
		u.client.send(pong)
		u.backend.expect(pong)
		time.Sleep(39 * time.Second)
		synctest.Wait()
		if len(u.closed) > 0 || u.ending.Load() {
			t.Error("ended")
		}
	})
}

// What the backend sends is no life of the client.
func TestBackendIsNoLifeOfTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften}, 1<<20)
		stop := make(chan bool)
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
					_, _ = u.backend.conn.Write(frame(0x82, make([]byte, 100), false))
				}
			}
		}()
		s := u.endsBy(ByGate, "ping_timeout", CodeTimeout)
		close(stop)
		if s.Duration != 40*time.Second+closeGrace {
			t.Errorf("after %v", s.Duration)
		}
	})
}

// A ping that is due within a frame starts the clock all the same.
func TestPingBehindUnfinishedFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften}, 1000)
		u.backend.send(unhex(t, "82 7F 4000000000000000"), make([]byte, 10)) // S-150
		u.client.read(20)
		u.backend.patience = time.Minute
		u.backend.expectClose(CodeGoingAway, "")
		if u.now() != 40*time.Second {
			t.Errorf("after %v", u.now())
		}
		if got := u.client.expectGone(); len(got) > 0 {
			t.Errorf("the client got %x within a frame", got)
		}
		u.endsBy(ByGate, "ping_timeout", CodeTimeout)
	})
}

// A client that takes a large frame can't be asked meanwhile: its taking is
// life. (S-162)
func TestClientWithinALargeFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: &Policy{PingInterval: 50 * time.Millisecond, PongTimeout: 100 * time.Millisecond}}, 64<<10)
		f := u.backend.frame(0x82, string(make([]byte, 5<<20)))
		go func() {
			for p := f; len(p) > 0; p = p[min(len(p), 10<<10):] {
				time.Sleep(10 * time.Millisecond)
				_, _ = u.backend.conn.Write(p[:min(len(p), 10<<10)])
			}
		}()
		u.client.expect(f)
		u.client.pong()
		u.client.pong()
	})
}

// A client that never reads stops the backend, keeps no more than a buffer,
// and is closed. (S-156, S-164)
func TestClientThatNeverReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const way = 4 << 10
		u := inMemory(t, Accepted{Policy: everySoOften}, way)
		var written atomic.Int64
		go func() {
			f := u.backend.frame(0x82, string(make([]byte, 100)))
			for {
				n, err := u.backend.conn.Write(f)
				written.Add(int64(n))
				if err != nil {
					return
				}
			}
		}()
		u.backend.patience = time.Minute
		u.backend.expectClose(CodeGoingAway, "")
		if u.now() != 40*time.Second {
			t.Errorf("after %v", u.now())
		}
		if n := u.released.Load(); n != 1 {
			t.Errorf("released %d times", n)
		}
		if n := written.Load(); n > 2*way+bufferSize {
			t.Errorf("%d bytes were taken", n)
		}
		u.backend.conn.Close()
		u.endsBy(ByGate, "ping_timeout", CodeTimeout)
	})
}

// A slow reader is alive: its pongs are stuck behind what it still has to
// read. When it stops, it is closed.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften}, 1000)
		go func() {
			f := u.backend.frame(0x82, string(make([]byte, 100_000)))
			for {
				if _, err := u.backend.conn.Write(f); err != nil {
					return
				}
			}
		}()
		for range 600 { // 10 minutes
			time.Sleep(time.Second)
			u.client.read(5000)
		}
		if u.ending.Load() {
			t.Fatal("ended")
		}
		at := u.now()
		s := u.end()
		if d := s.Duration - at; s.Reason != "ping_timeout" || d < 40*time.Second || d > 50*time.Second+closeGrace {
			t.Errorf("ended by %s after %v", s.Reason, d)
		}
		u.backend.conn.Close()
	})
}

// The same with the kernel's queues between, and much of the data in them: no
// write is under way while the client has still to read.
func TestSlowReaderTCP(t *testing.T) {
	for _, c := range []struct {
		name       string
		sendBuffer int
		pair       func(testing.TB) (net.Conn, net.Conn)
	}{
		{"writes wait", 4 << 10, tcpPair}, {"the queue waits", 4 << 20, tcpPair},
		{"writes wait, TLS", 4 << 10, tlsPair}, {"the queue waits, TLS", 4 << 20, tlsPair},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			gateClient, client := c.pair(t)
			gateBackend, backend := tcpPair(t)
			under := func(c net.Conn) *net.TCPConn { e := end{conn: c}; return e.inner().(*net.TCPConn) }
			_ = under(gateClient).SetWriteBuffer(c.sendBuffer)
			_ = under(client).SetReadBuffer(64 << 10)
			policy := &Policy{PingInterval: 300 * time.Millisecond, PongTimeout: 300 * time.Millisecond}
			u := connect(t, Accepted{Policy: policy, Client: gateClient, Backend: gateBackend}, client, backend)
			sent := make(chan bool)
			go func() {
				f := u.backend.frame(0x82, string(make([]byte, 100_000)))
				for {
					if _, err := backend.Write(f); err != nil {
						break
					}
				}
				close(sent)
			}()
			for start := time.Now(); time.Since(start) < 2*time.Second; {
				u.client.read(8000)
				time.Sleep(5 * time.Millisecond)
			}
			if u.ending.Load() {
				t.Fatal("ended")
			}
			at := time.Now()
			u.backend.patience = 5 * time.Second
			u.backend.expectClose(CodeGoingAway, "")
			if d := time.Since(at); d > 2*time.Second {
				t.Errorf("closed %v after the last read", d)
			}
			u.client.conn.Close()
			u.backend.conn.Close()
			<-sent
			u.endsBy(ByGate, "ping_timeout", CodeTimeout)
		})
	}
}

// While the backend does not read, the gate does not read the client, and the
// clock stands still; it goes on when the backend does.
func TestClockStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften}, 1000)
		f := u.client.frame(0x82, string(make([]byte, 10_000)))
		go func() { _, _ = u.client.conn.Write(f) }()
		time.Sleep(10 * time.Minute)
		if u.ending.Load() {
			t.Fatal("ended")
		}
		u.backend.expect(f)
		at := u.now()
		u.backend.patience = time.Minute
		u.backend.expectClose(CodeGoingAway, "")
		if d := u.now() - at; d < 35*time.Second || d > 40*time.Second {
			t.Errorf("closed after %v", d)
		}
		u.backend.conn.Close()
		u.end()
	})
}

// A client that has left while the backend does not read is not waited for:
// its slots would never be free. The pings find out.
func TestClientLeavesBehindStuckBackend(t *testing.T) {
	for name, leave := range map[string]func(*peer){
		"end":   func(p *peer) { p.conn.Close() },
		"reset": (*peer).reset,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			policy := &Policy{PingInterval: 150 * time.Millisecond, PongTimeout: 150 * time.Millisecond}
			f := frame(0x82, make([]byte, 10<<20), true)
			u := over(t, Accepted{Policy: policy}, tcpPair, tcpPair)
			_ = u.Socket.backend.conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
			_ = u.backend.conn.(*net.TCPConn).SetReadBuffer(4 << 10)
			_ = u.client.conn.SetWriteDeadline(time.Now().Add(600 * time.Millisecond))
			_, _ = u.client.conn.Write(f)
			if u.ending.Load() {
				t.Fatal("ended")
			}
			leave(u.client)
			at := time.Now()
			for u.released.Load() == 0 {
				if time.Since(at) > 2*time.Second {
					t.Fatal("not released")
				}
				time.Sleep(10 * time.Millisecond)
			}
			u.backend.conn.Close()
			u.end()
		})
	}
}

// The idle limit counts data messages either way, and nothing else: neither
// pings and pongs of the gate's nor those of others.
func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := &Policy{PingInterval: 10 * time.Second, PongTimeout: 5 * time.Second, IdleTimeout: 25 * time.Second}
		u := inMemory(t, Accepted{Policy: policy}, 1000)
		u.client.patience = time.Minute
		for _, p := range []*peer{u.client, u.backend, u.client} {
			other := u.client
			if p == u.client {
				other = u.backend
			}
			f := p.frame(0x82, "data")
			p.send(f)
			other.expect(f)
			time.Sleep(5 * time.Second)
			u.client.pong()
			u.client.pong()
		}
		ping := u.client.frame(0x89, "own")
		u.client.send(ping)
		u.backend.expect(ping)
		pong := u.backend.frame(0x8A, "own")
		u.backend.send(pong)
		u.client.expect(pong)
		s := u.endsBy(ByGate, "idle_timeout", CodeTimeout)
		u.client.expectClose(CodeTimeout, "idle timeout")
		u.backend.expectClose(CodeGoingAway, "")
		if want := 40*time.Second + policy.IdleTimeout + closeGrace; s.Duration != want {
			t.Errorf("after %v, not %v", s.Duration, want)
		}
	})
}

// A socket that was never used is idle, without pings too; a frame under way
// is a message.
func TestIdleTimeoutAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: &Policy{IdleTimeout: time.Minute}}, 1000)
		f := u.client.frame(0x82, "slow")
		u.client.send(f[:6])
		for _, b := range f[6:] {
			time.Sleep(50 * time.Second)
			u.client.send([]byte{b})
		}
		if s := u.endsBy(ByGate, "idle_timeout", CodeTimeout); s.Duration != 4*50*time.Second+time.Minute+closeGrace {
			t.Errorf("after %v", s.Duration)
		}

		u = inMemory(t, Accepted{Policy: &Policy{IdleTimeout: time.Minute}}, 1000)
		if s := u.endsBy(ByGate, "idle_timeout", CodeTimeout); s.Duration != time.Minute+closeGrace {
			t.Errorf("after %v", s.Duration)
		}
	})
}

// The lifetime ends idle and busy sockets alike. (S-180)
func TestLifetime(t *testing.T) {
	for _, c := range []struct {
		name  string
		cause *Cause
		want  Cause
		busy  func(u *tunnel) (wait func())
	}{
		{"idle", &CauseExpired, CauseExpired, nil},
		{"idle, limit of the operator", &CauseLifetime, CauseLifetime, nil},
		{"no cause", nil, CauseLifetime, nil},
		{"busy client", &CauseExpired, CauseExpired, func(u *tunnel) func() { return flood(u.client, u.backend) }},
		{"busy backend", &CauseExpired, CauseExpired, func(u *tunnel) func() { return flood(u.backend, u.client) }},
	} {
		bubble(t, c.name, func(t *testing.T) {
			u := inMemory(t, Accepted{Policy: everySoOften, Lifetime: 3 * time.Second, LifetimeCause: c.cause}, 1000)
			if c.busy != nil {
				defer c.busy(u)()
			} else {
				u.client.expectClose(CodeUnauthorized, c.want.Text)
				u.backend.expectClose(CodeGoingAway, "")
			}
			for u.released.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			if d := u.now() - 3*time.Second; d < 0 || d > 10*time.Millisecond {
				t.Errorf("after %v", u.now())
			}
			if s := u.end(); s.Cause != c.want {
				t.Errorf("ended by %+v", s.Cause)
			}
		})
	}
}

// flood sends from one to the other until both are gone.
func flood(from, to *peer) (wait func()) {
	var group sync.WaitGroup
	group.Go(func() {
		f := from.frame(0x82, "data")
		for {
			if _, err := from.conn.Write(f); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	group.Go(func() {
		got, _ := io.ReadAll(to.r)
		frames, size, broken := reference{masked: !to.masked}.parse(got)
		if n := len(frames); broken || size != len(got) || frames[n-1].opcode() != opClose {
			to.t.Errorf("%s: the last of %d frames is no close frame", to.name, n)
		}
	})
	return group.Wait
}

// Without pings there is no clock of life, and no timer that wakes.
func TestNoPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{}, 1000)
		time.Sleep(1000 * time.Hour)
		f := u.client.frame(0x82, "still here")
		u.client.send(f)
		u.backend.expect(f)
		u.client.expectNothing(time.Hour)
	})
}

// Pings with permessage-deflate carry no RSV bit, within a message too.
// (S-143, S-163)
func TestPingsBetweenCompressedFragments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		policy := &Policy{PingInterval: 20 * time.Millisecond, PongTimeout: 100 * time.Second}
		u := inMemory(t, Accepted{Policy: policy, Reserved: PermessageDeflate}, 1<<20)
		var want [][]byte
		go func() {
			for i := range 100 {
				b0 := byte(0)
				if i == 0 {
					b0 = 0x41
				}
				f := u.backend.frame(b0, "compressed")
				want = append(want, f)
				u.backend.send(f)
				time.Sleep(20 * time.Millisecond)
			}
		}()
		time.Sleep(3 * time.Second)
		pings := 0
		var got [][]byte
		for len(got) < 100 {
			w := u.client.next()
			if w.ours(u.Socket) {
				if w.b0 != 0x89 {
					t.Errorf("a ping with %#x", w.b0)
				}
				pings++
				continue
			}
			got = append(got, w.raw)
		}
		if !bytes.Equal(bytes.Join(got, nil), bytes.Join(want, nil)) {
			t.Error("the message has changed")
		}
		if pings < 50 {
			t.Errorf("%d pings", pings)
		}
	})
}

// A pong of the gate's that is stuck behind data which the backend does not
// take is no reason to close.
func TestPongBehindStuckData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften}, 1000)
		u.client.patience = time.Minute
		told := make(chan bool)
		go func() {
			defer close(told)
			// A client that pauses at a full pipe, as most do, and answers
			// pings in the order of its queue.
			_, _ = u.client.conn.Write(u.client.frame(0x82, string(make([]byte, 5000))))
			for {
				w := u.client.next()
				if w.opcode() != opPing {
					return
				}
				_, _ = u.client.conn.Write(u.client.frame(0x8A, string(w.payload)))
			}
		}()
		time.Sleep(10 * time.Minute)
		u.backend.read(8 + 5000)
		u.backend.expectNothing(10 * time.Minute)
		u.Close(causeTest)
		u.backend.expectClose(CodeGoingAway, "")
		<-told
		u.client.conn.Close()
		u.backend.conn.Close()
		u.end()
	})
}
