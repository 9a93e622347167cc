package tunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// backlog asks for the bytes in the socket's send queue that the peer has not
// acknowledged, tcp(7) and unix(7): SIOCOUTQ.
func backlog(raw syscall.RawConn) (n int, ok bool) {
	err := raw.Control(func(fd uintptr) {
		v, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		n, ok = v, err == nil
	})
	return n, ok && err == nil
}

// broken asks whether the connection is at its end both ways, poll(2): POLLHUP,
// or an error waits.
func broken(raw syscall.RawConn) (gone bool) {
	_ = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0
	})
	return gone
}
