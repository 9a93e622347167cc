package auth

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// maxKeys bounds the entries of a key set; one with more is refused whole.
	maxKeys = 1000
	// maxCandidates bounds the signatures that are checked for one token.
	maxCandidates = 4
)

// keySet is what a source knows at one moment. It is immutable.
type keySet struct {
	keys  []*key
	byKid map[string][]*key // "" holds the keys without a kid
	// digest names the keys: equal for equal keys, in whatever order.
	digest [sha256.Size]byte
	// ignored tells of entries that an operator should know to be unused.
	ignored string

	// generation counts the changes of the digest in one source.
	generation uint64
	// fetched is when the keys were last confirmed.
	fetched time.Time
}

var (
	errKeySet     = errors.New("parsing the key set: it is not a JSON object with one array of keys")
	errManyKeys   = fmt.Errorf("parsing the key set: more than %d keys", maxKeys)
	errNoKeyInSet = errors.New("parsing the key set: no usable key in it")
)

// parseKeySet reads a JWK Set (RFC 7517 §5). Entries that cannot be used are
// left out one by one; a set of which none is left is an error.
func parseKeySet(text string) (*keySet, error) {
	entries, err := parseEntries(text)
	if err != nil {
		return nil, err
	}
	var keys []*key
	ignored := make(map[string]int)
	for _, entry := range entries {
		if entry == nil {
			ignored[errBadMember.Error()]++
			continue
		}
		k, err := newKey(entry)
		switch {
		case err == nil:
			keys = append(keys, k)
		case errors.Is(err, errNotForSignatures):
			// Sets that hold encryption keys beside the others are common.
		default:
			ignored[err.Error()]++
		}
	}
	summary := summarize(ignored)
	if len(keys) == 0 {
		if summary != "" {
			return nil, fmt.Errorf("%w: %s", errNoKeyInSet, summary)
		}
		return nil, errNoKeyInSet
	}
	set := newKeySet(keys)
	set.ignored = summary
	return set, nil
}

// parseEntries returns the objects in "keys", nil for an entry that is not an
// object or is ambiguous.
func parseEntries(text string) ([]map[string]any, error) {
	r := reader{text: text}
	var entries []map[string]any
	found := false
	err := r.document(func(name string) error {
		if name != "keys" {
			_, err := r.value()
			return err
		}
		r.space()
		if found || r.peek() != '[' {
			return errKeySet
		}
		found = true
		return r.array(func() error {
			if len(entries) == maxKeys {
				return errManyKeys
			}
			r.flaw = nil
			value, err := r.value()
			entry, _ := value.(map[string]any)
			if r.flaw != nil {
				entry = nil
			}
			entries = append(entries, entry)
			return err
		})
	})
	switch {
	case errors.Is(err, errManyKeys):
		return nil, err
	case err != nil || !found:
		return nil, errKeySet
	}
	return entries, nil
}

// newKeySet orders the keys by what they are, so that nothing depends on the
// order in which an issuer lists them.
func newKeySet(keys []*key) *keySet {
	slices.SortFunc(keys, func(a, b *key) int {
		return cmp.Or(
			strings.Compare(a.kid, b.kid),
			bytes.Compare(a.thumbprint[:], b.thumbprint[:]),
			strings.Compare(a.algorithm, b.algorithm),
		)
	})
	keys = slices.CompactFunc(keys, func(a, b *key) bool {
		return a.kid == b.kid && a.algorithm == b.algorithm && a.thumbprint == b.thumbprint
	})
	set := &keySet{keys: keys, byKid: make(map[string][]*key)}
	h := sha256.New()
	for _, k := range keys {
		set.byKid[k.kid] = append(set.byKid[k.kid], k)
		fmt.Fprintf(h, "%q %q %x\n", k.kid, k.algorithm, k.thumbprint)
	}
	h.Sum(set.digest[:0])
	return set
}

// newSecretSet holds one shared secret, which never leaves and never ages.
func newSecretSet(secret []byte) *keySet {
	return newKeySet([]*key{{kind: kindSecret, public: bytes.Clone(secret), thumbprint: sha256.Sum256(secret)}})
}

// verify checks a token's signature with the keys that may have made it: those
// with its kid, or those without any. A token without kid is tried on every
// key that fits its algorithm. At most maxCandidates signatures are checked.
func (s *keySet) verify(c *compact) error {
	candidates := s.keys
	known := true
	if c.header.kid != "" {
		if candidates, known = s.byKid[c.header.kid]; !known {
			candidates = s.byKid[""]
		}
	}
	tried := 0
	for _, k := range candidates {
		if !k.fits(c.header.algorithm) {
			continue
		}
		if tried++; tried > maxCandidates {
			break
		}
		if verifySignature(c.header.algorithm, k.public, c.signed, c.signature) == nil {
			return nil
		}
	}
	switch {
	case !known:
		return errUnknownKid
	case tried == 0:
		return errNoKey
	}
	return errSignature
}

// summarize lists why entries were ignored, in a fixed order.
func summarize(reasons map[string]int) string {
	lines := make([]string, 0, len(reasons))
	for reason, count := range reasons {
		lines = append(lines, fmt.Sprintf("%d × %s", count, reason))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}
