package tunnel

import (
	"encoding/binary"
)

// Opcodes, RFC 6455 §5.2.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xA
)

// Bits of the first two header bytes, RFC 6455 §5.2.
const (
	bitFinal   = 0x80
	bitsRSV    = 0x70
	bitRSV1    = 0x40
	bitsOpcode = 0x0F
	bitMask    = 0x80
	bitsLength = 0x7F
)

const (
	maxHeader  = 14  // 2 + 8 bytes of length + 4 of mask
	maxControl = 125 // payload bytes of a control frame, RFC 6455 §5.5
)

// Header is what the header of one frame says, RFC 6455 §5.2.
type Header struct {
	Final  bool
	Opcode byte
	Mask   [4]byte
	Length uint64 // payload bytes
	Size   int    // bytes of the header itself, 2 to 14
}

// control reports whether h belongs to a control frame, RFC 6455 §5.5.
func (h Header) control() bool { return h.Opcode >= opClose }

// Violation names the rule of RFC 6455 that a frame header breaks. Its text
// is for logs; the peer gets close code 1002 and nothing more.
type Violation string

func (v Violation) Error() string { return string(v) }

// What a frame header can break.
const (
	errUnmasked     Violation = "unmasked frame from the client"      // §5.1
	errMasked       Violation = "masked frame from the backend"       // §5.1
	errReservedBits Violation = "reserved bit without an extension"   // §5.2
	errOpcode       Violation = "unknown opcode"                      // §5.2
	errLengthForm   Violation = "length not in its shortest form"     // §5.2
	errLengthRange  Violation = "length of 2^63 or above"             // §5.2
	errControlFinal Violation = "fragmented control frame"            // §5.5
	errControlSize  Violation = "control frame above 125 bytes"       // §5.5
	errContinuation Violation = "continuation without a message"      // §5.4
	errInterleaved  Violation = "data frame within another's message" // §5.4
)

// Reserved says which reserved bits the negotiated extensions give a meaning
// (RFC 6455 §9.1). The zero value allows none.
type Reserved struct {
	First byte // on the first frame of a data message
	Other byte // on continuation and control frames
}

// PermessageDeflate allows RSV1 on the first frame of a message, RFC 7692 §6.
var PermessageDeflate = Reserved{First: bitRSV1}

// AnyReserved allows every reserved bit everywhere: for extensions whose
// rules the gate does not know.
var AnyReserved = Reserved{First: bitsRSV, Other: bitsRSV}

// Scanner walks the frames of one direction. It reads headers only; payloads
// are skipped, neither unmasked nor inflated. The zero value checks frames of
// a backend without extensions.
type Scanner struct {
	Masked   bool     // frames carry a mask: those of a client
	Reserved Reserved // bits that extensions allow

	open bool   // a data message is unfinished, RFC 6455 §5.4
	left uint64 // payload bytes of the current frame still to come
}

// Next reads the header at the start of p, which must stand at a frame
// boundary. It reports false when p ends within the header, and an error as
// soon as the bytes that are there break a rule.
func (s *Scanner) Next(p []byte) (h Header, ok bool, err error) {
	if len(p) < 2 {
		return h, false, nil
	}
	if err := s.check(p[0], p[1]); err != nil {
		return h, false, err
	}
	h.Final = p[0]&bitFinal != 0
	h.Opcode = p[0] & bitsOpcode
	h.Size = 2
	h.Length = uint64(p[1] & bitsLength)
	switch h.Length {
	case 126:
		if len(p) < 4 {
			return h, false, nil
		}
		h.Size = 4
		h.Length = uint64(binary.BigEndian.Uint16(p[2:]))
		if h.Length < 126 {
			return h, false, errLengthForm
		}
	case 127:
		if len(p) < 10 {
			return h, false, nil
		}
		h.Size = 10
		h.Length = binary.BigEndian.Uint64(p[2:])
		if h.Length>>63 != 0 {
			return h, false, errLengthRange
		}
		if h.Length <= 0xFFFF {
			return h, false, errLengthForm
		}
	}
	if s.Masked {
		if len(p) < h.Size+4 {
			return h, false, nil
		}
		copy(h.Mask[:], p[h.Size:])
		h.Size += 4
	}
	if !h.control() {
		s.open = !h.Final
	}
	s.left = h.Length
	return h, true, nil
}

// check holds what the first two bytes of a header say against RFC 6455 §5.
func (s *Scanner) check(b0, b1 byte) error {
	opcode := b0 & bitsOpcode
	reserved := s.Reserved.Other
	switch opcode {
	case opText, opBinary:
		reserved = s.Reserved.First
		if s.open {
			return errInterleaved
		}
	case opContinuation:
		if !s.open {
			return errContinuation
		}
	case opClose, opPing, opPong:
		if b0&bitFinal == 0 {
			return errControlFinal
		}
		if b1&bitsLength > maxControl {
			return errControlSize
		}
	default:
		return errOpcode
	}
	if b0&bitsRSV&^reserved != 0 {
		return errReservedBits
	}
	switch masked := b1&bitMask != 0; {
	case s.Masked && !masked:
		return errUnmasked
	case !s.Masked && masked:
		return errMasked
	}
	return nil
}

// skip passes over up to n payload bytes of the current frame and returns
// how many.
func (s *Scanner) skip(n int) int {
	if uint64(n) >= s.left {
		n = int(s.left)
	}
	s.left -= uint64(n)
	return n
}

// boundary reports whether the next byte begins a frame.
func (s *Scanner) boundary() bool { return s.left == 0 }
