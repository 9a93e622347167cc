package module

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// The calls: revoking ends live sockets with 3000 and frees their slots, lists
// tell what holds, lifting lets tokens in again; a gate refuses meanwhile.
func TestRevocationCalls(t *testing.T) {
	released := make(map[string]bool)
	open := func(id, issuer, user, jti, sid string) {
		liveSocket(t, tunnel.Identity{ID: id, Issuer: issuer, User: user, TokenID: jti, SessionID: sid}, func(a *tunnel.Accepted) {
			a.Release = func() { released[id] = true }
		})
	}
	open("1", "i", "alice", "t1", "s1")
	open("2", "j", "alice", "t1", "s1")
	open("3", "i", "alice", "t3", "s1")
	open("4", "i", "bob", "t4", "")
	open("5", "j", "bob", "", "s1")
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	end := until.Format(time.RFC3339)
	t.Cleanup(func() { revocations = store.Revocations{} })
	for _, tc := range []struct {
		body   string
		closed []string
	}{
		{`{"jti":"t1","issuer":"i","until":"` + end + `"}`, []string{"1"}},
		{`{"jti":"t1"}`, []string{"2"}},
		{`{"sid":"s1","issuer":"j","until":"` + until.In(time.FixedZone("", 3600)).Format(time.RFC3339Nano) + `"}`, []string{"5"}},
		{`{"user":"alice","issuer":"i"}`, []string{"3"}},
		{`{"user":"alice","issuer":"i"}`, nil},
		{`{"user":"Bob"}`, nil},
	} {
		clear(released)
		var answer map[string]int
		if status, message, _ := call(t, "POST", "revocations", tc.body, &answer); status != 200 {
			t.Fatal(status, message)
		}
		if answer["closed"] != len(tc.closed) || len(answer) != 1 || len(released) != len(tc.closed) {
			t.Errorf("%s: %v, freed %v, want %v", tc.body, answer, released, tc.closed)
		}
		for _, id := range tc.closed {
			if !released[id] || !live.Get(id).Ending() {
				t.Errorf("%s: %s goes on", tc.body, id)
			}
		}
	}
	var list map[string][]object
	call(t, "GET", "revocations", "", &list)
	want := []object{{"jti": "t1"}, {"user": "Bob"}, {"issuer": "i", "jti": "t1", "until": end}, {"issuer": "i", "user": "alice"}, {"issuer": "j", "sid": "s1", "until": end}}
	if len(list) != 1 || fmt.Sprint(list["revocations"]) != fmt.Sprint(want) {
		t.Errorf("listed %v, want %v", list, want)
	}

	g, logs := newGate(t)
	visit := func(more object) (status int, reason string) {
		logs.TakeAll()
		err := g.ServeHTTP(httptest.NewRecorder(), request(t, opening(mint(t, more))), nextFunc(func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusNotFound)
			return nil
		}))
		for _, entry := range logs.All() {
			reason, _ = entry.ContextMap()["reason"].(string)
		}
		if err != nil {
			return statusOf(err), reason
		}
		return http.StatusNotFound, reason
	}
	if status, reason := visit(object{"jti": "t1"}); status != 401 || reason != reasonRevoked {
		t.Errorf("revoked: %d, %q", status, reason)
	}
	if status, reason := visit(object{"jti": "t2"}); status != 404 || reason != reasonBackend {
		t.Errorf("not revoked: %d, %q", status, reason)
	}
	var answer map[string]int
	if status, message, _ := call(t, "DELETE", "revocations?jti=t1", "", &answer); status != 200 || answer["lifted"] != 1 {
		t.Errorf("lifting: %d %q %v", status, message, answer)
	}
	if status, reason := visit(object{"jti": "t1"}); status != 404 || reason != reasonBackend {
		t.Errorf("lifted: %d, %q", status, reason)
	}
	if status, _, _ := call(t, "DELETE", "revocations?jti=t1", "", nil); status != 404 {
		t.Errorf("lifting twice: %d", status)
	}
	call(t, "GET", "revocations", "", &list)
	if slices.ContainsFunc(list["revocations"], func(o object) bool { return fmt.Sprint(o) == fmt.Sprint(object{"jti": "t1"}) }) || len(list["revocations"]) != 4 {
		t.Errorf("listed %v", list)
	}
}
