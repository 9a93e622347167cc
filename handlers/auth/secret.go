package auth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// minSecret is the least length of a shared secret, in bytes: the size of the
// shortest hash (RFC 7518 §3.2).
const minSecret = 32

// ParseSecret decodes a shared secret from base64, in either alphabet (RFC
// 4648 §4 and §5), with or without padding. It is at least 32 bytes long once
// decoded.
func ParseSecret(text string) ([]byte, error) {
	// A file that holds a secret often ends in a line break. Errors say
	// nothing of what was decoded.
	text = strings.TrimSpace(text)
	if strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("decoding secret: it holds a line break")
	}
	text = strings.NewReplacer("-", "+", "_", "/").Replace(text)
	encoding := base64.RawStdEncoding
	if strings.HasSuffix(text, "=") {
		encoding = base64.StdEncoding
	}
	secret, err := encoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("decoding secret: it is not base64")
	}
	if len(secret) < minSecret {
		return nil, fmt.Errorf("decoding secret: it has %d bytes, and needs at least %d", len(secret), minSecret)
	}
	return secret, nil
}
