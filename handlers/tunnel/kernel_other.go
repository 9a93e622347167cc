//go:build !linux

package tunnel

import "syscall"

// backlog is not known here: of what the client takes, only whole writes are
// seen.
func backlog(syscall.RawConn) (int, bool) { return 0, false }

// broken is not known here.
func broken(syscall.RawConn) bool { return false }
