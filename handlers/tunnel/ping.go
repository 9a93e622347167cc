package tunnel

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"time"
)

// pingSize is the payload of a ping of the gate's own, one cipher block.
const pingSize = aes.BlockSize

// pingCipher seals the payload of our pings: the socket's number and the
// moment of sending, as one block under a key that lives as long as the
// process. Nobody else can make such a block, no two are equal, and a pong
// tells by itself whose it is and how long it was under way, however late it
// comes: nothing is kept for it.
var pingCipher = newPingCipher()

func newPingCipher() cipher.Block {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails, see its documentation
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key has a length of AES
	}
	return block
}

// appendPing appends a ping frame to the client (RFC 6455 §5.5.2) for the
// socket of this number at this time of its life.
func appendPing(p []byte, number uint64, now time.Duration) []byte {
	p = append(p, bitFinal|opPing, pingSize)
	var block [pingSize]byte
	binary.BigEndian.PutUint64(block[:8], number)
	binary.BigEndian.PutUint64(block[8:], uint64(now))
	pingCipher.Encrypt(block[:], block[:])
	return append(p, block[:]...)
}

// openPong reports whether the masked payload answers a ping that was made
// for the socket of this number, and when that ping was made. Both payload and
// block, which it works in, hold pingSize bytes.
func openPong(block, payload []byte, mask [4]byte, number uint64) (sent time.Duration, ours bool) {
	block = block[:pingSize]
	for i := range block {
		block[i] = payload[i] ^ mask[i&3]
	}
	pingCipher.Decrypt(block, block)
	if binary.BigEndian.Uint64(block) != number {
		return 0, false
	}
	return time.Duration(binary.BigEndian.Uint64(block[8:])), true
}
