package module

import (
	"crypto/tls"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// Later ids sort behind earlier ones, in any collation that knows letters and
// digits, and none comes twice.
func TestConnectionIDsAreOrdered(t *testing.T) {
	now := time.Now()
	var ids []string
	for _, at := range []time.Time{time.UnixMilli(0), now.Add(-time.Hour), now, now.Add(time.Millisecond), now.Add(time.Second), now.AddDate(500, 0, 0)} {
		ids = append(ids, newConnectionID(at))
	}
	if !slices.IsSorted(ids) {
		t.Errorf("out of order: %q", ids)
	}
	seen := make(map[string]bool)
	for range 100_000 {
		id := newConnectionID(now)
		if seen[id] || len(id) != 24 || strings.Trim(id, "0123456789abcdefghijklmnopqrstuv") != "" {
			t.Fatalf("id %q, seen: %t", id, seen[id])
		}
		seen[id] = true
	}
}

func TestAddressKey(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1":                     "192.0.2.1",
		"::ffff:192.0.2.1":              "192.0.2.1", // IPv4-mapped is IPv4
		"::ffff:c000:201":               "192.0.2.1",
		"2001:db8::1":                   "2001:db8::/64",
		"2001:db8:0:0:ffff:ffff:ffff:1": "2001:db8::/64",
		"2001:db8:0:1::1":               "2001:db8:0:1::/64",
		"fe80::1%eth0":                  "fe80::/64",
		"::1":                           "::/64",
		"":                              "",
		"@":                             "@", // a Unix socket
	} {
		if got := addressKey(address); got != want {
			t.Errorf("%q counts as %q, want %q", address, got, want)
		}
	}
}

// A user is the pair of issuer and name, exact bytes.
func TestUserKey(t *testing.T) {
	seen := make(map[string]bool)
	for _, user := range [][2]string{{"a", "bc"}, {"ab", "c"}, {"abc", ""}, {"", "abc"}, {"a", "Bc"}, {"a", "bc "}, {"A", "bc"}, {"a", "b\u0301c"}} {
		key := userKey(user[0], user[1])
		if seen[key] {
			t.Errorf("%q shares a key", user)
		}
		seen[key] = true
	}
}

// Caps of one kind and value do not meet those of another.
func TestCapKey(t *testing.T) {
	seen := make(map[string]bool)
	for _, by := range []string{"ip", "user", "{x}"} {
		for _, value := range []string{"", "u", "bu", "user\x00u"} {
			key := capKey(by, value)
			if seen[key] {
				t.Errorf("%q shares a key", []string{by, value})
			}
			seen[key] = true
		}
	}
}

// The origin of this server as the client sees it: forwarded fields count only
// from trusted proxies.
func TestRequestOrigin(t *testing.T) {
	for _, c := range []struct {
		name    string
		tls     bool
		trusted bool
		proto   []string
		host    []string
		want    string
	}{
		{"plain", false, false, nil, nil, "http://example.com"},
		{"TLS", true, false, nil, nil, "https://example.com"},
		{"a client that lies", false, false, []string{"https"}, []string{"evil.example.com"}, "http://example.com"},
		{"a trusted proxy", false, true, []string{"https"}, []string{"app.example.com"}, "https://app.example.com"},
		{"a trusted proxy behind TLS", true, true, []string{"http"}, nil, "http://example.com"},
		{"a trusted proxy that says nothing", true, true, nil, nil, "https://example.com"},
		{"a proxy that speaks of WebSockets", false, true, []string{"wss"}, nil, "https://example.com"},
		{"a proxy that speaks of plain WebSockets", true, true, []string{"ws"}, nil, "http://example.com"},
		{"nonsense", true, true, []string{"gopher"}, nil, "https://example.com"},
		{"an empty host", false, true, nil, []string{""}, "http://example.com"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "http://example.com/", nil)
			if c.tls {
				r.TLS = new(tls.ConnectionState)
			}
			if c.proto != nil {
				r.Header["X-Forwarded-Proto"] = c.proto
			}
			if c.host != nil {
				r.Header["X-Forwarded-Host"] = c.host
			}
			r = prepared(r, httptest.NewRecorder())
			caddyhttp.SetVar(r.Context(), caddyhttp.TrustedProxyVarKey, c.trusted)
			if scheme, host := requestOrigin(r); scheme+"://"+host != c.want {
				t.Errorf("%s://%s, want %s", scheme, host, c.want)
			}
		})
	}
}

// S-51: what a claim holds is data. Neither headers, placeholders nor the keys
// of limits expand it, however often they are read.
func TestClaimsAreNeverExpanded(t *testing.T) {
	t.Setenv("WSGATE_TEST_SECRET", "hunter2")
	for _, value := range []string{"{env.WSGATE_TEST_SECRET}", "{file./etc/hostname}", "{http.request.header.Cookie}", "{{env.WSGATE_TEST_SECRET}}", `\{env.WSGATE_TEST_SECRET\}`, "{", "{http.auth.user.id}"} {
		t.Run(value, func(t *testing.T) {
			g, logs := newGate(t, object{
				"identity":       []object{{"header": "X-User-Id", "claim": "sub"}, {"header": "X-Device", "claim": "device"}},
				"handshake_rate": []object{{"number": 9, "per": "1s", "by": "{http.auth.user.device}"}},
			})
			header := opening(mint(t, object{"sub": value, "device": value}))
			header.Del("Upgrade")
			header.Del("Sec-Websocket-Key")
			header.Set("Cookie", "hunter2")
			served := false
			err := g.ServeHTTP(httptest.NewRecorder(), request(t, header), nextFunc(func(_ http.ResponseWriter, r *http.Request) error {
				served = true
				if r.Header.Get("X-User-Id") != value || r.Header.Get("X-Device") != value {
					t.Errorf("the backend gets %v", r.Header)
				}
				repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
				for _, name := range []string{"id", "sub", "device"} {
					if got := repl.ReplaceAll("{http.auth.user."+name+"}", ""); got != value {
						t.Errorf("{http.auth.user.%s} is %q", name, got)
					}
				}
				v := &visit{r: r}
				if got := v.key("{http.auth.user.device}"); got != value {
					t.Errorf("counts under %q", got)
				}
				return nil
			}))
			if err != nil || !served {
				t.Fatalf("%v, served: %t", err, served)
			}
			for _, entry := range logs.All() {
				t.Errorf("logged %v", entry)
			}
		})
	}
}

// Placeholders of scalars, and of nothing else.
func TestPlaceholders(t *testing.T) {
	g, _ := newGate(t)
	v := visitor(t, g, object{"sub": "alice", "n": 17, "admin": true, "roles": []string{"a"}, "realm": object{"name": "r"}, "none": nil, "empty": ""})
	repl := v.replacer()
	for text, want := range map[string]string{
		"{http.auth.user.id}":           "alice",
		"{http.auth.user.sub}":          "alice",
		"{http.auth.user.n}":            "17",
		"{http.auth.user.admin}":        "true",
		"{http.auth.user.realm.name}":   "r",
		"{http.auth.user.roles}":        "?",
		"{http.auth.user.realm}":        "?",
		"{http.auth.user.none}":         "?",
		"{http.auth.user.absent}":       "?",
		"{http.auth.user.empty}":        "?",
		"{http.ws_gate.connection_id}":  v.id,
		"{http.ws_gate.reject.reason}":  "?",
		"{http.auth.userid}":            "?",
		"a {http.auth.user.id} b {none": "a alice b {none",
	} {
		if got := repl.ReplaceAll(text, "?"); got != want {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
}

// The number of a cap that a claim holds: what is no number from 1 on refuses.
func TestCapNumberFromClaim(t *testing.T) {
	for _, c := range []struct {
		claim any
		want  int // 0: refused
	}{
		{3, 3},
		{"3", 3},
		{1, 1},
		{2.9, 2},
		{1e3, 1000},
		{1e300, math.MaxInt32},
		{0, 0}, {0.9, 0}, {-1, 0}, {"", 0}, {" 3", 0}, {"3 ", 0}, {"three", 0}, {"0x", 0}, {"3,000", 0},
		{"NaN", 0}, {"Infinity", 0}, {"-inf", 0}, {"1e999", 0},
		{true, 0}, {nil, 0}, {[]int{3}, 0}, {object{"n": 3}, 0}, {"{env.HOME}", 0},
	} {
		g, _ := newGate(t, object{"max_connections": []object{{"number": "{http.auth.user.max_conns}"}}})
		v := visitor(t, g, object{"max_conns": c.claim})
		got, err := g.MaxConnections[0].limit(v)
		if got != c.want || (c.want == 0) != errors.Is(err, errCapNumber) {
			t.Errorf("%v: %d, %v; want %d", c.claim, got, err, c.want)
		}
		if c.want == 0 {
			if err := g.takeSlots(v); !errors.Is(err, errCapNumber) {
				t.Errorf("%v: takeSlots: %v", c.claim, err)
			}
		}
	}
	g, _ := newGate(t, object{"max_connections": []object{{"number": "{http.auth.user.max_conns}"}}})
	if _, err := g.MaxConnections[0].limit(visitor(t, g)); !errors.Is(err, errCapNumber) {
		t.Errorf("an absent claim: %v", err)
	}
	if _, err := g.MaxConnections[0].limit(&visit{r: httptest.NewRequest(http.MethodGet, "/", nil)}); !errors.Is(err, errCapNumber) {
		t.Errorf("without a replacer: %v", err)
	}
}

// S-186: a handshake that is refused, or ends without a socket, gives its
// place back, whatever it fails with.
func TestPlacesAreGivenBack(t *testing.T) {
	config := object{"tunnel_name": "given-back", "max_connections": []object{{"number": "2"}, {"number": "1", "by": "ip"}}}
	g, _ := newGate(t, config)
	for i, fail := range []func(w http.ResponseWriter, r *http.Request) error{
		func(http.ResponseWriter, *http.Request) error { return caddyhttp.Error(502, errors.New("refused")) },
		func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(404); return nil },
		func(http.ResponseWriter, *http.Request) error { return nil },
		func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(101); return nil },
		func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) },
	} {
		for range 10 {
			inside := false
			func() {
				defer func() { _ = recover() }()
				_ = g.ServeHTTP(httptest.NewRecorder(), request(t, opening(mint(t))), nextFunc(func(w http.ResponseWriter, r *http.Request) error {
					inside = true
					second := visitor(t, g)
					var limited *limitError
					if err := g.takeSlots(second); !errors.As(err, &limited) || limited.detail != "max_connections by ip" {
						t.Errorf("%d: the second at one address: %v", i, err)
					}
					second.leave()
					return fail(w, r)
				}))
			}()
			if !inside {
				t.Fatalf("failure %d: refused: a place was not given back", i)
			}
		}
	}
	if n := caps.(interface{ Len() int }).Len(); n != 0 {
		t.Errorf("%d places are still held", n)
	}
	if len(places.ids) != 0 {
		t.Errorf("%d handshakes are still noted", len(places.ids))
	}
}

// Requests that are no handshakes take no place and can't become sockets.
func TestPlainRequests(t *testing.T) {
	g, _ := newGate(t, object{"max_connections": []object{{"number": "1"}}})
	for range 3 {
		header := opening(mint(t))
		header.Del("Upgrade")
		header.Del("Sec-Websocket-Key")
		w := httptest.NewRecorder()
		err := g.ServeHTTP(w, request(t, header), nextFunc(func(w http.ResponseWriter, r *http.Request) error {
			if _, _, err := http.NewResponseController(w).Hijack(); !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("Hijack: %v", err)
			}
			if handoffOf(r.Context()) != nil {
				t.Error("a handoff for a request that is no handshake")
			}
			return http.NewResponseController(w).Flush()
		}))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Rates that need no token are checked before it (S-128), those by user
// behind it; each key has its own.
func TestRates(t *testing.T) {
	answer := func(g *Gate, header http.Header) string {
		r := request(t, header)
		err := g.ServeHTTP(httptest.NewRecorder(), r, nextFunc(func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(404); return nil }))
		if err == nil {
			return "passed"
		}
		return (&visit{r: r}).reason()
	}
	bad, alice, bob := opening("bad"), opening(mint(t)), opening(mint(t, object{"sub": "bob"}))
	tenant := opening("bad")
	tenant.Set("X-Tenant", "t")
	for _, c := range []struct {
		name     string
		by       string
		requests []http.Header
		want     []string
	}{
		{"by address, before the token", "", []http.Header{bad, alice, bad, alice, bob}, []string{"invalid_token", "passed", "rate", "rate", "rate"}},
		{"by user, behind it", "user", []http.Header{bad, bad, bad, alice, alice, alice, bob}, []string{"invalid_token", "invalid_token", "invalid_token", "passed", "passed", "rate", "passed"}},
		{"by a claim", "{http.auth.user.sub}", []http.Header{alice, alice, alice, bob}, []string{"passed", "passed", "rate", "passed"}},
		{"by a header", "{http.request.header.X-Tenant}", []http.Header{tenant, tenant, tenant, alice}, []string{"invalid_token", "invalid_token", "rate", "passed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _ := newGate(t, object{"tunnel_name": "rates", "handshake_rate": []object{{"number": 2, "per": "1h", "by": c.by}}})
			for i, header := range c.requests {
				if got := answer(g, header.Clone()); got != c.want[i] {
					t.Errorf("request %d: %s, want %s", i, got, c.want[i])
				}
			}
		})
	}
}

// A token that a browser may have sent by itself needs an allowed Origin
// (S-77), whatever missing_origin says.
func TestAmbientToken(t *testing.T) {
	g, _ := newGate(t, object{"from_cookies": []string{"session"}, "from_header": []string{"Authorization"}, "origins": []string{"https://app.example.com"}})
	for origin, want := range map[string]bool{"": false, "https://app.example.com": true} {
		header := opening("")
		header.Del("Authorization")
		header.Set("Cookie", "session="+mint(t))
		if origin != "" {
			header.Set("Origin", origin)
		}
		passed := false
		_ = g.ServeHTTP(httptest.NewRecorder(), request(t, header), nextFunc(func(http.ResponseWriter, *http.Request) error {
			passed = true
			return nil
		}))
		if passed != want {
			t.Errorf("Origin %q: passed: %t, want %t", origin, passed, want)
		}
	}
}
