package tunnel

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// memory is one direction of a connection in memory: a queue with a size, as
// the kernel's.
type memory struct {
	mu       sync.Mutex
	cond     sync.Cond
	queue    []byte
	size     int
	end      bool  // of the stream
	err      error // what a reader gets behind the queue
	refused  error // what a writer gets
	deadline time.Time
	alarm    *time.Timer
}

// memConn is one end of a connection in memory that can be closed by halves
// and reset. It blocks on a sync.Cond, which testing/synctest knows.
type memConn struct{ r, w *memory }

func memPair(size int) (a, b *memConn) {
	x, y := &memory{size: size}, &memory{size: size}
	x.cond.L, y.cond.L = &x.mu, &y.mu
	return &memConn{x, y}, &memConn{y, x}
}

func (c *memConn) Read(p []byte) (int, error) {
	m := c.r
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		switch {
		case !m.deadline.IsZero() && !time.Now().Before(m.deadline):
			return 0, os.ErrDeadlineExceeded
		case errors.Is(m.err, net.ErrClosed):
			return 0, m.err
		case len(m.queue) > 0:
			n := copy(p, m.queue)
			m.queue = m.queue[n:]
			m.cond.Broadcast()
			return n, nil
		case m.err != nil:
			return 0, m.err
		case m.end:
			return 0, io.EOF
		}
		m.cond.Wait()
	}
}

func (c *memConn) Write(p []byte) (n int, err error) {
	m := c.w
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if m.refused != nil {
			return n, m.refused
		}
		if m.end {
			return n, syscall.EPIPE
		}
		some := min(len(p), m.size-len(m.queue))
		m.queue = append(m.queue, p[:some]...)
		n, p = n+some, p[some:]
		m.cond.Broadcast()
		if len(p) == 0 {
			return n, nil
		}
		m.cond.Wait()
	}
}

func (m *memory) set(change func()) {
	m.mu.Lock()
	change()
	m.cond.Broadcast()
	m.mu.Unlock()
}

func (c *memConn) CloseWrite() error {
	c.w.set(func() { c.w.end = true })
	return nil
}

func (c *memConn) Close() error {
	c.r.set(func() {
		c.r.err = net.ErrClosed
		if c.r.refused == nil {
			c.r.refused = syscall.EPIPE
		}
	})
	c.w.set(func() { c.w.end, c.w.refused = true, net.ErrClosed })
	return nil
}

// reset breaks the connection. What was sent before can still be read.
func (c *memConn) reset() {
	c.w.set(func() { c.w.err, c.w.refused = syscall.ECONNRESET, net.ErrClosed })
	c.r.set(func() { c.r.err, c.r.refused = net.ErrClosed, syscall.EPIPE })
}

func (c *memConn) SetReadDeadline(at time.Time) error {
	m := c.r
	m.set(func() {
		m.deadline = at
		if m.alarm != nil {
			m.alarm.Stop()
		}
		if !at.IsZero() {
			m.alarm = time.AfterFunc(time.Until(at), func() { m.set(func() {}) })
		}
	})
	return nil
}

func (c *memConn) SetDeadline(at time.Time) error   { return c.SetReadDeadline(at) }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }
func (c *memConn) LocalAddr() net.Addr              { return nil }
func (c *memConn) RemoteAddr() net.Addr             { return nil }

// kinds are the ways to connect a peer and the gate. The gate's end is first.
var kinds = []struct {
	name string
	pair func(t testing.TB) (gate, peer net.Conn)
}{
	{"tcp", tcpPair},
	{"unix", unixPair},
	{"tls", tlsPair},
	{"wrapped", wrappedPair},
}

func tcpPair(t testing.TB) (gate, peer net.Conn) {
	t.Helper()
	return listenPair(t, "tcp", "127.0.0.1:0")
}

func unixPair(t testing.TB) (gate, peer net.Conn) {
	t.Helper()
	return listenPair(t, "unix", filepath.Join(t.TempDir(), "s"))
}

func listenPair(t testing.TB, network, address string) (gate, peer net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err = net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	gate, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return gate, peer
}

// wrappedPair is TCP within a type that is not known, as listener wrappers
// make it.
func wrappedPair(t testing.TB) (gate, peer net.Conn) {
	gate, peer = tcpPair(t)
	return wrapped{gate}, peer
}

type wrapped struct{ net.Conn }

func (c wrapped) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

func tlsPair(t testing.TB) (gate, peer net.Conn) {
	t.Helper()
	return overTLS(tcpPair(t))
}

func overTLS(gate, peer net.Conn) (net.Conn, net.Conn) {
	server := tls.Server(gate, &tls.Config{Certificates: []tls.Certificate{certificate()}})
	client := tls.Client(peer, &tls.Config{InsecureSkipVerify: true})
	done := make(chan error)
	go func() { done <- client.Handshake() }()
	if err := server.Handshake(); err != nil {
		panic(err)
	}
	if err := <-done; err != nil {
		panic(err)
	}
	return server, client
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(100 * 365 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// peer is a client or a backend in a test.
type peer struct {
	t        testing.TB
	name     string
	conn     net.Conn
	r        *bufio.Reader
	masked   bool // what it sends
	socket   *Socket
	patience time.Duration
}

func (p *peer) send(frames ...[]byte) {
	p.t.Helper()
	if _, err := p.conn.Write(bytes.Join(frames, nil)); err != nil {
		p.t.Fatalf("%s: writing: %v", p.name, err)
	}
}

func (p *peer) frame(b0 byte, payload string) []byte { return frame(b0, []byte(payload), p.masked) }

// read waits for n bytes.
func (p *peer) read(n int) []byte {
	p.t.Helper()
	b := make([]byte, n)
	_ = p.conn.SetReadDeadline(time.Now().Add(p.patience))
	if n, err := io.ReadFull(p.r, b); err != nil {
		p.t.Fatalf("%s: reading: %v after %x", p.name, err, b[:min(n, 64)])
	}
	return b
}

// expect waits for exactly these frames.
func (p *peer) expect(frames ...[]byte) {
	p.t.Helper()
	want := bytes.Join(frames, nil)
	if got := p.read(len(want)); !bytes.Equal(got, want) {
		p.t.Fatalf("%s: got %.80x, not %.80x (%d bytes)", p.name, got, want, len(want))
	}
}

// next waits for one whole frame, whatever it is.
func (p *peer) next() whole {
	p.t.Helper()
	got := p.read(2)
	for {
		s := Scanner{Masked: !p.masked, Reserved: AnyReserved, open: got[0]&15 == 0}
		h, ok, err := s.Next(got)
		if err != nil {
			p.t.Fatalf("%s: got %x: %v", p.name, got, err)
		}
		if ok {
			got = append(got, p.read(int(h.Length))...)
			break
		}
		got = append(got, p.read(1)...)
	}
	r := reference{!p.masked, AnyReserved}
	if got[0]&15 == 0 { // the reference wants the message's beginning too
		first := append([]byte{1}, frame(1, nil, !p.masked)[1:]...)
		frames, _, _ := r.parse(append(first, got...))
		return frames[1]
	}
	frames, _, _ := r.parse(got)
	return frames[0]
}

// expectClose waits for a close frame of the gate's, and nothing else.
func (p *peer) expectClose(code uint16, text string) {
	p.t.Helper()
	w := p.next()
	if w.b0 != 0x88 || w.code() != code || string(w.payload[2:]) != text {
		p.t.Fatalf("%s: got %x %q, not the close frame %d %q", p.name, w.b0, w.payload, code, text)
	}
}

// pong answers the ping that is next.
func (p *peer) pong() {
	p.t.Helper()
	w := p.next()
	if !w.ours(p.socket) {
		p.t.Fatalf("%s: got %x, not a ping of the gate's", p.name, w.raw)
	}
	p.send(frame(0x8A, w.payload, true))
}

// expectEnd waits for the end of the stream, with nothing before it.
func (p *peer) expectEnd() {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(p.patience))
	got, err := io.ReadAll(p.r)
	if err != nil || len(got) > 0 {
		p.t.Fatalf("%s: got %.80x and %v, not the end", p.name, got, err)
	}
}

// expectGone waits for the end of the stream or a reset.
func (p *peer) expectGone() (got []byte) {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(p.patience))
	got, err := io.ReadAll(p.r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Fatalf("%s: still there", p.name)
	}
	return got
}

// expectNothing holds that nothing comes for some time.
func (p *peer) expectNothing(d time.Duration) {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(d))
	if got, err := p.r.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
		p.t.Fatalf("%s: got %x and %v, not nothing", p.name, got, err)
	}
	_ = p.conn.SetReadDeadline(time.Time{})
	p.r.Reset(p.conn) // forgets the error
}

func (p *peer) closeWrite() {
	p.t.Helper()
	if err := p.conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) reset() {
	switch c := p.conn.(type) {
	case *net.TCPConn:
		_ = c.SetLinger(0)
		c.Close()
	case *memConn:
		c.reset()
	default:
		p.t.Fatalf("%T can't be reset", c)
	}
}

// tunnel is a socket under test with both its peers.
type tunnel struct {
	*Socket
	t               testing.TB
	client, backend *peer
	released        atomic.Int32
	opens, pongs    atomic.Int32
	closed          chan Summary
	patience        time.Duration
}

func (u *tunnel) Opened(*Socket)              { u.opens.Add(1) }
func (u *tunnel) Pong(*Socket, time.Duration) { u.pongs.Add(1) }
func (u *tunnel) Closed(_ *Socket, s Summary) { u.closed <- s } // blocks if called twice too often

// connect starts a socket between these ends of the gate.
func connect(t testing.TB, a Accepted, client, backend net.Conn) *tunnel {
	u := &tunnel{t: t, closed: make(chan Summary, 2), patience: 10 * time.Second}
	u.client = &peer{t: t, name: "client", conn: client, r: bufio.NewReader(client), masked: true, patience: 10 * time.Second}
	u.backend = &peer{t: t, name: "backend", conn: backend, r: bufio.NewReader(backend), patience: 10 * time.Second}
	if a.Policy == nil {
		a.Policy = new(Policy)
	}
	a.Release = func() { u.released.Add(1) }
	a.Observer = u
	u.Socket = Start(a)
	u.client.socket = u.Socket
	t.Cleanup(func() {
		client.Close()
		backend.Close()
		u.cut()
	})
	return u
}

// inMemory starts a socket on connections in memory that hold size bytes.
func inMemory(t testing.TB, a Accepted, size int) *tunnel {
	gateClient, client := memPair(size)
	gateBackend, backend := memPair(size)
	a.Client, a.Backend = gateClient, gateBackend
	u := connect(t, a, client, backend)
	u.patience = 10 * time.Minute // of a clock in a bubble
	return u
}

// over starts a socket on connections of these kinds.
func over(t testing.TB, a Accepted, clients, backends func(testing.TB) (net.Conn, net.Conn)) *tunnel {
	gateClient, client := clients(t)
	gateBackend, backend := backends(t)
	a.Client, a.Backend = gateClient, gateBackend
	return connect(t, a, client, backend)
}

// end waits for the socket to hold nothing any more, and says how it ended.
func (u *tunnel) end() Summary {
	u.t.Helper()
	select {
	case s := <-u.closed:
		if n := u.released.Load(); n != 1 {
			u.t.Errorf("released %d times", n)
		}
		if n := u.opens.Load(); n != 1 {
			u.t.Errorf("opened %d times", n)
		}
		if len(u.closed) != 0 {
			u.t.Error("closed twice")
		}
		return s
	case <-time.After(u.patience):
		u.t.Fatal("the socket does not end")
		return Summary{}
	}
}

// endsBy waits for the end and holds its cause.
func (u *tunnel) endsBy(by Party, reason string, code uint16) Summary {
	u.t.Helper()
	s := u.end()
	if s.By != by || s.Reason != reason || s.Code != code {
		u.t.Errorf("ended by %s, %s, %d, not by %s, %s, %d", s.By, s.Reason, s.Code, by, reason, code)
	}
	return s
}
