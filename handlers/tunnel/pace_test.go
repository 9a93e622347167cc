package tunnel

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
)

// pace is a rate of so many a second, and a burst.
func pace(perSecond float64, burst int, closes bool) *Pace {
	return &Pace{Bucket: rate.NewLimiter(rate.Limit(perSecond), burst), Close: closes}
}

// limited is a socket without pumps that has limits.
func limited(t testing.TB, l Limits) (s *Socket, client, backend *sink) {
	s, client, backend = still(t, AnyReserved)
	s.in.limiter = newLimiter(l)
	return s, client, backend
}

// data is a message of a client's: one frame with n bytes.
func data(n int) []byte { return frame(0x82, make([]byte, n), true) }

func TestNoLimits(t *testing.T) {
	if newLimiter(Limits{}) != nil {
		t.Error("a socket without limits has a limiter")
	}
	for _, l := range []Limits{{MaxMessage: 1}, {Messages: pace(1, 1, false)}, {Bytes: pace(1, 1, false)}} {
		if newLimiter(l) == nil {
			t.Errorf("no limiter for %+v", l)
		}
	}
}

// What comes too fast is held back, each message to its own time, also where
// one read brings them all; the burst goes at once.
func TestMessagesAreDelayed(t *testing.T) {
	for _, chunk := range []int{1, 2, 5, 6, 7, 100, bufferSize} {
		t.Run(fmt.Sprintf("%d bytes a read", chunk), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _, backend := limited(t, Limits{Messages: pace(10, 3, false)})
				var all []byte
				for range 20 {
					all = append(all, data(10)...)
				}
				begin := time.Now()
				for rest := all; len(rest) > 0; {
					n := min(chunk, len(rest))
					feed(&s.in, rest[:n])
					rest = rest[n:]
					// Of so many messages at most 3, and one for each tenth of a second, is
					// there a byte.
					most := 3 + int(time.Since(begin)/(100*time.Millisecond))
					if got := (len(backend.written) + 15) / 16; got > most {
						t.Fatalf("%d messages after %v", got, time.Since(begin))
					}
				}
				if !bytes.Equal(backend.written, all) {
					t.Errorf("%d bytes came out, %d went in", len(backend.written), len(all))
				}
				if d := time.Since(begin); d < 1699*time.Millisecond || d > 1701*time.Millisecond {
					t.Errorf("took %v, want 1.7 s", d)
				}
				if in, _ := s.Traffic(); in != (Traffic{20, 200}) {
					t.Errorf("counted %+v", in)
				}
			})
		})
	}
}

// Fragments are one message, control frames none.
func TestMessagesAreCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, backend := limited(t, Limits{Messages: pace(1, 1, true)})
		all := frame(0x01, []byte("first"), true)
		for range 50 {
			all = append(all, frame(0x00, []byte("more"), true)...)
			all = append(all, frame(0x89, []byte("ping"), true)...)
			all = append(all, frame(0x8A, nil, true)...)
		}
		all = append(all, frame(0x80, nil, true)...)
		feed(&s.in, all)
		if !bytes.Equal(backend.written, all) || s.Ending() {
			t.Errorf("%d of %d bytes came out, ending: %v", len(backend.written), len(all), s.Ending())
		}
		feed(&s.in, data(1))
		if !s.Ending() {
			t.Error("the second message passed")
		}
	})
}

// A frame is counted once, though it is looked at again when its time has
// come: neither its bytes nor its message are paid twice.
func TestHeldFrameIsPaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		messages, payload := pace(1, 1, false), pace(1, 100, true)
		s, _, backend := limited(t, Limits{Messages: messages, Bytes: payload, MaxMessage: 30})
		begin := time.Now()
		all := append(data(30), data(30)...)
		feed(&s.in, all)
		if !bytes.Equal(backend.written, all) || s.Ending() {
			t.Errorf("%d of %d bytes came out, ending: %v", len(backend.written), len(all), s.Ending())
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("took %v", d)
		}
		if left := payload.Bucket.Tokens(); left < 40.9 || left > 41.1 { // 100 - 60 + 1 s
			t.Errorf("%v bytes are left of 100", left)
		}
		if left := messages.Bucket.Tokens(); left > 0.01 {
			t.Errorf("%v messages are left", left)
		}
	})
}

// A header that ends in the next read waits in held, and counts when it is
// whole; so does one in the middle of what a rate cuts into pieces.
func TestHeaderAcrossReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, backend := limited(t, Limits{Messages: pace(1, 1, true)})
		f := data(70_000) // a header of 14 bytes
		for i := range 13 {
			feed(&s.in, f[i:i+1])
		}
		if s.in.limiter.Messages.Bucket.Tokens() != 1 || len(backend.written) != 0 {
			t.Error("counted, or passed on, before the header was there")
		}
		feed(&s.in, f[13:100])
		if n := s.in.limiter.Messages.Bucket.Tokens(); n > 0.01 || !bytes.Equal(backend.written, f[:100]) {
			t.Errorf("%v messages are left, %d bytes came out", n, len(backend.written))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		// Frames of 507 bytes on pieces of 512: headers are cut at every place.
		s, _, backend := limited(t, Limits{Bytes: pace(10_000, 1, false)})
		var all []byte
		for range 60 {
			all = append(all, data(499)...)
		}
		feed(&s.in, all)
		if !bytes.Equal(backend.written, all) {
			t.Errorf("%d bytes came out, %d went in", len(backend.written), len(all))
		}
	})
}

// Bytes pass in pieces, none before its time; a frame above the burst is no
// exception and does not get stuck.
func TestBytesAreDelayed(t *testing.T) {
	for _, v := range []struct{ rate, burst, size, frames int }{
		{1000, 100, 5000, 1},
		{1000, 1000, 100, 50},
		{1000, 1, 3000, 1}, // a burst below the least piece
		{100_000, 64 << 10, bufferSize - 20, 8},
		{1000, 300, 0, 100}, // empty messages have no bytes
	} {
		t.Run(fmt.Sprintf("%+v", v), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _, backend := limited(t, Limits{Bytes: pace(float64(v.rate), v.burst, false)})
				begin := time.Now()
				total := 0
				for range v.frames {
					f := data(v.size)
					total += v.size
					before := len(backend.written)
					for rest := f; len(rest) > 0; {
						n := min(bufferSize, len(rest))
						feed(&s.in, rest[:n])
						rest = rest[n:]
					}
					if !bytes.Equal(backend.written[before:], f) {
						t.Fatal("a frame changed")
					}
					// What came is within the burst and the rate.
					due := time.Duration(float64(total-v.burst) / float64(v.rate) * float64(time.Second))
					if d := time.Since(begin); d < due-time.Millisecond {
						t.Fatalf("%d bytes after %v", total, d)
					}
				}
				due := max(0, time.Duration(float64(total-v.burst)/float64(v.rate)*float64(time.Second)))
				if d := time.Since(begin); d > due+10*time.Millisecond {
					t.Errorf("%d bytes took %v, want %v", total, d, due)
				}
			})
		})
	}
}

// Sockets that share a bucket share the rate.
func TestSharedBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := pace(10, 5, false)
		begin := time.Now()
		done := make(chan bool)
		for range 3 {
			s, _, _ := limited(t, Limits{Messages: shared})
			go func() {
				for range 10 {
					feed(&s.in, data(1))
				}
				done <- true
			}()
		}
		for range 3 {
			<-done
		}
		if d := time.Since(begin); d < 2499*time.Millisecond || d > 2600*time.Millisecond {
			t.Errorf("30 messages of 3 sockets took %v, want 2.5 s", d)
		}
	})
}

// S-184: a message is judged by what its headers say, over all fragments;
// nothing of the frame that exceeds the limit goes on, whatever came before.
func TestMaxMessage(t *testing.T) {
	fragment := func(b0 byte, n int) []byte { return frame(b0, make([]byte, n), true) }
	join := func(frames ...[]byte) []byte { return bytes.Join(frames, nil) }
	for _, v := range []struct {
		name         string
		pass, excess []byte
	}{
		{"exactly", data(1000), nil},
		{"one more", nil, data(1001)},
		{"exactly, in fragments", join(fragment(2, 500), fragment(0, 0), fragment(0x80, 500)), nil},
		{"one more, in fragments", join(fragment(2, 500), fragment(0, 500)), fragment(0x80, 1)},
		{"control frames between", join(fragment(2, 999), fragment(0x89, 125), fragment(0x8A, 125), fragment(0x80, 1)), nil},
		{"the next message begins at 0", join(data(1000), data(1000), fragment(1, 600), fragment(0x80, 400), data(1000)), nil},
		{"behind good ones", join(data(1000), fragment(1, 600)), fragment(0x80, 401)},
		{"2^63-1", nil, unhex(t, "82 FF 7FFFFFFFFFFFFFFF 00000000")},
		{"no overflow", fragment(2, 10), unhex(t, "80 FF 7FFFFFFFFFFFFFFF 00000000")},
	} {
		for _, chunk := range []int{1, 7, 1 << 14} {
			t.Run(fmt.Sprintf("%s, %d bytes a read", v.name, chunk), func(t *testing.T) {
				s, client, backend := limited(t, Limits{MaxMessage: 1000})
				for rest := join(v.pass, v.excess); len(rest) > 0; {
					n := min(chunk, len(rest))
					feed(&s.in, rest[:n])
					rest = rest[n:]
				}
				if v.excess == nil {
					if !bytes.Equal(backend.written, v.pass) || s.Ending() {
						t.Errorf("%d of %d bytes came out, ending: %v", len(backend.written), len(v.pass), s.Ending())
					}
					return
				}
				s.in.flush() // as Close has it done, but now
				s.out.flush()
				s.in.mu.Lock()
				defer s.in.mu.Unlock()
				s.out.mu.Lock()
				defer s.out.mu.Unlock()
				rest, ok := bytes.CutPrefix(backend.written, v.pass)
				if frames, n, _ := (reference{true, Reserved{}}).parse(rest); !ok || n != len(rest) || len(frames) != 1 || frames[0].code() != CodeGoingAway {
					t.Errorf("%d bytes were to pass; %d came out", len(v.pass), len(backend.written))
				}
				if want := closeFrame(CodeTooBig, "message too big", false); !bytes.Equal(client.written, want) {
					t.Errorf("the client got %x", client.written)
				}
			})
		}
	}
}

// A socket that is cut does not wait for its rate.
func TestCutEndsTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften, Limits: Limits{Messages: pace(1.0/3600, 1, false)}}, 1000)
		f := data(1)
		u.client.send(f, f)
		u.backend.expect(f)
		begin := time.Now()
		u.Close(CauseExpired)
		u.client.expectClose(CodeUnauthorized, "token expired")
		u.backend.expectClose(CodeGoingAway, "")
		u.endsBy(ByGate, "expired", CodeUnauthorized)
		if d := time.Since(begin); d != closeGrace {
			t.Errorf("ended after %v, want %v", d, closeGrace)
		}
	})
}

// While a client is held back it is not read, and can't answer pings: its
// clock stands still, for as long as it takes. (S-182)
func TestDelayIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{Policy: everySoOften, Limits: Limits{Messages: pace(1.0/600, 1, false)}}, 1000)
		u.client.send(data(1), data(1))
		begin := time.Now()
		u.backend.patience = time.Hour
		u.backend.read(2 * len(data(1)))
		if d := time.Since(begin); d < 599*time.Second || d > 601*time.Second {
			t.Errorf("the second message took %v", d)
		}
		if s := u.endsBy(ByGate, "ping_timeout", CodeTimeout); s.Duration < 600*time.Second+everySoOften.patience() {
			t.Errorf("ended after %v: the clock did not begin anew", s.Duration)
		}
	})
}

// FuzzPace sends streams of frames through delays of every size, in reads of
// every size: what comes out is what went in, and no sooner than it may.
func FuzzPace(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0}, uint16(1), uint16(1), uint16(600))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 30, 11, 31, 13, 29}, uint16(3), uint16(100), uint16(17))
	f.Add(bytes.Repeat([]byte{0, 1, 28, 9, 31, 40, 5}, 20), uint16(0), uint16(511), uint16(1))
	f.Add(bytes.Repeat([]byte{8, 1, 30, 200, 1}, 20), uint16(40), uint16(0), uint16(33))
	f.Fuzz(func(t *testing.T, p []byte, messages, burst, chunk uint16) {
		if len(p) > 2000 {
			return
		}
		made := (&tape{p}).stream(true, false, nil)
		var want []byte
		count, size, pausing := 0, 0, false
		for _, piece := range made {
			want = append(want, piece.raw...)
			if piece.raw[0]&15 == opClose {
				break // nothing counts behind it
			}
			size += piece.data
			if piece.message {
				count++
			}
		}
		synctest.Test(t, func(t *testing.T) {
			l := Limits{}
			if messages > 0 {
				l.Messages = pace(100, int(messages), false)
			}
			if burst > 0 {
				l.Bytes = pace(10_000, int(burst), false)
			}
			if l == (Limits{}) {
				return
			}
			s, _, backend := limited(t, l)
			begin := time.Now()
			for rest := want; len(rest) > 0 && !pausing; {
				n := min(max(1+int(chunk)%bufferSize, len(want)/1000), len(rest))
				feed(&s.in, rest[:n])
				rest = rest[n:]
				pausing = s.in.blind
			}
			if !bytes.Equal(backend.written, want) {
				t.Fatalf("%d bytes came out, %d went in", len(backend.written), len(want))
			}
			due := time.Duration(0)
			if messages > 0 {
				due = time.Duration(count-int(messages)) * 10 * time.Millisecond
			}
			if burst > 0 {
				due = max(due, time.Duration(size-int(burst))*100*time.Microsecond)
			}
			if d := time.Since(begin); d < due-time.Millisecond {
				t.Errorf("%d messages of %d bytes after %v, want %v", count, size, d, due)
			}
			if in, _ := s.Traffic(); in != (Traffic{uint64(count), uint64(size)}) {
				t.Errorf("counted %+v, were %d messages of %d bytes", in, count, size)
			}
		})
	})
}

// The way of a message past every limit takes no memory.
func TestLimitsAllocateNothing(t *testing.T) {
	s, _, _ := limited(t, Limits{MaxMessage: 1 << 20, Messages: pace(1e9, 1<<30, false), Bytes: pace(1e12, 1<<30, false)})
	s.backend.conn = nowhere{s.backend.conn.(*sink)}
	f := data(100)
	if n := testing.AllocsPerRun(1000, func() { feed(&s.in, f) }); n > 0 {
		t.Errorf("%v allocations a message", n)
	}
}

// nowhere keeps nothing.
type nowhere struct{ *sink }

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkLimits is what limits cost a message of 128 bytes that none of
// them holds back.
func BenchmarkLimits(b *testing.B) {
	for name, l := range map[string]Limits{
		"none":       {},
		"size":       {MaxMessage: 1 << 20},
		"messages":   {Messages: pace(1e9, 1<<30, false)},
		"bytes":      {Bytes: pace(1e12, 1<<30, false)},
		"everything": {MaxMessage: 1 << 20, Messages: pace(1e9, 1<<30, true), Bytes: pace(1e12, 1<<30, true)},
	} {
		b.Run(name, func(b *testing.B) {
			s, _, _ := limited(b, l)
			s.backend.conn = nowhere{s.backend.conn.(*sink)}
			f := data(128)
			b.ReportAllocs()
			for b.Loop() {
				feed(&s.in, f)
			}
		})
	}
}
