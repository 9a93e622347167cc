package tunnel

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// parkingLot waits for many descriptors at once by an epoll(7) instance, for
// which one goroutine waits as for any other descriptor. Its zero value is
// ready for use; while nobody waits in it, it holds nothing.
type parkingLot struct {
	mu    sync.Mutex
	file  *os.File        // the instance, nil while there is none
	raw   syscall.RawConn // of file
	flows map[uint32]*flow
	last  uint32 // place that was given
}

// spot is where one flow waits.
type spot struct {
	instance  syscall.RawConn
	number    uint32
	operation int // of epoll_ctl(2)
}

// place finds a spot for f, which keeps it until it leaves.
func (l *parkingLot) place(f *flow) (spot, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil && !l.open() {
		return spot{}, false
	}
	if f.place == 0 {
		for l.last++; l.last == 0 || l.flows[l.last] != nil; l.last++ {
			continue // taken, since it went round
		}
		f.place = l.last
		l.flows[f.place] = f
	}
	operation := unix.EPOLL_CTL_ADD
	if f.watched {
		operation = unix.EPOLL_CTL_MOD
	}
	f.watched = true
	return spot{l.raw, f.place, operation}, true
}

// ignore hears no more of the source of f, which its pump waits for by itself.
//
//go:noinline
func (l *parkingLot) ignore(f *flow) {
	f.watched = false
	l.mu.Lock()
	at := spot{l.raw, f.place, unix.EPOLL_CTL_DEL}
	l.mu.Unlock()
	_ = at.take(f.src().raw)
}

// take has the instance resume the flow of this spot, once, when the source is
// readable or at its end; or, as the operation may be, forget it. It reports
// false if it can't, as for a source that is closed.
func (s spot) take(source syscall.RawConn) (did bool) {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(s.number)}
	err := source.Control(func(fd uintptr) {
		_ = s.instance.Control(func(instance uintptr) {
			did = unix.EpollCtl(int(instance), s.operation, int(fd), &event) == nil
		})
	})
	return did && err == nil
}

// open makes the instance. mu is held.
func (l *parkingLot) open() bool {
	instance, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	if err := unix.SetNonblock(instance, true); err != nil {
		_ = unix.Close(instance)
		return false
	}
	file := os.NewFile(uintptr(instance), "epoll")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return false
	}
	l.file, l.raw, l.flows = file, raw, make(map[uint32]*flow)
	go l.run(raw)
	return true
}

// leave gives up the place of f, which waits no more. The last one closes the
// instance.
func (l *parkingLot) leave(f *flow) {
	if f.place == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.flows, f.place)
	f.place = 0
	if len(l.flows) == 0 {
		_ = l.file.Close()
		l.file, l.raw, l.flows = nil, nil, nil
	}
}

// run resumes those whose source is ready, until the instance is closed.
func (l *parkingLot) run(raw syscall.RawConn) {
	events := make([]unix.EpollEvent, 256)
	n := 0
	for {
		err := raw.Read(func(instance uintptr) bool {
			n, _ = unix.EpollWait(int(instance), events, 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, event := range events[:n] {
			l.mu.Lock()
			f := l.flows[uint32(event.Fd)]
			l.mu.Unlock()
			if f != nil {
				f.resume()
			}
		}
	}
}
