package handshake

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func mustParse(t testing.TB, entries ...string) *Origins {
	t.Helper()
	o, err := ParseOrigins(entries)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestAllows(t *testing.T) {
	app := []string{"https://example.com"}
	wild := []string{"https://*.example.org"}
	tests := []struct {
		name    string
		entries []string
		origin  string
		want    bool
	}{
		{"listed", app, "https://example.com", true},
		{"S-76: foreign page", app, "https://evil.test", false},
		{"case of scheme and host", app, "HTTPS://Example.COM", true},
		{"case of the entry", []string{"https://Example.com"}, "https://example.com", true},

		{"S-78: null", app, "null", false},
		{"S-78: null beside a wildcard", wild, "null", false},
		{"S-78: null beside any", []string{"*"}, "null", false},
		{"S-78: NULL", []string{"*"}, "NULL", false},
		{"S-78: null with a blank", []string{"null"}, "null ", false},
		{"S-78: null listed", []string{"null"}, "null", true},
		{"S-78: NULL where null is listed", []string{"null"}, "NULL", false},
		{"file listed", []string{"file://"}, "file://", true},
		{"file not listed", []string{"*"}, "file://", false},
		{"file with a path", []string{"file://"}, "file:///etc", false},

		{"S-79: prefix", app, "https://evil-example.com", false},
		{"S-79: suffix", app, "https://example.com.evil.com", false},
		{"S-79: dot as any character", []string{"https://a.example.com"}, "https://aXexample.com", false},
		{"S-79: userinfo", app, "https://example.com@evil.com", false},
		{"S-79: own userinfo", app, "https://evil.com@example.com", false},
		{"S-79: fragment", app, "https://evil.com#example.com", false},
		{"S-79: encoded dot", wild, "https://evil.com%2eexample.org", false},
		{"S-79: backslash", wild, `https://evil.com\.example.org`, false},
		{"S-79: path", app, "https://example.com/", false},
		{"S-79: query", app, "https://example.com?", false},
		{"S-79: trailing dot", app, "https://example.com.", false},
		{"S-79: list", app, "https://example.com https://evil.test", false},
		{"S-79: list with a comma", app, "https://example.com, https://example.com", false},
		{"S-79: blank before", app, " https://example.com", false},
		{"S-79: tab inside", app, "https://exam\tple.com", false},
		{"S-79: NUL", app, "https://example.com\x00", false},
		{"S-79: empty", app, "", false},
		{"S-79: no scheme", app, "example.com", false},
		{"S-79: no slashes", app, "https:example.com", false},
		{"S-79: Kelvin sign", []string{"https://kiosk.example"}, "https://\u212aiosk.example", false},
		{"S-79: homograph", app, "https://ex\u0430mple.com", false},

		{"S-80: http", app, "http://example.com", false},
		{"S-80: port", app, "https://example.com:8443", false},
		{"S-80: default port", app, "https://example.com:443", true},
		{"S-80: default port in the entry", []string{"http://example.com:80"}, "http://example.com", true},
		{"S-80: the other default port", app, "https://example.com:80", false},
		{"S-80: wss has no default port", []string{"wss://example.com"}, "wss://example.com:443", false},
		{"S-80: wss is not https", app, "wss://example.com", false},
		{"S-80: port with a zero before", app, "https://example.com:0443", false},
		{"S-80: empty port", app, "https://example.com:", false},
		{"S-80: port 0", []string{"*"}, "https://example.com:0", false},
		{"S-80: port 65536", []string{"*"}, "https://example.com:65536", false},
		{"S-80: signed port", []string{"*"}, "https://example.com:+443", false},
		{"S-80: two ports", []string{"*"}, "https://example.com:443:443", false},
		{"own port", []string{"https://example.com:8443"}, "https://example.com:8443", true},

		{"wildcard, one label", wild, "https://a.example.org", true},
		{"wildcard, two labels", wild, "https://a.b.example.org", true},
		{"wildcard, case", wild, "https://A.Example.Org", true},
		{"wildcard, default port", wild, "https://a.example.org:443", true},
		{"S-79: wildcard, the domain itself", wild, "https://example.org", false},
		{"S-79: wildcard, other domain with that end", wild, "https://evilexample.org", false},
		{"S-79: wildcard, empty label", wild, "https://.example.org", false},
		{"S-79: wildcard, two dots", wild, "https://a..example.org", false},
		{"S-79: wildcard, suffix", wild, "https://a.example.org.evil.com", false},
		{"S-79: wildcard, userinfo", wild, "https://evil.com:x@a.example.org", false},
		{"S-79: wildcard, path", wild, "https://evil.com/.example.org", false},
		{"S-80: wildcard, scheme", wild, "http://a.example.org", false},
		{"S-80: wildcard, port", wild, "https://a.example.org:8443", false},
		{"wildcard with a port", []string{"http://*.localhost:3000"}, "http://a.localhost:3000", true},

		{"any", []string{"*"}, "https://whatever.test:8443", true},
		{"any, extension", []string{"*"}, "chrome-extension://knipolnnllmklapflnccelgolnamhhpl", true},
		{"extension listed", []string{"moz-extension://0a1b-2c"}, "moz-extension://0a1b-2c", true},
		{"any, path", []string{"*"}, "https://a/b", false},
		{"IPv4", []string{"http://127.0.0.1:8080"}, "http://127.0.0.1:8080", true},
		{"IPv6", []string{"http://[::1]:8080"}, "http://[::1]:8080", true},
		{"IPv6, case and default port", []string{"https://[2001:DB8::a]"}, "https://[2001:db8::A]:443", true},
		{"IPv6 with a zone", []string{"*"}, "http://[fe80::1%25eth0]", false},
		{"IPv6 unclosed", []string{"*"}, "http://[::1", false},
		{"IPv6, junk behind", []string{"*"}, "http://[::1]evil.com", false},
		{"IPv4 in brackets", []string{"*"}, "http://[127.0.0.1]", false},
		{"underscore", []string{"*"}, "https://my_host.example.com", true},

		{"same origin by default", nil, "https://gate.example:8443", true},
		{"same origin, another host", nil, "https://other.example:8443", false},
		{"same origin beside a list", []string{"https://a.test", "same_origin"}, "https://gate.example:8443", true},
		{"a list without same origin", app, "https://gate.example:8443", false},
		{"S-80: same origin, scheme", nil, "http://gate.example:8443", false},
		{"S-80: same origin, port", nil, "https://gate.example", false},
		{"S-78: same origin, null", nil, "null", false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			o := mustParse(t, tc.entries...)
			in := RequestOrigin{[]string{tc.origin}, "https", "Gate.example:8443"}
			if got := o.Allows(in); got != tc.want {
				t.Errorf("Allows(%q) = %v, want %v", tc.origin, got, tc.want)
			}
			// S-79: the same value on two lines is two values.
			in.Values = []string{tc.origin, tc.origin}
			if o.Allows(in) {
				t.Errorf("Allows(%q) twice", tc.origin)
			}
		})
	}
}

func TestAllowsSameOrigin(t *testing.T) {
	tests := []struct {
		name, scheme, host, origin string
		want                       bool
	}{
		{"default port in Host", "https", "a.test:443", "https://a.test", true},
		{"default port in Origin", "http", "a.test", "http://a.test:80", true},
		{"TLS ended before us, told by the module", "https", "a.test", "https://a.test", true},
		{"TLS ended before us, not told", "http", "a.test", "https://a.test", false},
		{"IPv6", "http", "[::1]:8080", "http://[::1]:8080", true},
		{"no host", "http", "", "http://", false},
		{"S-79: Host with a path", "http", "a.test/x", "http://a.test/x", false},
		{"S-79: trailing dot on both", "http", "a.test.", "http://a.test.", false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			in := RequestOrigin{[]string{tc.origin}, tc.scheme, tc.host}
			if got := mustParse(t).Allows(in); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestParseOriginsErrors(t *testing.T) {
	tests := map[string]string{
		"":                             "not of the form scheme://host[:port]",
		"example.com":                  "not of the form scheme://host[:port]",
		"*.example.com":                "not of the form scheme://host[:port]",
		"same-origin":                  "not of the form scheme://host[:port]",
		"Null":                         "not of the form scheme://host[:port]",
		"*://example.com":              "not of the form scheme://host[:port]",
		"1http://example.com":          "not of the form scheme://host[:port]",
		"://":                          "not of the form scheme://host[:port]",
		"https://example.com/":         "an origin has no path, query or fragment",
		"https://example.com/chat":     "an origin has no path, query or fragment",
		"https://example.com?a":        "an origin has no path, query or fragment",
		"https://a@example.com":        "an origin has no user information",
		"https://":                     "the host is not a plain ASCII name or address",
		"https://:443":                 "the host is not a plain ASCII name or address",
		"https://b\u00fccher.example":  "the host is not a plain ASCII name or address",
		"https://[::1":                 "the host is not a plain ASCII name or address",
		"https://[0:0:0:0:0:0:0:1]":    `the address is not in its short form "[::1]"`,
		"https://example.com.":         "the host has an empty label or a trailing dot",
		"https://a..example.com":       "the host has an empty label or a trailing dot",
		"https://*":                    "a wildcard may only be the whole leftmost label",
		"https://a*.example.com":       "a wildcard may only be the whole leftmost label",
		"https://a.*.example.com":      "a wildcard may only be the whole leftmost label",
		"https://*.*.example.com":      "a wildcard may only be the whole leftmost label",
		"http://localhost:*":           "a wildcard may only be the whole leftmost label",
		"https://*.":                   "the host is not a plain ASCII name or address",
		"https://*..example.com":       "the host has an empty label or a trailing dot",
		"https://*.0.0.1":              "a wildcard needs a domain name behind it",
		"https://*.[::1]":              "a wildcard needs a domain name behind it",
		"https://*.example.com/":       "an origin has no path, query or fragment",
		"https://example.com:0":        "the port is not a number from 1 to 65535",
		"https://example.com:65536":    "the port is not a number from 1 to 65535",
		"https://example.com:":         "the port is not a number from 1 to 65535",
		"https://example.com:https":    "the port is not a number from 1 to 65535",
		"https://example.com:00443":    "the port is not a number from 1 to 65535",
		"https://*.example.com:99999":  "the port is not a number from 1 to 65535",
		"https://one.test https://two": "an origin has no path, query or fragment",
	}
	for entry, want := range tests {
		t.Run(entry, func(t *testing.T) {
			_, err := ParseOrigins([]string{"https://good.example", entry})
			if err == nil || !strings.HasSuffix(err.Error(), ": "+want) || !strings.Contains(err.Error(), "parsing origin ") {
				t.Errorf("got %v, want … %s", err, want)
			}
		})
	}
}

func TestCheckOrigin(t *testing.T) {
	const own, evil = "https://a.test", "https://evil.test"
	handshake := http.Header{"Upgrade": {"websocket"}}
	tests := []struct {
		name    string
		method  string
		header  http.Header
		deny    bool
		ambient bool
		want    string
	}{
		{"own page", "GET", handshake, false, true, ""},
		{"S-76: foreign page", "GET", handshake, false, true, "origin not allowed"},
		{"S-76: foreign page, token not ambient", "GET", handshake, false, false, "origin not allowed"},
		{"S-78: null", "GET", handshake, false, false, "origin not allowed"},
		{"two origins", "GET", handshake, false, false, "origin not allowed"},
		{"empty origin", "GET", handshake, false, false, "origin not allowed"},
		{"S-77: none, token in a header", "GET", handshake, false, false, ""},
		{"S-77: none, cookie", "GET", handshake, false, true, "cookie without origin"},
		{"S-77: none, denied", "GET", handshake, true, false, "no origin"},
		{"S-77: none, denied, cookie", "GET", handshake, true, true, "cookie without origin"},
		{"S-77: none, Sec-Fetch-Site is not asked", "GET", http.Header{"Upgrade": {"websocket"}, "Sec-Fetch-Site": {"same-origin"}}, false, true, "cookie without origin"},
		{"S-77: key alone is a handshake", "GET", http.Header{"Sec-Websocket-Key": {""}}, false, true, "cookie without origin"},

		{"plain GET, own page", "GET", http.Header{"Origin": {own}}, false, true, ""},
		{"plain GET, foreign page", "GET", http.Header{"Origin": {evil}}, false, false, "origin not allowed"},
		{"plain GET, foreign page that lies", "GET", http.Header{"Origin": {evil}, "Sec-Fetch-Site": {"same-origin"}}, false, false, "origin not allowed"},
		{"plain GET, none, cookie", "GET", nil, false, true, ""},
		{"plain GET, none, denied", "GET", nil, true, true, ""},
		{"plain HEAD, none, denied", "HEAD", nil, true, true, ""},
		{"plain GET, same-origin", "GET", http.Header{"Sec-Fetch-Site": {"same-origin"}}, false, true, ""},
		{"plain GET, same-site", "GET", http.Header{"Sec-Fetch-Site": {"same-site"}}, false, true, ""},
		{"plain GET, typed in", "GET", http.Header{"Sec-Fetch-Site": {"none"}}, false, true, ""},
		{"plain GET, cross-site", "GET", http.Header{"Sec-Fetch-Site": {"cross-site"}}, false, false, "cross-site request"},
		{"plain HEAD, cross-site", "HEAD", http.Header{"Sec-Fetch-Site": {"cross-site"}}, false, false, "cross-site request"},
		{"plain GET, two sites", "GET", http.Header{"Sec-Fetch-Site": {"same-origin", "same-origin"}}, false, false, "cross-site request"},
		{"plain GET, site unknown", "GET", http.Header{"Sec-Fetch-Site": {"Same-Origin"}}, false, false, "cross-site request"},
		{"plain POST, none", "POST", nil, false, false, ""},
		{"plain POST, none, cookie", "POST", nil, false, true, "cookie without origin"},
		{"plain POST, none, denied", "POST", nil, true, false, "no origin"},
		{"plain POST, site is not asked", "POST", http.Header{"Sec-Fetch-Site": {"same-origin"}}, false, true, "cookie without origin"},
		{"plain get is not GET", "get", nil, false, true, "cookie without origin"},
	}
	origins := map[string][]string{
		"own page": {own}, "S-76: foreign page": {evil}, "S-76: foreign page, token not ambient": {evil},
		"S-78: null": {"null"}, "two origins": {own, own}, "empty origin": {""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			h := tc.header.Clone()
			if lines, ok := origins[tc.name]; ok {
				h["Origin"] = lines
			}
			r := &http.Request{Method: tc.method, ProtoMajor: 1, ProtoMinor: 1, Header: h}
			err := CheckOrigin(r, OriginPolicy{mustParse(t), tc.deny}, "https", "a.test", tc.ambient)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if e := (*Error)(nil); !errors.As(err, &e) || e.Status != http.StatusForbidden || e.Detail != tc.want {
				t.Errorf("got %v, want 403 %s", err, tc.want)
			}
		})
	}
}

// FuzzOrigin: whatever is allowed names, for a URL parser that knows nothing
// of this package, the listed scheme, host and port and nothing more.
func FuzzOrigin(f *testing.F) {
	for _, s := range []string{
		"https://example.com", "https://example.com:443", "https://a.example.org", "https://a.b.example.org:443",
		"https://example.com@evil.com", "https://evil.com/.example.org", `https://evil.com\.example.org`,
		"https://example.com.", "https://.example.org", "null", "http://[::1]:8080", "https://\u212aiosk.example",
		"HTTPS://EXAMPLE.COM", "https://example.com%2eevil.com", "https://gate.test:8443",
	} {
		f.Add(s)
	}
	o := mustParse(f, "https://example.com", "https://*.example.org", "http://[::1]:8080", "same_origin")
	everyone := mustParse(f, "*")
	f.Fuzz(func(t *testing.T, value string) {
		if !o.Allows(RequestOrigin{[]string{value}, "https", "gate.test:8443"}) {
			return
		}
		if !everyone.Allows(RequestOrigin{Values: []string{value}}) {
			t.Errorf("%q is listed and not well-formed", value)
		}
		u, err := url.Parse(value)
		if err != nil || u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
			t.Fatalf("%q is more than an origin: %v, %v", value, u, err)
		}
		host := strings.ToLower(u.Hostname())
		port := u.Port()
		if u.Scheme == "https" && port == "443" {
			port = ""
		}
		switch at := u.Scheme + " " + host + " " + port; {
		case at == "https example.com ", at == "http ::1 8080", at == "https gate.test 8443":
		case u.Scheme == "https" && port == "" && strings.HasSuffix(host, ".example.org") && len(host) > len(".example.org"):
		default:
			t.Errorf("%q is allowed and not listed: %s", value, at)
		}
	})
}
