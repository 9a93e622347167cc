package tunnel

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
)

// reference is a parser that sees a whole stream and takes its time: what
// scanner and relay are compared with.
type reference struct {
	masked   bool
	reserved Reserved
}

// whole is one complete frame of a stream.
type whole struct {
	raw     []byte // header and payload as on the wire
	head    int
	b0      byte
	mask    [4]byte
	payload []byte // unmasked
}

func (w whole) opcode() byte { return w.b0 & 0xF }

// code is the close code of a close frame.
func (w whole) code() uint16 {
	if len(w.payload) < 2 {
		return CodeNoStatus
	}
	return binary.BigEndian.Uint16(w.payload)
}

// ours reports whether w is a ping of s.
func (w whole) ours(s *Socket) bool {
	if w.opcode() != opPing || len(w.payload) != pingSize {
		return false
	}
	_, ours := openPong(make([]byte, pingSize), w.payload, [4]byte{}, s.number)
	return ours
}

// parse returns the frames of stream that are complete, how many bytes they
// are, and whether the bytes behind them break a rule.
func (r reference) parse(stream []byte) (frames []whole, size int, broken bool) {
	inMessage := false
	for {
		p := stream[size:]
		if len(p) < 2 {
			return frames, size, false
		}
		fin, rsv, op := p[0]>>7 == 1, p[0]>>4&7, p[0]&15
		masked, short := p[1]>>7 == 1, uint64(p[1]&127)
		if op > 10 || op > 2 && op < 8 || masked != r.masked {
			return frames, size, true
		}
		if op >= 8 && (!fin || short > 125) {
			return frames, size, true
		}
		if op == 0 && !inMessage || (op == 1 || op == 2) && inMessage {
			return frames, size, true
		}
		allowed := r.reserved.Other >> 4
		if op == 1 || op == 2 {
			allowed = r.reserved.First >> 4
		}
		if rsv&^allowed != 0 {
			return frames, size, true
		}
		head, length := 2, short
		switch short {
		case 126:
			if len(p) < 4 {
				return frames, size, false
			}
			head, length = 4, uint64(p[2])<<8|uint64(p[3])
			if length < 126 {
				return frames, size, true
			}
		case 127:
			if len(p) < 10 {
				return frames, size, false
			}
			head, length = 10, 0
			for _, b := range p[2:10] {
				length = length<<8 | uint64(b)
			}
			if length < 1<<16 || length >= 1<<63 {
				return frames, size, true
			}
		}
		w := whole{b0: p[0]}
		if masked {
			if len(p) < head+4 {
				return frames, size, false
			}
			w.mask = [4]byte(p[head:])
			head += 4
		}
		if op < 8 {
			inMessage = !fin
		}
		if uint64(len(p)-head) < length {
			return frames, size, false
		}
		w.head, w.raw = head, p[:head+int(length)]
		w.payload = bytes.Clone(w.raw[head:])
		for i := range w.payload {
			w.payload[i] ^= w.mask[i%4]
		}
		frames = append(frames, w)
		size += len(w.raw)
	}
}

// frame makes one frame; a masked one has a random mask.
func frame(b0 byte, payload []byte, masked bool) []byte {
	p := []byte{b0}
	bit := byte(0)
	if masked {
		bit = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		p = append(p, bit|byte(n))
	case n < 1<<16:
		p = append(p, bit|126)
		p = binary.BigEndian.AppendUint16(p, uint16(n))
	default:
		p = append(p, bit|127)
		p = binary.BigEndian.AppendUint64(p, uint64(n))
	}
	if !masked {
		return append(p, payload...)
	}
	var mask [4]byte
	binary.BigEndian.PutUint32(mask[:], rand.Uint32())
	p = append(p, mask[:]...)
	for i, b := range payload {
		p = append(p, b^mask[i%4])
	}
	return p
}

// closeFrame makes a close frame with this code and reason.
func closeFrame(code uint16, reason string, masked bool) []byte {
	return frame(0x88, append(binary.BigEndian.AppendUint16(nil, code), reason...), masked)
}
