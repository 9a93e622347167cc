package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// api asks the admin API and fills into from its answer, a JSON value.
func (g *gate) api(t testing.TB, method, path, body string, into any) int {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+g.admin+"/ws_gate/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := adminClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("%s %s: Content-Type %q", method, path, got)
	}
	if into != nil {
		if err := json.Unmarshal(content, into); err != nil {
			t.Fatalf("%s %s: %v in %q", method, path, err, content)
		}
	}
	return resp.StatusCode
}

// counted is api for the calls that answer with one number.
func (g *gate) counted(t testing.TB, method, path, body, name string) int {
	t.Helper()
	var answer map[string]int
	if status := g.api(t, method, path, body, &answer); status != http.StatusOK {
		t.Fatalf("%s %s %s: %d", method, path, body, status)
	}
	n, there := answer[name]
	if !there || len(answer) != 1 {
		t.Fatalf("%s %s: %v, want %s", method, path, answer, name)
	}
	return n
}

// listed are all connections of a filter, read in pages.
func (g *gate) listed(t testing.TB, filter string, limit int) (all []map[string]any) {
	t.Helper()
	for after := ""; ; {
		var page struct {
			Connections []map[string]any `json:"connections"`
			Next        *string          `json:"next"`
		}
		path := fmt.Sprintf("connections?limit=%d%s", limit, filter)
		if after != "" {
			path += "&after=" + after
		}
		if status := g.api(t, "GET", path, "", &page); status != http.StatusOK {
			t.Fatalf("%s: %d", path, status)
		}
		all = append(all, page.Connections...)
		if page.Next == nil {
			return all
		}
		if len(page.Connections) != limit || *page.Next != page.Connections[limit-1]["id"] {
			t.Fatalf("%s: %d connections, next %s", path, len(page.Connections), *page.Next)
		}
		after = *page.Next
	}
}

// member is one of many sockets whose client reads all the time.
type member struct {
	*conn
	user, issuer, tunnel, token, jti string

	mu     sync.Mutex
	frames []frame
	gone   chan struct{} // closed at the end of the stream
}

// follow reads the socket to its end, and answers pings and close frames.
func (m *member) follow() {
	defer close(m.gone)
	m.SetReadDeadline(time.Now().Add(10 * time.Minute))
	for {
		f, err := readFrame(m.br)
		if err != nil {
			m.Close()
			return
		}
		m.mu.Lock()
		switch {
		case f.opcode() == 9:
			_, _ = m.Write(masked(0x8A, f.payload))
		default:
			m.frames = append(m.frames, f)
		}
		if f.opcode() == 8 {
			_, _ = m.Write(masked(0x88, f.payload))
		}
		m.mu.Unlock()
	}
}

// seen is what the client got, in words.
func (m *member) seen() (all []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.frames {
		text := fmt.Sprintf("%x %s", f.first, f.payload)
		if f.opcode() == 8 {
			text = fmt.Sprintf("close %d %s", f.code(), f.payload[min(2, len(f.payload)):])
		}
		if len(text) > 100 {
			text = fmt.Sprintf("%.20s… (%d)", text, len(f.payload))
		}
		all = append(all, text)
	}
	return all
}

func (m *member) ended() bool {
	select {
	case <-m.gone:
		return true
	default:
		return false
	}
}

// crowd opens n sockets, some at a time.
func crowd(t testing.TB, g *gate, n int, who func(i int) *member) []*member {
	t.Helper()
	all := make([]*member, n)
	var next, failed atomic.Int64
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				m := who(i)
				m.gone = make(chan struct{})
				c, a := g.attempt(at(m.tunnel, m.token))
				if c == nil {
					if failed.Add(1) < 5 {
						t.Errorf("socket %d: status %d, %v", i, a.status, a.err)
					}
					return
				}
				m.conn = c
				all[i] = m
				go m.follow()
			}
		})
	}
	workers.Wait()
	t.Cleanup(func() {
		for _, m := range all {
			if m != nil {
				m.Close()
			}
		}
	})
	if failed.Load() > 0 {
		t.FailNow()
	}
	return all
}

// ledger is a backend that echoes data and counts what it gets.
type ledger struct {
	*backend
	mu  sync.Mutex
	got map[string]int // frames in words
}

func newLedger(t testing.TB) *ledger {
	l := &ledger{backend: newBackend(t), got: make(map[string]int)}
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case u := <-l.arrivals:
				go l.serve(u)
			case <-stop:
				return
			}
		}
	}()
	return l
}

func (l *ledger) serve(u *upstream) {
	defer u.Close()
	for {
		f, err := readFrame(u.br)
		if err != nil {
			return
		}
		text := fmt.Sprintf("%x %s", f.first, f.payload)
		if f.opcode() == 8 {
			text = fmt.Sprintf("close %d %s", f.code(), f.payload[min(2, len(f.payload)):])
		}
		l.mu.Lock()
		l.got[text]++
		l.mu.Unlock()
		if _, err := u.Write(unmasked(f.first, f.payload)); err != nil || f.opcode() == 8 {
			return
		}
	}
}

func (l *ledger) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.got[text]
}

// With 1,000 live sockets: list, show, close, revoke and send. Every client
// gets what the contract says and nothing else, and the backend sees nothing
// of it but close frames.
func TestAdminWithThousandSockets(t *testing.T) {
	t.Parallel()
	const users, each = 100, 5 // at either of two tunnels
	p, other := newIDP(t), newIDP(t)
	b := newLedger(t)
	sites := []gated{
		{name: "a", gate: fmt.Sprintf("max_connections %d by user", each), upstream: b.addr},
		{name: "b", upstream: b.addr},
	}
	issuers := []*idp{p, other}
	g := startSeveral(t, issuers, "", sites...)
	all := crowd(t, g, 2*users*each, func(i int) *member {
		m := &member{tunnel: string("ab"[i%2]), user: fmt.Sprint("user", i/2%users), jti: fmt.Sprint("jti", i)}
		issuer := issuers[i/2%users%2] // every other user is of the other issuer
		m.issuer = issuer.issuer
		m.token = issuer.mint("EdDSA", claims{"sub": m.user, "jti": m.jti, "sid": "sid of " + m.user})
		return m
	})
	// One more user has the same name at both issuers.
	twins := crowd(t, g, 4, func(i int) *member {
		issuer := issuers[i%2]
		return &member{tunnel: "b", user: "twin", issuer: issuer.issuer, token: issuer.mint("EdDSA", claims{"sub": "twin", "jti": fmt.Sprint("twin", i)})}
	})
	all = append(all, twins...)
	expected := make(map[*member][]string) // what each is to see, to the end
	of := func(match func(m *member) bool) (some []*member) {
		for _, m := range all {
			if match(m) && len(expected[m]) == 0 {
				some = append(some, m)
			}
		}
		return some
	}
	ends := func(some []*member, what string) {
		for _, m := range some {
			expected[m] = append(expected[m], what)
		}
	}

	t.Run("list", func(t *testing.T) {
		var list []map[string]any
		eventually(t, "all listed", func() bool {
			list = g.listed(t, "", 300)
			return len(list) == len(all)
		})
		var ids []string
		for _, c := range list {
			ids = append(ids, c["id"].(string))
		}
		if !slices.IsSorted(ids) || len(slices.Compact(ids)) != len(all) {
			t.Errorf("%d ids, in order: %t", len(slices.Compact(ids)), slices.IsSorted(ids))
		}
		for filter, want := range map[string]int{
			"":                                   len(all),
			"&user=x":                            0,
			"&user=" + all[0].user:               2 * each,
			"&user=" + all[0].user + "&tunnel=a": each,
			"&user=twin":                         4,
			"&user=twin&issuer=" + url.QueryEscape(p.issuer): 2,
			"&tunnel=b": users*each + 4,
			"&tunnel=a&issuer=" + url.QueryEscape(other.issuer):                      users * each / 2,
			"&tunnel=a&user=" + all[0].user + "&issuer=" + url.QueryEscape(p.issuer): each,
		} {
			if n := len(g.listed(t, filter, 1000)); n != want {
				t.Errorf("%s: %d connections, want %d", filter, n, want)
			}
		}
		one := list[len(list)/2]
		var shown map[string]any
		if status := g.api(t, "GET", "connections/"+one["id"].(string), "", &shown); status != http.StatusOK {
			t.Fatal(status)
		}
		for _, name := range []string{"id", "node", "tunnel", "user", "issuer", "client_ip", "upstream", "opened_at", "expires_at", "last_seen", "bytes", "messages", "subprotocol"} {
			if shown[name] == nil {
				t.Errorf("no %s in %v", name, shown)
			}
		}
		if shown["client_ip"] != "127.0.0.1" || shown["upstream"] != b.addr || len(shown) != 13 {
			t.Errorf("shown: %v", shown)
		}
		text, _ := json.Marshal(list)
		if bytes.Contains(text, []byte(`"jti`)) || bytes.Contains(text, []byte(all[0].token[:20])) {
			t.Error("a list tells of tokens")
		}
	})

	t.Run("close one", func(t *testing.T) {
		victim := all[0]
		list := g.listed(t, "&tunnel=a&user="+victim.user, 1000)
		// The cap is full; the slot is free when the call answers.
		if _, a := g.attempt(at("a", victim.token)); a.status != http.StatusTooManyRequests {
			t.Fatalf("status %d, want 429", a.status)
		}
		id := list[2]["id"].(string)
		if n := g.counted(t, "DELETE", "connections/"+id+"?code=4321&reason=bye+bye", "", "closed"); n != 1 {
			t.Errorf("%d closed", n)
		}
		c, a := g.attempt(at("a", victim.token))
		if c == nil {
			t.Fatalf("status %d: the slot is not free", a.status)
		}
		c.finish(t)
		if status := g.api(t, "DELETE", "connections/"+id, "", nil); status != http.StatusNotFound {
			t.Errorf("closing it again: %d", status)
		}
		if n := len(g.listed(t, "&tunnel=a&user="+victim.user, 1000)); n != each-1 {
			t.Errorf("%d are listed", n)
		}
		var closed []*member
		eventually(t, "closed", func() bool {
			closed = of(func(m *member) bool { return m.tunnel == "a" && m.user == victim.user && m.ended() })
			return len(closed) == 1
		})
		ends(closed, "close 4321 bye bye")
		eventually(t, "told to the backend", func() bool { return b.count("close 1001 ") >= 1 })
	})

	t.Run("close by user", func(t *testing.T) {
		if n := g.counted(t, "DELETE", "connections?user=twin&issuer="+url.QueryEscape(other.issuer), "", "closed"); n != 2 {
			t.Errorf("%d closed, want 2", n)
		}
		ends(of(func(m *member) bool { return m.user == "twin" && m.issuer == other.issuer }), "close 1008 closed by the administrator")
		user := all[2].user // of tunnel a and b
		if n := g.counted(t, "DELETE", "connections?tunnel=a&user="+user, "", "closed"); n != each {
			t.Errorf("%d closed, want %d", n, each)
		}
		ends(of(func(m *member) bool { return m.user == user && m.tunnel == "a" }), "close 1008 closed by the administrator")
		if status := g.api(t, "DELETE", "connections", "", nil); status != http.StatusBadRequest {
			t.Errorf("closing all by mistake: %d", status)
		}
	})

	t.Run("revoke", func(t *testing.T) {
		revoke := func(body string, covered func(m *member) bool) *member {
			t.Helper()
			some := of(covered)
			if n := g.counted(t, "POST", "revocations", body, "closed"); n != len(some) || n == 0 {
				t.Errorf("%s: %d closed, want %d", body, n, len(some))
			}
			ends(some, "close 3000 token revoked")
			return some[0]
		}
		refused := func(m *member) {
			t.Helper()
			_, a := g.attempt(at(m.tunnel, m.token))
			if got := a.header.Get("WWW-Authenticate"); a.status != http.StatusUnauthorized || !strings.Contains(got, `error="invalid_token"`) || strings.Contains(a.text+a.body, "revoked") {
				t.Errorf("status %d, WWW-Authenticate %q, %q", a.status, got, a.body)
			}
		}
		until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		byID := revoke(fmt.Sprintf(`{"jti":%q,"until":%q}`, all[10].jti, until), func(m *member) bool { return m.jti == all[10].jti })
		refused(byID)
		byUser := revoke(fmt.Sprintf(`{"user":%q,"issuer":%q}`, all[20].user, all[20].issuer), func(m *member) bool { return m.user == all[20].user })
		refused(byUser)
		bySession := revoke(fmt.Sprintf(`{"sid":"sid of %s"}`, all[30].user), func(m *member) bool { return m.user == all[30].user })
		refused(bySession)
		if n := g.counted(t, "POST", "revocations", fmt.Sprintf(`{"user":%q,"issuer":"https://elsewhere.example/"}`, all[40].user), "closed"); n != 0 {
			t.Errorf("%d of another issuer closed", n)
		}
		short := time.Now().Add(2 * time.Second)
		brief := revoke(fmt.Sprintf(`{"jti":%q,"until":%q}`, all[50].jti, short.UTC().Format(time.RFC3339Nano)), func(m *member) bool { return m.jti == all[50].jti })
		eventually(t, "the line in the log", func() bool { return g.refusals("a")["revoked"] >= 3 })

		// They outlive a reload.
		sites[1].gate = "ping_interval 20s"
		if err := g.reload(several(issuers, "", sites...)); err != nil {
			t.Fatal(err)
		}
		for _, m := range []*member{byID, byUser, bySession} {
			refused(m)
		}
		eventually(t, "one ends by itself", func() bool {
			c, _ := g.attempt(at(brief.tunnel, brief.token))
			if c != nil {
				c.finish(t)
			}
			return c != nil
		})
		if time.Now().Before(short) {
			t.Error("a revocation ended early")
		}
		var list map[string][]map[string]any
		g.api(t, "GET", "revocations", "", &list)
		if len(list["revocations"]) != 4 || list["revocations"][0]["issuer"] != nil && len(list["revocations"][0]) > 3 {
			t.Errorf("listed: %v", list)
		}
		if status := g.api(t, "DELETE", fmt.Sprintf("revocations?user=%s&issuer=%s", byUser.user, url.QueryEscape(byUser.issuer)), "", nil); status != http.StatusOK {
			t.Errorf("lifting: %d", status)
		}
		c, a := g.attempt(at(byUser.tunnel, byUser.token))
		if c == nil {
			t.Fatalf("lifted, and still %d", a.status)
		}
		c.finish(t)
		refused(byID)
	})

	t.Run("send", func(t *testing.T) {
		send := func(body, frame string, covered func(m *member) bool) {
			t.Helper()
			some := of(covered)
			if n := g.counted(t, "POST", "messages", body, "sent"); n != len(some) || n == 0 {
				t.Errorf("%.80s: %d sent, want %d", body, n, len(some))
			}
			for _, m := range some {
				eventually(t, "the message at each", func() bool { return slices.Contains(m.seen(), frame) })
			}
		}
		user, tunnel, everybody := all[60].user, "a", "all of you"
		send(fmt.Sprintf(`{"user":%q,"text":"hello, you"}`, user), "81 hello, you", func(m *member) bool { return m.user == user })
		send(fmt.Sprintf(`{"tunnel":%q,"binary":%q}`, tunnel, base64.StdEncoding.EncodeToString([]byte("bin"))), "82 bin", func(m *member) bool { return m.tunnel == tunnel })
		send(fmt.Sprintf(`{"all":true,"text":%q}`, everybody), "81 all of you", func(*member) bool { return true })
		for _, m := range of(func(*member) bool { return true }) {
			var want []string
			if m.user == user {
				want = append(want, "81 hello, you")
			}
			if m.tunnel == tunnel {
				want = append(want, "82 bin")
			}
			if got := m.seen(); !slices.Equal(got, append(want, "81 all of you")) {
				t.Fatalf("%s at %s saw %q", m.user, m.tunnel, got)
			}
		}
	})

	// Every socket that was not ended lives, and the others saw their end only.
	var living int
	for _, m := range all {
		if want := expected[m]; len(want) > 0 {
			eventually(t, "ended", m.ended)
			if got := m.seen(); !slices.Equal(got, want) {
				t.Errorf("%s at %s saw %q, want %q", m.user, m.tunnel, got, want)
			}
			continue
		}
		living++
		m.mu.Lock()
		m.frames = nil
		_, _ = m.Write(masked(0x81, []byte("still here")))
		m.mu.Unlock()
	}
	for _, m := range all {
		if len(expected[m]) == 0 {
			eventually(t, "echoed", func() bool { return slices.Equal(m.seen(), []string{"81 still here"}) })
		}
	}
	eventually(t, "told to the backend", func() bool { return b.count("close 1001 ") == len(all)-living })
	b.mu.Lock()
	defer b.mu.Unlock()
	for text, n := range b.got {
		switch text {
		case "81 still here":
			if n != living {
				t.Errorf("the backend got %q %d times, want %d", text, n, living)
			}
		case "close 1001 ", "close 1000 ": // 1000: finish
		default:
			t.Errorf("the backend got %q %d times", text, n)
		}
	}
}

// What is wrong with a call is told in the shape of Caddy's API.
func TestAdminErrors(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	g := wiring{idp: p, upstream: newBackend(t).addr}.start(t)
	for _, tc := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "", "", 404},
		{"GET", "nothing", "", 404},
		{"GET", "connections/nobody", "", 404},
		{"DELETE", "connections/nobody", "", 404},
		{"DELETE", "revocations?user=nobody", "", 404},
		{"PUT", "connections", "", 405},
		{"PATCH", "messages", "{}", 405},
		{"DELETE", "connections", "", 400},
		{"GET", "connections?limit=x", "", 400},
		{"GET", "connections?color=red", "", 400},
		{"DELETE", "connections?user=a&code=1006", "", 400},
		{"DELETE", "connections?user=a&reason=" + strings.Repeat("x", 124), "", 400},
		{"POST", "revocations", `{"user":"a","until":"2001-02-03T04:05:06Z"}`, 400},
		{"POST", "revocations", `{"user":"a","color":"red"}`, 400},
		{"POST", "messages", `{"all":true,"text":"x"`, 400},
		{"POST", "messages", `{"all":true,"text":"x","color":"red"}`, 400},
	} {
		var answer map[string]any
		status := g.api(t, tc.method, tc.path, tc.body, &answer)
		if text, _ := answer["error"].(string); status != tc.status || text == "" || len(answer) != 1 {
			t.Errorf("%s %s: %d %v, want %d", tc.method, tc.path, status, answer, tc.status)
		}
	}
}

// A message of the operator's never goes into one of the backend's, however
// slowly that comes, and never waits longer than for its end.
func TestMessageBetweenFragments(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	b.answers(func(u *upstream) string {
		return accept(u, "Sec-WebSocket-Extensions: permessage-deflate")
	})
	g := wiring{idp: p, upstream: b.addr, gate: "ping_interval 100ms"}.start(t)
	c, u := pairWith(t, g, b, bearer(p.token(g, nil)).extension("permessage-deflate"))
	big := strings.Repeat("x", 70_000) // more than 64 KiB
	send := func(text string) {
		t.Helper()
		if n := g.counted(t, "POST", "messages", fmt.Sprintf(`{"all":true,"text":%q}`, text), "sent"); n != 1 {
			t.Fatalf("%d sent", n)
		}
	}
	// Nothing is under way: at once.
	send("first")
	next := func(want []byte) {
		t.Helper()
		if f := c.readPonging(); !bytes.Equal(f.raw, want) {
			t.Fatalf("got %.40x (%d bytes), want %.40x", f.raw, len(f.raw), want)
		}
	}
	next(unmasked(0x81, []byte("first")))
	for range 3 {
		// A compressed message in fragments, the second in pieces.
		one, two, three := unmasked(0x41, random(10)), unmasked(0x00, random(200)), unmasked(0x80, random(10))
		u.send(one)
		next(one)
		send("ours")
		send(big)
		u.send(two[:50])
		time.Sleep(150 * time.Millisecond) // pings wait as well, and come between fragments
		u.send(two[50:])
		next(two)
		time.Sleep(150 * time.Millisecond)
		u.send(three)
		next(three)
		next(unmasked(0x81, []byte("ours"))) // RSV1 is 0
		next(unmasked(0x81, []byte(big)))
	}
	// The other direction has nothing to do with it.
	frame := masked(0xC1, random(5))
	c.send(frame)
	u.expectBytes(frame)
}

// A real client with permessage-deflate reads ours beside the backend's.
func TestMessageBesideCompression(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	e := newEcho(t)
	g := wiring{idp: p, upstream: e.addr}.start(t)
	ws, resp := gorillaDial(t, g, http.Header{"Authorization": {"Bearer " + p.token(g, nil)}}, nil)
	if !strings.Contains(resp.Header.Get("Sec-WebSocket-Extensions"), "permessage-deflate") {
		t.Fatal("permessage-deflate was not negotiated")
	}
	ws.SetReadDeadline(time.Now().Add(patience))
	text := strings.Repeat("the backend's, compressed. ", 200)
	var writer sync.WaitGroup
	const n = 50
	writer.Go(func() {
		for range n {
			if err := ws.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	// The first may come before the socket is live, others while too many wait.
	for sent := 0; sent < n; {
		sent += g.counted(t, "POST", "messages", `{"user":"alice","text":"the operator's"}`, "sent")
	}
	got := make(map[string]int)
	for range 2 * n {
		_, message, err := ws.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		got[string(message)]++
	}
	writer.Wait()
	if got[text] != n || got["the operator's"] != n {
		t.Errorf("%d and %d messages, want %d each", got[text], got["the operator's"], n)
	}
}

// A client that does not read holds up neither the call nor anybody else, and
// its own messages are bounded.
func TestMessageToStuckClient(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, gate: "ping_interval 0"}.start(t)
	_, stuck := pair(t, g, p, b)
	c, _ := pair(t, g, p, b)
	go func() {
		stuck.SetWriteDeadline(time.Now().Add(patience))
		for {
			if _, err := stuck.Conn.Write(unmasked(0x82, make([]byte, 1<<16))); err != nil {
				return
			}
		}
	}()
	time.Sleep(300 * time.Millisecond) // until it is stuck; if it is not yet, the test holds all the same
	big := strings.Repeat("x", 100<<10)
	fewer := false
	for range 40 {
		n := g.counted(t, "POST", "messages", fmt.Sprintf(`{"all":true,"text":%q}`, big), "sent")
		fewer = fewer || n == 1
		if f := c.readPonging(); f.first != 0x81 || len(f.payload) != len(big) {
			t.Fatalf("frame %x of %d bytes", f.first, len(f.payload))
		}
	}
	if !fewer {
		t.Error("no end to what waits for a client that does not read")
	}
	if n := g.counted(t, "DELETE", "connections?user=alice", "", "closed"); n != 2 {
		t.Errorf("%d closed", n)
	}
	c.expectClose(1008)
}
