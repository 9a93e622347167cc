package module

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

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

func (r revocation) subject() store.Subject {
	return store.Subject{TokenID: r.ID, User: r.User, SessionID: r.SessionID, Issuer: r.Issuer}
}

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

// revocations are those that this process knows. They outlive configs.
var revocations store.Revocations

// errRevoked refuses a token that was good until somebody revoked it.
var errRevoked = errors.New("revoked")

// checkRevoked refuses tokens that were revoked, on any node.
func (g *Gate) checkRevoked(v *visit) error {
	if shared, ok := g.store.(store.Shared); ok {
		ctx, cancel := v.storeContext()
		defer cancel()
		if err := shared.Learn(ctx); err != nil {
			return fmt.Errorf("%w: %w", errStore, err)
		}
	}
	if revoked(v.token) {
		return errRevoked
	}
	return nil
}

func revoked(t *auth.Token) bool {
	return revocations.Covers(t.Issuer, t.User, t.ID, t.SessionID, time.Now())
}

// causeRevoked ends a socket whose token was revoked.
var causeRevoked = tunnel.Cause{By: tunnel.ByGate, Reason: "revoked", Code: tunnel.CodeUnauthorized, Text: "token revoked"}

// closeRevoked ends the live sockets that a new revocation covers.
func closeRevoked() (closed int) {
	now := time.Now()
	for s := range live.All() {
		if revocations.Covers(s.Issuer, s.User, s.TokenID, s.SessionID, now) && s.Close(causeRevoked) {
			closed++
		}
	}
	return closed
}

func listRevocations(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	all := []revocation{}
	for _, r := range revocations.List(time.Now()) {
		entry := revocation{ID: r.TokenID, User: r.User, SessionID: r.SessionID, Issuer: r.Issuer}
		if !r.Until.IsZero() {
			until := r.Until.UTC()
			entry.Until = &until
		}
		all = append(all, entry)
	}
	return writeJSON(w, map[string][]revocation{"revocations": all})
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
	said := store.Revocation{Subject: entry.subject()}
	if entry.Until != nil {
		said.Until = *entry.Until
	}
	said, room := revocations.Say(said, now)
	if !room {
		return adminError(http.StatusInsufficientStorage, errors.New("there are too many revocations: lift some, or give them an end"))
	}
	return everywhere(r.Context(), order{Revoke: &said}).write(w, "closed")
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
	if !revocations.Holds(entry.subject(), now) {
		return adminError(http.StatusNotFound, errors.New("no such revocation"))
	}
	said, _ := revocations.Say(store.Revocation{Subject: entry.subject(), Lifted: true}, now)
	all := everywhere(r.Context(), order{Revoke: &said})
	all.Count = 1
	return all.write(w, "lifted")
}
