package module

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// loadRedis provisions a store as Caddy does.
func loadRedis(t testing.TB, config object) (r *RedisStore, cleanup func(), err error) {
	t.Helper()
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	module, err := ctx.LoadModuleByID("ws_gate.stores.redis", raw)
	if err != nil {
		return nil, cancel, err
	}
	return module.(*RedisStore), cancel, nil
}

// Errors of the config name what to change, and no password (S-211).
func TestRedisConfig(t *testing.T) {
	t.Setenv("REDIS_PASSWORD", "hunter2")
	missing := filepath.Join(t.TempDir(), "missing.pem")
	for name, c := range map[string]struct {
		config object
		want   string // in the error; empty for a config that is good
	}{
		"the least":            {object{"urls": []string{"redis://127.0.0.1:6379"}}, ""},
		"placeholders":         {object{"urls": []string{"redis://:{env.REDIS_PASSWORD}@127.0.0.1:6379/2"}, "prefix": "{env.HOME}:"}, ""},
		"TLS":                  {object{"urls": []string{"rediss://127.0.0.1:6379"}}, ""},
		"Sentinel":             {object{"urls": []string{"redis://a:1", "redis://b:1"}, "sentinel": object{"master": "main", "password": "hunter2"}}, ""},
		"Cluster":              {object{"urls": []string{"redis://a:1", "redis://b:1"}, "cluster": true}, ""},
		"no URL":               {object{}, "a URL is missing"},
		"not a URL":            {object{"urls": []string{"redis://:hunter2@127.0.0.1:port"}}, "malformed"},
		"another scheme":       {object{"urls": []string{"https://:hunter2@127.0.0.1"}}, "invalid URL scheme"},
		"no such variable":     {object{"urls": []string{"redis://:{env.WSGATE_NONE}@127.0.0.1"}}, "URL 1"},
		"two without a kind":   {object{"urls": []string{"redis://a:1", "redis://b:1"}}, "several URLs need"},
		"two kinds":            {object{"urls": []string{"redis://a:1"}, "cluster": true, "sentinel": object{"master": "m"}}, "exclude each other"},
		"URLs that differ":     {object{"urls": []string{"redis://:hunter2@a:1", "redis://b:1"}, "cluster": true}, "differ in more than their hosts"},
		"Cluster and database": {object{"urls": []string{"redis://a:1/3"}, "cluster": true}, "no database but 0"},
		"Cluster on a socket":  {object{"urls": []string{"unix:///run/redis.sock"}, "cluster": true}, "unix socket"},
		"no master":            {object{"urls": []string{"redis://a:1"}, "sentinel": object{"master": ""}}, "sentinel"},
		"on_error":             {object{"urls": []string{"redis://a:1"}, "on_error": "maybe"}, "on_error"},
		"long timeout":         {object{"urls": []string{"redis://a:1"}, "timeout": "2s"}, "timeout"},
		"negative timeout":     {object{"urls": []string{"redis://a:1"}, "timeout": "-2s"}, "timeout"},
		"no such CA":           {object{"urls": []string{"rediss://a:1"}, "tls_ca": missing}, "tls_ca"},
		"no certificate in it": {object{"urls": []string{"rediss://a:1"}, "tls_ca": "redis_test.go"}, "no certificate in it"},
		"key without":          {object{"urls": []string{"rediss://a:1"}, "tls_key": missing}, "tls_certificate"},
		"no such certificate":  {object{"urls": []string{"rediss://a:1"}, "tls_certificate": missing, "tls_key": missing}, "tls_certificate"},
		"a field of ours? no":  {object{"urls": []string{"redis://a:1"}, "colour": "blue"}, "colour"},
	} {
		_, cleanup, err := loadRedis(t, c.config)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		case err != nil && strings.Contains(err.Error(), "hunter2"):
			t.Errorf("%s: the password is in %q", name, err)
		}
		cleanup()
	}
	redisStores.Range(func(any, any) bool {
		t.Error("a store is left")
		return false
	})
}

// Provisioning, as `caddy validate` does, connects to nothing; two configs
// share a store, which ends with the last of them.
func TestRedisIsShared(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var came atomic.Int64
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			came.Add(1)
			c.Close()
		}
	}()
	config := object{"urls": []string{"redis://" + ln.Addr().String()}}
	first, endFirst, err := loadRedis(t, config)
	if err != nil {
		t.Fatal(err)
	}
	second, endSecond, err := loadRedis(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if first.Store() != second.Store() {
		t.Error("a reload makes a store of its own")
	}
	endFirst()
	if n := came.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
	second.Start()
	eventually(t, "a connection", func() bool { return came.Load() > 0 })
	endSecond()
}

// farStore is a shared store of which a test says what others answer.
type farStore struct {
	store.Memory
	answers  [][]byte
	err      error
	revoked  []store.Revocation
	question order
}

func (*farStore) Learn(context.Context) error { return nil }

func (s *farStore) Revoke(_ context.Context, r store.Revocation) error {
	s.revoked = append(s.revoked, r)
	return s.err
}

func (s *farStore) Gather(_ context.Context, question []byte) ([][]byte, error) {
	s.question = order{}
	if err := json.Unmarshal(question, &s.question); err != nil {
		return nil, err
	}
	return s.answers, s.err
}

// Answers of other nodes count with this node's own; what is missing is said.
func TestEverywhere(t *testing.T) {
	far := new(farStore)
	running.Store(&App{store: far})
	t.Cleanup(func() {
		running.Store(nil)
		revocations = store.Revocations{}
	})
	liveSocket(t, tunnel.Identity{ID: "b", Issuer: "i", User: "alice", Tunnel: "t"})
	far.answers = [][]byte{
		[]byte(`{"connections":[{"id":"a","node":"n1"},{"id":"d","node":"n1"}]}`),
		[]byte(`{"connections":[{"id":"c","node":"n2"}]}`),
	}
	var page struct {
		Connections []struct{ ID, Node string }
		Next        string
		Incomplete  string
	}
	call(t, "GET", "connections?user=alice&limit=3", "", &page)
	var ids []string
	for _, c := range page.Connections {
		ids = append(ids, c.ID)
	}
	if !slices.Equal(ids, []string{"a", "b", "c"}) || page.Next != "c" || page.Incomplete != "" {
		t.Errorf("listed %+v", page)
	}
	if l := far.question.List; l == nil || l.User != "alice" || l.Limit != 4 {
		t.Errorf("asked %+v", far.question)
	}
	far.answers, far.err = [][]byte{[]byte(`{"count":2}`), []byte(`what?`)}, nil
	var closed struct {
		Closed     int
		Incomplete string
	}
	call(t, "DELETE", "connections?user=alice&code=4001&reason=bye", "", &closed)
	if closed.Closed != 3 || closed.Incomplete == "" || far.question.Close.Code != 4001 || far.question.Close.Text != "bye" {
		t.Errorf("%+v, asked %+v", closed, far.question.Close)
	}
	far.answers, far.err = nil, errors.New("no answer from n2")
	closed.Incomplete = ""
	call(t, "POST", "revocations", `{"user":"bob"}`, &closed)
	if closed.Closed != 0 || closed.Incomplete != "no answer from n2" || len(far.revoked) != 1 || far.revoked[0].User != "bob" {
		t.Errorf("%+v, %+v", closed, far.revoked)
	}
	if status, message, _ := call(t, "GET", "connections/z", "", nil); status != http.StatusNotFound || !strings.Contains(message, "n2") {
		t.Errorf("%d %q", status, message)
	}
}

// Whatever another node says, nothing breaks.
func TestObey(t *testing.T) {
	for _, text := range []string{"", "null", "[]", "{}", `{"close":{}}`, `{"close":null}`, `{"send":{}}`, `{"send":{"all":true}}`, `{"revoke":{}}`, `{"list":{}}`, `{"list":{"limit":-5}}`, `{"list":{"limit":1e9}}`, `{"show":7}`, `{"show":""}`} {
		answer := obey([]byte(text))
		if answer != nil && !json.Valid(answer) {
			t.Errorf("%s: %q", text, answer)
		}
	}
	if n := len(revocations.List(time.Now())); n != 0 {
		t.Errorf("%d revocations of nothing", n)
	}
}

// The store is asked within the patience of one handshake, and refuses with
// 503 where it may not decide alone.
func TestStoreRefusal(t *testing.T) {
	g, logs := newGate(t, object{"max_connections": []object{{"number": "5"}}})
	g.store = deniedStore{}
	w := httptest.NewRecorder()
	err := g.ServeHTTP(w, request(t, opening(mint(t))), nil)
	if statusOf(err) != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("%v, Retry-After %q", err, w.Header().Get("Retry-After"))
	}
	if entry := logs.All()[0]; entry.ContextMap()["reason"] != reasonStore {
		t.Errorf("logged %v", entry.ContextMap())
	}
}

// deniedStore never answers.
type deniedStore struct{}

func (deniedStore) Acquire(ctx context.Context, _ store.Request) (store.Verdict, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		return store.Verdict{}, errors.New("asked without a deadline")
	}
	<-ctx.Done()
	return store.Verdict{}, ctx.Err()
}
func (deniedStore) Adopt(string, string, []string) {}
func (deniedStore) Release(string)                 {}
