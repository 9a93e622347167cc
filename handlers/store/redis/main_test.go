package redis_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timeout is that of one question, and slack what a busy machine adds to it.
const (
	timeout = 300 * time.Millisecond
	slack   = 700 * time.Millisecond
)

// lease is how long one lasts here.
const (
	lease = 4 * time.Second
	renew = time.Second
)

// node is a store as one process has it.
type node struct {
	*redis.Store
	t           testing.TB
	name        string
	logs        *observer.ObservedLogs
	revocations *store.Revocations
	asked       atomic.Int64 // how often Redis was asked about a handshake

	mu      sync.Mutex
	evicted []string
}

// option changes the options of a node.
type option func(*redis.Options)

func deny(o *redis.Options) { o.Deny = true }

// patient is for tests with more at once than a busy machine answers in time.
func patient(o *redis.Options) { o.Timeout, o.Deny = 10*time.Second, true }

func prefix(p string) option { return func(o *redis.Options) { o.Prefix = p } }

// answering makes the node answer questions.
func answering(answer func(question []byte) []byte) option {
	return func(o *redis.Options) { o.Asked = answer }
}

// newNode makes a node that does nothing yet.
func newNode(t testing.TB, url, name string, options ...option) *node {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	n := &node{t: t, name: name, logs: logs, revocations: new(store.Revocations)}
	o := redis.Options{URLs: []string{url}, Prefix: "test:", Timeout: timeout, Node: name, Revocations: n.revocations}
	o.Evicted = func(id string) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.evicted = append(n.evicted, id)
	}
	o.Measured = func(time.Duration, error) { n.asked.Add(1) }
	for _, option := range options {
		option(&o)
	}
	s, err := redis.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.SetLogger(zap.New(core))
	s.Hurry(lease, renew)
	n.Store = s
	return n
}

// startNode starts a node, which is closed with the test.
func startNode(t testing.TB, url, name string, options ...option) *node {
	t.Helper()
	n := newNode(t, url, name, options...)
	n.Start()
	t.Cleanup(func() { n.Close() })
	return n
}

// startNodes starts several and waits until they hear each other.
func startNodes(t testing.TB, s *redistest.Server, n int, options ...option) []*node {
	t.Helper()
	all := make([]*node, n)
	for i := range all {
		all[i] = startNode(t, s.URL(), "node"+strconv.Itoa(i), options...)
	}
	for _, n := range all {
		n.awaitReady(s, len(all))
	}
	return all
}

// awaitReady waits until the node has asked what there is to know, and so many
// hear what is said on its channel.
func (n *node) awaitReady(s *redistest.Server, listeners int) {
	n.t.Helper()
	await(n.t, "the first beat of "+n.name, n.Learned)
	await(n.t, "all to listen", func() bool {
		return strings.Contains(s.Do("PUBSUB", "NUMSUB", n.CommandsChannel()), ":"+strconv.Itoa(listeners)+"\n")
	})
}

// await waits until something is so.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func reject(key string, limit int) store.Slot { return store.Slot{Key: key, Limit: limit} }

func evict(key string, limit int) store.Slot {
	return store.Slot{Key: key, Limit: limit, Evict: true}
}

func handshake(id string, slots ...store.Slot) store.Request {
	return store.Request{ID: id, Tunnel: "chat", Slots: slots}
}

// acquire asks for places, within the time that a handshake has.
func (n *node) acquire(r store.Request) (store.Verdict, error) {
	n.t.Helper()
	begin := time.Now()
	v, err := n.Acquire(context.Background(), r)
	if took := time.Since(begin); took > timeout+slack {
		n.t.Errorf("%s: Acquire took %s, with a timeout of %s", n.name, took, timeout)
	}
	return v, err
}

// wantIn asks for a place that has to be given.
func (n *node) wantIn(id string, slots ...store.Slot) store.Verdict {
	n.t.Helper()
	v, err := n.acquire(handshake(id, slots...))
	if err != nil || !v.Admitted() {
		n.t.Fatalf("%s: %s is not admitted: %+v, %v", n.name, id, v, err)
	}
	return v
}

// wantFull asks for a place that must not be given.
func (n *node) wantFull(id string, slots ...store.Slot) {
	n.t.Helper()
	v, err := n.acquire(handshake(id, slots...))
	if err != nil || v.Full != 0 {
		n.t.Fatalf("%s: %s does not find it full: %+v, %v", n.name, id, v, err)
	}
}

// wantCount finds out how many connections there are under a key.
func (n *node) wantCount(key string, count int) {
	n.t.Helper()
	if count > 0 {
		n.wantFull("probe", reject(key, count))
	}
	n.wantIn("probe", reject(key, count+1))
	n.Release("probe")
}

// told are the connections that the node was told to end.
func (n *node) told() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.evicted)
}

// said is what the log says, in order.
func (n *node) said() (all []string) {
	for _, line := range n.logs.All() {
		all = append(all, line.Message)
	}
	return all
}

// wantSaid compares the log.
func (n *node) wantSaid(want ...string) {
	n.t.Helper()
	if got := n.said(); !slices.Equal(got, want) {
		n.t.Errorf("%s: the log says %q, want %q", n.name, got, want)
		for _, line := range n.logs.All() {
			n.t.Logf("%s %v", line.Message, line.ContextMap())
		}
	}
}

// together calls f with 0 to n-1, all at the same time.
func together(n int, f func(i int)) {
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-begin
			f(i)
		})
	}
	close(begin)
	all.Wait()
}

// frame is what is not a value in an answer of redis-server.
var frame = regexp.MustCompile(`(?m)^([$*].*\n?|[:+])`)

// values are the strings of an answer of redis-server.
func values(answer string) []string {
	return strings.Fields(frame.ReplaceAllString(answer, ""))
}

// number is an answer that is a number.
func number(t testing.TB, answer string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(strings.Join(values(answer), ""), 64)
	if err != nil {
		t.Fatalf("%q is no number", answer)
	}
	return n
}

// clock is the time of redis-server, in microseconds.
func clock(t testing.TB, s *redistest.Server) float64 {
	t.Helper()
	v := values(s.Do("TIME"))
	return number(t, v[0])*1e6 + number(t, v[1])
}

// proxy stands between a node and a server, and can treat the connections
// badly.
type proxy struct {
	net.Listener
	to      string
	done    sync.WaitGroup
	chunks  atomic.Int64 // that came from the node
	swallow atomic.Bool  // whatever comes, from either side

	mu    sync.Mutex
	conns []net.Conn
	cut   bool
}

func startProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, to: to}
	p.done.Go(p.serve)
	t.Cleanup(func() {
		l.Close()
		p.Cut()
		p.done.Wait()
	})
	return p
}

func (p *proxy) URL() string { return "redis://" + p.Addr().String() + "/0" }

// Cut ends all connections and every new one, until Mend.
func (p *proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

// keep remembers connections, unless there are to be none.
func (p *proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return false
	}
	p.conns = append(p.conns, conns...)
	return true
}

func (p *proxy) serve() {
	for {
		from, err := p.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue
		}
		to, err := net.Dial("tcp", p.to)
		if err != nil {
			from.Close()
			continue
		}
		if !p.keep(from, to) {
			from.Close()
			to.Close()
			continue
		}
		p.done.Go(func() { p.pipe(to, from, &p.chunks) })
		p.done.Go(func() { p.pipe(from, to, new(atomic.Int64)) })
	}
}

func (p *proxy) pipe(to, from net.Conn, chunks *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		chunks.Add(1)
		if p.swallow.Load() {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

func ids(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s%03d", prefix, i)
	}
	return all
}

// write writes a file for redis-server.
func write(t testing.TB, path string, text []byte) string {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
