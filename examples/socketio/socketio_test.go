// Package socketio follows this example's README.
package socketio

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/wsgate/caddy-wsgate/examples/internal/exampletest"
)

const (
	path    = "/socket.io/?EIO=4&transport="
	polling = "http://localhost:8080" + path + "polling"
	upgrade = "ws://localhost:8080" + path + "websocket"
)

// session is what the first polling request brings.
type session struct {
	sid, cookie string
	port        string // of its backend, as that says
}

func TestExample(t *testing.T) {
	exampletest.NeedNode(t)
	e := exampletest.New(t, 3001, 3002, 8080)
	e.Follow()
	e.Logged()
	alice := e.Run("node mint.mjs alice")
	query := "&access_token=" + alice

	// What polls is guarded as sockets are.
	evil := http.Header{"Origin": {"https://evil.example"}}
	for what, c := range map[string]struct {
		query  string
		header http.Header
		want   int
	}{
		"no token":        {"", nil, http.StatusUnauthorized},
		"a forged token":  {query[:len(query)-4] + "AAAA", nil, http.StatusUnauthorized},
		"a forged header": {"", http.Header{"X-User-Id": {"alice"}}, http.StatusUnauthorized},
		"a foreign page":  {query, evil, http.StatusForbidden},
		"a foreign GET":   {query, http.Header{"Sec-Fetch-Site": {"cross-site"}}, http.StatusForbidden},
		"its own page":    {query, http.Header{"Sec-Fetch-Site": {"same-origin"}}, http.StatusOK},
	} {
		if status, _, _ := e.Request(http.MethodGet, polling+c.query, "", c.header); status != c.want {
			t.Errorf("polling with %s: %d, want %d", what, status, c.want)
		}
	}

	// A session that polls, then upgrades, stays with its backend. Sessions
	// are opened until both backends have had one.
	seen := make(map[string]bool)
	for len(seen) < 2 {
		s := open(t, e, query)
		if seen[s.port] {
			continue // by lot: the other one comes
		}
		seen[s.port] = true
		cookie := http.Header{"Cookie": {s.cookie}}
		sid := "&sid=" + s.sid
		for what, c := range map[string]struct {
			query  string
			header http.Header
			want   int
		}{
			"no token":       {"", cookie, http.StatusUnauthorized},
			"a foreign page": {query, http.Header{"Cookie": {s.cookie}, "Origin": evil["Origin"]}, http.StatusForbidden},
		} {
			// The session's id is no way in: neither for what polls on …
			if status, _, _ := e.Request(http.MethodPost, polling+sid+c.query, `42["say","hello"]`, c.header); status != c.want {
				t.Errorf("going on to poll with %s: %d, want %d", what, status, c.want)
			}
			// … nor for the upgrade.
			e.Refused("an upgrade with "+what, c.want, upgrade+sid+c.query, c.header)
		}
		c := e.Open(upgrade+sid+query, cookie)
		e.Says(c, "2probe")
		e.Hears(c, "3probe")
		e.Says(c, "5")
		e.Says(c, `420["say","hello"]`)
		e.Hears(c, `430["alice: hello",`+s.port+`]`)
	}

	// A browser, whose polling has no Origin, keeps the cookie by itself.
	got := e.Browser("http://localhost:8080", e.Read("node_modules/socket.io-client/dist/socket.io.min.js")+fmt.Sprintf(`
		;new Promise((resolve) => {
			const socket = io({ query: { access_token: '%s' } })
			const ports = []
			socket.on('welcome', (user, port) => ports.push(port))
			socket.on('connect_error', (error) => resolve(String(error)))
			socket.io.on('open', () => socket.io.engine.on('upgrade', ({ name }) => socket.emit('say', 'hello', (answer, port) => {
				resolve([name, answer, port === ports[0]].join(' '))
			})))
		})`, alice))
	if got != "websocket alice: hello true" {
		t.Errorf("the page got %q", got)
	}

	// A new token for a reconnect, as the README has it.
	got = e.Script(fmt.Sprintf(`
		import { io } from 'socket.io-client'
		const socket = io('http://localhost:8080', { query: { access_token: 'expired' }, withCredentials: true, reconnectionDelay: 10 })
		const freshToken = () => process.env.TOKEN
		%s
		socket.on('welcome', (user) => {
			console.log(user)
			socket.close()
		})`, line(t, e.Read("README.md"), "socket.io.on('reconnect_attempt'")), "TOKEN="+alice)
	if got != "alice" {
		t.Errorf("reconnecting: got %q", got)
	}

	e.BackendDown(upgrade+query, nil)
}

// line is the one that begins so.
func line(t *testing.T, text, begin string) string {
	t.Helper()
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, begin) {
			return l
		}
	}
	t.Fatalf("README.md has no line %s…", begin)
	return ""
}

// open opens a session by polling, as engine.io's clients do.
func open(t *testing.T, e *exampletest.Example, query string) session {
	t.Helper()
	status, header, body := e.Request(http.MethodGet, polling+query, "", nil)
	var handshake struct {
		SID      string
		Upgrades []string
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(body, "0")), &handshake); err != nil || status != http.StatusOK {
		t.Fatalf("opening a session: %d %s", status, body)
	}
	cookie, _, _ := strings.Cut(header.Get("Set-Cookie"), ";")
	if !strings.HasPrefix(cookie, "lb=") {
		t.Fatalf("no sticky cookie: %v", header)
	}
	s := session{sid: handshake.SID, cookie: cookie}
	own := http.Header{"Cookie": {cookie}}
	if status, _, body = e.Request(http.MethodPost, polling+query+"&sid="+s.sid, "40", own); status != http.StatusOK {
		t.Fatalf("connecting: %d %s", status, body)
	}
	for s.port == "" {
		if status, _, body = e.Request(http.MethodGet, polling+query+"&sid="+s.sid, "", own); status != http.StatusOK {
			t.Fatalf("polling: %d %s", status, body)
		}
		_, after, _ := strings.Cut(body, `42["welcome","alice",`)
		s.port, _, _ = strings.Cut(after, "]")
	}
	return s
}
