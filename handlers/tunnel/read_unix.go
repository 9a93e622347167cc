//go:build unix

package tunnel

import "syscall"

// readsDescriptors says that a connection can be waited for without a buffer.
const readsDescriptors = true

// readDescriptor is read(2).
func readDescriptor(fd uintptr, p []byte) (int, error) { return syscall.Read(int(fd), p) }
