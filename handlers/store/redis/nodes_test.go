package redis_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store/redis"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

// gather asks, and returns the answers in order.
func (n *node) gather(question string) ([]string, error) {
	n.t.Helper()
	begin := time.Now()
	answers, err := n.Gather(context.Background(), []byte(question))
	if took := time.Since(begin); took > time.Second+slack {
		n.t.Errorf("Gather took %s", took)
	}
	var all []string
	for _, a := range answers {
		all = append(all, string(a))
	}
	slices.Sort(all)
	return all, err
}

// named answers every question with a name.
func named(name string) option {
	return answering(func(q []byte) []byte {
		return fmt.Appendf(nil, `{"node":%q,"question":%s}`, name, q)
	})
}

// Defect: an answer is missing, comes twice, or belongs to another question.
func TestGatherLosesAnswers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var nodes []*node
	for i := range 4 {
		name := strconv.Itoa(i)
		nodes = append(nodes, startNode(t, server.URL(), name, named(name)))
	}
	for _, n := range nodes {
		n.awaitReady(server, 4)
	}
	together(12, func(i int) {
		var want []string
		for other := range 4 {
			if other != i%4 {
				want = append(want, fmt.Sprintf(`{"node":"%d","question":%d}`, other, i))
			}
		}
		if got, err := nodes[i%4].gather(strconv.Itoa(i)); err != nil || !slices.Equal(got, want) {
			t.Errorf("the answers to %d are %q, want %q; %v", i, got, want, err)
		}
	})
	if n := nodes[0].Waiting(); n > 0 {
		t.Errorf("%d questions still wait for answers", n)
	}
	// Who leaves is not waited for.
	nodes[3].Close()
	if got, err := nodes[0].gather("1"); err != nil || len(got) != 2 {
		t.Errorf("%q, %v", got, err)
	}
}

// Defect: a node that has just started is not asked.
func TestGatherForgetsNewNode(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a := startNode(t, server.URL(), "a")
	a.awaitReady(server, 1)
	for i := range 5 {
		b := startNode(t, server.URL(), "b", named("b"))
		b.awaitReady(server, 2)
		if got, err := a.gather("1"); err != nil || len(got) != 1 {
			t.Fatalf("round %d: %q, %v", i, got, err)
		}
		b.Close()
		await(t, "its subscription to end", func() bool {
			return strings.Contains(server.Do("PUBSUB", "NUMSUB", a.CommandsChannel()), ":1\n")
		})
	}
}

// Defect: one node that hangs or crashed keeps the others' answers back, or is
// not named, or is waited for for good.
func TestGatherWaitsForDead(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	hang := make(chan struct{})
	a := startNode(t, server.URL(), "a")
	b := startNode(t, server.URL(), "b", named("b"))
	c := startNode(t, server.URL(), "node c", answering(func([]byte) []byte { <-hang; return []byte("1") }))
	d := newNode(t, server.URL(), "d", named("d"))
	d.Start()
	for _, n := range []*node{a, b, c, d} {
		n.awaitReady(server, 4)
	}
	d.Crash()
	got, err := a.gather("1")
	if len(got) != 1 || err == nil || !strings.HasSuffix(err.Error(), "no answer from d, node c") {
		t.Errorf("%q, %v", got, err)
	}
	close(hang)
	crashed := time.Now()
	await(t, "the dead node not to be waited for", func() bool {
		got, err := a.gather("1")
		return len(got) == 2 && err == nil
	})
	if took := time.Since(crashed); took > 8*time.Second {
		t.Errorf("it was waited for during %s", took)
	}
}

// Defect: large answers are cut, or end the subscription.
func TestGatherLargeAnswers(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var large []map[string]string
	for i := range 1000 {
		large = append(large, map[string]string{"id": strconv.Itoa(i), "user": strings.Repeat("é\x00<", 30)})
	}
	text, err := json.Marshal(large)
	if err != nil {
		t.Fatal(err)
	}
	a := startNode(t, server.URL(), "a")
	for i := range 3 {
		startNode(t, server.URL(), strconv.Itoa(i), answering(func([]byte) []byte { return text }))
	}
	a.awaitReady(server, 4)
	for range 3 {
		answers, err := a.Gather(context.Background(), []byte(`{"list":{}}`))
		if err != nil || len(answers) != 3 {
			t.Fatalf("%d answers: %v", len(answers), err)
		}
		for _, answer := range answers {
			if !bytes.Equal(answer, text) {
				t.Fatal("an answer is not what was said")
			}
		}
	}
	// One that nobody understands is no answer, and not waited for longer than
	// others.
	b := startNode(t, server.URL(), "mute", answering(func([]byte) []byte { return nil }))
	b.awaitReady(server, 5)
	if got, err := a.gather("1"); len(got) != 3 || err == nil || !strings.Contains(err.Error(), "mute") {
		t.Errorf("%d answers, %v", len(got), err)
	}
}

// Defect: commands reach nodes of another prefix or database. Channels, unlike
// keys, belong to no database.
func TestCommandsNotApart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	base := strings.TrimSuffix(server.URL(), "0")
	var asked atomic.Int64
	listens := answering(func([]byte) []byte { asked.Add(1); return []byte("1") })
	var all []*node
	for _, where := range []struct{ prefix, db string }{
		{"ws", "0"}, {"ws", "1"}, {"ws", "10"}, {"ws1", "0"}, {"ws:", "0"}, {"", "0"},
	} {
		n := startNode(t, base+where.db, where.prefix+" "+where.db, listens, prefix(where.prefix))
		n.awaitReady(server, 1)
		all = append(all, n)
	}
	for _, n := range all {
		if got, err := n.gather("1"); len(got) > 0 || err != nil {
			t.Errorf("%s: %q, %v", n.name, got, err)
		}
		n.revoke(user(n.name))
	}
	for _, n := range all {
		for _, other := range all {
			if n != other && n.refuses(other.name) {
				t.Errorf("%s knows what was revoked in %s", n.name, other.name)
			}
		}
	}
	if asked.Load() > 0 {
		t.Errorf("%d questions reached others", asked.Load())
	}
}

// Defect: more questions than are answered at once stop the node.
func TestTooManyQuestions(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	hang := make(chan struct{})
	var asked atomic.Int64
	a := startNode(t, server.URL(), "a")
	b := startNode(t, server.URL(), "b", answering(func([]byte) []byte {
		asked.Add(1)
		<-hang
		return []byte("1")
	}))
	a.awaitReady(server, 2)
	b.awaitReady(server, 2)
	together(50, func(int) {
		if got, err := a.gather("1"); len(got) > 0 || err == nil {
			t.Errorf("%q, %v", got, err)
		}
	})
	if n := asked.Load(); n != 16 {
		t.Errorf("%d are answered at once", n)
	}
	a.revoke(user("alice"))
	await(t, "it to go on listening", func() bool { return b.refuses("alice") })
	close(hang)
	await(t, "it to answer again", func() bool {
		got, err := a.gather("1")
		return len(got) == 1 && err == nil
	})
}

// Defect: without Redis a question waits, or says it reached everybody.
func TestGatherWhileAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 2, func(o *redis.Options) { o.Asked = func([]byte) []byte { return []byte("1") } })
	server.Pause()
	if got, err := nodes[0].gather("1"); len(got) > 0 || err == nil {
		t.Errorf("%q, %v", got, err)
	}
	await(t, "it to be noticed", func() bool { return !nodes[0].Up() })
	begin := time.Now()
	if got, err := nodes[0].gather("1"); len(got) > 0 || err == nil || !strings.Contains(err.Error(), "only this node") {
		t.Errorf("%q, %v", got, err)
	}
	if took := time.Since(begin); took > slack {
		t.Errorf("it took %s to say that Redis is away", took)
	}
	server.Resume()
	await(t, "both to hear each other", func() bool {
		got, err := nodes[0].gather("1")
		return err == nil && len(got) == 1
	})
}
