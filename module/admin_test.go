package module

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// call asks the admin API as Caddy does, and fills answer from what it says.
func call(t testing.TB, method, target, body string, answer any) (status int, message string, header http.Header) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, "/ws_gate/"+target, strings.NewReader(body))
	err := serveAdmin(w, r)
	if err != nil {
		var api caddy.APIError
		if !errors.As(err, &api) {
			t.Fatalf("%s %s: %T is not of Caddy's shape: %v", method, target, err, err)
		}
		if w.Body.Len() > 0 {
			t.Errorf("%s %s: an error behind %q", method, target, w.Body)
		}
		return api.HTTPStatus, api.Err.Error(), w.Header()
	}
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("%s %s: Content-Type %q", method, target, got)
	}
	if answer != nil {
		if err := json.Unmarshal(w.Body.Bytes(), answer); err != nil {
			t.Fatalf("%s %s: %v in %s", method, target, err, w.Body)
		}
	}
	return w.Code, "", w.Header()
}

// liveSocket starts a socket whose ends nobody reads beyond what the test
// does. It is gone when the test is over.
func liveSocket(t testing.TB, identity tunnel.Identity, change ...func(*tunnel.Accepted)) (s *tunnel.Socket, client, backend net.Conn) {
	t.Helper()
	nearClient, client := net.Pipe()
	nearBackend, backend := net.Pipe()
	a := tunnel.Accepted{Identity: identity, Policy: new(tunnel.Policy), Client: nearClient, Backend: nearBackend, Observer: observer{}}
	for _, f := range change {
		f(&a)
	}
	s = tunnel.Start(a)
	t.Cleanup(func() {
		s.Cut()
		eventually(t, "ended", func() bool { return live.Get(identity.ID) == nil })
		client.Close()
		backend.Close()
	})
	return s, client, backend
}

type listAnswer struct {
	Connections []object `json:"connections"`
	Next        string   `json:"next"`
}

func ids(connections []object) (all []string) {
	for _, c := range connections {
		all = append(all, c["id"].(string))
	}
	return all
}

// Everything that is wrong with a request is told as such, and does nothing.
func TestAdminRefuses(t *testing.T) {
	s, _, _ := liveSocket(t, tunnel.Identity{ID: "one", Tunnel: "t", User: "alice", Issuer: "i"})
	long := strings.Repeat("x", 124)
	for _, tc := range []struct {
		method, target, body string
		status               int
	}{
		{"GET", "", "", 404},
		{"GET", "connection", "", 404},
		{"GET", "connections/", "", 404},
		{"GET", "connections/none", "", 404},
		{"GET", "connections/one/two", "", 404},
		{"DELETE", "connections/none", "", 404},
		{"DELETE", "connections/none?code=1000", "", 404},
		{"PUT", "connections", "", 405},
		{"POST", "connections", "{}", 405},
		{"POST", "connections/one", "{}", 405},
		{"PATCH", "revocations", "", 405},
		{"GET", "messages", "", 405},
		{"DELETE", "messages", "", 405},

		{"GET", "connections?users=alice", "", 400},
		{"GET", "connections?user=alice&user=bob", "", 400},
		{"GET", "connections?user=", "", 400},
		{"GET", "connections?code=1000", "", 400},
		{"GET", "connections?user=%zz", "", 400},
		{"GET", "connections?a;b", "", 400},
		{"GET", "connections?limit=0", "", 400},
		{"GET", "connections?limit=-1", "", 400},
		{"GET", "connections?limit=1001", "", 400},
		{"GET", "connections?limit=ten", "", 400},
		{"GET", "connections?limit=", "", 400},
		{"GET", "connections/one?user=alice", "", 400},
		{"GET", "revocations?user=alice", "", 400},

		{"DELETE", "connections", "", 400},
		{"DELETE", "connections?code=1000", "", 400},
		{"DELETE", "connections?user=", "", 400},
		{"DELETE", "connections?user=alice&limit=1", "", 400},
		{"DELETE", "connections?user=alice&after=a", "", 400},
		{"DELETE", "connections?user=alice&code=999", "", 400},
		{"DELETE", "connections/one?code=0", "", 400},
		{"DELETE", "connections/one?code=999", "", 400},
		{"DELETE", "connections/one?code=1005", "", 400},
		{"DELETE", "connections/one?code=1006", "", 400},
		{"DELETE", "connections/one?code=1015", "", 400},
		{"DELETE", "connections/one?code=5000", "", 400},
		{"DELETE", "connections/one?code=66536", "", 400}, // 1000 in 16 bits
		{"DELETE", "connections/one?code=-64536", "", 400},
		{"DELETE", "connections/one?code=1e3", "", 400},
		{"DELETE", "connections/one?code=", "", 400},
		{"DELETE", "connections/one?code=1000&code=1001", "", 400},
		{"DELETE", "connections/one?reason=" + long, "", 400},
		{"DELETE", "connections/one?reason=%ff", "", 400},
		{"DELETE", "connections/one?user=alice", "", 400},

		{"POST", "revocations", "", 400},
		{"POST", "revocations", "null", 400},
		{"POST", "revocations", "{}", 400},
		{"POST", "revocations", "[]", 400},
		{"POST", "revocations", `{"user":"alice"`, 400},
		{"POST", "revocations", `{"user":"alice"} {"user":"bob"}`, 400},
		{"POST", "revocations", `{"user":"alice"}}`, 400},
		{"POST", "revocations", `{"user":"alice"}]`, 400},
		{"POST", "revocations", `{"user":1}`, 400},
		{"POST", "revocations", `{"issuer":"i"}`, 400},
		{"POST", "revocations", `{"user":"alice","jti":"j"}`, 400},
		{"POST", "revocations", `{"sid":"alice","jti":"j"}`, 400},
		{"POST", "revocations", `{"user":""}`, 400},
		{"POST", "revocations", `{"user":"alice","code":1000}`, 400},
		{"POST", "revocations", `{"user":"alice","until":"tomorrow"}`, 400},
		{"POST", "revocations", `{"user":"alice","until":1}`, 400},
		{"POST", "revocations", `{"user":"alice","until":"2001-01-01T00:00:00Z"}`, 400},
		{"POST", "revocations", `{"user":"` + strings.Repeat("x", maxRevocation+1) + `"}`, 400},
		{"POST", "revocations?user=alice", `{"user":"alice"}`, 400},
		{"DELETE", "revocations", "", 400},
		{"DELETE", "revocations?issuer=i", "", 400},
		{"DELETE", "revocations?user=alice&jti=j", "", 400},
		{"DELETE", "revocations?id=j", "", 400},
		{"DELETE", "revocations?user=nobody", "", 404},

		{"POST", "messages", "", 400},
		{"POST", "messages", `{"text":"hi"}`, 400},
		{"POST", "messages", `{"all":true}`, 400},
		{"POST", "messages", `{"all":false,"text":"hi"}`, 400},
		{"POST", "messages", `{"all":true,"user":"alice","text":"hi"}`, 400},
		{"POST", "messages", `{"tunnel":"t","user":"alice","text":"hi"}`, 400},
		{"POST", "messages", `{"all":true,"text":"hi","binary":"aGk="}`, 400},
		{"POST", "messages", `{"all":true,"binary":"?"}`, 400},
		{"POST", "messages", `{"all":true,"text":1}`, 400},
		{"POST", "messages", `{"all":"yes","text":"hi"}`, 400},
		{"POST", "messages", `{"tunnel":"t","issuer":"i","text":"hi"}`, 400},
		{"POST", "messages", `{"all":true,"texts":"hi"}`, 400},
		{"POST", "messages", `{"all":true,"text":"` + strings.Repeat("x", maxAdminBody) + `"}`, 400},
	} {
		status, message, header := call(t, tc.method, tc.target, tc.body, nil)
		if status != tc.status || message == "" {
			t.Errorf("%s %s %.60s: %d %q, want %d", tc.method, tc.target, tc.body, status, message, tc.status)
		}
		if status == 405 && header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", tc.method, tc.target)
		}
	}
	if s.Ending() || len(revocations.List(time.Now())) != 0 {
		t.Error("a refused call did something")
	}
}

// The least and the greatest of what may be asked for.
func TestAdminCause(t *testing.T) {
	for _, tc := range []struct {
		query url.Values
		code  uint16
		text  string
	}{
		{url.Values{}, tunnel.CodePolicy, "closed by the administrator"},
		{url.Values{"code": {"1000"}}, 1000, "closed by the administrator"},
		{url.Values{"code": {"1014"}}, 1014, "closed by the administrator"},
		{url.Values{"code": {"3000"}, "reason": {"bye\r\n\"x\""}}, 3000, "bye\r\n\"x\""},
		{url.Values{"code": {"4999"}, "reason": {""}}, 4999, ""},
		{url.Values{"reason": {strings.Repeat("é", 61) + "x"}}, tunnel.CodePolicy, strings.Repeat("é", 61) + "x"},
	} {
		r := httptest.NewRequest("DELETE", "/?"+tc.query.Encode(), nil)
		query, err := parameters(r, "code", "reason")
		if err != nil {
			t.Fatal(err)
		}
		cause, err := adminCause(query)
		if err != nil || cause.Code != tc.code || cause.Text != tc.text || cause.Reason != "admin" || cause.By != tunnel.ByGate {
			t.Errorf("%v: %+v, %v", tc.query, cause, err)
		}
	}
}

// One socket as it is shown: all fields of the contract under their names, and
// no others but node.
func TestAdminShow(t *testing.T) {
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	_, client, backend := liveSocket(t, tunnel.Identity{
		ID: "show", Tunnel: "chat", User: "alice", Issuer: "https://id.example.com/", TokenID: "secret-jti", SessionID: "secret-sid",
		ClientIP: "192.0.2.1", Upstream: "node1:3000", Subprotocol: "chat.v1", Expires: expires,
	})
	go func() { _, _ = client.Write([]byte{0x82, 0x83, 0, 0, 0, 0, 1, 2, 3, 0x82, 0x80, 0, 0, 0, 0}) }()
	if _, err := io.ReadFull(backend, make([]byte, 15)); err != nil {
		t.Fatal(err)
	}
	var got object
	if status, message, _ := call(t, "GET", "connections/show", "", &got); status != 200 {
		t.Fatal(status, message)
	}
	for _, name := range []string{"opened_at", "last_seen", "expires_at"} {
		at, err := time.Parse(time.RFC3339, fmt.Sprint(got[name]))
		if err != nil || !strings.HasSuffix(got[name].(string), "Z") {
			t.Errorf("%s: %v, %v", name, got[name], err)
		}
		if name == "expires_at" && !at.Equal(expires) || name != "expires_at" && time.Since(at) > time.Minute {
			t.Errorf("%s: %v", name, at)
		}
		delete(got, name)
	}
	want := object{
		"id": "show", "node": node, "tunnel": "chat", "user": "alice", "issuer": "https://id.example.com/", "client_ip": "192.0.2.1",
		"upstream": "node1:3000", "subprotocol": "chat.v1", "bytes": object{"in": 3.0, "out": 0.0}, "messages": object{"in": 2.0, "out": 0.0},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got\n%v, want\n%v", got, want)
	}
}

// Pages are in order of ids, without gaps and without anything twice, over
// many sockets; a handshake never waits for a list. BenchmarkAdminList has
// 100,000.
func TestAdminPaging(t *testing.T) {
	n := 20_000
	var want []string
	begin := time.Now()
	for i := range n {
		s := &tunnel.Socket{Identity: tunnel.Identity{
			ID: newConnectionID(begin.Add(time.Duration(i) * time.Millisecond)), Tunnel: fmt.Sprint("tunnel", i%2), User: fmt.Sprint("user", i%1000), Issuer: fmt.Sprint("issuer", i%3),
		}}
		live.Add(s)
		t.Cleanup(func() { live.Remove(s) })
		want = append(want, s.ID)
	}
	// Sockets come and go meanwhile, some at the end and some in the midst.
	done, stopped := make(chan bool), make(chan time.Duration)
	go func() {
		slowest := time.Duration(0)
		for i := 0; ; i++ {
			s := &tunnel.Socket{Identity: tunnel.Identity{ID: fmt.Sprint(want[n/2], "-", i), Tunnel: "other", User: "other"}}
			begin := time.Now()
			live.Add(s)
			live.Remove(s)
			slowest = max(slowest, time.Since(begin))
			select {
			case <-done:
				stopped <- slowest
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	pages := func(filter string, limit int) (all []string) {
		after := ""
		for {
			var page listAnswer
			target := fmt.Sprintf("connections?limit=%d%s", limit, filter)
			if after != "" {
				target += "&after=" + after
			}
			if status, message, _ := call(t, "GET", target, "", &page); status != 200 {
				t.Fatal(status, message)
			}
			got := slices.DeleteFunc(ids(page.Connections), func(id string) bool { return strings.Contains(id, "-") })
			all = append(all, got...)
			if page.Next == "" {
				return all
			}
			if len(page.Connections) != limit || page.Next != page.Connections[limit-1]["id"] {
				t.Fatalf("%d connections, next %q", len(page.Connections), page.Next)
			}
			after = page.Next
		}
	}
	if got := pages("", listMost); !slices.Equal(got, want) {
		t.Errorf("%d sockets in all pages, want %d, in order: %v", len(got), n, slices.IsSorted(got))
	}
	close(done)
	if slowest := <-stopped; slowest > time.Second {
		t.Errorf("a socket waited %v for the lists", slowest)
	}
	filtered := func(user, issuer, tunnel int) (ids []string) {
		for i, id := range want {
			if (user < 0 || i%1000 == user) && (issuer < 0 || i%3 == issuer) && (tunnel < 0 || i%2 == tunnel) {
				ids = append(ids, id)
			}
		}
		return ids
	}
	for filter, want := range map[string][]string{
		"&user=user3":                               filtered(3, -1, -1),
		"&user=user3&issuer=issuer1":                filtered(3, 1, -1),
		"&issuer=issuer2&tunnel=tunnel1":            filtered(-1, 2, 1),
		"&user=user3&issuer=issuer1&tunnel=tunnel1": filtered(3, 1, 1),
		"&user=user3&tunnel=tunnel0":                nil,
		"&user=user":                                nil, // exact
		"&user=USER3":                               nil,
	} {
		if got := pages(filter, 999); !slices.Equal(got, want) {
			t.Errorf("%s: %d sockets, want %d", filter, len(got), len(want))
		}
	}
	var page listAnswer
	call(t, "GET", "connections", "", &page)
	if len(page.Connections) != listDefault || page.Next != want[listDefault-1] {
		t.Errorf("by default %d, next %q", len(page.Connections), page.Next)
	}
	// The very last: no next where nothing follows.
	for _, tc := range []struct {
		after int
		n     int
		next  bool
	}{{n - 11, 10, false}, {n - 12, 10, true}, {n - 1, 0, false}, {n - 2, 1, false}} {
		var page listAnswer
		call(t, "GET", "connections?limit=10&after="+want[tc.after], "", &page)
		if len(page.Connections) != tc.n || (page.Next != "") != tc.next || page.Connections == nil {
			t.Errorf("after %d of %d: %d connections, next %q", tc.after, n, len(page.Connections), page.Next)
		}
	}
}

// A user is the pair of issuer and name, byte by byte; a closed socket's slot
// is free when the call answers, and it is in no list any more, whatever its
// client does.
func TestAdminClosesByUser(t *testing.T) {
	released := make(map[string]bool) // written by release, within the call
	open := func(id, user, issuer, name string) *tunnel.Socket {
		s, _, _ := liveSocket(t, tunnel.Identity{ID: id, User: user, Issuer: issuer, Tunnel: name}, func(a *tunnel.Accepted) {
			a.Release = func() { released[id] = true }
		})
		return s
	}
	sockets := map[string]*tunnel.Socket{
		"1": open("1", "alice", "a", "x"), "2": open("2", "alice", "b", "x"), "3": open("3", "Alice", "a", "x"),
		"4": open("4", "alice ", "a", "y"), "5": open("5", "alice", "a", "y"), "6": open("6", "bob", "a", "y"),
	}
	for _, tc := range []struct {
		query  string
		closed string
	}{
		{"user=alice&issuer=c", ""},
		{"user=alice&issuer=a&tunnel=x", "1"},
		{"user=alice&issuer=a&tunnel=x", ""}, // ends already
		{"user=alice&issuer=a", "5"},
		{"user=alice", "2"},
		{"user=alice+", "4"},
		{"tunnel=y", "6"},
		{"issuer=a&code=4000&reason=go", "3"},
	} {
		clear(released)
		var answer map[string]int
		if status, message, _ := call(t, "DELETE", "connections?"+tc.query, "", &answer); status != 200 {
			t.Fatal(status, message)
		}
		want := len(tc.closed)
		if got := answer["closed"]; got != want || len(answer) != 1 {
			t.Errorf("%s: %v, want %d closed", tc.query, answer, want)
		}
		if len(released) != want || want == 1 && (!released[tc.closed] || !sockets[tc.closed].Ending()) {
			t.Errorf("%s: %v closed, want %q", tc.query, released, tc.closed)
		}
		var page listAnswer
		call(t, "GET", "connections", "", &page)
		if slices.Contains(ids(page.Connections), tc.closed) {
			t.Errorf("%s: still in the list", tc.closed)
		}
	}
	if status, _, _ := call(t, "DELETE", "connections/1", "", nil); status != 404 {
		t.Errorf("closing what ends already: %d", status)
	}
}

// A message reaches those it is for and counts them.
func TestAdminMessages(t *testing.T) {
	type far struct {
		client net.Conn
		got    chan string
	}
	open := func(id, user, issuer, name string) far {
		_, client, _ := liveSocket(t, tunnel.Identity{ID: id, User: user, Issuer: issuer, Tunnel: name})
		f := far{client, make(chan string, 10)}
		go func() {
			b := make([]byte, 200)
			for {
				n, err := client.Read(b) // a pipe keeps writes apart
				if err != nil {
					return
				}
				f.got <- string(b[:n])
			}
		}()
		return f
	}
	all := []far{open("1", "alice", "a", "x"), open("2", "alice", "b", "x"), open("3", "bob", "a", "y")}
	for _, tc := range []struct {
		body, frame string
		to          []int
	}{
		{`{"user":"alice","text":"hé"}`, "\x81\x03hé", []int{0, 1}},
		{`{"user":"alice","issuer":"b","text":""}`, "\x81\x00", []int{1}},
		{`{"tunnel":"y","binary":"AAEC"}`, "\x82\x03\x00\x01\x02", []int{2}},
		{`{"all":true,"binary":""}`, "\x82\x00", []int{0, 1, 2}},
		{`{"all":true,"text":"\ud800"}`, "\x81\x03\uFFFD", []int{0, 1, 2}},
		{`{"user":"nobody","text":"x"}`, "", nil},
	} {
		var answer map[string]int
		if status, message, _ := call(t, "POST", "messages", tc.body, &answer); status != 200 {
			t.Fatal(status, message)
		}
		if answer["sent"] != len(tc.to) || len(answer) != 1 {
			t.Errorf("%s: %v, want %d", tc.body, answer, len(tc.to))
		}
		for _, i := range tc.to {
			select {
			case got := <-all[i].got:
				if got != tc.frame {
					t.Errorf("%s: %d got %q, want %q", tc.body, i, got, tc.frame)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: %d got nothing", tc.body, i)
			}
		}
	}
	for i, f := range all {
		select {
		case got := <-f.got:
			t.Errorf("%d got %q too", i, got)
		default:
		}
	}
}

// BenchmarkAdminList reads one page of 100,000 sockets.
func BenchmarkAdminList(b *testing.B) {
	for range 100_000 {
		s := &tunnel.Socket{Identity: tunnel.Identity{ID: newConnectionID(time.Now()), Tunnel: "bench", User: "bench"}}
		live.Add(s)
		b.Cleanup(func() { live.Remove(s) })
	}
	for _, limit := range []int{100, 1000} {
		b.Run(fmt.Sprint(limit), func(b *testing.B) {
			for b.Loop() {
				var page listAnswer
				call(b, "GET", fmt.Sprintf("connections?limit=%d", limit), "", &page)
			}
		})
	}
}
