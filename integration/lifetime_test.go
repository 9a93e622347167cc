package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// wantEnd waits for the log's line about a socket of this user that the gate
// ended for this reason, with this code.
func (g *gate) wantEnd(t testing.TB, user, reason string, code int) {
	t.Helper()
	eventually(t, fmt.Sprintf("a line about %s, ended by the gate, %s, %d", user, reason, code), func() bool {
		for _, e := range g.entries("connection closed") {
			if e["user_id"] == user && e["close_reason"] == reason && e["closed_by"] == "gate" && e["close_code"] == float64(code) {
				return true
			}
		}
		return false
	})
}

// idle_timeout: data in either direction counts, control frames do not,
// neither the gate's nor those of the two sides.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g, open := gatedPairs(t, p, b, map[string]string{
		"a":     "idle_timeout 2s\nping_interval 100ms\npong_timeout 60s\nmax_connections 1",
		"alone": "idle_timeout 2s\nping_interval 0\nmax_connections 1",
	})
	ends := func(t *testing.T, name, user string, c *conn, u *upstream, begin time.Time) {
		t.Helper()
		end := c.expectClose(3008)
		if string(end.payload[2:]) != "idle timeout" {
			t.Errorf("reason %q", end.payload[2:])
		}
		if d := time.Since(begin); d < time.Second || d > 10*time.Second {
			t.Errorf("closed after %v, want 2 s", d)
		}
		u.expectClose(1001)
		// Its place is free before the close handshake is through.
		again, _ := open(t, name, claims{"sub": user})
		again.Close()
		c.Close()
		u.Close()
		g.wantEnd(t, user, "idle_timeout", 3008)
	}
	for _, name := range []string{"a", "alone"} {
		t.Run(name+" silent", func(t *testing.T) {
			t.Parallel()
			c, u := open(t, name, claims{"sub": "silent " + name})
			ends(t, name, "silent "+name, c, u, time.Now())
		})
		t.Run(name+" pings of either side", func(t *testing.T) {
			t.Parallel()
			user := "pinging " + name
			c, u := open(t, name, claims{"sub": user})
			begin := time.Now()
			var mu sync.Mutex // the client's pings and its pongs
			go func() {
				for {
					time.Sleep(50 * time.Millisecond)
					mu.Lock()
					_, err := c.Write(append(masked(0x89, []byte("p")), masked(0x8A, nil)...))
					mu.Unlock()
					if err != nil {
						return
					}
					if _, err := u.Conn.Write(append(unmasked(0x89, []byte("q")), unmasked(0x8A, nil)...)); err != nil {
						return
					}
				}
			}()
			go func() {
				for f := range c.frames() {
					if f.first == 0x89 {
						mu.Lock()
						_, _ = c.Write(masked(0x8A, f.payload))
						mu.Unlock()
					}
					if f.opcode() == 8 {
						return
					}
				}
			}()
			var code int
			for code == 0 { // pings and pongs up to the close frame
				if f := u.read(); f.opcode() == 8 {
					code = f.code()
				}
			}
			if d := time.Since(begin); code != 1001 || d < time.Second || d > 10*time.Second {
				t.Errorf("closed with %d after %v, want 1001 after 2 s", code, d)
			}
			c.Close()
			u.Close()
			g.wantEnd(t, user, "idle_timeout", 3008)
		})
	}
	for name, pass := range map[string]func(t *testing.T, c *conn, u *upstream){
		"data from the client": func(_ *testing.T, c *conn, u *upstream) {
			f := masked(0x81, []byte("x"))
			c.send(f)
			u.expectBytes(f)
		},
		"data from the backend": func(t *testing.T, c *conn, u *upstream) {
			u.send(unmasked(0x82, []byte("x")))
			if f := c.readPonging(); f.first != 0x82 {
				t.Errorf("frame %x", f.first)
			}
		},
		"empty messages": func(_ *testing.T, c *conn, u *upstream) {
			f := masked(0x81, nil)
			c.send(f)
			u.expectBytes(f)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, u := open(t, "a", claims{"sub": name})
			for range 8 { // twice the timeout
				time.Sleep(500 * time.Millisecond)
				pass(t, c, u)
			}
			// c is not read in between: what it has are pings
			c.t = t
			ends(t, "a", name, c, u, time.Now())
		})
	}
	t.Run("a long message counts as long as it goes on", func(t *testing.T) {
		t.Parallel()
		c, u := open(t, "a", claims{"sub": "long"})
		f := masked(0x82, random(10))
		for i := range f {
			time.Sleep(250 * time.Millisecond)
			c.send(f[i : i+1])
		}
		u.expectBytes(f)
	})
}

// frames are what the client gets until the end.
func (c *conn) frames() <-chan frame {
	frames := make(chan frame)
	go func() {
		defer close(frames)
		for {
			c.SetReadDeadline(time.Now().Add(patience))
			f, err := readFrame(c.br)
			if err != nil {
				return
			}
			frames <- f
			if f.opcode() == 8 {
				return
			}
		}
	}()
	return frames
}

// S-36: max_lifetime ends a socket whose token is good for years; S-180:
// whatever passes. The earlier of the two ends counts, and names itself.
func TestMaxLifetime(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g, open := gatedPairs(t, p, b, map[string]string{
		"two":   "max_lifetime 2s\nmax_connections 1",
		"keep":  "max_lifetime 2s\non_expiry keep\nmax_connections 1",
		"long":  "max_lifetime 1h\nmax_connections 1",
		"grace": "max_lifetime 1h\nexpiry_grace 2s\nmax_connections 1",
		"kept":  "on_expiry keep\nmax_connections 1",
	})
	ten := time.Now().AddDate(10, 0, 0).Unix()
	for _, v := range []struct {
		name, at, reason string
		exp              int64         // 0: in 2 s
		after            time.Duration // of max_lifetime, or behind exp
	}{
		{"a token of ten years", "two", "lifetime", ten, 2 * time.Second},
		{"the last second there is", "two", "lifetime", 253402300799, 2 * time.Second},
		{"a token that is kept", "keep", "lifetime", 0, 2 * time.Second},
		{"a token that ends sooner", "long", "expired", 0, 0},
	} {
		for busy, traffic := range map[string]func(c *conn, u *upstream){
			"idle": func(*conn, *upstream) {},
			"busy client": func(c *conn, _ *upstream) {
				for {
					if _, err := c.Write(masked(0x82, make([]byte, 5000))); err != nil {
						return
					}
					time.Sleep(time.Millisecond)
				}
			},
			"busy backend": func(_ *conn, u *upstream) {
				for {
					if _, err := u.Conn.Write(unmasked(0x82, make([]byte, 5000))); err != nil {
						return
					}
					time.Sleep(time.Millisecond)
				}
			},
		} {
			t.Run(v.name+", "+busy, func(t *testing.T) {
				t.Parallel()
				user, exp := v.name+busy, v.exp
				if exp == 0 {
					exp = time.Now().Unix() + 2
				}
				begin := time.Now()
				c, u := open(t, v.at, claims{"sub": user, "exp": exp})
				if v.reason == "expired" {
					begin = time.Unix(exp, 0)
				}
				go traffic(c, u)
				backend := make(chan error, 1)
				go func() { backend <- untilClose(u, 1001) }()
				for f := range c.frames() {
					switch {
					case f.opcode() == 8:
						if f.code() != 3000 {
							t.Errorf("close code %d, want 3000", f.code())
						}
					case f.opcode() == 9:
					case f.first != 0x82 || len(f.payload) != 5000:
						t.Fatalf("frame %x of %d bytes", f.first, len(f.payload))
					}
				}
				if d := time.Since(begin) - v.after; d < -100*time.Millisecond || d > 8*time.Second {
					t.Errorf("closed %v after it was due", d)
				}
				if err := <-backend; err != nil {
					t.Error(err)
				}
				again, _ := open(t, v.at, claims{"sub": user}) // the place is free
				again.Close()
				c.Close()
				u.Close()
				g.wantEnd(t, user, v.reason, 3000)
			})
		}
	}
	t.Run("grace", func(t *testing.T) {
		t.Parallel()
		exp := time.Now().Add(2 * time.Second).Truncate(time.Second)
		c, _ := open(t, "grace", claims{"sub": "grace", "exp": exp.Unix()})
		c.expectClose(3000)
		if d := time.Since(exp); d < 1900*time.Millisecond || d > 10*time.Second {
			t.Errorf("closed %v after expiry, want at least 2 s", d)
		}
		c.Close()
		g.wantEnd(t, "grace", "expired", 3000)
	})
	t.Run("kept without end", func(t *testing.T) {
		t.Parallel()
		exp := time.Now().Add(2 * time.Second).Truncate(time.Second)
		c, u := open(t, "kept", claims{"sub": "kept", "exp": exp.Unix()})
		time.Sleep(time.Until(exp) + 2*time.Second)
		f := masked(0x81, []byte("x"))
		c.send(f)
		u.expectBytes(f)
	})
}

// untilClose reads data frames up to a close frame of this code.
func untilClose(u *upstream, code int) error {
	for {
		u.SetReadDeadline(time.Now().Add(patience))
		f, err := readFrame(u.br)
		switch {
		case err != nil:
			return fmt.Errorf("the backend got no close frame: %w", err)
		case f.opcode() == 8 && f.code() != code:
			return fmt.Errorf("the backend got close code %d, want %d", f.code(), code)
		case f.opcode() == 8:
			return nil
		case f.opcode() < 8 && (f.first != 0x82 || len(f.payload) != 5000):
			return fmt.Errorf("the backend got frame %x of %d bytes", f.first, len(f.payload))
		}
	}
}

// S-180, S-162: a token that expires during a message of 100 MB: what is on
// its way is not broken into. If the message ends within the 5 s, the close
// frame is behind it; if not, the socket is cut. Either way the place is free
// when the token is over.
func TestExpiryWithinLargeMessage(t *testing.T) {
	t.Parallel()
	size := 100 << 20
	if testing.Short() {
		size = 10 << 20
	}
	p := newIDP(t)
	b := newBackend(t)
	g, open := gatedPairs(t, p, b, map[string]string{"a": "max_connections 1"})
	block := random(1 << 20)
	whole := sha256.New()
	for range size / len(block) {
		whole.Write(block)
	}
	sum := whole.Sum(nil)
	// stream sends a frame whose second half waits for more.
	stream := func(w io.Writer, head []byte, more <-chan struct{}) error {
		if _, err := w.Write(head); err != nil {
			return err
		}
		for i := range size / len(block) {
			if i == size/len(block)/2 {
				<-more
			}
			if _, err := w.Write(block); err != nil {
				return err
			}
		}
		return nil
	}
	// take reads such a frame, or what there is of it before the end.
	take := func(r io.Reader, head []byte) (n int64, err error) {
		got := make([]byte, len(head))
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, head) {
			return 0, fmt.Errorf("header %x, want %x: %w", got, head, err)
		}
		sum256 := sha256.New()
		n, err = io.CopyN(sum256, r, int64(size))
		if err == nil && !bytes.Equal(sum256.Sum(nil), sum) {
			err = fmt.Errorf("the message changed")
		}
		return n, err
	}
	up := append(header(0x82, true, size), 0, 0, 0, 0)
	down := header(0x82, false, size)
	for _, from := range []string{"client", "backend"} {
		for _, finishes := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s sends, finishes %v", from, finishes), func(t *testing.T) {
				t.Parallel()
				user := fmt.Sprint(from, finishes)
				exp := time.Now().Add(4 * time.Second).Truncate(time.Second)
				c, u := open(t, "a", claims{"sub": user, "exp": exp.Unix()})
				far := time.Now().Add(4 * patience)
				c.SetDeadline(far)
				u.SetDeadline(far)
				more := make(chan struct{})
				type got struct {
					n   int64
					err error
				}
				taken := make(chan got, 1)
				if from == "client" {
					go func() { _ = stream(c.Conn, up, more) }()
					go func() {
						n, err := take(u.br, up)
						taken <- got{n, err}
					}()
					// The other direction is free: its close frame comes in time.
					f, err := readFrame(c.br)
					if err != nil || f.code() != 3000 {
						t.Fatalf("the client got frame %x (%d), %v; want 3000", f.first, f.code(), err)
					}
				} else {
					go func() { _ = stream(u.Conn, down, more) }()
					go func() {
						n, err := take(c.br, down)
						taken <- got{n, err}
					}()
					f, err := readFrame(u.br)
					if err != nil || f.code() != 1001 {
						t.Fatalf("the backend got frame %x (%d), %v; want 1001", f.first, f.code(), err)
					}
				}
				if d := time.Since(exp); d < -100*time.Millisecond || d > 8*time.Second {
					t.Errorf("closed %v after the token expired", d)
				}
				again, _ := open(t, "a", claims{"sub": user})
				again.Close()
				if finishes {
					close(more)
				} else {
					defer close(more)
				}
				r := <-taken
				switch {
				case finishes && r.err != nil:
					// On a machine that needs more than 5 s for the rest, the cut is right.
					if d := time.Since(exp); d < 4*time.Second {
						t.Errorf("%d bytes of the message, %v", r.n, r.err)
					}
					return
				case !finishes:
					if r.err == nil || r.n > int64(size/2) {
						t.Errorf("%d bytes of the message, %v; want no more than half", r.n, r.err)
					}
					if d := time.Since(exp); d < 4*time.Second || d > 15*time.Second {
						t.Errorf("cut %v after the token expired, want 5 s", d)
					}
					if r.n != int64(size/2) {
						t.Logf("%d of %d bytes were through", r.n, size/2)
					}
					return
				}
				if from == "client" {
					u.expectClose(1001)
				} else {
					c.expectClose(3000)
				}
			})
		}
	}
	_ = g
}

// S-180: a socket whose client does not read ends as well; its place is free
// when the token expires, not when the socket is cut.
func TestExpiryBesideStuckClient(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g, open := gatedPairs(t, p, b, map[string]string{"a": "max_connections 1\nping_interval 0"})
	exp := time.Now().Add(3 * time.Second).Truncate(time.Second)
	_, u := open(t, "a", claims{"exp": exp.Unix()})
	blocked := make(chan time.Time, 1)
	go func() {
		piece := unmasked(0x82, make([]byte, 1<<16))
		u.SetWriteDeadline(time.Now().Add(2 * patience))
		for {
			if _, err := u.Conn.Write(piece); err != nil {
				blocked <- time.Now()
				return
			}
		}
	}()
	u.expectClose(1001) // at once, though the client takes nothing
	if d := time.Since(exp); d < -100*time.Millisecond || d > 8*time.Second {
		t.Errorf("the backend was told %v after the token expired", d)
	}
	again, _ := open(t, "a", nil)
	again.Close()
	if d := (<-blocked).Sub(exp); d < 4*time.Second || d > 15*time.Second {
		t.Errorf("cut %v after the token expired, want 5 s", d)
	}
	g.wantEnd(t, "alice", "expired", 3000)
}

// S-164: clients that never read while their backends push. For each such
// socket the gate keeps one read buffer of 32 KiB and little besides; what else
// stands in the way is in the kernel's buffers, and not the gate's. So 64 KiB a
// socket is the bound, and the ping timeout ends them all, which frees their
// places. In CI each backend pushes as much as goes in, up to 32 MiB; the bound
// does not depend on that.
func TestClientsThatNeverRead(t *testing.T) {
	t.Parallel()
	const sockets, perSocket = 100, 64 << 10
	push := 32 << 20
	if *long {
		push = 1 << 30
	}
	p := newIDP(t)
	b := newBackend(t)
	g, open := gatedPairs(t, p, b, map[string]string{
		"a":    fmt.Sprintf("max_connections %d\nping_interval 15s\npong_timeout 3s", sockets),
		"free": "ping_interval 0",
	})
	// What is made at first use, and the garbage of as many handshakes.
	var idle []*conn
	for range sockets {
		c, _ := open(t, "free", nil)
		idle = append(idle, c)
	}
	rss, live := g.rss(), g.live()
	var wg sync.WaitGroup
	var pushed, failed atomic.Int64
	token := p.token(g, nil)
	for range sockets {
		c, a := g.thrifty(at("a", token))
		if c == nil {
			t.Fatalf("status %d (%v), want 101", a.status, a.err)
		}
		t.Cleanup(func() { c.Close() })
		u := b.next(t)
		wg.Go(func() {
			piece := unmasked(0x82, make([]byte, 1<<16))
			u.SetWriteDeadline(time.Now().Add(4 * patience))
			for n := 0; ; {
				k, err := u.Conn.Write(piece)
				n += k
				pushed.Add(int64(k))
				if err != nil {
					return
				}
				if n >= push {
					failed.Add(1)
					return
				}
			}
		})
	}
	g.refused(t, at("a", token), http.StatusTooManyRequests)
	time.Sleep(time.Second) // what goes in is in
	if grown := g.live() - live; grown > sockets*perSocket {
		t.Errorf("%d clients that do not read take %d KiB of live memory, want at most %d", sockets, grown>>10, sockets*perSocket>>10)
	} else {
		t.Logf("%d KiB of live memory a socket, %d KiB of RSS, %d KiB in the kernel's buffers", grown/sockets>>10, (g.rss()-rss)/sockets>>10, pushed.Load()/sockets>>10)
	}
	// The race detector's shadow of memory is no matter of the gate's.
	if grown, limit := g.rss()-rss, 2*sockets*perSocket; grown > limit && !raced {
		t.Errorf("%d clients that do not read take %d KiB of RSS, want at most %d", sockets, grown>>10, limit>>10)
	}
	wg.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("all of %d MiB went to %d clients that do not read", push>>20, n)
	}
	eventually(t, "the ping timeout of all", func() bool {
		ended := 0
		for _, e := range g.entries("connection closed") {
			if e["close_reason"] == "ping_timeout" {
				ended++
			}
		}
		return ended == sockets
	})
	intact(t, g, at("a", token), sockets)
	for _, c := range idle {
		c.Close()
	}
}

// thrifty is attempt by a client whose receive buffer is the smallest there is.
func (g *gate) thrifty(h handshake) (*conn, answer) {
	d := net.Dialer{Timeout: patience, Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	return g.attemptBy(d, h)
}

// live is the memory in use after a collection: the heap, and the stacks of
// goroutines.
func (g *gate) live() int {
	resp, err := adminClient.Get("http://" + g.admin + "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	var heap, stack int
	for _, line := range strings.Split(string(content), "\n") {
		_, _ = fmt.Sscanf(line, "# HeapAlloc = %d", &heap)
		_, _ = fmt.Sscanf(line, "# Stack = %d", &stack)
	}
	if heap == 0 || stack == 0 {
		g.t.Fatal("the heap's profile tells no sizes")
	}
	return heap + stack
}
