package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// closePayloads are close frames' payloads; the last bool tells that either a
// byte-identical relay or 1002 is right (S-174).
var closePayloads = []struct {
	name    string
	payload []byte
	odd     bool
}{
	{"1000 bye", closing(1000, "bye"), false},
	{"3000", closing(3000, ""), false},
	{"4999", closing(4999, "application"), false},
	{"empty", nil, false},
	{"1001 x", closing(1001, "x"), false},
	{"123 bytes of reason", closing(1000, strings.Repeat("r", 123)), false},
	{"one byte", []byte{3}, true},
	{"0", closing(0, ""), true}, {"999", closing(999, ""), true}, {"1004", closing(1004, ""), true}, {"1005", closing(1005, ""), true},
	{"1006", closing(1006, ""), true}, {"1015", closing(1015, ""), true}, {"1016", closing(1016, ""), true}, {"2999", closing(2999, ""), true},
	{"5000", closing(5000, ""), true}, {"65535", closing(65535, ""), true},
	{"bad UTF-8", closing(1000, "\xc3\x28"), true},
}

// S-170, S-171, S-174: the close handshake goes through and completes.
func TestCloseHandshake(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	for _, secure := range []bool{false, true} {
		g := wiring{idp: p, upstream: b.addr, tls: secure, gate: "ping_interval 100ms\npong_timeout 60s"}.start(t)
		for _, v := range closePayloads {
			t.Run(fmt.Sprintf("tls %v, from the client, %s", secure, v.name), func(t *testing.T) {
				c, u := pair(t, g, p, b)
				sent := masked(0x88, v.payload)
				c.send(sent)
				f := u.read()
				if v.odd && f.first == 0x88 && f.code() == 1001 && !bytes.Equal(f.raw, sent) {
					c.expectClose(1002)
					return
				}
				if !bytes.Equal(f.raw, sent) {
					t.Fatalf("the backend got %x, want %x", f.raw, sent)
				}
				reply := unmasked(0x88, v.payload)
				time.Sleep(150 * time.Millisecond) // room for a ping that must not come any more
				u.send(reply)
				for {
					f := c.read()
					if f.first == 0x89 {
						continue // sent before the close frame came
					}
					if !bytes.Equal(f.raw, reply) {
						t.Fatalf("the client got %x, want %x", f.raw, reply)
					}
					break
				}
				u.Close() // the server closes first, RFC 6455 section 7.1.1
				if rest := c.rest(); rest != "" {
					t.Errorf("%x behind the close frame", rest)
				}
			})
			t.Run(fmt.Sprintf("tls %v, from the backend, %s", secure, v.name), func(t *testing.T) {
				c, u := pair(t, g, p, b)
				sent := unmasked(0x88, v.payload)
				u.send(sent)
				f := c.read()
				for f.first == 0x89 {
					f = c.read()
				}
				if v.odd && f.first == 0x88 && f.code() == 1001 && !bytes.Equal(f.raw, sent) {
					u.expectClose(1002)
					return
				}
				if !bytes.Equal(f.raw, sent) {
					t.Fatalf("the client got %x, want %x", f.raw, sent)
				}
				time.Sleep(150 * time.Millisecond)
				reply := masked(0x88, v.payload)
				c.send(reply)
				u.expectBytes(reply)
				u.Close()
				if rest := c.rest(); rest != "" { // no ping behind the close frame
					t.Errorf("%x behind the close frame", rest)
				}
			})
		}
	}
}

// A side that gets a close frame and never answers does not keep the socket.
func TestCloseUnanswered(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr}.start(t)
	t.Run("by the backend", func(t *testing.T) {
		t.Parallel()
		c, u := pair(t, g, p, b)
		start := time.Now()
		c.send(masked(0x88, closing(1000, "bye")))
		u.expectClose(1000)
		u.expectEnd()
		c.rest()
		if d := time.Since(start); d > 12*time.Second {
			t.Errorf("cut after %v, want 5 s", d)
		}
	})
	t.Run("by the client", func(t *testing.T) {
		t.Parallel()
		c, u := pair(t, g, p, b)
		start := time.Now()
		u.send(unmasked(0x88, closing(1000, "bye")))
		c.expectClose(1000)
		c.rest()
		u.expectEnd()
		if d := time.Since(start); d > 12*time.Second {
			t.Errorf("cut after %v, want 5 s", d)
		}
	})
	t.Run("data behind a close frame", func(t *testing.T) {
		t.Parallel()
		c, u := pair(t, g, p, b)
		c.send(append(masked(0x88, closing(1000, "")), masked(0x81, []byte("late"))...))
		u.expectClose(1000)
		// What follows a close frame has no meaning (RFC 6455 section 5.5.1);
		// it may be dropped or refused, and nothing waits for it.
		u.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(u.br); err != nil && !isReset(err) {
			t.Errorf("the connection did not end: %v", err)
		}
		c.rest()
	})
}

// S-169: a backend that vanishes at a frame boundary.
func TestBackendLost(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			t.Parallel()
			g := wiring{idp: p, upstream: b.addr, tls: secure}.start(t)
			last := unmasked(0x81, []byte("last words"))
			for name, lose := range map[string]func(u *upstream){
				"FIN": func(u *upstream) { u.Close() },
				"RST": func(u *upstream) { u.reset() },
			} {
				t.Run(name+" idle", func(t *testing.T) {
					c, u := pair(t, g, p, b)
					start := time.Now()
					lose(u)
					c.expectClose(1014)
					if d := time.Since(start); d > 5*time.Second {
						t.Errorf("told after %v, want at most 1 s", d)
					}
					c.rest()
				})
				t.Run(name+" mid-frame", func(t *testing.T) { // S-168
					c, u := pair(t, g, p, b)
					part := unhex("82 7E 0400 01020304050607080900")
					u.send(part)
					c.expectBytes(part)
					lose(u)
					if rest := c.rest(); rest != "" {
						t.Errorf("%x inside an unfinished frame", rest)
					}
				})
				t.Run(name+" mid-header", func(t *testing.T) {
					c, u := pair(t, g, p, b)
					u.send(unhex("82 7E 04"))
					time.Sleep(50 * time.Millisecond)
					lose(u)
					// A header that was not passed on yet is no frame: 1014 then, else nothing.
					rest := c.rest()
					if rest != "" && !strings.HasPrefix(rest, "\x88") && rest != string(unhex("82 7E 04")) {
						t.Errorf("the client got %x", rest)
					}
				})
				t.Run(name+" between fragments", func(t *testing.T) {
					c, u := pair(t, g, p, b)
					part := unmasked(0x01, []byte("first"))
					u.send(part)
					c.expectBytes(part)
					lose(u)
					c.expectClose(1014)
				})
			}
			t.Run("what it sent before is delivered", func(t *testing.T) {
				c, u := pair(t, g, p, b)
				sent := append(unmasked(0x82, random(300_000)), last...)
				u.send(sent)
				u.Close()
				c.expectBytes(sent)
				c.expectClose(1014)
			})
			t.Run("while the client sends", func(t *testing.T) {
				c, u := pair(t, g, p, b)
				stop := make(chan struct{})
				go func() {
					defer close(stop)
					for {
						c.SetWriteDeadline(time.Now().Add(patience))
						if _, err := c.Write(masked(0x82, make([]byte, 10_000))); err != nil {
							return
						}
					}
				}()
				time.Sleep(100 * time.Millisecond)
				u.reset()
				c.SetReadDeadline(time.Now().Add(patience))
				got, err := io.ReadAll(c.br)
				if err != nil && !isReset(err) {
					t.Fatalf("the connection did not end: %v", err)
				}
				if len(got) > 0 && (got[0] != 0x88 || len(got) < 4 || frameCode(got) != 1014) {
					t.Errorf("the client got %x", got[:min(len(got), 40)])
				}
				<-stop
			})
			t.Run("its close frame behind a failed write", func(t *testing.T) {
				// The backend closes properly while the client's data is in flight: the
				// client must get the close frame, though writing to the backend fails.
				c, u := pair(t, g, p, b)
				go func() {
					for {
						c.SetWriteDeadline(time.Now().Add(5 * time.Second))
						if _, err := c.Write(masked(0x82, make([]byte, 1000))); err != nil {
							return
						}
					}
				}()
				u.read()
				u.send(unmasked(0x88, closing(4001, "enough")))
				if tcp, ok := u.Conn.(*net.TCPConn); ok {
					_ = tcp.CloseWrite()
				}
				go func() { _, _ = io.Copy(io.Discard, u.br) }() // takes what is in flight
				c.expectClose(4001)
			})
		})
	}
}

func frameCode(raw []byte) int { return int(raw[2])<<8 | int(raw[3]) }

// S-167: a client that is gone takes the backend's end with it, soon.
func TestClientLost(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			t.Parallel()
			g := wiring{idp: p, upstream: b.addr, tls: secure}.start(t)
			for name, lose := range map[string]func(c *conn){
				"RST": func(c *conn) { c.reset() },
				"FIN": func(c *conn) { c.Close() },
			} {
				t.Run(name+" idle", func(t *testing.T) {
					t.Parallel()
					c, u := pair(t, g, p, b)
					start := time.Now()
					lose(c)
					u.expectEndOrClose()
					if d := time.Since(start); d > 12*time.Second {
						t.Errorf("the backend's end was closed after %v", d)
					}
				})
				t.Run(name+" mid-frame", func(t *testing.T) {
					t.Parallel()
					c, u := pair(t, g, p, b)
					part := unhex("82 FE 0400 00000000 0102030405")
					c.send(part)
					u.expectBytes(part)
					lose(c)
					u.expectEnd() // no close frame inside a frame
				})
				t.Run(name+" while the backend sends", func(t *testing.T) {
					t.Parallel()
					c, u := pair(t, g, p, b)
					done := make(chan struct{})
					go func() {
						defer close(done)
						u.SetWriteDeadline(time.Now().Add(patience))
						for {
							if _, err := u.Conn.Write(unmasked(0x82, make([]byte, 10_000))); err != nil {
								if !isReset(err) {
									t.Error("the backend can still send")
								}
								return
							}
						}
					}()
					c.read()
					lose(c)
					<-done
				})
			}
			t.Run("half-closed", func(t *testing.T) {
				// A FIN is passed on, what was sent before is delivered, and the
				// other direction goes on meanwhile.
				t.Parallel()
				c, u := pair(t, g, p, b)
				sent := append(masked(0x82, random(200_000)), masked(0x88, closing(1000, ""))...)
				c.send(sent)
				if err := c.closeWrite(); err != nil {
					t.Fatal(err)
				}
				u.expectBytes(sent)
				reply := append(unmasked(0x82, random(200_000)), unmasked(0x88, closing(1000, ""))...)
				u.send(reply)
				c.expectBytes(reply)
				u.expectEnd()
				u.Close()
				c.rest()
			})
			t.Run("half-closed without a close frame", func(t *testing.T) {
				t.Parallel()
				c, u := pair(t, g, p, b)
				sent := masked(0x81, []byte("last words"))
				c.send(sent)
				if err := c.closeWrite(); err != nil {
					t.Fatal(err)
				}
				u.expectBytes(sent)
				// The end is passed on at once, and the other direction goes on
				// until the rest is cut.
				start := time.Now()
				u.expectEnd()
				if d := time.Since(start); d > 4*time.Second {
					t.Errorf("the end was passed on after %v", d)
				}
				reply := unmasked(0x82, random(50_000))
				u.send(reply)
				c.expectBytes(reply)
				c.rest()
				if d := time.Since(start); d > 12*time.Second {
					t.Errorf("cut after %v, want 5 s", d)
				}
			})
		})
	}
}

// S-180: the socket ends with its token, whoever is busy.
func TestExpiry(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			t.Parallel()
			g := wiring{idp: p, upstream: b.addr, tls: secure}.start(t)
			warm, _ := pair(t, g, p, b)
			warm.Close()
			short := func(t *testing.T) (*conn, *upstream, time.Time) {
				exp := time.Now().Add(4 * time.Second).Truncate(time.Second)
				c, u := pairWith(t, g, b, bearer(p.mint("ES256", claims{"exp": exp.Unix()})))
				return c, u, exp
			}
			onTime := func(t *testing.T, exp time.Time) {
				t.Helper()
				if d := time.Since(exp); d < -time.Second || d > 8*time.Second {
					t.Errorf("closed %v after the token expired", d)
				}
			}
			t.Run("idle", func(t *testing.T) {
				t.Parallel()
				c, u, exp := short(t)
				c.expectClose(3000)
				onTime(t, exp)
				u.expectClose(1001)
				u.expectEnd()
				c.rest()
			})
			t.Run("busy client", func(t *testing.T) {
				t.Parallel()
				c, u, exp := short(t)
				go func() {
					for {
						c.SetWriteDeadline(time.Now().Add(patience))
						if _, err := c.Write(masked(0x82, make([]byte, 5000))); err != nil {
							return
						}
						time.Sleep(time.Millisecond)
					}
				}()
				got := make(chan int, 1)
				go func() {
					for {
						u.SetReadDeadline(time.Now().Add(patience))
						f, err := readFrame(u.br)
						if err != nil {
							got <- -1
							return
						}
						if f.opcode() == 8 {
							got <- f.code()
							return
						}
						if f.first != 0x82 || len(f.payload) != 5000 {
							got <- -2
							return
						}
					}
				}()
				c.expectClose(3000)
				onTime(t, exp)
				if code := <-got; code != 1001 {
					t.Errorf("the backend got close code %d, want 1001 between frames", code)
				}
			})
			t.Run("busy backend", func(t *testing.T) {
				t.Parallel()
				c, u, exp := short(t)
				go func() {
					for {
						u.SetWriteDeadline(time.Now().Add(patience))
						if _, err := u.Conn.Write(unmasked(0x82, make([]byte, 5000))); err != nil {
							return
						}
						time.Sleep(time.Millisecond)
					}
				}()
				for {
					f := c.read()
					if f.opcode() == 8 {
						if f.code() != 3000 {
							t.Errorf("close code %d, want 3000", f.code())
						}
						break
					}
					if f.first != 0x82 || len(f.payload) != 5000 {
						t.Fatalf("frame %x of %d bytes", f.first, len(f.payload))
					}
				}
				onTime(t, exp)
			})
			t.Run("in the middle of a frame", func(t *testing.T) {
				t.Parallel()
				c, u, exp := short(t)
				part := unhex("82 7E 0400 01020304050607080900")
				u.send(part)
				c.expectBytes(part)
				// No boundary comes: cut, without a frame inside the frame.
				if rest := c.rest(); rest != "" {
					t.Errorf("%x inside an unfinished frame", rest)
				}
				if d := time.Since(exp); d < -time.Second || d > 14*time.Second {
					t.Errorf("cut %v after the token expired, want 5 s", d)
				}
			})
			t.Run("a client that does not read", func(t *testing.T) {
				t.Parallel()
				_, u, exp := short(t)
				u.SetWriteDeadline(time.Now().Add(patience))
				for {
					if _, err := u.Conn.Write(unmasked(0x82, make([]byte, 1<<16))); err != nil {
						if !isReset(err) {
							t.Error("the socket outlived its token")
						}
						break
					}
				}
				if d := time.Since(exp); d < -time.Second || d > 14*time.Second {
					t.Errorf("cut %v after the token expired", d)
				}
			})
		})
	}
}

// on_expiry keep leaves the socket; expiry_grace and leeway move the end.
func TestExpiryOptions(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	exp := func() (int64, time.Time) {
		e := time.Now().Add(3 * time.Second).Truncate(time.Second)
		return e.Unix(), e
	}
	t.Run("keep", func(t *testing.T) {
		t.Parallel()
		g := wiring{idp: p, upstream: b.addr, gate: "on_expiry keep"}.start(t)
		warm, _ := pair(t, g, p, b)
		warm.Close()
		e, at := exp()
		c, u := pairWith(t, g, b, bearer(p.mint("ES256", claims{"exp": e})))
		time.Sleep(time.Until(at) + 1500*time.Millisecond)
		u.send(unmasked(0x81, []byte("x")))
		c.expectBytes(unmasked(0x81, []byte("x")))
	})
	t.Run("grace", func(t *testing.T) {
		t.Parallel()
		g := wiring{idp: p, upstream: b.addr, gate: "expiry_grace 2s"}.start(t)
		warm, _ := pair(t, g, p, b)
		warm.Close()
		e, at := exp()
		c, _ := pairWith(t, g, b, bearer(p.mint("ES256", claims{"exp": e})))
		c.expectClose(3000)
		if d := time.Since(at); d < 1500*time.Millisecond || d > 10*time.Second {
			t.Errorf("closed %v after expiry, want 2 s", d)
		}
	})
}
