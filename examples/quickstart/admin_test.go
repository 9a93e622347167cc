package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// ask sends one request to an address, its target as it stands here.
func ask(t *testing.T, address, method, target string, header http.Header) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	host := address
	if header.Get("Host") != "" {
		host = header.Get("Host")
		header.Del("Host")
	}
	var b strings.Builder
	b.WriteString(method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n")
	_ = header.Write(&b)
	if _, err := io.WriteString(conn, b.String()+"\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// testAdmin holds the demo to its promise: the page reaches the gate's part of
// the admin API, and nothing else reaches anything of it through the site.
func testAdmin(t *testing.T, d *demo) {
	page := func() http.Header { return http.Header{"Sec-Fetch-Site": {"same-origin"}, "Sec-Fetch-Mode": {"cors"}} }
	with := func(name, value string) http.Header {
		h := page()
		h.Set(name, value)
		return h
	}
	const list, revocations = "/ws_gate/connections", "/ws_gate/revocations"
	for _, tc := range []struct {
		name, method, target string
		header               http.Header
		status               int
		body                 string
	}{
		{"the page", "GET", list, page(), 200, `{"connections":`},
		{"the page, with an Origin", "GET", revocations, with("Origin", "http://"+d.gate), 200, `{"revocations":`},
		{"a program", "GET", list, http.Header{}, 403, ""},
		{"another page", "GET", list, with("Sec-Fetch-Site", "cross-site"), 403, ""},
		{"another port's page", "GET", list, with("Sec-Fetch-Site", "same-site"), 403, ""},
		{"another page that closes", "DELETE", list + "?tunnel=quickstart", with("Sec-Fetch-Site", "cross-site"), 403, ""},
		{"a link", "GET", list, with("Sec-Fetch-Site", "none"), 403, ""},
		{"a rebound name", "GET", list, with("Host", "evil.example:8080"), 200, ""},
		{"a rebound name, the page", "GET", "/", with("Host", "evil.example:8080"), 200, ""},
		{"the config", "GET", "/config/", page(), 404, ""},
		{"stop", "POST", "/stop", page(), 404, ""},
		{"dots", "GET", "/ws_gate/../config/", page(), 404, ""},
		{"escaped dots", "GET", "/ws_gate/%2e%2e/config/", page(), 404, ""},
		{"an escaped slash", "GET", "/ws_gate/..%2fconfig/", page(), 404, ""},
		{"dots before", "GET", "/config/../ws_gate/connections", page(), 307, ""},
		{"two slashes", "GET", "//config/", page(), 404, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res := ask(t, d.gate, tc.method, tc.target, tc.header)
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != tc.status || !strings.HasPrefix(string(body), tc.body) || tc.body == "" && strings.Contains(string(body), "{") {
				t.Errorf("%s: %s, want %d %s", res.Status, body, tc.status, tc.body)
			}
			if to := res.Header.Get("Location"); to != "" && !strings.HasPrefix(to, "/ws_gate/") {
				t.Errorf("it leads to %s", to)
			}
		})
	}

	t.Run("the endpoint itself", func(t *testing.T) {
		// A page of the site is a stranger to it, and so is any other.
		for name, header := range map[string]http.Header{
			"page": {"Origin": {"http://" + d.gate}}, "stranger": {"Origin": {"https://evil.example"}}, "rebound": {"Host": {"evil.example"}},
		} {
			if res := ask(t, d.admin, "GET", list, header); res.StatusCode != http.StatusForbidden {
				t.Errorf("%s: %s", name, res.Status)
			}
		}
		if res := ask(t, d.admin, "GET", list, http.Header{}); res.StatusCode != http.StatusOK {
			t.Errorf("curl: %s", res.Status)
		}
	})
}

// A session is a cookie as sites set it.
func TestSession(t *testing.T) {
	p := &identityProvider{}
	r := httptest.NewRequest(http.MethodPost, "/session", strings.NewReader(url.Values{"token": {"a.b.c"}}.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for want, r := range map[string]*http.Request{
		"session=a.b.c; Path=/ws; HttpOnly; SameSite=Strict":       r,
		"session=; Path=/ws; Max-Age=0; HttpOnly; SameSite=Strict": httptest.NewRequest(http.MethodDelete, "/session", nil),
	} {
		w := httptest.NewRecorder()
		p.handler().ServeHTTP(w, r)
		if got := w.Header().Get("Set-Cookie"); w.Code != http.StatusNoContent || got != want {
			t.Errorf("%s: %d %s, want %s", r.Method, w.Code, got, want)
		}
	}
}
