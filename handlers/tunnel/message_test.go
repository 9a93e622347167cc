package tunnel

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A message is one frame in the shortest form, final, without reserved bits,
// unmasked, and text is UTF-8 whatever it was made of.
func TestMessages(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
		text := strings.Repeat("x", n)
		if got, want := TextMessage(text), frame(0x81, []byte(text), false); !bytes.Equal(got, want) {
			t.Errorf("%d bytes of text: %.20x, want %.20x", n, got, want)
		}
		if got, want := BinaryMessage([]byte(text)), frame(0x82, []byte(text), false); !bytes.Equal(got, want) {
			t.Errorf("%d bytes of data: %.20x, want %.20x", n, got, want)
		}
	}
	if got, want := TextMessage("a\xffb\xed\xa0\x80"), frame(0x81, []byte("a\uFFFDb\uFFFD"), false); !bytes.Equal(got, want) {
		t.Errorf("invalid UTF-8: %x, want %x", got, want)
	}
	if got, want := BinaryMessage([]byte("\xff\x00")), frame(0x82, []byte("\xff\x00"), false); !bytes.Equal(got, want) {
		t.Errorf("data: %x, want %x", got, want)
	}
}

// post is Send without its goroutine: what it wants is put in at once.
func post(t testing.TB, s *Socket, message []byte) {
	t.Helper()
	s.mu.Lock()
	s.queue = append(s.queue, message)
	s.mu.Unlock()
	s.out.want(pendingMessage)
}

// A message goes in at the end of the backend's message that is under way, and
// at no boundary within it, wherever it is asked for.
func TestMessageBetweenMessages(t *testing.T) {
	messages := [][][]byte{
		{frame(0x41, []byte("first"), false), frame(0x89, nil, false), frame(0x00, make([]byte, 200), false), frame(0x80, []byte("last"), false)},
		{frame(0x8A, []byte("pong"), false)},
		{frame(0xC2, make([]byte, 300), false)},
		{frame(0x81, nil, false)},
	}
	var stream []byte
	var between []int // where messages begin, and the end
	var heads []int   // how many bytes of the next message's header have not gone on before it is complete
	for _, m := range messages {
		between = append(between, len(stream))
		head := 2
		if n := len(m[0]); n > 127 {
			head = 4
		}
		heads = append(heads, head)
		stream = append(stream, bytes.Join(m, nil)...)
	}
	between = append(between, len(stream))
	ours := TextMessage("from the operator")
	for at := range len(stream) + 1 {
		s, client, _ := still(t, PermessageDeflate)
		feed(&s.out, stream[:at])
		post(t, s, ours)
		feed(&s.out, stream[at:])
		place := between[len(between)-1]
		for i := range heads {
			if at < between[i]+heads[i] {
				place = between[i]
				break
			}
		}
		want := bytes.Join([][]byte{stream[:place], ours, stream[place:]}, nil)
		if !bytes.Equal(client.written, want) {
			t.Fatalf("at %d of %d: not at %d:\n%x, want\n%x", at, len(stream), place, client.written, want)
		}
		if n := s.out.traffic(); n.Messages != 3 {
			t.Fatalf("counted %+v: ours is no message of the backend's", n)
		}
	}
}

// A ping need not wait for the end of a message, the operator's message does;
// both come out where both fit, and nothing waits then.
func TestMessageAndPing(t *testing.T) {
	s, client, _ := still(t, Reserved{})
	first, second, last := frame(0x01, []byte("a"), false), frame(0x00, []byte("b"), false), frame(0x80, []byte("c"), false)
	feed(&s.out, first)
	ours := BinaryMessage([]byte{1, 2, 3})
	post(t, s, ours)
	s.out.want(pendingPing)
	feed(&s.out, second)
	feed(&s.out, last)
	frames, size, broken := reference{}.parse(client.written)
	if broken || size != len(client.written) || len(frames) != 5 {
		t.Fatalf("got %x", client.written)
	}
	for i, want := range [][]byte{first, nil, second, last, ours} {
		if want == nil {
			if !frames[i].ours(s) {
				t.Errorf("frame %d is %x, want a ping", i, frames[i].raw)
			}
		} else if !bytes.Equal(frames[i].raw, want) {
			t.Errorf("frame %d is %x, want %x", i, frames[i].raw, want)
		}
	}
	if n := s.out.pending.Load(); n != 0 {
		t.Errorf("%b still waits", n)
	}
}

// A close frame of the gate's is not held up by a message that waits for the
// end of the backend's, and nothing comes behind it.
func TestMessageAndClose(t *testing.T) {
	first, last := frame(0x01, []byte("a"), false), frame(0x80, []byte("c"), false)
	t.Run("within a message", func(t *testing.T) {
		s, client, _ := still(t, Reserved{})
		feed(&s.out, first)
		post(t, s, TextMessage("too late"))
		s.begin(&causeTest, closeGrace)
		s.out.want(pendingClose)
		feed(&s.out, last)
		if want := append(bytes.Clone(first), closeFrame(CodeRestart, causeTest.Text, false)...); !bytes.Equal(client.written, want) {
			t.Errorf("got %x, want %x", client.written, want)
		}
	})
	t.Run("of the backend's", func(t *testing.T) {
		s, client, _ := still(t, Reserved{})
		feed(&s.out, first)
		post(t, s, TextMessage("too late"))
		closing := closeFrame(1000, "", false)
		feed(&s.out, append(bytes.Clone(last), closing...))
		// At the end of the message it fits, and goes before the close frame.
		want := bytes.Join([][]byte{first, last, TextMessage("too late"), closing}, nil)
		if !bytes.Equal(client.written, want) {
			if want = bytes.Join([][]byte{first, last, closing}, nil); !bytes.Equal(client.written, want) {
				t.Errorf("got %x, want %x", client.written, want)
			}
		}
		post(t, s, TextMessage("behind"))
		if !bytes.Equal(client.written, want) {
			t.Errorf("behind the close frame: %x", client.written)
		}
	})
}

// What is sent first comes first: a message of the operator's also goes before
// a close frame that is asked for right behind it.
func TestSendThenClose(t *testing.T) {
	everyKind(t, func(t *testing.T, start func(Accepted) *tunnel) {
		for range 20 {
			u := start(Accepted{})
			warning, second := TextMessage("you will be closed"), BinaryMessage(make([]byte, 100_000))
			if !u.Send(warning) || !u.Send(second) {
				t.Fatal("not sent")
			}
			if !u.Close(causeTest) {
				t.Fatal("not closed")
			}
			if u.Send(warning) {
				t.Error("sent into a socket that ends")
			}
			u.client.expect(warning, second)
			u.client.expectClose(CodeRestart, causeTest.Text)
			u.client.conn.Close()
			u.backend.expectClose(CodeGoingAway, "")
			u.backend.conn.Close()
			u.end()
			if u.Send(warning) {
				t.Error("sent into a socket that ended")
			}
		}
	})
}

// Traffic of the backend's and messages of the operator's at once: both come
// out whole, in their order.
func TestSendBesideTraffic(t *testing.T) {
	everyKind(t, func(t *testing.T, start func(Accepted) *tunnel) {
		u := start(Accepted{})
		const n = 60
		go func() {
			for i := range n {
				for _, p := range [][]byte{
					u.backend.frame(0x01, strings.Repeat("a", 1+i*700)), u.backend.frame(0x00, "b"), u.backend.frame(0x80, strings.Repeat("c", i)),
				} {
					half := len(p) / 2 // pauses within frames
					u.backend.send(p[:half])
					u.backend.send(p[half:])
				}
			}
		}()
		ours := TextMessage("ours")
		var sender sync.WaitGroup
		sender.Go(func() {
			for i := 0; i < n; {
				if u.Send(ours) {
					i++
				}
				time.Sleep(time.Millisecond)
			}
		})
		theirs, mine, fragment := 0, 0, 0
		for theirs < n || mine < n {
			w := u.client.next()
			switch {
			case bytes.Equal(w.raw, ours):
				mine++
				if fragment != 0 {
					t.Fatalf("a message within another, behind fragment %d", fragment)
				}
			case w.b0 == 0x01 && fragment == 0 && len(w.payload) == 1+theirs*700, w.b0 == 0x00 && fragment == 1:
				fragment++
			case w.b0 == 0x80 && fragment == 2 && len(w.payload) == theirs:
				fragment = 0
				theirs++
			default:
				t.Fatalf("frame %x, %d bytes, behind %d messages and %d fragments", w.b0, len(w.payload), theirs, fragment)
			}
		}
		sender.Wait()
		u.client.conn.Close()
		u.backend.conn.Close()
		u.end()
	})
}

// A client that does not read holds nobody up and keeps a bounded number of
// messages; when it reads again, it gets all that were taken, in order.
func TestSendToStuckClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := inMemory(t, Accepted{}, 1000)
		big := BinaryMessage(make([]byte, 5000)) // blocks on the way
		if !u.Send(big) {
			t.Fatal("not sent")
		}
		synctest.Wait()
		sent := 0
		begin := time.Now()
		for range 1000 {
			if u.Send(TextMessage("more")) {
				sent++
			}
		}
		if time.Since(begin) > 0 {
			t.Errorf("took %v of the caller's time", time.Since(begin))
		}
		if sent != maxQueued {
			t.Errorf("%d messages wait, at most %d may", sent, maxQueued)
		}
		u.client.expect(big)
		for range sent {
			u.client.expect(TextMessage("more"))
		}
		if !u.Send(TextMessage("again")) {
			t.Error("not sent though all was read")
		}
		u.client.expect(TextMessage("again"))
		// The gate's end comes through too.
		u.Send(big)
		synctest.Wait()
		u.Close(causeTest)
		time.Sleep(closeGrace + time.Second)
		u.endsBy(ByGate, "drain", CodeRestart)
	})
}
