package tunnel

import (
	"encoding/binary"
	"strings"
)

// maxQueued bounds how many messages of the operator's may wait for one
// client.
const maxQueued = 16

// TextMessage is an unfragmented, uncompressed text message for a client, RFC
// 6455 §5.6. Invalid UTF-8 is replaced: a client would fail the socket.
func TextMessage(text string) []byte {
	return appendMessage(nil, opText, []byte(strings.ToValidUTF8(text, "\uFFFD")))
}

// BinaryMessage is the same with binary data.
func BinaryMessage(data []byte) []byte { return appendMessage(nil, opBinary, data) }

func appendMessage(p []byte, opcode byte, payload []byte) []byte {
	p = append(p, bitFinal|opcode)
	switch n := len(payload); {
	case n < 126:
		p = append(p, byte(n))
	case n <= 0xFFFF:
		p = append(p, 126)
		p = binary.BigEndian.AppendUint16(p, uint16(n))
	default:
		p = append(p, 127)
		p = binary.BigEndian.AppendUint64(p, uint64(n))
	}
	return append(p, payload...)
}

// Send puts a message, made by TextMessage or BinaryMessage, between two
// messages of the backend's. It does not wait. It reports false if the socket
// is ending, or if too many messages wait already for a client that does not
// read.
func (s *Socket) Send(frame []byte) bool {
	s.mu.Lock()
	room := s.cause == nil && s.pumps > 0 && len(s.queue) < maxQueued
	if room {
		s.queue = append(s.queue, frame)
		// Known before the lock is free: it goes before a close frame that is
		// asked for next.
		s.out.pending.Or(pendingMessage)
	}
	s.mu.Unlock()
	if room {
		// By itself: a client that does not read must not hold up the caller.
		go s.out.flush()
	}
	return room
}

// queued takes the messages that wait.
func (s *Socket) queued() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	queue := s.queue
	s.queue = nil
	return queue
}
