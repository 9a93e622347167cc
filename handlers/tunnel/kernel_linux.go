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

// hungUp asks whether the peer's end of the stream is here, or a reset, even
// behind bytes that were not read yet, poll(2).
func hungUp(raw syscall.RawConn) (gone bool) {
	_ = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0
	})
	return gone
}
