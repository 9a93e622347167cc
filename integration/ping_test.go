package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"testing"
	"time"
)

// S-158: who answers stays, the answers stay with the gate.
func TestPongsAreSwallowed(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "ping_interval 100ms\npong_timeout 3s"}.start(t)
	c, u := pair(t, g, p, b)
	payloads := make(map[string]bool)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); { // longer than interval and timeout
		f := c.read()
		if f.first != 0x89 || f.masked {
			t.Fatalf("frame %x on a silent socket", f.first)
		}
		if len(f.payload) < 8 {
			t.Fatalf("a ping of %d bytes can be guessed", len(f.payload))
		}
		if payloads[string(f.payload)] {
			t.Fatalf("the ping payload %x came twice", f.payload)
		}
		payloads[string(f.payload)] = true
		c.send(masked(0x8A, f.payload))
	}
	// Everything else passes, in order, and no pong is before it.
	more := append(masked(0x8A, []byte("unasked")), masked(0x8A, nil)...)
	more = append(more, masked(0x81, []byte("still here"))...)
	c.send(more)
	u.expectBytes(more)
}

// A client may answer only the last of several pings, RFC 6455 section 5.5.3;
// and any byte is a sign of life.
func TestSignsOfLife(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "ping_interval 200ms\npong_timeout 3s"}.start(t)
	const longer = 5 * time.Second // than interval and timeout
	t.Run("every third ping answered", func(t *testing.T) {
		t.Parallel()
		c, u := pair(t, g, p, b)
		for i := range int(longer / (200 * time.Millisecond)) {
			f := c.read()
			if f.first != 0x89 {
				t.Fatalf("frame %x: %q", f.first, f.payload)
			}
			if i%3 == 2 {
				c.send(masked(0x8A, f.payload))
			}
		}
		c.send(masked(0x81, []byte("x")))
		if f := u.read(); f.first != 0x81 {
			t.Errorf("the backend got frame %x", f.first)
		}
	})
	t.Run("data and no pong", func(t *testing.T) {
		t.Parallel()
		c, u := pair(t, g, p, b)
		want := masked(0x81, []byte("x"))
		for range 10 {
			time.Sleep(longer / 10)
			c.send(want)
			u.expectBytes(want)
		}
	})
	t.Run("one byte of a frame at a time", func(t *testing.T) {
		t.Parallel()
		c, u := pair(t, g, p, b)
		want := masked(0x81, []byte("slowly"))
		for i := range want {
			time.Sleep(longer / 10)
			c.send(want[i : i+1])
		}
		u.expectBytes(want)
	})
}

// S-182: who is gone is closed after interval and timeout, not before.
func TestPingTimeout(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			t.Parallel()
			g := wiring{idp: p, upstream: b.addr, tls: secure, gate: "ping_interval 1s\npong_timeout 1s"}.start(t)
			type end struct {
				name string
				wait func(t *testing.T) time.Duration
			}
			silent := func(t *testing.T) time.Duration { // reads, never answers
				c, u := pair(t, g, p, b)
				opened := time.Now()
				go func() { _, _ = io.Copy(io.Discard, u.br) }()
				c.expectClose(3008)
				return time.Since(opened)
			}
			dead := func(t *testing.T) time.Duration { // neither reads nor writes
				_, u := pair(t, g, p, b)
				opened := time.Now()
				u.expectClose(1001)
				u.expectEnd()
				return time.Since(opened)
			}
			foreign := func(t *testing.T) time.Duration { // reads, answers wrongly once
				c, u := pair(t, g, p, b)
				opened := time.Now()
				go func() { _, _ = io.Copy(io.Discard, u.br) }()
				c.send(masked(0x8A, []byte("no ping of yours")))
				c.expectClose(3008)
				return time.Since(opened)
			}
			busy := func(t *testing.T) time.Duration { // gone in the middle of what the backend sends
				_, u := pair(t, g, p, b)
				opened := time.Now()
				u.SetWriteDeadline(time.Now().Add(patience))
				piece := unmasked(0x82, make([]byte, 1<<16))
				for {
					if _, err := u.Conn.Write(piece); err != nil {
						if !isReset(err) {
							t.Error("the socket of a client that is gone was kept")
						}
						return time.Since(opened)
					}
				}
			}
			for _, e := range []end{{"silent", silent}, {"dead", dead}, {"foreign pong", foreign}, {"busy backend", busy}} {
				t.Run(e.name, func(t *testing.T) {
					t.Parallel()
					if d := e.wait(t); d < 1500*time.Millisecond || d > 12*time.Second {
						t.Errorf("closed after %v, want about 2s", d)
					}
				})
			}
		})
	}
}

// S-159: the backend's own pings are the client's to answer, and the client's
// the backend's.
func TestPingsEndToEnd(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "ping_interval 50ms\npong_timeout 60s"}.start(t)
	c, u := pair(t, g, p, b)
	for i := range 50 {
		text := []byte(fmt.Sprintf("abc %d", i))
		if i == 7 {
			text = nil // an empty one too
		}
		u.send(unmasked(0x89, text))
		for {
			f := c.read()
			if f.first != 0x89 {
				t.Fatalf("the client got frame %x", f.first)
			}
			c.send(masked(0x8A, f.payload)) // as every client does
			if bytes.Equal(f.payload, text) {
				break
			}
		}
		if f := u.read(); f.first != 0x8A || !bytes.Equal(f.payload, text) {
			t.Fatalf("the backend got frame %x %q, want the pong %q", f.first, f.payload, text)
		}
		c.send(masked(0x89, text))
		if f := u.read(); f.first != 0x89 || !bytes.Equal(f.payload, text) {
			t.Fatalf("the backend got frame %x %q, want the client's ping %q", f.first, f.payload, text)
		}
		u.send(unmasked(0x8A, text))
		for {
			f := c.read()
			if f.first == 0x8A {
				if !bytes.Equal(f.payload, text) {
					t.Fatalf("the client got the pong %q, want %q", f.payload, text)
				}
				break
			}
			if f.first != 0x89 {
				t.Fatalf("the client got frame %x", f.first)
			}
			c.send(masked(0x8A, f.payload))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// S-162, S-163: a ping stands between frames, also between fragments, never in
// one; and has no reserved bit where the message has.
func TestPingsBetweenFrames(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			t.Parallel()
			g := wiring{idp: p, upstream: b.addr, tls: secure, gate: "ping_interval 30ms\npong_timeout 60s"}.start(t)
			t.Run("fragments", func(t *testing.T) {
				b.answers(func(u *upstream) string { return accept(u, "Sec-WebSocket-Extensions: permessage-deflate") })
				defer b.answers(nil)
				c, u := pairWith(t, g, b, bearer(p.mint("ES256", nil)).extension("permessage-deflate"))
				sum := sha256.New()
				go func() {
					for i := range 100 {
						first := byte(0x00)
						if i == 0 {
							first = 0x42 // RSV1, binary
						}
						if i == 99 {
							first |= 0x80
						}
						payload := random(100 + i)
						sum.Write(payload)
						if _, err := u.Conn.Write(unmasked(first, payload)); err != nil {
							return
						}
						time.Sleep(15 * time.Millisecond)
					}
				}()
				got := sha256.New()
				pings, within := 0, false
				for {
					f := c.read()
					if f.opcode() == 9 {
						if f.first != 0x89 || f.masked {
							t.Fatalf("a ping with first byte %x, masked %v", f.first, f.masked)
						}
						if within {
							pings++
						}
						c.send(masked(0x8A, f.payload))
						continue
					}
					within = true
					got.Write(f.payload)
					if f.fin() {
						break
					}
				}
				if !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
					t.Error("the message changed")
				}
				if pings == 0 {
					t.Error("no ping between the fragments: this test shows nothing")
				}
			})
			t.Run("one large frame", func(t *testing.T) {
				c, u := pair(t, g, p, b)
				payload := random(20 << 20)
				go func() { // over about two seconds
					whole := unmasked(0x82, payload)
					for len(whole) > 0 {
						n := min(len(whole), 512<<10)
						if _, err := u.Conn.Write(whole[:n]); err != nil {
							return
						}
						whole = whole[n:]
						time.Sleep(40 * time.Millisecond)
					}
				}()
				for {
					f := c.read()
					if f.first == 0x89 {
						continue
					}
					if f.first != 0x82 || !bytes.Equal(f.payload, payload) {
						t.Fatalf("frame %x of %d bytes is not what the backend sent", f.first, len(f.payload))
					}
					break
				}
				// The next ping stands behind it.
				if f := c.read(); f.first != 0x89 {
					t.Errorf("frame %x behind it, want a ping", f.first)
				}
			})
		})
	}
}

// ping_interval 0 turns pings and the life clock off.
func TestPingsOff(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "ping_interval 0\npong_timeout 100ms"}.start(t)
	c, u := pair(t, g, p, b)
	time.Sleep(1500 * time.Millisecond)
	u.send(unmasked(0x81, []byte("x")))
	c.expectBytes(unmasked(0x81, []byte("x")))
}
