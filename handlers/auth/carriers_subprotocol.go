package auth

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// subprotocolHeader is Sec-WebSocket-Protocol in the form that net/http gives
// its keys.
const subprotocolHeader = "Sec-Websocket-Protocol"

// ValidateSubprotocol refuses a from_subprotocol that a client cannot offer:
// subprotocols are tokens (RFC 6455 §4.1).
func ValidateSubprotocol(prefix string) error {
	if prefix == "" {
		return fmt.Errorf("checking from_subprotocol: %w", errNoName)
	}
	if !isToken(prefix) {
		return fmt.Errorf("checking from_subprotocol: %q is not a subprotocol", prefix)
	}
	return nil
}

// offer is one entry, or the two of a pair, in Sec-WebSocket-Protocol.
type offer struct {
	entry  string // the entry, when it carries no token
	prefix string // the configured prefix, when it does
	token  string
	pair   bool
}

// offers walks the client's offer: several lines are one list, and empty
// elements are none (RFC 9110 §5.6.1). After a prefix on its own, the next
// entry is the token, whatever it looks like.
func (c *Carriers) offers(lines []string, yield func(offer)) {
	pending := ""
	for _, line := range lines {
		for line != "" {
			var entry string
			entry, line, _ = strings.Cut(line, ",")
			entry = strings.Trim(entry, blanks)
			switch {
			case entry == "":
			case pending != "":
				yield(offer{prefix: pending, token: entry, pair: true})
				pending = ""
			default:
				o := c.offerOf(entry)
				if o.pair {
					pending = o.prefix
					continue
				}
				yield(o)
			}
		}
	}
	if pending != "" {
		yield(offer{prefix: pending, pair: true})
	}
}

// offerOf reads one entry by the longest prefix that fits it.
func (c *Carriers) offerOf(entry string) offer {
	o := offer{entry: entry}
	for _, prefix := range c.Subprotocols {
		if len(prefix) <= len(o.prefix) {
			continue
		}
		rest, ok := strings.CutPrefix(entry, prefix)
		switch {
		case !ok:
		case strings.HasSuffix(prefix, "."):
			if strings.HasPrefix(prefix, "base64url.") {
				rest = decodeEntry(rest)
			}
			o = offer{prefix: prefix, token: rest}
		case rest == "":
			o = offer{prefix: prefix, pair: true}
		case rest[0] == '.':
			o = offer{prefix: prefix, token: rest[1:]}
		}
	}
	return o
}

// decodeEntry decodes a base64url entry without padding. What cannot be
// decoded is an empty token: never the raw text, which might be a token that
// was not encoded.
func decodeEntry(s string) string {
	decoded, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return ""
	}
	return string(decoded)
}

// findSubprotocol notes the tokens in the offer, and tells whether single
// entries with a token are all that is offered.
func (c *Carriers) findSubprotocol(f *finding, lines []string) (lone bool) {
	if len(c.Subprotocols) == 0 || len(lines) == 0 {
		return false
	}
	var seen []string
	answerable := false
	c.offers(lines, func(o offer) {
		if o.prefix == "" {
			answerable = true
			return
		}
		// Another entry of the same prefix is the same source again.
		f.begin(SourceSubprotocol)
		f.inThis = slices.Contains(seen, o.prefix)
		seen = append(seen, o.prefix)
		f.add(o.token)
		if o.pair {
			answerable, f.presented.PairPrefix = true, o.prefix
		}
	})
	return len(seen) > 0 && !answerable
}

// stripSubprotocols takes the tokens out of the offer, both entries of a
// pair. An offer without a token is left alone.
func (c *Carriers) stripSubprotocols(h http.Header) {
	var kept []string
	stripped := false
	c.offers(h[subprotocolHeader], func(o offer) {
		if o.prefix != "" {
			stripped = true
			return
		}
		kept = append(kept, o.entry)
	})
	if !stripped {
		return
	}
	if len(kept) == 0 {
		delete(h, subprotocolHeader)
		return
	}
	h[subprotocolHeader] = []string{strings.Join(kept, ", ")}
}
