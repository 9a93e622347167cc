package module

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

func TestHandoff(t *testing.T) {
	for _, c := range []struct {
		name   string
		do     func(h *handoff, b *accepted)
		closed bool // the backend's connection
	}{
		{"taken", func(h *handoff, b *accepted) { h.offer(b); h.take() }, false},
		{"taken, then abandoned by the gate", func(h *handoff, b *accepted) { h.offer(b); h.take(); h.abandon() }, false},
		{"taken, then closed by reverse_proxy", func(h *handoff, b *accepted) { s := h.offer(b); h.take(); s.Close() }, false},
		{"never taken", func(h *handoff, b *accepted) { h.offer(b); h.abandon() }, true},
		{"given up by reverse_proxy", func(h *handoff, b *accepted) { h.offer(b).Close() }, true},
		{"abandoned twice", func(h *handoff, b *accepted) { s := h.offer(b); h.abandon(); h.abandon(); s.Close() }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := pair(t)
			h := new(handoff)
			c.do(h, &accepted{conn: near})
			if h.take() != nil {
				t.Error("there is still something to take")
			}
			if c.closed {
				isClosed(t, far)
			} else {
				isOpen(t, far, near)
			}
		})
	}
}

// reverse_proxy tries again at another upstream: the first one's connection
// must not stay open (S-139), nor be taken for the second's.
func TestHandoffOfferedTwice(t *testing.T) {
	first, firstFar := pair(t)
	second, secondFar := pair(t)
	h := new(handoff)
	stream := h.offer(&accepted{conn: first, upstream: "first"})
	h.offer(&accepted{conn: second, upstream: "second"})
	isClosed(t, firstFar)
	isOpen(t, secondFar, second)
	if b := h.take(); b == nil || b.upstream != "second" {
		t.Fatalf("took %+v, want the second", b)
	}
	stream.Close() // late
	isOpen(t, secondFar, second)
}

func TestHandoffIsTakenOnce(t *testing.T) {
	for range 100 {
		h := new(handoff)
		near, far := net.Pipe()
		h.offer(&accepted{conn: near})
		var took atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if i == 0 {
					h.abandon()
				} else if b := h.take(); b != nil {
					took.Add(1)
					b.conn.Close()
				}
			})
		}
		wg.Wait()
		if took.Load() > 1 {
			t.Fatalf("taken %d times", took.Load())
		}
		if _, err := far.Read(make([]byte, 1)); err == nil {
			t.Fatal("open, and nobody has it")
		}
		far.Close()
	}
}

func TestHandoffInContext(t *testing.T) {
	if h := handoffOf(context.Background()); h != nil {
		t.Errorf("a handoff without a gate: %v", h)
	}
	h := new(handoff)
	if got := handoffOf(withHandoff(context.Background(), h)); got != h {
		t.Errorf("got %v, want the gate's", got)
	}
}

// What reverse_proxy copies from and to is over at once, and touches neither
// connection.
func TestFinished(t *testing.T) {
	near, far := pair(t)
	for name, stream := range map[string]interface {
		io.ReadWriteCloser
		CloseWrite() error
	}{
		"backend": finishedStream{handoff: new(handoff)},
		"client":  finishedConn{near},
	} {
		if n, err := stream.Read(make([]byte, 9)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%s: Read: %d, %v; want the end", name, n, err)
		}
		if n, err := stream.Write(make([]byte, 9)); n != 9 || err != nil {
			t.Errorf("%s: Write: %d, %v; want it swallowed", name, n, err)
		}
		if err := stream.CloseWrite(); err != nil {
			t.Errorf("%s: CloseWrite: %v", name, err)
		}
		if err := stream.Close(); err != nil {
			t.Errorf("%s: Close: %v", name, err)
		}
	}
	isOpen(t, near, far)
	isOpen(t, far, near)
}
