package integration

import (
	"io"
	"net"
	"sync"
	"testing"
)

// wire carries connections to a server, and can be cut or blocked.
type wire struct {
	addr string

	mu      sync.Mutex
	passing *sync.Cond
	blocked bool
	cut     bool
	conns   map[net.Conn]bool
}

// newWire makes a wire to the server at addr.
func newWire(t testing.TB, addr string) *wire {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{addr: ln.Addr().String(), conns: make(map[net.Conn]bool)}
	w.passing = sync.NewCond(&w.mu)
	t.Cleanup(func() {
		ln.Close()
		w.set(func() { w.cut = true })
	})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go w.carry(c, addr)
		}
	}()
	return w
}

func (w *wire) carry(c net.Conn, addr string) {
	defer c.Close()
	far, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer far.Close()
	w.mu.Lock()
	if w.cut {
		w.mu.Unlock()
		return
	}
	w.conns[c], w.conns[far] = true, true
	w.mu.Unlock()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{c, far}, {far, c}} {
		go func() {
			io.Copy(held{way[0], w}, way[1])
			done <- struct{}{}
		}()
	}
	<-done
	w.mu.Lock()
	delete(w.conns, c)
	delete(w.conns, far)
	w.mu.Unlock()
}

// held holds back what is written while the wire is blocked.
type held struct {
	net.Conn
	wire *wire
}

func (g held) Write(p []byte) (int, error) {
	g.wire.mu.Lock()
	for g.wire.blocked && !g.wire.cut {
		g.wire.passing.Wait()
	}
	g.wire.mu.Unlock()
	return g.Conn.Write(p)
}

func (w *wire) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	w.passing.Broadcast()
	if w.cut {
		for c := range w.conns {
			c.Close()
		}
	}
}

// block holds everything back and closes nothing, as a lost network does.
func (w *wire) block() { w.set(func() { w.blocked = true }) }

// sever closes every connection and takes no other.
func (w *wire) sever() { w.set(func() { w.cut = true }) }

// mend undoes block and sever.
func (w *wire) mend() { w.set(func() { w.blocked, w.cut = false, false }) }
