//go:build !linux

package tunnel

import "syscall"

// parkingLot is known on Linux only: elsewhere every flow has its goroutine.
type parkingLot struct{}

func (*parkingLot) place(*flow) (spot, bool) { return spot{}, false }

func (*parkingLot) ignore(*flow) {}

func (*parkingLot) leave(*flow) {}

// spot is none.
type spot struct{}

func (spot) take(syscall.RawConn) bool { return false }
