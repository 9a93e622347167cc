package handshake

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

const sampleKey = "dGhlIHNhbXBsZSBub25jZQ==" // RFC 6455 §1.3

// wire parses a request as it stands on the wire, its lines given without CRLF.
func wire(t testing.TB, lines ...string) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.Join(lines, "\r\n") + "\r\n\r\n")))
	if err != nil {
		t.Fatalf("reading %q: %v", lines, err)
	}
	return r
}

// opening is a handshake as a browser sends it, with lines added, or replaced
// where the name is the same; "Name" without a colon leaves that line out.
func opening(changes ...string) []string {
	lines := []string{
		"GET /chat HTTP/1.1",
		"Host: example.com",
		"Connection: Upgrade",
		"Upgrade: websocket",
		"Sec-WebSocket-Version: 13",
		"Sec-WebSocket-Key: " + sampleKey,
	}
	name := func(line string) string {
		n, _, _ := strings.Cut(line, ":")
		return strings.ToLower(n)
	}
	replaced := map[string]bool{}
	var added []string
	for _, c := range changes {
		replaced[name(c)] = true
		if strings.Contains(c, ":") {
			added = append(added, c)
		}
	}
	lines = slices.DeleteFunc(lines, func(l string) bool { return replaced[name(l)] })
	return append(lines, added...)
}

// with puts another request line on an opening.
func with(requestLine string, changes ...string) []string {
	lines := opening(changes...)
	lines[0] = requestLine
	return lines
}

// requests are the handshakes whose answers the golden file holds.
var requests = []struct {
	id, name string
	lines    []string
}{
	{"", "browser", opening()},
	{"", "all in lower case", []string{"GET / HTTP/1.1", "host: a", "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: " + sampleKey}},
	{"", "plain", []string{"GET / HTTP/1.1", "Host: a"}},
	{"", "plain, keep-alive", []string{"GET / HTTP/1.1", "Host: a", "Connection: keep-alive", "Upgrade-Insecure-Requests: 1"}},
	{"", "plain, version without key", []string{"GET / HTTP/1.1", "Host: a", "Sec-WebSocket-Version: 13"}},

	{"S-85", "version 1337", opening("Sec-WebSocket-Version: 1337")},
	{"S-85", "version 8", opening("Sec-WebSocket-Version: 8")},
	{"S-85", "version empty", opening("Sec-WebSocket-Version:")},
	{"S-85", "version absent", opening("Sec-WebSocket-Version")},
	{"S-85", "version twice", opening("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13")},
	{"S-85", "version list", opening("Sec-WebSocket-Version: 13, 8")},
	{"S-85", "version padded with zero", opening("Sec-WebSocket-Version: 013")},

	{"S-89", "POST", with("POST /chat HTTP/1.1")},
	{"S-89", "PUT", with("PUT /chat HTTP/1.1")},
	{"S-89", "HEAD", with("HEAD /chat HTTP/1.1")},
	{"S-89", "PATCH", with("PATCH /chat HTTP/1.1")},
	{"S-89", "CONNECT", with("CONNECT example.com:80 HTTP/1.1")},
	{"S-89", "get in lower case", with("get /chat HTTP/1.1")},

	{"S-93", "h2c", opening("Upgrade: h2c", "HTTP2-Settings: AAMAAABk", "Connection: Upgrade, HTTP2-Settings", "Sec-WebSocket-Key")},
	{"S-93", "h2c with a key", opening("Upgrade: h2c", "HTTP2-Settings: AAMAAABk")},
	{"S-93", "websocket, h2c", opening("Upgrade: websocket, h2c")},
	{"S-93", "two Upgrade lines", opening("Upgrade: websocket", "Upgrade: h2c")},
	{"S-93", "Connection: Upgrade, HTTP2-Settings", opening("Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")},
	{"S-93", "TLS", opening("Upgrade: TLS/1.0", "Sec-WebSocket-Key")},
	{"S-93", "Upgrade empty", opening("Upgrade:", "Sec-WebSocket-Key")},
	{"S-93", "CONNECT without upgrade", []string{"CONNECT example.com:80 HTTP/1.1", "Host: example.com:80"}},

	{"S-94", "WebSocket", opening("Upgrade: WebSocket")},
	{"S-94", "websocket, foo", opening("Upgrade: websocket, foo")},
	{"S-94", "foo, websocket", opening("Upgrade: foo, websocket")},
	{"S-94", "websocket/13", opening("Upgrade: websocket/13")},
	{"S-94", "websocket/13 without a key", opening("Upgrade: websocket/13", "Sec-WebSocket-Key")},
	{"S-94", "websocket twice", opening("Upgrade: websocket", "Upgrade: websocket")},
	{"S-94", "empty elements", opening("Upgrade: , websocket,")},
	{"S-94", "long s", opening("Upgrade: web\u017focket")},
	{"S-94", "no Upgrade", opening("Upgrade")},
	{"S-94", "no Upgrade, empty key", opening("Upgrade", "Sec-WebSocket-Key:")},

	{"S-95", "HTTP/1.0", with("GET /chat HTTP/1.0")},
	{"S-95", "HTTP/1.2", with("GET /chat HTTP/1.2")},
	{"S-95", "host empty", opening("Host:")},

	{"S-96", "body", opening("Content-Length: 5")},
	{"S-96", "empty body", opening("Content-Length: 0")},
	{"S-96", "chunked", opening("Transfer-Encoding: chunked")},
	{"S-96", "chunked and length", opening("Transfer-Encoding: chunked", "Content-Length: 0")},

	{"S-97", "Expect", opening("Expect: 100-continue")},

	{"S-98", "no key", opening("Sec-WebSocket-Key")},
	{"S-98", "key empty", opening("Sec-WebSocket-Key:")},
	{"S-98", "key of 15 bytes", opening("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA")},
	{"S-98", "key of 17 bytes", opening("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA=")},
	{"S-98", "key of 18 bytes", opening("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAAA")},
	{"S-98", "key without padding", opening("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA")},
	{"S-98", "key in the other alphabet", opening("Sec-WebSocket-Key: ______________________==")},
	{"S-98", "key with loose last bits", opening("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAB==")},
	{"S-98", "two keys", opening("Sec-WebSocket-Key: "+sampleKey, "Sec-WebSocket-Key: "+sampleKey)},
	{"S-98", "two keys in a line", opening("Sec-WebSocket-Key: " + sampleKey + ", " + sampleKey)},
	{"S-98", "folded line behind the key", opening("Sec-WebSocket-Key: " + sampleKey + "\r\n X-User-Id: a")},
	{"S-98", "no Connection", opening("Connection")},
	{"S-98", "Connection: keep-alive", opening("Connection: keep-alive")},
	{"S-98", "Connection: keep-alive, Upgrade", opening("Connection: keep-alive, Upgrade")},
	{"S-98", "Connection on two lines", opening("Connection: keep-alive", "Connection: upgrade")},
	{"S-98", "Connection: Upgraded", opening("Connection: Upgraded")},
	{"S-105", "Connection: close, Upgrade", opening("Connection: close, Upgrade")},
}

func TestAnswers(t *testing.T) {
	var out strings.Builder
	for _, tc := range requests {
		r := wire(t, tc.lines...)
		kind, err := "plain", error(nil)
		if Is(r) {
			kind, err = "handshake", Check(r)
		} else {
			err = CheckPlain(r)
		}
		answer := "passes"
		if e := (*Error)(nil); errors.As(err, &e) {
			answer = fmt.Sprintf("%d %s", e.Status, e.Detail)
		}
		fmt.Fprintf(&out, "%-5s  %-36s  %-9s  %s\n", tc.id, tc.name, kind, answer)
	}
	golden(t, "testdata/answers.golden", out.String())
}

// golden compares with a file, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		var g, w string
		if i < len(gotLines) {
			g = gotLines[i]
		}
		if i < len(wantLines) {
			w = wantLines[i]
		}
		if g != w {
			t.Errorf("%s:%d\n got %s\nwant %s", name, i+1, g, w)
		}
	}
}

// S-95: Host is a field that net/http takes out of the map; one that is still
// there twice was put in by something else.
func TestCheckWantsOneHost(t *testing.T) {
	r := wire(t, opening()...)
	r.Header["Host"] = []string{"a", "b"}
	if Check(r) == nil {
		t.Error("two hosts pass")
	}
}

// S-100: a gate that looks only at Upgrade lets these through, and
// reverse_proxy makes upgrades of them.
func TestIsExtendedConnect(t *testing.T) {
	tests := []struct {
		name   string
		method string
		major  int
		proto  string
		header http.Header
		want   bool
	}{
		{"h2 websocket", "CONNECT", 2, "HTTP/2.0", http.Header{":protocol": {"websocket"}}, true},
		{"h2 other protocol", "CONNECT", 2, "HTTP/2.0", http.Header{":protocol": {"connect-udp"}}, true},
		{"h2 empty protocol", "CONNECT", 2, "HTTP/2.0", http.Header{":protocol": {""}}, true},
		{"h2 plain CONNECT", "CONNECT", 2, "HTTP/2.0", http.Header{}, false},
		{"h2 GET", "GET", 2, "HTTP/2.0", http.Header{":protocol": {"websocket"}}, false},
		{"h3 websocket", "CONNECT", 3, "websocket", http.Header{}, true},
		{"h3 WebSocket", "CONNECT", 3, "WebSocket", http.Header{}, true},
		{"h3 webtransport", "CONNECT", 3, "webtransport", http.Header{}, true},
		{"h3 plain CONNECT", "CONNECT", 3, "HTTP/3.0", http.Header{}, false},
		{"h3 GET", "GET", 3, "HTTP/3.0", http.Header{}, false},
		{"h1 CONNECT", "CONNECT", 1, "HTTP/1.1", http.Header{":protocol": {"websocket"}}, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			r := &http.Request{Method: tc.method, ProtoMajor: tc.major, Proto: tc.proto, Header: tc.header}
			if got := IsExtendedConnect(r); got != tc.want {
				t.Errorf("IsExtendedConnect = %v, want %v", got, tc.want)
			}
			if got := Is(r); got != tc.want {
				t.Errorf("Is = %v, want %v", got, tc.want)
			}
			if err := CheckPlain(r); !tc.want && tc.method == "CONNECT" && err == nil {
				t.Error("CONNECT passes as plain HTTP")
			}
			if err := Check(r); err == nil {
				t.Error("passes as an HTTP/1.1 handshake")
			}
		})
	}
}

// Keys as reverse_proxy writes them, which Header.Get does not find.
func TestRawKeys(t *testing.T) {
	r := wire(t, opening()...)
	h := http.Header{}
	for key, lines := range r.Header {
		h[strings.ToLower(key)] = lines
	}
	r.Header = h
	if !Is(r) || Check(r) != nil {
		t.Errorf("Is = %v, Check = %v", Is(r), Check(r))
	}
	// Two spellings of one field are two lines of it.
	r.Header["Sec-WebSocket-Key"] = []string{sampleKey}
	if Check(r) == nil {
		t.Error("two spellings of the key pass")
	}
}

func TestOffered(t *testing.T) {
	tests := map[string]struct {
		lines []string
		want  []string
	}{
		"none":       {nil, nil},
		"one":        {[]string{"chat.v1"}, []string{"chat.v1"}},
		"list":       {[]string{"bearer, aaa.bbb.ccc ,\tchat.v1"}, []string{"bearer", "aaa.bbb.ccc", "chat.v1"}},
		"two lines":  {[]string{"b, a", "c"}, []string{"b", "a", "c"}},
		"empty ones": {[]string{", a,, ", ""}, []string{"a"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := &http.Request{Header: http.Header{"Sec-Websocket-Protocol": tc.lines}}
			if got := Offered(r); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
