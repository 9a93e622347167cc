package integration

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// gatedPairs starts one process with a gate for each of these options, and
// returns how to get a socket at one of them.
func gatedPairs(t *testing.T, p *idp, b *backend, options map[string]string) (*gate, func(t *testing.T, name string, c claims, lines ...string) (*conn, *upstream)) {
	t.Helper()
	var all []gated
	for name, gate := range options {
		all = append(all, gated{name: name, gate: gate, upstream: b.addr})
	}
	g := startSeveral(t, []*idp{p}, "", all...)
	return g, func(t *testing.T, name string, c claims, lines ...string) (*conn, *upstream) {
		t.Helper()
		return pairWith(t, g, b, at(name, p.mint("ES256", c), lines...))
	}
}

// pongs answers pings in the background and tells when something else came,
// or the end.
func (c *conn) pongs() <-chan frame {
	other := make(chan frame, 64)
	go func() {
		defer close(other)
		for {
			c.SetReadDeadline(time.Now().Add(4 * patience))
			f, err := readFrame(c.br)
			if err != nil {
				return
			}
			if f.first != 0x89 {
				other <- f
				continue
			}
			c.SetWriteDeadline(time.Now().Add(4 * patience))
			if _, err := c.Write(masked(0x8A, f.payload)); err != nil {
				return
			}
		}
	}()
	return other
}

// S-195 for live sockets: what comes too fast is held back, arrives later and
// whole, and costs the socket nothing.
func TestMessageRateDelays(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	const short = "\nping_interval 200ms\npong_timeout 400ms"
	_, open := gatedPairs(t, p, b, map[string]string{
		"socket": "message_rate 10/1s burst 5" + short,
		"frames": "message_rate 10/1s burst 5 delay" + short,
		"user":   "message_rate 10/1s burst 5 delay by user" + short,
		"alone":  "message_rate 10/1s burst 5 by socket" + short,
		"slow":   "message_rate 1/10s burst 1\nping_interval 200ms\npong_timeout 400ms",
	})
	// held checks when messages arrive: no sooner than the rate lets them.
	held := func(t *testing.T, begin time.Time, i int) {
		t.Helper()
		if early := time.Duration(i+1-5)*100*time.Millisecond - time.Since(begin); early > 0 {
			t.Errorf("message %d came %v too early", i, early)
		}
	}
	const messages = 30 // 2.5 s, several times what a silent client has
	t.Run("at once", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "socket", nil)
		var sent [][]byte
		for i := range messages {
			sent = append(sent, masked(0x81, []byte(fmt.Sprintf("message %d", i))))
		}
		other := c.pongs() // its pongs stand behind what is held back
		begin := time.Now()
		c.send(bytes.Join(sent, nil))
		for i, f := range sent {
			u.expectBytes(f)
			held(t, begin, i)
			if i == 10 { // the other direction flows meanwhile, pings and all
				u.send(unmasked(0x81, []byte("meanwhile")))
				if f := <-other; string(f.payload) != "meanwhile" {
					t.Fatalf("the client got frame %x %q", f.first, f.payload)
				}
				u.send(unmasked(0x8A, []byte("unasked")))
				if f := <-other; f.first != 0x8A {
					t.Fatalf("the client got frame %x", f.first)
				}
			}
		}
		if d := time.Since(begin); d > 12*time.Second {
			t.Errorf("%d messages took %v, want about 2.5 s", messages, d)
		}
		last := masked(0x81, []byte("alive"))
		c.send(last)
		u.expectBytes(last)
		select {
		case f, ok := <-other:
			t.Errorf("the client got frame %x (open: %v)", f.first, ok)
		default:
		}
	})
	t.Run("fragments count once, control frames do not", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "frames", nil)
		var sent []byte
		for range 5 { // messages, as many as the burst
			sent = append(sent, masked(0x01, []byte("first"))...)
			for range 100 {
				sent = append(sent, masked(0x89, []byte("ping"))...)
				sent = append(sent, masked(0x00, []byte("more"))...)
				sent = append(sent, masked(0x8A, nil)...)
			}
			sent = append(sent, masked(0x80, []byte("last"))...)
		}
		begin := time.Now()
		go func() { _, _ = c.Write(sent) }()
		u.expectBytes(sent)
		if d := time.Since(begin); d > 10*time.Second { // 1,500 frames are two and a half minutes
			t.Errorf("5 messages of many fragments took %v", d)
		}
		more := append(masked(0x81, []byte("sixth")), masked(0x81, []byte("seventh"))...)
		c.send(more)
		u.expectBytes(more)
		held(t, begin, 6)
	})
	t.Run("two sockets of a user", func(t *testing.T) {
		t.Parallel()
		c1, u1 := open(t, "user", claims{"sub": "carol"})
		c2, u2 := open(t, "user", claims{"sub": "carol"})
		other1, other2 := c1.pongs(), c2.pongs()
		arrived := make(chan time.Time, 2*messages)
		begin := time.Now()
		for _, s := range []struct {
			c *conn
			u *upstream
		}{{c1, u1}, {c2, u2}} {
			go func() {
				f := masked(0x81, []byte("x"))
				_, _ = s.c.Write(bytes.Repeat(f, messages/2))
			}()
			go func() {
				for range messages / 2 {
					s.u.SetReadDeadline(time.Now().Add(patience))
					if _, err := readFrame(s.u.br); err != nil {
						t.Error(err)
					}
					arrived <- time.Now()
				}
			}()
		}
		for i := range messages {
			if early := time.Duration(i+1-5)*100*time.Millisecond - (<-arrived).Sub(begin); early > 0 {
				t.Errorf("message %d of both came %v too early", i, early)
			}
		}
		_, _ = other1, other2
		// Somebody else is not held.
		c, u := open(t, "user", claims{"sub": "dave"})
		f := bytes.Repeat(masked(0x81, []byte("x")), 5)
		begin = time.Now()
		c.send(f)
		u.expectBytes(f)
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("another user waits %v", d)
		}
	})
	t.Run("two sockets by socket", func(t *testing.T) {
		t.Parallel()
		for range 2 {
			c, u := open(t, "alone", nil)
			f := bytes.Repeat(masked(0x81, []byte("x")), 5)
			c.send(f)
			u.expectBytes(f)
		}
	})
	// S-182: the clock of life stands still while the gate does not read.
	t.Run("held for longer than a silent client may be", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "slow", nil)
		other := c.pongs()
		sent := [][]byte{masked(0x81, []byte("now")), masked(0x81, []byte("in 10 s"))}
		c.send(bytes.Join(sent, nil))
		u.expectBytes(sent[0])
		if testing.Short() {
			t.Skip("takes 10 s") // the first case has 2.5 s
		}
		u.expectBytes(sent[1])
		select {
		case f, ok := <-other:
			t.Errorf("the client got frame %x (open: %v)", f.first, ok)
		default:
		}
	})
	t.Run("close handshake behind what is held back", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "socket", nil)
		sent := append(bytes.Repeat(masked(0x81, []byte("x")), 10), masked(0x88, closing(1000, "bye"))...)
		c.send(sent)
		u.expectBytes(sent)
		u.send(unmasked(0x88, closing(1000, "bye")))
		c.expectClose(1000)
	})
	t.Run("client gone while it is held back", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "slow", nil)
		c.send(bytes.Repeat(masked(0x81, []byte("x")), 3))
		u.read()
		c.reset()
		begin := time.Now()
		u.rest()
		if d := time.Since(begin); d > 16*time.Second {
			t.Errorf("the backend's end was closed after %v", d)
		}
	})
}

// message_rate close: 1008, and not one message more than the burst arrives.
func TestMessageRateCloses(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g, open := gatedPairs(t, p, b, map[string]string{
		"socket": "message_rate 1/1h burst 5 close",
		"user":   "message_rate 1/1h burst 5 close by user\nmax_connections 2",
	})
	for name, send := range map[string]func(c *conn, f []byte){
		"in one write":     func(c *conn, f []byte) { _, _ = c.Write(bytes.Repeat(f, 50)) },
		"one by one":       func(c *conn, f []byte) { writeEach(c, f, 6, len(f)) },
		"one byte at once": func(c *conn, f []byte) { writeEach(c, f, 6, 1) },
		"header first":     func(c *conn, f []byte) { writeEach(c, f, 6, 6) },
		"more than a read": func(c *conn, f []byte) { _, _ = c.Write(bytes.Repeat(f, 20_000)) },
		"header of a giant": func(c *conn, f []byte) {
			_, _ = c.Write(append(bytes.Repeat(f, 5), unhex("82 FF 4000000000000000 00000000")...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, u := open(t, "socket", nil)
			f := masked(0x81, []byte("message"))
			go send(c, f)
			u.expectBytes(bytes.Repeat(f, 5))
			u.expectClose(1001)
			end := c.expectClose(1008)
			if string(end.payload[2:]) != "rate exceeded" {
				t.Errorf("reason %q", end.payload[2:])
			}
			c.Close()
			u.expectEnd()
		})
	}
	t.Run("over two sockets of a user", func(t *testing.T) {
		t.Parallel()
		f := masked(0x81, []byte("message"))
		c1, u1 := open(t, "user", claims{"sub": "carol"})
		c2, u2 := open(t, "user", claims{"sub": "carol"})
		c1.send(bytes.Repeat(f, 3))
		u1.expectBytes(bytes.Repeat(f, 3))
		c2.send(bytes.Repeat(f, 3))
		u2.expectBytes(bytes.Repeat(f, 2))
		u2.expectClose(1001)
		c2.expectClose(1008)
		// The other one lives until it says something; its place is free at once
		// when it does, and its own.
		u1.send(unmasked(0x81, []byte("x")))
		c1.expectBytes(unmasked(0x81, []byte("x")))
		c3, _ := open(t, "user", claims{"sub": "carol"})
		c1.send(f)
		c1.expectClose(1008)
		u1.expectClose(1001)
		// The bucket lives as long as a socket of the user's does.
		c3.send(f)
		c3.expectClose(1008)
	})
	t.Run("logged", func(t *testing.T) {
		c, u := open(t, "socket", claims{"sub": "logged"})
		c.send(bytes.Repeat(masked(0x81, nil), 6))
		c.expectClose(1008)
		c.Close()
		u.Close()
		eventually(t, "the line in the log", func() bool {
			for _, e := range g.entries("connection closed") {
				if e["user_id"] == "logged" {
					return e["close_reason"] == "rate" && e["closed_by"] == "gate" && e["close_code"] == 1008.0 && e["messages_in"] == 5.0
				}
			}
			return false
		})
	})
}

// writeEach writes f n times, in pieces of this size.
func writeEach(c *conn, f []byte, n, size int) {
	for range n {
		for rest := f; len(rest) > 0; {
			k := min(size, len(rest))
			if _, err := c.Write(rest[:k]); err != nil {
				return
			}
			rest = rest[k:]
			time.Sleep(time.Millisecond)
		}
	}
}

// byte_rate: as message_rate, by what the messages have on the wire; and a
// frame larger than the burst passes slowly, but passes.
func TestByteRate(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	const short = "\nping_interval 200ms\npong_timeout 400ms"
	_, open := gatedPairs(t, p, b, map[string]string{
		"delay": "byte_rate 100KiB/1s burst 64KiB" + short,
		"tiny":  "byte_rate 20B/100ms burst 20B" + short,
		"user":  "byte_rate 100KiB/1s burst 64KiB by user" + short,
		"close": "byte_rate 1KiB/1h burst 4KiB close",
		"both":  "byte_rate 100KiB/1s burst 64KiB\nmessage_rate 10/1s burst 5\nmax_message_size 200KiB" + short,
	})
	const rate, burst = 100 << 10, 64 << 10
	// paced reads want at the backend, no part of which may come before the
	// rate lets it. So many bytes of it are headers and control frames.
	paced := func(t *testing.T, begin time.Time, u *upstream, want []byte, uncounted int) {
		t.Helper()
		const step = 8 << 10
		for at := 0; at < len(want); at += step {
			n := min(step, len(want)-at)
			u.expectBytes(want[at : at+n])
			due := time.Duration(float64(at+n-burst-uncounted) / rate * float64(time.Second))
			if early := due - time.Since(begin); early > 0 {
				t.Fatalf("byte %d came %v too early", at+n, early)
			}
		}
	}
	for _, v := range []struct {
		name   string
		frames [][]byte
	}{
		{"one frame above the burst", [][]byte{masked(0x82, random(300<<10))}},
		{"many small ones", repeated(func() []byte { return masked(0x82, random(1000)) }, 300)},
		{"fragments with control frames between", repeatedWithin(3000, 100)},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			c, u := open(t, "delay", nil)
			other := c.pongs()
			all := bytes.Join(v.frames, nil)
			begin := time.Now()
			go func() {
				c.SetWriteDeadline(time.Now().Add(patience))
				_, _ = c.Write(all)
			}()
			u.send(unmasked(0x81, []byte("meanwhile"))) // the other direction is free
			if f := <-other; string(f.payload) != "meanwhile" {
				t.Errorf("the client got frame %x", f.first)
			}
			paced(t, begin, u, all, len(all)-300_000)
			if d := time.Since(begin); d > 15*time.Second {
				t.Errorf("took %v, want about 2.4 s", d)
			}
			last := masked(0x81, []byte("alive"))
			go func() { _, _ = c.Write(last) }()
			u.expectBytes(last)
		})
	}
	t.Run("a burst below any buffer", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "tiny", nil)
		c.pongs()
		f := masked(0x82, random(500))
		begin := time.Now()
		c.send(f)
		u.expectBytes(f)
		if d := time.Since(begin); d < 2*time.Second {
			t.Errorf("500 bytes passed in %v at 200 a second", d)
		}
	})
	t.Run("two sockets of a user", func(t *testing.T) {
		t.Parallel()
		begin := time.Now()
		done := make(chan error, 2)
		for range 2 {
			c, u := open(t, "user", claims{"sub": "carol"})
			c.pongs()
			f := masked(0x82, random(120<<10))
			go func() { _, _ = c.Write(f) }()
			go func() {
				got := make([]byte, len(f))
				u.SetReadDeadline(time.Now().Add(patience))
				_, err := io.ReadFull(u.br, got)
				if err == nil && !bytes.Equal(got, f) {
					err = fmt.Errorf("the message changed")
				}
				done <- err
			}()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if d := time.Since(begin); d < 1500*time.Millisecond { // (240-64)/100 s
			t.Errorf("240 KiB of one user passed in %v", d)
		}
	})
	t.Run("close", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "close", nil)
		first, second := masked(0x82, random(3000)), masked(0x82, random(2000))
		c.send(append(bytes.Clone(first), second...))
		u.expectBytes(first)
		u.expectClose(1001)
		c.expectClose(1008)
	})
	t.Run("close, a header suffices", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "close", nil)
		c.send(append(header(0x82, true, 4097), 1, 2, 3, 4))
		u.expectClose(1001)
		c.expectClose(1008)
		// What is exactly the burst passes.
		c, u = open(t, "close", nil)
		f := masked(0x82, random(4096))
		c.send(f)
		u.expectBytes(f)
	})
	t.Run("with every other limit", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "both", nil)
		c.pongs()
		frames := repeated(func() []byte { return masked(0x82, random(20<<10)) }, 10)
		frames = append(frames, masked(0x82, random(200<<10)))
		all := bytes.Join(frames, nil)
		begin := time.Now()
		go func() {
			c.SetWriteDeadline(time.Now().Add(patience))
			_, _ = c.Write(all)
		}()
		paced(t, begin, u, all, 200)
	})
	t.Run("the socket ends while it is held back", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "tiny", claims{"exp": time.Now().Unix() + 3})
		c.send(masked(0x82, random(20_000))) // 100 s
		c.expectClose(3000)
		begin := time.Now()
		got := u.rest()
		if d := time.Since(begin); d > 12*time.Second {
			t.Errorf("cut after %v, want 5 s", d)
		}
		if len(got) > 10_000 {
			t.Errorf("%d bytes passed", len(got))
		}
	})
}

func repeated(f func() []byte, n int) (all [][]byte) {
	for range n {
		all = append(all, f())
	}
	return all
}

// repeatedWithin is one message in n fragments of this size, with pings and
// pongs between them.
func repeatedWithin(size, n int) (all [][]byte) {
	for i := range n {
		first := byte(0x00)
		if i == 0 {
			first = 0x02
		}
		if i == n-1 {
			first |= 0x80
		}
		all = append(all, masked(first, random(size)), masked(0x89, []byte("ping")), masked(0x8A, random(16)))
	}
	return all
}

// S-184: max_message_size, judged by the header of the frame that exceeds it:
// 1009 to the client, 1001 to the backend, of the excess not a byte.
func TestMaxMessageSize(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.answers(func(u *upstream) string {
		if u.req.Header.Get("Sec-WebSocket-Extensions") != "" {
			return accept(u, "Sec-WebSocket-Extensions: permessage-deflate")
		}
		return accept(u)
	})
	g, open := gatedPairs(t, p, b, map[string]string{"a": "max_message_size 1000B\nping_interval 100ms\npong_timeout 60s", "big": "max_message_size 1MiB"})
	control := append(masked(0x89, random(125)), masked(0x8A, random(125))...)
	join := func(frames ...[]byte) []byte { return bytes.Join(frames, nil) }
	for _, v := range []struct {
		name         string
		pass, excess []byte // what arrives, and what does not
	}{
		{"exactly the limit", masked(0x82, random(1000)), nil},
		{"exactly the limit, many times", bytes.Repeat(masked(0x81, random(1000)), 50), nil},
		{"exactly the limit in fragments", join(masked(0x02, random(400)), masked(0x00, random(400)), masked(0x80, random(200))), nil},
		{"control frames do not count", join(masked(0x02, random(600)), control, control, masked(0x00, nil), control, masked(0x80, random(400))), nil},
		{"empty fragments", join(masked(0x02, random(1000)), bytes.Repeat(masked(0x00, nil), 1000), masked(0x80, nil)), nil},
		{"one byte more", nil, masked(0x82, random(1001))},
		{"its header alone", nil, append(header(0x82, true, 1001), 0, 0, 0, 0)},
		{"the header of 2^62 bytes", nil, unhex("82 FF 4000000000000000 00000000")},
		{"the header of 2^63-1 bytes", nil, unhex("82 FF 7FFFFFFFFFFFFFFF 00000000")},
		{"S-184 two fragments of 600", masked(0x02, random(600)), masked(0x80, random(600))},
		{"the header of a second fragment", masked(0x02, random(600)), append(header(0x00, true, 401), 0, 0, 0, 0)},
		{"many fragments", join(masked(0x02, nil), bytes.Repeat(masked(0x00, random(10)), 100)), masked(0x00, []byte{1})},
		{"fragments with control frames between", join(masked(0x02, random(600)), control), masked(0x00, random(600))},
		{"a fragment of 2^63-1 behind one", masked(0x01, random(1)), unhex("80 FF 7FFFFFFFFFFFFFFF 00000000")},
		{"behind good messages", bytes.Repeat(masked(0x82, random(999)), 30), masked(0x82, random(70_000))},
	} {
		for how, size := range map[string]int{"": 1 << 20, ", byte by byte": 1} {
			if size == 1 && len(v.pass) > 3000 {
				continue
			}
			t.Run(v.name+how, func(t *testing.T) {
				t.Parallel()
				c, u := open(t, "a", nil)
				go func() {
					c.SetWriteDeadline(time.Now().Add(patience))
					for rest := join(v.pass, v.excess); len(rest) > 0; rest = rest[min(size, len(rest)):] {
						if _, err := c.Write(rest[:min(size, len(rest))]); err != nil {
							return
						}
					}
				}()
				u.expectBytes(v.pass)
				if v.excess == nil {
					last := masked(0x81, []byte("alive"))
					go func() { // behind what is being sent
						time.Sleep(50 * time.Millisecond)
						_, _ = c.Write(last)
					}()
					u.expectBytes(last)
					return
				}
				u.expectClose(1001)
				end := c.expectClose(1009)
				if string(end.payload[2:]) != "message too big" {
					t.Errorf("reason %q", end.payload[2:])
				}
				c.Close()
				u.expectEnd()
			})
		}
	}
	t.Run("what was sent behind it does not hide the close frame", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "big", nil)
		go func() { // 20 MiB that nobody takes
			c.SetWriteDeadline(time.Now().Add(patience))
			_, _ = c.Write(masked(0x82, make([]byte, 20<<20)))
		}()
		u.expectClose(1001)
		c.expectClose(1009)
	})
	t.Run("permessage-deflate counts what is on the wire", func(t *testing.T) {
		t.Parallel()
		var small bytes.Buffer
		w := zlib.NewWriter(&small)
		_, _ = w.Write(make([]byte, 500_000))
		_ = w.Flush()
		wire := bytes.TrimSuffix(small.Bytes()[2:], unhex("0000FFFF")) // no header of zlib's; RFC 7692 section 7.2.1
		if len(wire) > 1000 {
			t.Fatalf("%d bytes: this test shows nothing", len(wire))
		}
		c, u := open(t, "a", nil, "Sec-WebSocket-Extensions: permessage-deflate")
		f := masked(0xC2, wire)
		c.send(f)
		u.expectBytes(f)
		c.send(masked(0xC2, random(1001)))
		u.expectClose(1001)
		c.expectClose(1009)
	})
	t.Run("the backend may send what it likes", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "a", nil)
		payload := random(100_000)
		u.send(unmasked(0x82, payload))
		if f := c.readPonging(); !bytes.Equal(f.payload, payload) {
			t.Errorf("the client got frame %x of %d bytes", f.first, len(f.payload))
		}
	})
	t.Run("logged", func(t *testing.T) {
		c, u := open(t, "a", claims{"sub": "logged"})
		c.send(masked(0x82, random(2000)))
		c.expectClose(1009)
		c.Close()
		u.Close()
		eventually(t, "the line in the log", func() bool {
			for _, e := range g.entries("connection closed") {
				if e["user_id"] == "logged" {
					return e["close_reason"] == "too_big" && e["close_code"] == 1009.0 && e["bytes_in"] == 0.0
				}
			}
			return false
		})
	})
}

// S-156, S-157: a flood of control frames is bounded by what the other side
// takes, and costs no memory: here a client that pings, and reads nothing of
// what the backend answers.
func TestControlFloodAnswered(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g, open := gatedPairs(t, p, b, map[string]string{"a": "message_rate 1/1h burst 1 close\nbyte_rate 1B/1h burst 1B close\nmax_message_size 1B"})
	frames := 1_000_000
	if raced || testing.Short() {
		frames = 200_000
	}
	for name, first := range map[string]byte{"pings": 0x89, "pongs": 0x8A} {
		t.Run(name+" that are taken", func(t *testing.T) {
			c, u := open(t, "a", nil)
			before := g.rss()
			const at = 1000
			flood := bytes.Repeat(masked(first, []byte("0123456789abcdef")), at) // as long as ours
			go func() {
				for range frames / at {
					c.SetWriteDeadline(time.Now().Add(patience))
					if _, err := c.Write(flood); err != nil {
						t.Errorf("the flood broke off: %v", err)
						return
					}
				}
			}()
			for range frames / at {
				u.expectBytes(flood)
			}
			if grown, limit := g.rss()-before, room(8<<20); grown > limit {
				t.Errorf("%d %s take %d KiB", frames, name, grown>>10)
			}
			c.send(masked(0x81, []byte("1"))) // no limit counted them
			u.read()
		})
	}
	t.Run("pings whose pongs the client does not read", func(t *testing.T) {
		c, u := open(t, "a", nil)
		_ = c.tcp.SetReadBuffer(4096)
		before := g.rss()
		go func() { // answers, as every server does
			for {
				f, err := readFrame(u.br)
				if err != nil {
					return
				}
				u.SetWriteDeadline(time.Now().Add(patience))
				if _, err := u.Write(unmasked(0x8A, f.payload)); err != nil {
					return
				}
			}
		}()
		flood := bytes.Repeat(masked(0x89, random(125)), 1000)
		stuck := false
		for range 2000 {
			c.SetWriteDeadline(time.Now().Add(time.Second))
			if _, err := c.Write(flood); err != nil {
				ne, ok := err.(net.Error)
				stuck = ok && ne.Timeout()
				break
			}
		}
		if !stuck {
			t.Error("260 MB of pings were taken from a client that reads no pong")
		}
		if grown, limit := g.rss()-before, room(8<<20); grown > limit {
			t.Errorf("the flood takes %d KiB", grown>>10)
		}
	})
}

// room is a bound of memory; the race detector needs several times as much.
func room(bytes int) int {
	if raced {
		return 6 * bytes
	}
	return bytes
}
