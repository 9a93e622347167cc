package integration

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func base64Std(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// acceptOf is the Sec-WebSocket-Accept of a key, RFC 6455 section 4.2.2.
func acceptOf(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64Std(sum[:])
}

// backend is a scripted server on a bare listener: it keeps every byte of
// every request, and hands accepted sockets to the test.
type backend struct {
	t    testing.TB
	ln   net.Listener
	addr string // as an upstream of a Caddyfile

	dials    atomic.Int64   // connections accepted
	arrivals chan *upstream // sockets whose handshake was answered with 101

	pairing sync.Mutex // held while a test's handshake is on its way, see pairWith

	mu     sync.Mutex
	heads  []string // heads of all requests, as they came
	conns  []net.Conn
	script func(u *upstream) string
}

// upstream is the backend's end of one connection.
type upstream struct {
	net.Conn
	t    testing.TB
	br   *bufio.Reader
	head string        // the request's head as it came
	req  *http.Request // the same, parsed
}

// newBackend starts a scripted backend over plain TCP.
func newBackend(t testing.TB) *backend {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newBackendOn(t, ln, ln.Addr().String())
}

// newTLSBackend starts one that speaks TLS.
func newTLSBackend(t testing.TB) *backend {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", serverTLS(t))
	if err != nil {
		t.Fatal(err)
	}
	return newBackendOn(t, ln, "https://"+ln.Addr().String())
}

// newUnixBackend starts one on a unix socket.
func newUnixBackend(t testing.TB) *backend {
	t.Helper()
	file := filepath.Join(t.TempDir(), "b.sock")
	ln, err := net.Listen("unix", file)
	if err != nil {
		t.Fatal(err)
	}
	return newBackendOn(t, ln, "unix/"+file)
}

func newBackendOn(t testing.TB, ln net.Listener, addr string) *backend {
	b := &backend{t: t, ln: ln, addr: addr, arrivals: make(chan *upstream, 4096)}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.dials.Add(1)
			b.mu.Lock()
			b.conns = append(b.conns, c)
			b.mu.Unlock()
			go b.serve(c)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.conns {
			c.Close()
		}
	})
	return b
}

// answers sets what is answered from now on; "" is silence. The default is
// accept.
func (b *backend) answers(script func(u *upstream) string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.script = script
}

// accept is a correct 101, with further header lines.
func accept(u *upstream, lines ...string) string {
	text := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: " + acceptOf(u.req.Header.Get("Sec-Websocket-Key")) + "\r\n"
	for _, l := range lines {
		text += l + "\r\n"
	}
	return text + "\r\n"
}

func (b *backend) serve(c net.Conn) {
	u := &upstream{Conn: c, t: b.t, br: bufio.NewReaderSize(c, 1<<16)}
	for {
		var head bytes.Buffer
		for {
			line, err := u.br.ReadBytes('\n')
			head.Write(line)
			if err != nil {
				if head.Len() > 0 {
					b.keep(head.String())
				}
				c.Close()
				return
			}
			if len(bytes.TrimRight(line, "\r\n")) == 0 {
				break
			}
		}
		u.head = head.String()
		b.keep(u.head)
		req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(u.head))))
		if err != nil {
			c.Close()
			return
		}
		u.req = req
		if n := req.ContentLength; n > 0 {
			_, _ = io.CopyN(io.Discard, u.br, n)
		}
		b.mu.Lock()
		script := b.script
		b.mu.Unlock()
		text := ""
		switch {
		case script != nil:
			text = script(u)
		case req.Header.Get("Upgrade") != "":
			text = accept(u)
		default:
			text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		}
		if _, err := io.WriteString(c, text); err != nil {
			c.Close()
			return
		}
		if strings.Contains(text, " 101 ") {
			b.arrivals <- u
			return
		}
	}
}

func (b *backend) keep(head string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heads = append(b.heads, head)
}

// requests returns what arrived so far.
func (b *backend) requests() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.heads...)
}

// untouched fails if fn made anything reach the backend (NRU).
func (b *backend) untouched(t testing.TB, fn func()) {
	t.Helper()
	requests, dials := len(b.requests()), b.dials.Load()
	fn()
	if now := b.requests(); len(now) != requests {
		t.Errorf("the backend got %q", now[requests:])
	} else if n := b.dials.Load() - dials; n != 0 {
		t.Errorf("the backend got %d connections", n)
	}
}

// next is the next accepted socket.
func (b *backend) next(t testing.TB) *upstream {
	t.Helper()
	select {
	case u := <-b.arrivals:
		u.t = t
		return u
	case <-time.After(patience):
		t.Fatal("no handshake reached the backend")
		return nil
	}
}

func (u *upstream) send(b []byte) {
	u.t.Helper()
	u.SetWriteDeadline(time.Now().Add(patience))
	if _, err := u.Write(b); err != nil {
		u.t.Fatalf("backend writing: %v", err)
	}
}

func (u *upstream) read() frame {
	u.t.Helper()
	u.SetReadDeadline(time.Now().Add(patience))
	f, err := readFrame(u.br)
	if err != nil {
		u.t.Fatalf("backend reading a frame: %v", err)
	}
	return f
}

func (u *upstream) expectBytes(want []byte) {
	u.t.Helper()
	expectBytes(u.t, "at the backend", u, u.br, want)
}

// expectClose expects a close frame of that code as the next frame.
func (u *upstream) expectClose(code int) frame {
	u.t.Helper()
	f := u.read()
	if f.first != 0x88 || f.code() != code {
		u.t.Fatalf("backend got frame %x %q (code %d), want a close frame %d", f.first, f.payload, f.code(), code)
	}
	if !f.masked {
		u.t.Fatalf("backend got an unmasked close frame")
	}
	return f
}

// expectEnd expects the end of the stream, with no byte before it.
func (u *upstream) expectEnd() {
	u.t.Helper()
	if rest := u.rest(); len(rest) > 0 {
		u.t.Fatalf("backend got %d bytes before the end: %x", len(rest), rest[:min(len(rest), 64)])
	}
}

// rest reads to the end of the stream, however that comes.
func (u *upstream) rest() []byte {
	u.t.Helper()
	u.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(u.br)
	if err != nil && !isReset(err) {
		u.t.Fatalf("backend: the connection did not end: %v", err)
	}
	return rest
}

// reset ends the connection with a RST.
func (u *upstream) reset() {
	if tcp, ok := u.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	u.Conn.Close()
}

// echo is a real WebSocket server: gorilla's, with compression, that sends
// every message back.
type echo struct {
	addr string

	mu       sync.Mutex
	requests []*http.Request
}

func newEcho(t testing.TB) *echo {
	t.Helper()
	e := &echo{}
	upgrader := websocket.Upgrader{
		EnableCompression: true,
		CheckOrigin:       func(*http.Request) bool { return true }, // judging it is the gate's work
		Subprotocols:      []string{"chat.v1"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		e.requests = append(e.requests, r.Clone(r.Context()))
		e.mu.Unlock()
		if !websocket.IsWebSocketUpgrade(r) {
			fmt.Fprintf(w, "user=%s", r.Header.Get("X-User-Id"))
			return
		}
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, message, err := c.ReadMessage()
			if err != nil {
				return
			}
			if err := c.WriteMessage(kind, message); err != nil {
				return
			}
		}
	}))
	e.addr = strings.TrimPrefix(server.URL, "http://")
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return e
}

// last is the newest request.
func (e *echo) last(t testing.TB) *http.Request {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.requests) == 0 {
		t.Fatal("no request reached the backend")
	}
	return e.requests[len(e.requests)-1]
}

// expectEndOrClose expects the end of the stream, with at most a close frame
// before it.
func (u *upstream) expectEndOrClose() {
	u.t.Helper()
	rest := u.rest()
	if len(rest) > 0 && rest[0] != 0x88 {
		u.t.Fatalf("backend got %x before the end", rest[:min(len(rest), 64)])
	}
}
