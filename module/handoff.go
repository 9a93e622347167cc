package module

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// handoff is where the two connections of a handshake meet. The gate puts it
// into the request's context; ws_tunnel leaves the backend's connection there
// when the backend has accepted; the gate's writer takes it out when
// reverse_proxy switches protocols. Until it is taken out, whoever gives up
// on the handshake closes it.
type handoff struct {
	mu      sync.Mutex
	backend *accepted
}

// accepted is a backend's side of an accepted handshake.
type accepted struct {
	conn     net.Conn
	early    []byte // what came behind its 101
	reserved tunnel.Reserved
	upstream string
}

type handoffKey struct{}

// withHandoff puts h where the transport looks for it.
func withHandoff(ctx context.Context, h *handoff) context.Context {
	return context.WithValue(ctx, handoffKey{}, h)
}

// handoffOf returns the handoff that a gate put into ctx, or nil.
func handoffOf(ctx context.Context) *handoff {
	h, _ := ctx.Value(handoffKey{}).(*handoff)
	return h
}

// offer leaves a backend's connection, and returns what reverse_proxy gets
// in place of its stream.
func (h *handoff) offer(b *accepted) io.ReadWriteCloser {
	h.abandon() // that of an attempt before this one
	h.mu.Lock()
	h.backend = b
	h.mu.Unlock()
	return finishedStream{handoff: h}
}

// take hands the backend's connection over to the caller, or nil.
func (h *handoff) take() *accepted {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.backend
	h.backend = nil
	return b
}

// abandon closes the backend's connection if nobody took it.
func (h *handoff) abandon() {
	if b := h.take(); b != nil {
		_ = b.conn.Close()
	}
}

// finishedStream is what reverse_proxy gets to copy from and to: nothing comes
// and nothing goes, so it is done at once.
type finishedStream struct{ handoff *handoff }

func (finishedStream) Read([]byte) (int, error)    { return 0, io.EOF }
func (finishedStream) Write(p []byte) (int, error) { return len(p), nil }
func (finishedStream) CloseWrite() error           { return nil }

// Close is called when reverse_proxy is done, or gives up: then the backend's
// connection is still there.
func (s finishedStream) Close() error {
	s.handoff.abandon()
	return nil
}

// finishedConn is the client's side of the same.
type finishedConn struct {
	net.Conn // closed or a tunnel's by now: only its addresses are asked for
}

func (finishedConn) Read([]byte) (int, error)    { return 0, io.EOF }
func (finishedConn) Write(p []byte) (int, error) { return len(p), nil }
func (finishedConn) CloseWrite() error           { return nil }
func (finishedConn) Close() error                { return nil }

// hijackInnermost takes the client's connection from net/http's own writer.
// The writers between may hijack as well: that of the access log returns a
// connection that counts without a lock, and hides what it wraps.
func hijackInnermost(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
	for {
		inner, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = inner.Unwrap()
	}
	return http.NewResponseController(w).Hijack()
}

// buffered takes what the client sent behind its handshake.
func buffered(r *bufio.Reader) []byte {
	n := r.Buffered()
	if n == 0 {
		return nil
	}
	early := make([]byte, n)
	_, _ = io.ReadFull(r, early) // can't fail: the bytes are there
	return early
}
