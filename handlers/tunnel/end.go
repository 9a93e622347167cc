package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// bufferSize is how much one read takes at most. 16, 64 and 256 KiB were
	// measured and were no better.
	bufferSize = 32 << 10

	// headroom stands before the bytes of a read, for what the read before it
	// left over: a header that was cut off, or a pong that may be ours.
	headroom = 6 + pingSize

	// restSize is the buffer that a connection keeps for itself where it
	// cannot be waited for by its descriptor, see end.wait.
	restSize = 512
)

// buffer is what a pump holds while bytes pass, and only then: the bytes of
// one read, and what is made of them.
type buffer struct {
	bytes []byte // headroom, and what was read behind it
	n     int    // so much
	chunk chunk  // what scan found in it; here and not on the stack, see pump
}

func newBuffer(size int) *buffer { return &buffer{bytes: make([]byte, headroom+size)} }

// buffers are those that nobody holds now.
var buffers sync.Pool

func takeBuffer() *buffer {
	if b, ok := buffers.Get().(*buffer); ok {
		return b
	}
	return newBuffer(bufferSize)
}

// end is one of the two connections of a socket.
type end struct {
	conn net.Conn

	// raw is there for plain TCP and unix sockets: these are waited for on the
	// descriptor, and a buffer is taken only when bytes are there.
	raw syscall.RawConn

	// rest is there for all others, TLS above all: bytes that were decrypted
	// wait within the connection, where no descriptor tells of them. They are
	// read into this small buffer, and into a large one once it is full.
	rest *buffer
}

func newEnd(conn net.Conn) end {
	if !readsDescriptors {
		return end{conn: conn, rest: newBuffer(restSize)}
	}
	// Types that embed these may read and write in ways of their own, so only
	// the very types count.
	switch c := conn.(type) {
	case *net.TCPConn:
		if raw, err := c.SyscallConn(); err == nil {
			return end{conn: conn, raw: raw}
		}
	case *net.UnixConn:
		if raw, err := c.SyscallConn(); err == nil {
			return end{conn: conn, raw: raw}
		}
	}
	return end{conn: conn, rest: newBuffer(restSize)}
}

// moment is how long a read waits for more of a burst that is under way. It is
// not zero: a read with a deadline in the past would return what TLS has
// decrypted already, but nothing that is in the kernel.
const moment = time.Millisecond

// readRest waits for bytes in the small buffer. If they fill it, more is
// likely there: what can be had within a moment is read into a large buffer
// behind them. b is the buffer that holds the bytes.
func (e *end) readRest() (b *buffer, err error) {
	e.rest.n, err = e.conn.Read(e.rest.bytes[headroom:])
	if e.rest.n < restSize || err != nil {
		return e.rest, err
	}
	b = takeBuffer()
	b.n = copy(b.bytes[headroom:], e.rest.bytes[headroom:])
	if e.conn.SetReadDeadline(time.Now().Add(moment)) != nil {
		return b, nil // closed meanwhile: the next read tells
	}
	more, err := e.conn.Read(b.bytes[headroom+b.n:])
	b.n += more
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	if e.conn.SetReadDeadline(time.Time{}) != nil {
		err = nil
	}
	return b, err
}

// closeWrite passes on that nothing more comes (TCP's FIN, TLS's
// close_notify), as far as the connection can say so.
func (e *end) closeWrite() {
	type halfCloser interface{ CloseWrite() error }
	if c, ok := e.conn.(halfCloser); ok {
		_ = c.CloseWrite()
	}
	if inner := e.inner(); inner != e.conn {
		if c, ok := inner.(halfCloser); ok {
			_ = c.CloseWrite()
		}
	}
}

// cut ends the connection at once, whatever waits on it.
func (e *end) cut() {
	// tls.Conn.Close would wait up to 5 s to write its alert.
	_ = e.inner().Close()
}

// inner is the connection beneath TLS, or the connection itself.
func (e *end) inner() net.Conn {
	if c, ok := e.conn.(interface{ NetConn() net.Conn }); ok {
		return c.NetConn()
	}
	return e.conn
}

// backlog is how many bytes the peer has not yet taken out of the kernel's
// send queue; false where that can't be known.
func (e *end) backlog() (int, bool) {
	raw := e.descriptor()
	if raw == nil {
		return 0, false
	}
	return backlog(raw)
}

// broken reports whether the connection is known to be at its end both ways:
// after a reset, above all.
func (e *end) broken() bool {
	raw := e.descriptor()
	return raw != nil && broken(raw)
}

// descriptor gives access to the connection in the kernel, nil without one.
func (e *end) descriptor() syscall.RawConn {
	if e.raw != nil {
		return e.raw
	}
	c, ok := e.inner().(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// isReset reports whether a read ended otherwise than by the peer's FIN.
func isReset(err error) bool {
	return !errors.Is(err, io.EOF)
}
