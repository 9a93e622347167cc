package handshake

import (
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"
)

var identity = Identity{{"X-User-Id", "sub"}, {"X-User-Roles", "roles"}}

func claim(string) (string, bool, error) { return "alice", true, nil }

// nextHop removes what reverse_proxy and every other proxy remove.
func nextHop(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			h.Del(textproto.TrimString(name))
		}
	}
}

func TestClean(t *testing.T) {
	tests := []struct {
		name string // S-nn: what the client tries
		give []string
		want http.Header // beside Connection, Upgrade, the key and the version
	}{
		{"S-105: identity named in Connection", []string{"Connection: Upgrade, X-User-Id, x-user-id"}, nil},
		{"S-105: on a second line", []string{"Connection: close", "Connection: Upgrade,x-user-ID"}, nil},
		{"S-105: close", []string{"Connection: close, Upgrade"}, nil},
		{"S-105: other fields do go", []string{"Connection: upgrade, x-hop", "X-Hop: 1", "X-Stay: 1"}, http.Header{"X-Stay": {"1"}}},
		{"S-105: the handshake's own fields stay", []string{"Connection: Upgrade, Host, Sec-WebSocket-Key, sec-websocket-version, Sec-WebSocket-Protocol", "Sec-WebSocket-Protocol: a"}, http.Header{"Sec-Websocket-Protocol": {"a"}}},
		{"S-105: Connection names itself", []string{"Connection: Connection, Upgrade"}, nil},
		{"S-93: h2c leftovers", []string{"Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"}, nil},
		{"S-93: h2c leftovers unnamed", []string{"HTTP2-Settings: AAMAAABk"}, nil},
		{"S-94: case of Upgrade", []string{"Upgrade: WEBSOCKET"}, nil},
		{"S-97: Expect", []string{"Expect: 100-continue"}, nil},
		{"hop-by-hop without being named", []string{"Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "TE: trailers", "Trailer: X-A"}, nil},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := wire(t, opening(append(tc.give, "X-User-Id: admin")...)...)
			Clean(r)
			identity.Strip(r.Header)
			if err := identity.Set(r.Header, claim); err != nil {
				t.Fatal(err)
			}
			want := http.Header{
				"Connection":            {"Upgrade"},
				"Upgrade":               {"websocket"},
				"Sec-Websocket-Version": {"13"},
				"Sec-Websocket-Key":     {sampleKey},
				"X-User-Id":             {"alice"},
				"X-User-Roles":          {"alice"},
			}
			for k, v := range tc.want {
				want[k] = v
			}
			if got := r.Header; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
			if r.Host != "example.com" {
				t.Errorf("host %q", r.Host)
			}
		})
	}
}

func TestCleanPlain(t *testing.T) {
	r := wire(t, "GET / HTTP/1.1", "Host: a", "Connection: keep-alive, X-User-Id, X-Hop", "X-Hop: 1",
		"Keep-Alive: 5", "HTTP2-Settings: AAMAAABk", "X-User-Id: admin", "Accept: text/event-stream")
	CleanPlain(r)
	want := http.Header{"Accept": {"text/event-stream"}}
	if fmt.Sprint(r.Header) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", r.Header, want)
	}
}

// FuzzClean: whatever the client writes into Connection, and whatever it sends
// under names like ours, the next hop gets each identity header once with our
// value, and nothing else that a backend could take for it (S-102, S-103, S-105).
func FuzzClean(f *testing.F) {
	f.Add("Upgrade, X-User-Id", "X_User_Id", "admin", true)
	f.Add("close, x-user-roles,\tUpgrade", "x-user-id", "", false)
	f.Add("X-U\u017fer-Id", "X..User--Id", "a\tb", true)
	f.Add("Host, Sec-WebSocket-Key, Connection", "Connection", "X-User-Id", true)
	f.Fuzz(func(t *testing.T, connection, name, value string, upgrade bool) {
		r := &http.Request{Header: http.Header{
			"Connection":                            {connection, "Upgrade"},
			"Sec-Websocket-Key":                     {sampleKey},
			textproto.CanonicalMIMEHeaderKey("x-b"): {"b"},
		}}
		r.Header[name] = append(r.Header[name], value)
		if upgrade {
			Clean(r)
		} else {
			CleanPlain(r)
		}
		identity.Strip(r.Header)
		if err := identity.Set(r.Header, claim); err != nil {
			t.Fatal(err)
		}
		if upgrade && (!slices.Equal(r.Header["Connection"], []string{"Upgrade"}) || !slices.Equal(r.Header["Upgrade"], []string{"websocket"})) {
			t.Errorf("connection %q, upgrade %q", r.Header["Connection"], r.Header["Upgrade"])
		}
		if upgrade && !has(r.Header, fieldKey) {
			t.Error("the key is gone")
		}
		nextHop(r.Header)
		for _, id := range identity {
			n := 0
			for key, lines := range r.Header {
				if fold(key) == fold(id.Header) {
					n += len(lines)
				}
			}
			if got := r.Header[id.Header]; n != 1 || !slices.Equal(got, []string{"alice"}) {
				t.Errorf("%s = %q, %d lines in all: %v", id.Header, got, n, r.Header)
			}
		}
	})
}
