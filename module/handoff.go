package module

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// handoffKey is where, in the request's context, the transport finds the
// gate's writer: that is where an accepted backend is handed over.
//
// It happens within the round trip, before reverse_proxy has a 101 to switch
// protocols on: its copying would make two buffers of 32 KiB and three
// goroutines for each handshake, only to find that there is nothing to copy.
type handoffKey struct{}

// withHandoff puts w where the transport looks for it.
func withHandoff(ctx context.Context, w *upgradeWriter) context.Context {
	return context.WithValue(ctx, handoffKey{}, w)
}

// handoffOf returns the writer of the gate in front, or nil.
func handoffOf(ctx context.Context) *upgradeWriter {
	w, _ := ctx.Value(handoffKey{}).(*upgradeWriter)
	return w
}

// accepted is a backend's side of an accepted handshake.
type accepted struct {
	conn     net.Conn
	header   http.Header // of its 101
	early    []byte      // what came behind
	reserved tunnel.Reserved
	upstream string
}

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
