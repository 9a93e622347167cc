package tunnel

import (
	"crypto/rand"
	"encoding/binary"
)

// Close codes that the gate itself sends: RFC 6455 §7.4.1 and the registry
// of IANA.
const (
	CodeGoingAway    = 1001
	CodeProtocol     = 1002
	CodeNoStatus     = 1005 // never sent: a close frame without a code
	CodePolicy       = 1008
	CodeTooBig       = 1009
	CodeRestart      = 1012
	CodeBackendLost  = 1014
	CodeUnauthorized = 3000
	CodeTimeout      = 3008
)

// Party is one of the three who can end a socket.
type Party string

// The parties, as logs and metrics name them.
const (
	ByClient  Party = "client"
	ByBackend Party = "backend"
	ByGate    Party = "gate"
)

// Cause says why a socket ends: who began it, the word for it in logs and
// metrics, and what the two sides are told.
type Cause struct {
	By      Party
	Reason  string // one of the words of contract §5
	Code    uint16 // close code to the client, and in the log
	Text    string // close reason to the client: short, fixed English
	backend uint16 // close code to the backend, 0 is 1001
}

// Causes by which a socket's lifetime ends, see [Accepted].
var (
	CauseExpired  = Cause{By: ByGate, Reason: "expired", Code: CodeUnauthorized, Text: "token expired"}
	CauseLifetime = Cause{By: ByGate, Reason: "lifetime", Code: CodeUnauthorized, Text: "lifetime reached"}
)

// Causes by which the gate ends a socket of itself.
var (
	causeClientProtocol  = Cause{By: ByGate, Reason: "protocol", Code: CodeProtocol, Text: "protocol error"}
	causeBackendProtocol = Cause{By: ByGate, Reason: "protocol", Code: CodeGoingAway, Text: "backend protocol error", backend: CodeProtocol}
	causePing            = Cause{By: ByGate, Reason: "ping_timeout", Code: CodeTimeout, Text: "ping timeout"}
	causeIdle            = Cause{By: ByGate, Reason: "idle_timeout", Code: CodeTimeout, Text: "idle timeout"}
)

// Causes that begin with a side that is gone without a close frame.
var (
	causeClientLost  = Cause{By: ByClient, Reason: "client_lost"}
	causeBackendLost = Cause{By: ByBackend, Reason: "backend_lost", Code: CodeBackendLost, Text: "backend lost"}
)

// causeClosed is the cause of a socket whose side sent a close frame.
func causeClosed(by Party, code uint16) *Cause {
	return &Cause{By: by, Reason: "normal", Code: code}
}

// backendCode is the close code that the backend gets.
func (c Cause) backendCode() uint16 {
	if c.backend != 0 {
		return c.backend
	}
	return CodeGoingAway
}

// appendClose appends a close frame (RFC 6455 §5.5.1). The text is cut to
// what a control frame holds. Frames to a backend are masked, §5.3.
func appendClose(p []byte, code uint16, text string, masked bool) []byte {
	text = text[:min(len(text), maxControl-2)]
	size := byte(2 + len(text))
	if !masked {
		p = append(p, bitFinal|opClose, size)
		p = binary.BigEndian.AppendUint16(p, code)
		return append(p, text...)
	}
	var mask [4]byte
	_, _ = rand.Read(mask[:]) // never fails, see its documentation
	p = append(p, bitFinal|opClose, bitMask|size)
	p = append(p, mask[:]...)
	body := len(p)
	p = binary.BigEndian.AppendUint16(p, code)
	p = append(p, text...)
	for i := range p[body:] {
		p[body+i] ^= mask[i&3]
	}
	return p
}
