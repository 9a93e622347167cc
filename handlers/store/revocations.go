package store

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// MaxRevocations bounds how many revocations are kept. Those with an end
// vanish by themselves.
const MaxRevocations = 100_000

// remembered is how long it is known that a revocation was lifted: a node that
// was cut off for less takes no old word for a new one.
const remembered = 24 * time.Hour

// Subject is what tokens are refused by: one of TokenID, User and SessionID,
// and the issuer unless those of every issuer are meant.
type Subject struct {
	TokenID   string `json:"jti,omitempty"`
	User      string `json:"user,omitempty"`
	SessionID string `json:"sid,omitempty"`
	Issuer    string `json:"issuer,omitempty"`
}

// Revocation is what was said of a subject last.
type Revocation struct {
	Subject
	Said   time.Time // when
	Until  time.Time // zero: until lifted
	Lifted bool
}

// Ends is when nothing of the revocation has to be known any more; zero if
// never.
func (r Revocation) Ends() time.Time {
	if r.Lifted {
		return r.Said.Add(remembered)
	}
	return r.Until
}

// holds reports whether tokens are refused by it.
func (r Revocation) holds(now time.Time) bool {
	return !r.Lifted && (r.Until.IsZero() || now.Before(r.Until))
}

func (r Revocation) ended(now time.Time) bool {
	ends := r.Ends()
	return !ends.IsZero() && !now.Before(ends)
}

// Revocations is the set of what one node knows. Its zero value is ready for
// use.
type Revocations struct {
	mu     sync.RWMutex
	by     map[Subject]Revocation
	lifted int // of them
	swept  time.Time
}

// Merge takes over what was said, here or elsewhere, unless something later is
// known. It reports false if there is no room.
func (s *Revocations) Merge(r Revocation, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.by[r.Subject]
	if ok && !known.Said.Before(r.Said) || r.ended(now) {
		return true
	}
	if now.Sub(s.swept) > time.Minute {
		s.sweep(now, false)
	}
	if !ok && len(s.by) >= MaxRevocations {
		// Not for each of many that find no room.
		if s.lifted > 0 || now.Sub(s.swept) >= time.Second {
			s.sweep(now, true)
		}
		if len(s.by) >= MaxRevocations {
			return false
		}
	}
	if s.by == nil {
		s.by = make(map[Subject]Revocation)
	}
	s.forget(r.Subject)
	s.by[r.Subject] = r
	if r.Lifted {
		s.lifted++
	}
	return true
}

// Say is Merge for what an operator says here and now. It is later than
// everything that is known of the subject, whatever the clocks say, and that
// is the time it returns.
func (s *Revocations) Say(r Revocation, now time.Time) (Revocation, bool) {
	s.mu.RLock()
	known := s.by[r.Subject]
	s.mu.RUnlock()
	r.Said = now.Truncate(time.Microsecond)
	if !known.Said.Before(r.Said) {
		r.Said = known.Said.Add(time.Microsecond)
	}
	return r, s.Merge(r, now)
}

// Holds reports whether the subject is revoked.
func (s *Revocations) Holds(subject Subject, now time.Time) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.holds(subject, now)
}

// holds is Holds for those who hold mu.
func (s *Revocations) holds(subject Subject, now time.Time) bool {
	r, known := s.by[subject]
	return known && r.holds(now)
}

// List is what holds now, in order.
func (s *Revocations) List(now time.Time) []Revocation {
	return s.collect(func(r Revocation) bool { return r.holds(now) })
}

// Known is everything that has to be known, lifted revocations among it.
func (s *Revocations) Known(now time.Time) []Revocation {
	return s.collect(func(r Revocation) bool { return !r.ended(now) })
}

func (s *Revocations) collect(wanted func(Revocation) bool) []Revocation {
	s.mu.RLock()
	all := make([]Revocation, 0, len(s.by))
	for _, r := range s.by {
		if wanted(r) {
			all = append(all, r)
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b Revocation) int {
		return cmp.Or(cmp.Compare(a.Issuer, b.Issuer), cmp.Compare(a.User, b.User), cmp.Compare(a.SessionID, b.SessionID), cmp.Compare(a.TokenID, b.TokenID))
	})
	return all
}

// Covers reports whether tokens with this identity are refused.
func (s *Revocations) Covers(issuer, user, id, session string, now time.Time) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.by) == 0 {
		return false
	}
	for _, issuer := range [...]string{issuer, ""} {
		for _, subject := range [...]Subject{{User: user, Issuer: issuer}, {TokenID: id, Issuer: issuer}, {SessionID: session, Issuer: issuer}} {
			if subject == (Subject{Issuer: issuer}) {
				continue // the token has no such claim
			}
			if s.holds(subject, now) {
				return true
			}
		}
	}
	return false
}

// sweep forgets what has ended and, where there is need, what was lifted. mu
// is held.
func (s *Revocations) sweep(now time.Time, need bool) {
	s.swept = now
	for subject, r := range s.by {
		if r.ended(now) || need && r.Lifted {
			s.forget(subject)
		}
	}
}

// forget drops what was said of a subject. mu is held.
func (s *Revocations) forget(subject Subject) {
	if s.by[subject].Lifted {
		s.lifted--
	}
	delete(s.by, subject)
}
