package auth

import (
	"encoding/base64"
	"strings"
)

// maxToken bounds a token, in bytes.
const maxToken = 8 << 10

// compact is a JWS in compact form (RFC 7515 §7.1), taken apart but not yet
// believed.
type compact struct {
	header    header
	payload   map[string]any
	text      string // of the payload
	signed    []byte // the signing input, RFC 7515 §5.2
	signature []byte
}

// header is what of a JOSE header is looked at. jku, x5u, jwk and x5c are
// not: a token does not bring its own key (RFC 8725 §3.10).
type header struct {
	algorithm string
	kid       string // empty: none
	typ       string // lower case, without "application/"; empty: none
}

// parseCompact takes a token apart. Only one text stands for one token: three
// parts of base64url without padding, whose unused last bits are zero (RFC
// 7515 §2, RFC 4648 §3.5), and JSON that every parser reads alike.
func parseCompact(token string) (*compact, error) {
	encodedHeader, encodedPayload, encodedSignature, err := split(token)
	if err != nil {
		return nil, err
	}
	protected, err := decodePart(encodedHeader)
	if err != nil {
		return nil, err
	}
	c := &compact{signed: []byte(token[:len(encodedHeader)+1+len(encodedPayload)])}
	if c.header, err = parseHeader(string(protected)); err != nil {
		return nil, err
	}
	if c.signature, err = decodePart(encodedSignature); err != nil {
		return nil, err
	}
	payload, err := decodePart(encodedPayload)
	if err != nil {
		return nil, err
	}
	c.text = string(payload)
	c.payload, err = parseObject(c.text)
	return c, err
}

// split finds the two dots. A token of dots alone costs no more than a look
// at each.
func split(token string) (header, payload, signature string, err error) {
	if len(token) > maxToken {
		return "", "", "", errTooLong
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, _ = strings.Cut(rest, ".")
	if header == "" || payload == "" || signature == "" {
		return "", "", "", errMalformed
	}
	return header, payload, signature, nil
}

var strictBase64 = base64.RawURLEncoding.Strict()

// decodePart decodes one part. encoding/base64 skips line breaks, which have
// no place in a token.
func decodePart(part string) ([]byte, error) {
	if strings.ContainsAny(part, "\r\n") {
		return nil, errMalformed
	}
	decoded, err := strictBase64.DecodeString(part)
	if err != nil {
		return nil, errMalformed
	}
	return decoded, nil
}

// unsupported are header parameters that change what a JWS means, or make it
// something else: critical extensions, unencoded payloads (RFC 7797),
// compression and encryption (RFC 7516). None is understood here.
var unsupported = [...]string{"crit", "b64", "zip", "enc"}

func parseHeader(text string) (header, error) {
	object, err := parseObject(text)
	if err != nil {
		return header{}, err
	}
	for _, name := range unsupported {
		if _, ok := object[name]; ok {
			return header{}, errCritical
		}
	}
	var h header
	var ok bool
	if h.algorithm, ok = object["alg"].(string); !ok || h.algorithm == "" {
		return header{}, errHeader
	}
	if kid, present := object["kid"]; present {
		if h.kid, ok = kid.(string); !ok || h.kid == "" {
			return header{}, errHeader
		}
	}
	if typ, present := object["typ"]; present {
		name, ok := typ.(string)
		if !ok || name == "" {
			return header{}, errType
		}
		h.typ = mediaType(name)
	}
	return h, nil
}

// mediaType folds a typ: media types have no case, and "application/" may be
// left out where no other slash follows (RFC 7515 §4.1.9).
func mediaType(typ string) string {
	typ = strings.ToLower(typ)
	if short, ok := strings.CutPrefix(typ, "application/"); ok && !strings.Contains(short, "/") {
		return short
	}
	return typ
}
