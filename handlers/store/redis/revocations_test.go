package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

func user(name string) store.Revocation {
	return store.Revocation{Subject: store.Subject{User: name, Issuer: "i"}}
}

func until(r store.Revocation, at time.Time) store.Revocation {
	r.Until = at
	return r
}

// revoke is what the admin API does, without the questions to other nodes.
func (n *node) revoke(r store.Revocation) {
	n.t.Helper()
	said, room := n.revocations.Say(r, time.Now())
	if !room {
		n.t.Fatal("no room")
	}
	if err := n.Revoke(context.Background(), said); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) refuses(name string) bool {
	return n.revocations.Covers("i", name, "", "", time.Now())
}

// Defect: another node does not learn of a revocation, or a lift, within a
// second, or only one that lives already does.
func TestRevocationUnknownElsewhere(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	heard := make(chan struct{}, 100)
	nodes := startNodes(t, server, 3, func(o *redis.Options) { o.Revoked = func() { heard <- struct{}{} } })
	for len(heard) > 0 {
		<-heard
	}
	begin := time.Now()
	nodes[0].revoke(user("alice"))
	await(t, "the others to know", func() bool { return nodes[1].refuses("alice") && nodes[2].refuses("alice") })
	if took := time.Since(begin); took > time.Second {
		t.Errorf("the others know after %s", took)
	}
	<-heard // who closes live sockets is told
	<-heard

	later := newNode(t, server.URL(), "later", patient)
	t.Cleanup(func() { later.Close() })
	later.Start()
	if err := later.Learn(context.Background()); err != nil || !later.refuses("alice") {
		t.Errorf("a later node does not know: %v", err)
	}
	lift := user("alice")
	lift.Lifted = true
	later.revoke(lift)
	await(t, "all to know", func() bool {
		return !nodes[0].refuses("alice") && !nodes[1].refuses("alice") && !nodes[2].refuses("alice")
	})
	nodes[2].revoke(user("alice"))
	await(t, "all to know", func() bool {
		return nodes[0].refuses("alice") && nodes[1].refuses("alice") && later.refuses("alice")
	})
}

// Defect: what was said while nobody listened, or while Redis was away, is
// never heard.
func TestRevocationMissed(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	p := startProxy(t, server.Addr)
	a, b := startNode(t, server.URL(), "a"), startNode(t, p.URL(), "b")
	a.awaitReady(server, 2)
	b.awaitReady(server, 2)
	for round, fix := range []func(){
		p.Mend,
		func() { p.swallow.Store(false); p.Cut(); p.Mend() }, // half open
	} {
		if round == 0 {
			p.Cut()
		} else {
			p.swallow.Store(true)
		}
		missed, own := "missed"+strconv.Itoa(round), "own"+strconv.Itoa(round)
		a.revoke(user(missed))
		said, _ := b.revocations.Say(user(own), time.Now())
		if err := b.Revoke(context.Background(), said); err == nil {
			t.Error("who is cut off tells others")
		}
		if b.refuses(missed) || !b.refuses(own) {
			t.Error("who is cut off knows the wrong things")
		}
		fix()
		fixed := time.Now()
		await(t, "both to know", func() bool { return b.refuses(missed) && a.refuses(own) })
		if took := time.Since(fixed); took > 5*time.Second {
			t.Errorf("both know after %s", took)
		}
		await(t, "it to be back", b.Up)
	}
}

// Defect: the subscription alone is cut, and a revocation has to wait for it.
func TestRevocationWithoutSubscription(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 2)
	server.Do("ACL", "SETUSER", "default", "resetchannels") // ends subscriptions, and those that publish
	nodes[0].revoke(user("alice"))
	begin := time.Now()
	await(t, "the other to know", func() bool { return nodes[1].refuses("alice") })
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("the other knows after %s", took)
	}
	if !nodes[0].Up() || !nodes[1].Up() {
		t.Error("Redis is said to be away")
	}
}

// Defect: of two words on one subject not the later one counts, once clocks
// differ.
func TestSkewedClocks(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 2)
	ahead, behind := nodes[0], nodes[1]
	say := func(n *node, r store.Revocation, skew time.Duration) {
		said, _ := n.revocations.Say(r, time.Now().Add(skew))
		if err := n.Revoke(context.Background(), said); err != nil {
			t.Fatal(err)
		}
	}
	lift := user("alice")
	lift.Lifted = true
	say(ahead, user("alice"), time.Hour)
	await(t, "both to know", func() bool { return behind.refuses("alice") })
	say(behind, lift, -time.Hour)
	await(t, "both to know of the lift", func() bool { return !ahead.refuses("alice") && !behind.refuses("alice") })
	say(ahead, user("alice"), -time.Hour)
	await(t, "both to know again", func() bool { return ahead.refuses("alice") && behind.refuses("alice") })
	third := startNode(t, server.URL(), "third", patient)
	if err := third.Learn(context.Background()); err != nil || !third.refuses("alice") {
		t.Errorf("Redis has another word: %v", err)
	}
	// An old word that comes late changes nothing.
	old := lift
	old.Said = time.Now().Add(-time.Hour)
	if err := behind.Revoke(context.Background(), old); err != nil {
		t.Error(err)
	}
	fourth := startNode(t, server.URL(), "fourth", patient)
	if err := fourth.Learn(context.Background()); err != nil || !fourth.refuses("alice") {
		t.Errorf("an old word counts in Redis: %v", err)
	}
}

// Defect: Redis that lost everything makes nodes forget, or those that start
// later never learn. Here there are more than one script takes.
func TestRevocationsLostByRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := newNode(t, server.URL(), "a"), newNode(t, server.URL(), "b")
	const n = 700
	for i := range n {
		a.revocations.Say(user("a"+strconv.Itoa(i)), time.Now())
		b.revocations.Say(until(user("b"+strconv.Itoa(i)), time.Now().Add(time.Hour)), time.Now())
	}
	for _, n := range []*node{a, b} {
		n.Start()
		t.Cleanup(func() { n.Close() })
	}
	all := func() bool { return strings.Contains(server.Do("HLEN", "test:{all}:revocations"), strconv.Itoa(2*n)) }
	both := func() bool {
		return len(a.revocations.List(time.Now())) == 2*n && len(b.revocations.List(time.Now())) == 2*n
	}
	await(t, "Redis to have all", all)
	await(t, "both to have all", both)
	server.Do("FLUSHALL")
	await(t, "Redis to have all again", all)
	server.Kill()
	server.Start()
	await(t, "Redis to have all once more", all)
	c := startNode(t, server.URL(), "c", patient)
	if err := c.Learn(context.Background()); err != nil || len(c.revocations.List(time.Now())) != 2*n {
		t.Errorf("a new node has %d: %v", len(c.revocations.List(time.Now())), err)
	}
}

// Defect: revocations that have ended stay in Redis for good.
func TestEndedRevocationsStay(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	n := startNodes(t, server, 1)[0]
	for i := range 150 {
		n.revoke(until(user(strconv.Itoa(i)), time.Now().Add(500*time.Millisecond)))
	}
	n.revoke(user("stays"))
	await(t, "the others to vanish", func() bool {
		return values(server.Do("HLEN", "test:{all}:revocations"))[0] == "1" && values(server.Do("ZCARD", "test:{all}:ends"))[0] == "1"
	})
	if !n.refuses("stays") {
		t.Error("one that has not ended is gone")
	}
}

// Defect: strange content in Redis, or a strange message, stops the node, or
// keeps it from what is all right.
func TestStrangeContent(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for i, content := range [][2]string{
		{"no json", "1"}, {`{"user":"x"}`, "no time"}, {`{"user":"x"}`, ""}, {`{"user":"x"}`, "1 never"},
		{`{}`, "1"}, {`{"issuer":"i"}`, "1"}, {`null`, "1"}, {`[]`, "1"}, {`{"user":7}`, "1"}, {"\x00\xff", "\xfe"},
		{`{"user":"y"}`, "9223372036854775807 -9223372036854775808"}, {`{"user":"z"}`, "99999999999999999999"},
		{strings.Repeat("[", 100_000), "1"},
	} {
		server.Do("HSET", "test:{all}:revocations", content[0], content[1])
		server.Do("ZADD", "test:{all}:ends", strconv.Itoa(1<<60+i), content[0])
	}
	subject, value, err := redis.Encode(until(user("alice"), time.Now().Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	server.Do("HSET", "test:{all}:revocations", subject, value)
	server.Do("SET", "test:{all}:version", "anything")
	nodes := startNodes(t, server, 2, patient)
	a, b := nodes[0], nodes[1]
	if err := a.Learn(context.Background()); err != nil || !a.refuses("alice") {
		t.Errorf("what is all right is not known: %v", err)
	}
	for _, message := range []string{
		"", "{", "null", "[]", `"x"`, "7", "{}", `{"evicted":"x"}`, `{"evicted":[7]}`, `{"evicted":[]}`, `{"evicted":[""]}`,
		`{"changed":[{}]}`, `{"changed":[null]}`, `{"changed":[{"subject":"{}","value":""}],"before":"anything","version":"x"}`,
		`{"answer":{}}`, `{"answer":{},"number":"1"}`, `{"question":null}`, `{"question":{}}`, `{"question":{},"from":"` + "\\u0000" + `"}`,
		strings.Repeat("[", 100_000), "\xff\xfe",
	} {
		server.Do("PUBLISH", a.CommandsChannel(), message)
	}
	a.revoke(user("bob"))
	await(t, "the other to know", func() bool { return b.refuses("bob") })
	if !a.Up() || !b.Up() {
		t.Error("Redis is said to be away")
	}
	// Where a known subject has a strange value, the next word replaces it.
	server.Do("HSET", "test:{all}:revocations", subject, "strange")
	a.revoke(until(user("alice"), time.Now().Add(time.Minute)))
	if _, err := redis.Decode(subject, values(server.Do("HGET", "test:{all}:revocations", subject))[0]); err != nil {
		t.Error(err)
	}
}

// Defect: what is there for good fills the log with a line each time that
// anything changes.
func TestStrangeContentFloodsLog(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	for i := range 100 {
		server.Do("HSET", "test:{all}:revocations", "no json "+strconv.Itoa(i), "1")
	}
	server.Do("SET", "test:{all}:version", "anything")
	n := startNodes(t, server, 1)[0]
	for range 100 {
		n.Handle("no json")
	}
	if n := len(n.said()); n < 1 || n > 4 {
		t.Errorf("%d lines in the log", n)
	}
}

// Defect: what is written is read as something else, or panics.
func FuzzDecode(f *testing.F) {
	for _, r := range []store.Revocation{
		user("alice"), until(user("bob"), time.Unix(1e9, 0)), {Subject: store.Subject{TokenID: "\x00<é>"}, Lifted: true},
		{Subject: store.Subject{SessionID: `"`, Issuer: "https://i"}},
	} {
		r.Said = time.UnixMicro(1_700_000_000_000_000)
		subject, value, err := redis.Encode(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(subject, value)
	}
	f.Add(`{"user":"x","issuer":null}`, "-1 1")
	f.Add(`{"USER":"x"}`, "9223372036854775807 lifted")
	f.Add(`null`, " ")
	f.Fuzz(func(t *testing.T, subject, value string) {
		r, err := redis.Decode(subject, value)
		if err != nil {
			return
		}
		if r.Subject == (store.Subject{Issuer: r.Issuer}) {
			t.Fatalf("%q names nothing", subject)
		}
		subject2, value2, err := redis.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := redis.Decode(subject2, value2)
		if err != nil || again.Subject != r.Subject || !again.Said.Equal(r.Said) || !again.Until.Equal(r.Until) || again.Lifted != r.Lifted {
			t.Fatalf("%+v was read as %+v: %v", r, again, err)
		}
		new(store.Revocations).Merge(r, time.Now())
	})
}

// Defect: a message makes the node panic, or leaves something behind.
func FuzzNotice(f *testing.F) {
	for _, text := range []string{
		`{"evicted":["a","b"]}`,
		`{"changed":[{"subject":"{\"user\":\"x\"}","value":"1700000000000000 lifted"}],"before":"","version":"1"}`,
		`{"from":"x","number":"1","question":{"list":{}}}`, `{"from":"x","number":"1","answer":{"count":1}}`, `{"number":"1","answer":null}`,
		"", "{", "null", `{"changed":[{}]}`, `{"evicted":[""]}`,
	} {
		f.Add(text)
	}
	n := newNode(f, "redis://127.0.0.1:1", "a", answering(func(q []byte) []byte { return nil }))
	f.Cleanup(func() { n.Close() })
	f.Fuzz(func(t *testing.T, text string) {
		n.Handle(text)
		if n.Changed() != 0 || n.Leases() != 0 || n.Waiting() != 0 {
			t.Fatalf("%q leaves something behind", text)
		}
	})
}

// Defect: who is away, or refused, is said to have told others.
func TestRevokeWhileAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	n := startNodes(t, server, 1)[0]
	server.Kill()
	said, _ := n.revocations.Say(user("alice"), time.Now())
	if err := n.Revoke(context.Background(), said); err == nil {
		t.Error("no error")
	}
	await(t, "it to be noticed", func() bool { return !n.Up() })
	said, _ = n.revocations.Say(user("bob"), time.Now())
	if err := n.Revoke(context.Background(), said); !errors.Is(err, redis.ErrAway) {
		t.Errorf("the error is %v", err)
	}
	server.Start()
	await(t, "Redis to be told", func() bool {
		return strings.Contains(fmt.Sprint(values(server.Do("HLEN", "test:{all}:revocations"))), "2")
	})
}

// Defect: all that is known is read again with each beat.
func TestLearnsAgainAndAgain(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 2)
	for i := range 20 {
		nodes[i%2].revoke(user(strconv.Itoa(i)))
	}
	await(t, "both to know", func() bool { return nodes[0].refuses("19") && nodes[1].refuses("18") })
	stats := func() (beats, scans int) {
		info := server.Do("INFO", "commandstats")
		return calls(info, "evalsha"), calls(info, "hscan")
	}
	startNode(t, server.URL(), "later")
	// They may have found out about a version before they heard of it.
	beats, _ := stats()
	await(t, "some beats", func() bool { n, _ := stats(); return n >= beats+4 })
	beats, scans := stats()
	await(t, "more beats", func() bool { n, _ := stats(); return n >= beats+6 })
	if _, n := stats(); n > scans {
		t.Errorf("%d scans without any news", n-scans)
	}
}
