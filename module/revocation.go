package module

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// maxRevocations bounds how many revocations are kept. Those with an end
// vanish by themselves.
const maxRevocations = 100_000

// maxRevocation bounds one of them: no token is longer.
const maxRevocation = 8 << 10

// revocation is what tokens are refused by: one of ID, User and SessionID,
// and the issuer unless those of every issuer are meant.
type revocation struct {
	ID        string     `json:"jti,omitempty"`
	User      string     `json:"user,omitempty"`
	SessionID string     `json:"sid,omitempty"`
	Issuer    string     `json:"issuer,omitempty"`
	Until     *time.Time `json:"until,omitempty"`
}

// subject is a revocation without its end.
type subject struct{ id, user, session, issuer string }

func (r revocation) subject() subject { return subject{r.ID, r.User, r.SessionID, r.Issuer} }

// check refuses what names nothing, or more than one thing.
func (r revocation) check(now time.Time) error {
	named := 0
	for _, name := range []string{r.ID, r.User, r.SessionID} {
		if name != "" {
			named++
		}
	}
	if len(r.ID)+len(r.User)+len(r.SessionID)+len(r.Issuer) > maxRevocation {
		return fmt.Errorf("is longer than any token: at most %d bytes", maxRevocation)
	}
	if named != 1 {
		return errors.New("needs one of jti, user and sid")
	}
	if r.Until != nil && !r.Until.After(now) {
		return errors.New("until: has passed")
	}
	return nil
}

// revocations are those of this process. They outlive configs.
var revocations = revocationSet{until: make(map[subject]time.Time)}

type revocationSet struct {
	mu    sync.RWMutex
	until map[subject]time.Time // zero: until lifted
	swept time.Time
}

// add keeps a revocation, or reports false if there is no room.
func (r *revocationSet) add(s subject, until time.Time, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.until[s]; !known && len(r.until) >= maxRevocations {
		r.sweep(now)
		if len(r.until) >= maxRevocations {
			return false
		}
	}
	if now.Sub(r.swept) > time.Minute {
		r.sweep(now)
	}
	r.until[s] = until
	return true
}

// lift forgets a revocation, and reports whether there was one.
func (r *revocationSet) lift(s subject, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	until, known := r.until[s]
	delete(r.until, s)
	return known && holds(until, now)
}

// list is what holds now.
func (r *revocationSet) list(now time.Time) []revocation {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := []revocation{}
	for s, until := range r.until {
		if !holds(until, now) {
			continue
		}
		entry := revocation{ID: s.id, User: s.user, SessionID: s.session, Issuer: s.issuer}
		if !until.IsZero() {
			until := until.UTC()
			entry.Until = &until
		}
		all = append(all, entry)
	}
	slices.SortFunc(all, func(a, b revocation) int {
		return cmp.Or(cmp.Compare(a.Issuer, b.Issuer), cmp.Compare(a.User, b.User), cmp.Compare(a.SessionID, b.SessionID), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// sweep forgets what has ended. mu is held.
func (r *revocationSet) sweep(now time.Time) {
	r.swept = now
	for s, until := range r.until {
		if !holds(until, now) {
			delete(r.until, s)
		}
	}
}

func holds(until, now time.Time) bool { return until.IsZero() || now.Before(until) }

// covers reports whether tokens with this identity are refused.
func (r *revocationSet) covers(issuer, user, id, session string, now time.Time) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.until) == 0 {
		return false
	}
	for _, issuer := range [...]string{issuer, ""} {
		for _, s := range [...]subject{{user: user, issuer: issuer}, {id: id, issuer: issuer}, {session: session, issuer: issuer}} {
			if s == (subject{issuer: issuer}) {
				continue // the token has no such claim
			}
			if until, known := r.until[s]; known && holds(until, now) {
				return true
			}
		}
	}
	return false
}

// errRevoked refuses a token that was good until somebody revoked it.
var errRevoked = errors.New("revoked")

// checkRevoked refuses tokens that were revoked.
func (g *Gate) checkRevoked(v *visit) error {
	if revoked(v.token) {
		return errRevoked
	}
	return nil
}

func revoked(t *auth.Token) bool {
	return revocations.covers(t.Issuer, t.User, t.ID, t.SessionID, time.Now())
}

// causeRevoked ends a socket whose token was revoked.
var causeRevoked = tunnel.Cause{By: tunnel.ByGate, Reason: "revoked", Code: tunnel.CodeUnauthorized, Text: "token revoked"}

// closeRevoked ends the live sockets that a new revocation covers.
func closeRevoked() (closed int) {
	now := time.Now()
	for s := range live.All() {
		if revocations.covers(s.Issuer, s.User, s.TokenID, s.SessionID, now) && s.Close(causeRevoked) {
			closed++
		}
	}
	return closed
}

func listRevocations(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	return writeJSON(w, map[string][]revocation{"revocations": revocations.list(time.Now())})
}

func addRevocation(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	var entry revocation
	if err := readJSON(w, r, &entry); err != nil {
		return err
	}
	now := time.Now()
	if err := entry.check(now); err != nil {
		return adminError(http.StatusBadRequest, err)
	}
	var until time.Time
	if entry.Until != nil {
		until = *entry.Until
	}
	if !revocations.add(entry.subject(), until, now) {
		return adminError(http.StatusInsufficientStorage, errors.New("there are too many revocations: lift some, or give them an end"))
	}
	return writeClosed(w, closeRevoked())
}

func liftRevocation(w http.ResponseWriter, r *http.Request) error {
	query, err := parameters(r, "jti", "user", "sid", "issuer", "until")
	if err != nil {
		return err
	}
	entry := revocation{ID: query["jti"], User: query["user"], SessionID: query["sid"], Issuer: query["issuer"]}
	now := time.Now()
	if err := entry.check(now); err != nil {
		return adminError(http.StatusBadRequest, err)
	}
	if !revocations.lift(entry.subject(), now) {
		return adminError(http.StatusNotFound, errors.New("no such revocation"))
	}
	return writeJSON(w, map[string]int{"lifted": 1})
}
