package tunnel

import (
	"errors"
	"os"
	"time"
)

// A pump that waits for a silent source is a goroutine that does nothing, and
// two of them are most of what an idle socket takes. So flows whose source is
// silent are parked: they wait in a lot, all of them together, and a pump goes
// on with one when its source has something to say.
//
// Waiting in the lot costs more for each message than waiting in a goroutine
// does (half as much again was measured), so a flow that carries data has its
// goroutine, until two pings went out without any data in between. Pings and
// pongs alone do not count.

// lot is where flows wait.
var lot parkingLot

// past is a deadline that wakes up whoever waits.
var past = time.Unix(1, 0)

// park leaves f to the lot, until its source has something to say or is cut.
// It reports false if the pump has to go on by itself.
//
//go:noinline
func (s *Socket) park(f *flow) bool {
	f.parking = false
	if at, ok := lot.place(f); ok {
		source := f.src().raw
		f.marks.Or(parked) // from here on f may be resumed, and is another pump's
		if at.take(source) {
			return true
		}
		if f.marks.And(^parked)&parked == 0 {
			return true // it was cut meanwhile
		}
	}
	f.watched = false
	f.quiet = false // or the next step would come to nothing again
	return false
}

// resume has f pumped on, if it is parked.
func (f *flow) resume() {
	if f.marks.And(^parked)&parked != 0 {
		go f.socket.pump(f, nil)
	}
}

// nudge wakes up a pump that waits, so that it looks whether to park.
func (f *flow) nudge() {
	if src := f.src(); src.raw != nil && !f.has(parked) {
		_ = src.conn.SetReadDeadline(past) // fails on a closed connection, whose pump ends
	}
}

// nudged reports whether a read came to nothing because of a nudge. Then the
// source was silent for long enough.
//
//go:noinline
func (f *flow) nudged(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	_ = f.src().conn.SetReadDeadline(time.Time{}) // likewise
	f.quiet = true
	return true
}

// settleDown parks what has carried no data since it was called last.
func (s *Socket) settleDown() {
	carried := uint32(s.in.bytes.Load() + s.in.messages.Load() + s.out.bytes.Load() + s.out.messages.Load())
	if carried == s.carried.Swap(carried) {
		s.in.nudge()
		s.out.nudge()
	}
}
