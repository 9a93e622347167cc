package integration

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// pair is a socket with both ends in the test's hands.
func pair(t *testing.T, g *gate, p *idp, b *backend) (*conn, *upstream) {
	t.Helper()
	return pairWith(t, g, b, bearer(p.mint("ES256", nil)))
}

// pairWith makes one handshake after the other, so that the ends belong
// together in parallel tests too.
func pairWith(t *testing.T, g *gate, b *backend, h handshake) (*conn, *upstream) {
	t.Helper()
	b.pairing.Lock()
	defer b.pairing.Unlock()
	c := g.open(t, h)
	return c, b.next(t)
}

// violations are frames that break a rule; where the two directions differ, %s
// stands for the mask bit's nibble and the key.
var violations = []struct {
	name string
	hex  string // as a client would send it: the mask bit set, a zero key
}{
	{"S-142 RSV1 text", "C1 80 00000000"},
	{"S-142 RSV2 text", "A1 80 00000000"},
	{"S-142 RSV3 text", "91 80 00000000"},
	{"S-142 all RSV", "F1 80 00000000"},
	{"S-142 RSV1 ping", "C9 80 00000000"},
	{"S-142 RSV1 close", "C8 80 00000000"},
	{"S-144 opcode 3", "83 80 00000000"},
	{"S-144 opcode 7", "87 80 00000000"},
	{"S-144 opcode 11", "8B 80 00000000"},
	{"S-144 opcode 15", "8F 80 00000000"},
	{"S-145 fragmented ping", "09 80 00000000"},
	{"S-145 fragmented close", "08 80 00000000"},
	{"S-145 fragmented pong", "0A 80 00000000"},
	{"S-146 ping of 126 bytes", "89 FE 007E 00000000"},
	{"S-146 close of 2^32 bytes", "88 FF 00000000FFFFFFFF 00000000"},
	{"S-149 length with the top bit", "82 FF 8000000000000000 00000000"},
	{"S-149 length of all ones", "82 FF FFFFFFFFFFFFFFFF 00000000"},
	{"7 bits would do", "82 FE 007D 00000000"},
	{"zero in 16 bits", "82 FE 0000 00000000"},
	{"16 bits would do", "82 FF 000000000000FFFF 00000000"},
	{"zero in 64 bits", "82 FF 0000000000000000 00000000"},
	{"continuation of nothing", "80 80 00000000"},
	{"text within a message", "01 81 00000000 61 81 81 00000000 62"},
	{"binary within a message", "02 81 00000000 61 02 81 00000000 62"},
	{"continuation after the end", "01 80 00000000 80 80 00000000 80 80 00000000"},
}

// asServer turns frames with a zero key into unmasked ones.
func asServer(b []byte) []byte {
	var out []byte
	for len(b) > 0 {
		out = append(out, b[0], b[1]&0x7f)
		n, rest := int(b[1]&0x7f), b[2:]
		switch n {
		case 126:
			out, rest = append(out, rest[:2]...), rest[2:]
			n = 0
		case 127:
			out, rest = append(out, rest[:8]...), rest[8:]
			n = 0
		}
		rest = rest[4:] // the key
		out = append(out, rest[:n]...)
		b = rest[n:]
	}
	return out
}

// allowed is what of a violation may be passed on: the frames before the bad
// one.
func allowed(name string, masked bool) []byte {
	var s string
	switch {
	case strings.HasSuffix(name, "within a message"):
		s = "01 81 00000000 61"
		if strings.HasPrefix(name, "binary") {
			s = "02 81 00000000 61"
		}
	case strings.HasPrefix(name, "continuation after"):
		s = "01 80 00000000 80 80 00000000"
	default:
		return nil
	}
	if masked {
		return unhex(s)
	}
	return asServer(unhex(s))
}

// Contract: 1002 to the side that broke the rule, 1001 to the other.
func TestViolations(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	type breach struct {
		name string
		up   []byte // from the client
		down []byte // from the backend
	}
	breaches := []breach{
		{"S-140 unmasked client frame", unhex("81 05 48656c6c6f"), nil},
		{"S-140 HTTP after the 101", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), nil},
		{"S-141 masked server frame", nil, unhex("81 85 37fa213d 7f9f4d5158")},
	}
	for _, v := range violations {
		breaches = append(breaches, breach{v.name + " from the client", unhex(v.hex), nil}, breach{v.name + " from the backend", nil, asServer(unhex(v.hex))})
	}
	for _, v := range breaches {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			c, u := pair(t, g, p, b)
			if v.up != nil {
				c.send(v.up)
				c.expectClose(1002)
				u.expectBytes(allowed(strings.TrimSuffix(v.name, " from the client"), true))
				u.expectClose(1001)
				// Both ends are let go, also when nobody answers the close frames.
				u.expectEnd()
				if rest := c.rest(); rest != "" {
					t.Errorf("%x behind the close frame", rest)
				}
				return
			}
			u.send(v.down)
			c.expectBytes(allowed(strings.TrimSuffix(v.name, " from the backend"), false))
			c.expectClose(1001)
			u.expectClose(1002)
			u.expectEnd()
			if rest := c.rest(); rest != "" {
				t.Errorf("%x behind the close frame", rest)
			}
		})
	}
}

// S-144, S-146: what comes after a violation is not read as frames, and the
// violation is seen at the header, not when its payload is there.
func TestViolationInPassing(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	c, u := pair(t, g, p, b)
	good := masked(0x81, []byte("before"))
	c.send(append(append(bytes.Clone(good), unhex("83 80 00000000")...), masked(0x81, []byte("after"))...))
	u.expectBytes(good)
	u.expectClose(1001)
	c.expectClose(1002)
}

// S-150: a declared length allocates nothing; S-154 and contract §4: a stuck
// frame ends with the ping clock or the connection.
func TestDeclaredLength(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	var conns []*conn
	var ups []*upstream
	warm, _ := pair(t, g, p, b)
	warm.Close()
	before := g.rss()
	for range 20 {
		c, u := pair(t, g, p, b)
		conns, ups = append(conns, c), append(ups, u)
	}
	huge := unhex("82 FF 4000000000000000 00000000 01020304050607080900")
	for i, c := range conns {
		c.send(huge)
		ups[i].expectBytes(huge)
		ups[i].send(asServerHead(huge))
		c.expectBytes(asServerHead(huge))
	}
	limit := 40 << 20 // 20 sockets and their handshakes, far from 20 times anything declared
	if raced {
		limit *= 4
	}
	if grown := g.rss() - before; grown > limit {
		t.Errorf("20 sockets with declared lengths of 2^62 take %d KiB", grown>>10)
	}
	for i, c := range conns {
		// The backend dies within its frame: no close frame may follow in it.
		ups[i].Close()
		if rest := c.rest(); rest != "" { // S-168
			t.Errorf("%x inside an unfinished frame", rest)
		}
	}
}

// asServerHead is the same frame with its declared length, unmasked.
func asServerHead(b []byte) []byte {
	out := append([]byte{b[0], b[1] & 0x7f}, b[2:10]...)
	return append(out, b[14:]...)
}

// S-152: headers in pieces of one byte, with pings on.
func TestChoppedHeaders(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			t.Parallel()
			g := wiring{idp: p, upstream: b.addr, tls: secure, gate: "ping_interval 50ms\npong_timeout 60s"}.start(t)
			c, u := pair(t, g, p, b)
			var up, down []byte
			for _, n := range []int{0, 5, 125, 126, 300, 65535, 65536} {
				payload := random(n)
				up = append(up, masked(0x82, payload)...)
				down = append(down, unmasked(0x82, payload)...)
			}
			drip := func(w io.Writer, b []byte) {
				// Bytes one by one around headers, larger pieces within payloads.
				for i := 0; i < len(b); {
					n := 1
					if i > 1200 && i+3000 < len(b) && i%5 == 0 {
						n = 1500
					}
					if _, err := w.Write(b[i : i+n]); err != nil {
						return
					}
					i += n
				}
			}
			go drip(c, up)
			go drip(u, down)
			got := make(chan []byte, 1)
			go func() {
				all := make([]byte, len(up))
				u.SetReadDeadline(time.Now().Add(patience))
				n, _ := io.ReadFull(u.br, all)
				got <- all[:n]
			}()
			var data []byte
			pings := 0
			for len(data) < len(down) {
				f := c.read()
				if f.first == 0x89 {
					pings++
					continue
				}
				data = append(data, f.raw...)
			}
			if !bytes.Equal(data, down) {
				t.Error("frames to the client changed")
			}
			if !bytes.Equal(<-got, up) {
				t.Error("frames to the backend changed")
			}
		})
	}
}

// S-179: thousands of empty frames in one write.
func TestCoalescedFrames(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	c, u := pair(t, g, p, b)
	up := bytes.Repeat(unhex("82 80 00000000"), 10_000)
	down := bytes.Repeat(unhex("82 00"), 10_000)
	go func() { _, _ = c.Write(up) }()
	u.expectBytes(up)
	go func() { _, _ = u.Write(down) }()
	c.expectBytes(down)
}

// Early bytes: what either side sends with its handshake arrives once and in
// order.
func TestEarlyBytes(t *testing.T) {
	t.Parallel()
	r := startRoutes(t, "")
	for _, secure := range []bool{false, true} {
		for name, b := range r.backends {
			for _, size := range []int{5, 3000, 100_000} {
				t.Run(fmt.Sprintf("client tls %v, backend %s, %d bytes", secure, name, size), func(t *testing.T) {
					payload := random(size)
					up, down := masked(0x82, payload), unmasked(0x82, payload)
					b.answers(func(u *upstream) string { return accept(u) + string(down) })
					addr := r.addr
					if secure {
						addr = r.secure
					}
					r.settled(t, hello().to("/ws/"+name)) // 401 when the keys are there
					c := r.connectTo(t, addr, secure)
					h := bearer(r.idp.token(r.gate, nil)).to("/ws/" + name).followedBy(string(up))
					go func() { _, _ = io.WriteString(c.Conn, h.text(c.host)) }()
					if a := c.readAnswer("GET"); a.status != 101 {
						t.Fatalf("status %d\n%s", a.status, a.text)
					}
					c.expectBytes(down)
					u := b.next(t)
					u.expectBytes(up)
					// And nothing of it twice.
					more := unmasked(0x81, []byte("more"))
					u.send(more)
					c.expectBytes(more)
					upMore := masked(0x81, []byte("more"))
					c.send(upMore)
					u.expectBytes(upMore)
				})
			}
		}
	}
}

// S-164: a client that does not read costs bounded memory, and stops the
// backend.
func TestClientNeverReads(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "ping_interval 0"}.start(t)
	warm, _ := pair(t, g, p, b)
	warm.Close()
	before := g.rss()
	const sockets = 40
	var blocked int
	type result struct{ written int }
	results := make(chan result, sockets)
	for range sockets {
		c, u := pair(t, g, p, b)
		_ = c.tcp.SetReadBuffer(4096)
		go func() {
			piece := unmasked(0x82, make([]byte, 1<<16))
			written := 0
			for written < 64<<20 {
				u.SetWriteDeadline(time.Now().Add(1500 * time.Millisecond))
				n, err := u.Conn.Write(piece)
				written += n
				if err != nil {
					break
				}
			}
			results <- result{written}
		}()
	}
	for range sockets {
		if r := <-results; r.written < 64<<20 {
			blocked++
		}
	}
	if blocked != sockets {
		t.Errorf("only %d of %d backends were held up", blocked, sockets)
	}
	limit := 40 << 20
	if raced {
		limit *= 4
	}
	if grown := g.rss() - before; grown > limit {
		t.Errorf("%d clients that do not read take %d KiB", sockets, grown>>10)
	}
}

// Back-pressure the other way: a backend that does not read stops the client,
// the ping clock stands still meanwhile, and everything arrives afterwards.
func TestBackendReadsLate(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "ping_interval 200ms\npong_timeout 300ms"}.start(t)
	c, u := pair(t, g, p, b)
	const messages = 400
	payload := random(64 << 10)
	frame := masked(0x82, payload)
	sent := make(chan error, 1)
	go func() {
		for range messages {
			c.SetWriteDeadline(time.Now().Add(patience))
			if _, err := c.Write(frame); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	go func() { // the client answers pings where it can: behind its data
		for {
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := readFrame(c.br); err != nil {
				return
			}
		}
	}()
	time.Sleep(2 * time.Second) // several times interval and timeout
	for i := range messages {
		got := make([]byte, len(frame))
		u.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(u.br, got); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		if !bytes.Equal(got, frame) {
			t.Fatalf("message %d changed", i)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// S-156, S-157: floods of pings and pongs pass, and take no memory.
func TestControlFloods(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	c, u := pair(t, g, p, b)
	before := g.rss()
	for _, first := range []byte{0x89, 0x8A} {
		flood := bytes.Repeat(masked(first, []byte("flood")), 100_000)
		go func() {
			c.SetWriteDeadline(time.Now().Add(patience))
			_, _ = c.Write(flood)
		}()
		u.expectBytes(flood)
	}
	// The other end never reads: the flood stops, nothing piles up.
	flood := bytes.Repeat(masked(0x89, []byte("flood")), 1000)
	stuck := false
	for range 20_000 {
		c.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := c.Write(flood); err != nil {
			stuck = !isReset(err)
			break
		}
	}
	if !stuck {
		t.Error("200 MB of pings were taken from a client whose backend does not read")
	}
	limit := 32 << 20
	if raced {
		limit *= 4
	}
	if grown := g.rss() - before; grown > limit {
		t.Errorf("floods of control frames take %d KiB", grown>>10)
	}
}

// S-176: nothing is inflated on the way.
func TestCompressionBomb(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	b.answers(func(u *upstream) string { return accept(u, "Sec-WebSocket-Extensions: permessage-deflate") })
	c := g.open(t, bearer(p.token(g, nil)).extension("permessage-deflate"))
	u := b.next(t)
	before := g.rss()
	// A deflate stream of 6 MB that would grow a thousandfold: what it holds
	// does not matter to who does not look.
	bomb := masked(0xC2, bytes.Repeat([]byte{0xec, 0xc1, 0x01, 0x01}, 6<<18))
	go func() { _, _ = c.Write(bomb) }()
	u.expectBytes(bomb)
	limit := 32 << 20
	if raced {
		limit *= 4
	}
	if grown := g.rss() - before; grown > limit {
		t.Errorf("a 6 MB message takes %d KiB", grown>>10)
	}
}
