package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store"
)

// A revocation covers the tokens it names, byte by byte, and no others.
func TestRevocationCovers(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name    string
		revoked store.Subject
		until   time.Time
		covers  bool
	}{
		{"user and issuer", store.Subject{User: "alice", Issuer: "i"}, time.Time{}, true},
		{"user of any issuer", store.Subject{User: "alice"}, time.Time{}, true},
		{"user of another issuer", store.Subject{User: "alice", Issuer: "j"}, time.Time{}, false},
		{"another user", store.Subject{User: "Alice", Issuer: "i"}, time.Time{}, false},
		{"jti and issuer", store.Subject{TokenID: "t1", Issuer: "i"}, time.Time{}, true},
		{"jti of any issuer", store.Subject{TokenID: "t1"}, time.Time{}, true},
		{"jti of another issuer", store.Subject{TokenID: "t1", Issuer: "j"}, time.Time{}, false},
		{"sid and issuer", store.Subject{SessionID: "s1", Issuer: "i"}, time.Time{}, true},
		{"sid of any issuer", store.Subject{SessionID: "s1"}, time.Time{}, true},
		{"sid of another issuer", store.Subject{SessionID: "s1", Issuer: "i/"}, time.Time{}, false},
		{"jti like the user", store.Subject{TokenID: "alice"}, time.Time{}, false},
		{"sid like the jti", store.Subject{SessionID: "t1"}, time.Time{}, false},
		{"user like the sid", store.Subject{User: "s1"}, time.Time{}, false},
		{"not over yet", store.Subject{User: "alice"}, now.Add(time.Nanosecond), true},
		{"over just now", store.Subject{User: "alice"}, now, false},
	} {
		set := new(store.Revocations)
		if set.Covers("i", "alice", "t1", "s1", now) {
			t.Error("nothing is revoked")
		}
		set.Say(store.Revocation{Subject: tc.revoked, Until: tc.until}, now)
		if got := set.Covers("i", "alice", "t1", "s1", now); got != tc.covers {
			t.Errorf("%s: covered %t, want %t", tc.name, got, tc.covers)
		}
	}
	// A token without jti and sid is not one whose jti is empty.
	set := new(store.Revocations)
	set.Say(store.Revocation{Subject: store.Subject{TokenID: "t1"}}, now)
	set.Say(store.Revocation{Subject: store.Subject{SessionID: "s1"}}, now)
	if set.Covers("i", "bob", "", "", now) {
		t.Error("a token without jti and sid is covered")
	}
}

// user is a revocation of everything a user has.
func user(name string, until time.Time) store.Revocation {
	return store.Revocation{Subject: store.Subject{User: name}, Until: until}
}

func lift(name string) store.Revocation {
	return store.Revocation{Subject: store.Subject{User: name}, Lifted: true}
}

// What has ended is in no list and takes no memory once another is added; what
// was lifted does not hold.
func TestRevocationEnds(t *testing.T) {
	set := new(store.Revocations)
	now := time.Now()
	for i := range 10 {
		set.Say(user(fmt.Sprint(i), now.Add(time.Duration(i+1)*time.Minute)), now)
	}
	set.Say(user("for good", time.Time{}), now)
	later := now.Add(5 * time.Minute)
	if n := len(set.List(later)); n != 6 {
		t.Errorf("%d are listed, want 6", n)
	}
	if set.Holds(store.Subject{User: "0"}, later) || !set.Holds(store.Subject{User: "9"}, later) {
		t.Error("what has ended holds, or what has not does not")
	}
	set.Say(lift("9"), later)
	if set.Holds(store.Subject{User: "9"}, later) || set.Covers("", "9", "", "", later) {
		t.Error("not lifted")
	}
	set.Say(user("new", time.Time{}), later)
	if n := set.Len(); n != 7 { // with the one that was lifted
		t.Errorf("%d are kept, want 7", n)
	}
	// One that is said again gets the new end.
	set.Say(user("8", time.Time{}), later)
	if !set.Covers("", "8", "", "", later.Add(time.Hour)) {
		t.Error("a revocation was not prolonged")
	}
}

// Memory is bounded: beyond that nothing is taken, until something ends or was
// lifted.
func TestRevocationsAreBounded(t *testing.T) {
	set := new(store.Revocations)
	now := time.Now()
	say := func(r store.Revocation, now time.Time) bool {
		_, room := set.Say(r, now)
		return room
	}
	for i := range store.MaxRevocations {
		end := time.Time{}
		if i == 0 {
			end = now.Add(time.Minute)
		}
		if !say(user(fmt.Sprint(i), end), now) {
			t.Fatal(i)
		}
	}
	if say(user("one more", time.Time{}), now) {
		t.Error("one more was taken")
	}
	if !say(user("7", time.Time{}), now) {
		t.Error("one that is there already was refused")
	}
	if !say(user("one more", time.Time{}), now.Add(time.Minute)) {
		t.Error("refused though one has ended")
	}
	if !say(lift("7"), now) || !say(user("another", time.Time{}), now) {
		t.Error("refused though one was lifted")
	}
	if n := set.Len(); n != store.MaxRevocations {
		t.Errorf("%d are kept", n)
	}
}

// Of two words on one subject the later one counts, in whatever order they
// come and whatever the clock of who said it.
func TestRevocationsMerge(t *testing.T) {
	now := time.Now()
	at := func(r store.Revocation, seconds int) store.Revocation {
		r.Said = now.Add(time.Duration(seconds) * time.Second)
		return r
	}
	revoked, lifted := at(user("u", time.Time{}), 1), at(lift("u"), 2)
	for _, order := range [][]store.Revocation{{revoked, lifted}, {lifted, revoked}, {lifted, revoked, lifted}} {
		set := new(store.Revocations)
		for _, r := range order {
			set.Merge(r, now)
		}
		if set.Holds(revoked.Subject, now) {
			t.Errorf("%v: an older word counts", order)
		}
		// The other node's clock is ahead of this one's.
		if r, _ := set.Say(user("u", time.Time{}), now); !r.Said.After(lifted.Said) || !set.Holds(revoked.Subject, now) {
			t.Error("what is said here and now does not count")
		}
	}
}
