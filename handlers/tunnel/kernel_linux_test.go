package tunnel

import (
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A slow reader is alive also when all of its data is in the kernel's queues: no
// write is under way, and the ping stands behind them.
func TestSlowReaderOfTheQueue(t *testing.T) {
	for _, secure := range []bool{false, true} {
		gateClient, client := narrowPair(t)
		if secure {
			gateClient, client = overTLS(gateClient, client)
		}
		gateBackend, backend := tcpPair(t)
		policy := &Policy{PingInterval: 200 * time.Millisecond, PongTimeout: 200 * time.Millisecond}
		u := connect(t, Accepted{Policy: policy, Client: gateClient, Backend: gateBackend}, client, backend)
		f := u.backend.frame(0x82, string(make([]byte, 300_000)))
		u.backend.send(f)
		for got := 0; got < len(f); {
			got += len(u.client.read(min(2000, len(f)-got)))
			time.Sleep(10 * time.Millisecond)
			if u.ending.Load() {
				t.Fatalf("%T: ended after %v, with %d of %d bytes read", client, u.now(), got, len(f))
			}
		}
		u.client.pong()
		u.client.conn.Close()
		u.backend.conn.Close()
		u.end()
	}
}

// narrowPair is TCP to a peer whose kernel takes little ahead of its reads.
func narrowPair(t testing.TB) (gate, peer net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		_ = raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10)
		})
		return err
	}}
	peer, err = d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	gate, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return gate, peer
}
