package module

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// A revocation covers the tokens it names, byte by byte, and no others.
func TestRevocationCovers(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name    string
		revoked subject
		until   time.Time
		covers  bool
	}{
		{"user and issuer", subject{user: "alice", issuer: "i"}, time.Time{}, true},
		{"user of any issuer", subject{user: "alice"}, time.Time{}, true},
		{"user of another issuer", subject{user: "alice", issuer: "j"}, time.Time{}, false},
		{"another user", subject{user: "Alice", issuer: "i"}, time.Time{}, false},
		{"jti and issuer", subject{id: "t1", issuer: "i"}, time.Time{}, true},
		{"jti of any issuer", subject{id: "t1"}, time.Time{}, true},
		{"jti of another issuer", subject{id: "t1", issuer: "j"}, time.Time{}, false},
		{"sid and issuer", subject{session: "s1", issuer: "i"}, time.Time{}, true},
		{"sid of any issuer", subject{session: "s1"}, time.Time{}, true},
		{"sid of another issuer", subject{session: "s1", issuer: "i/"}, time.Time{}, false},
		{"jti like the user", subject{id: "alice"}, time.Time{}, false},
		{"sid like the jti", subject{session: "t1"}, time.Time{}, false},
		{"user like the sid", subject{user: "s1"}, time.Time{}, false},
		{"not over yet", subject{user: "alice"}, now.Add(time.Nanosecond), true},
		{"over just now", subject{user: "alice"}, now, false},
	} {
		set := revocationSet{until: make(map[subject]time.Time)}
		if set.covers("i", "alice", "t1", "s1", now) {
			t.Error("nothing is revoked")
		}
		set.add(tc.revoked, tc.until, now)
		if got := set.covers("i", "alice", "t1", "s1", now); got != tc.covers {
			t.Errorf("%s: covered %t, want %t", tc.name, got, tc.covers)
		}
	}
	// A token without jti and sid is not one whose jti is empty.
	set := revocationSet{until: make(map[subject]time.Time)}
	set.add(subject{id: "t1"}, time.Time{}, now)
	set.add(subject{session: "s1"}, time.Time{}, now)
	if set.covers("i", "bob", "", "", now) {
		t.Error("a token without jti and sid is covered")
	}
}

// What has ended is in no list, can't be lifted, and takes no memory once
// another is added.
func TestRevocationEnds(t *testing.T) {
	set := revocationSet{until: make(map[subject]time.Time)}
	now := time.Now()
	for i := range 10 {
		set.add(subject{user: fmt.Sprint(i)}, now.Add(time.Duration(i+1)*time.Minute), now)
	}
	set.add(subject{user: "for good"}, time.Time{}, now)
	later := now.Add(5 * time.Minute)
	if n := len(set.list(later)); n != 6 {
		t.Errorf("%d are listed, want 6", n)
	}
	if set.lift(subject{user: "0"}, later) {
		t.Error("lifted what had ended")
	}
	if !set.lift(subject{user: "9"}, later) || set.lift(subject{user: "9"}, later) || set.covers("", "9", "", "", later) {
		t.Error("not lifted, or twice")
	}
	set.add(subject{id: "new"}, time.Time{}, later)
	if n := len(set.until); n != 6 {
		t.Errorf("%d are kept, want 6", n)
	}
	// One that is added again gets the new end.
	set.add(subject{user: "8"}, time.Time{}, later)
	if !set.covers("", "8", "", "", later.Add(time.Hour)) {
		t.Error("a revocation was not prolonged")
	}
}

// Memory is bounded: beyond that a call is refused, until something ends.
func TestRevocationsAreBounded(t *testing.T) {
	set := revocationSet{until: make(map[subject]time.Time)}
	now := time.Now()
	for i := range maxRevocations {
		end := time.Time{}
		if i == 0 {
			end = now.Add(time.Minute)
		}
		if !set.add(subject{id: fmt.Sprint(i)}, end, now) {
			t.Fatal(i)
		}
	}
	if set.add(subject{id: "one more"}, time.Time{}, now) {
		t.Error("one more was taken")
	}
	if !set.add(subject{id: "7"}, time.Time{}, now) {
		t.Error("one that is there already was refused")
	}
	if !set.add(subject{id: "one more"}, time.Time{}, now.Add(time.Minute)) {
		t.Error("refused though one has ended")
	}
	if n := len(set.until); n != maxRevocations {
		t.Errorf("%d are kept", n)
	}
}

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
	t.Cleanup(func() { clear(revocations.until) })
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
