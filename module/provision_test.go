package module

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// A config that fails gives back what it took, and no more: a gate of the
// config that runs keeps its keys and its buckets.
func TestFailedProvisionGivesBack(t *testing.T) {
	rate := object{"handshake_rate": []object{{"number": 3, "per": "1s"}}}
	const second = "https://second.example.com/"
	for _, c := range []struct {
		name   string
		config object
		says   string
	}{
		{"tunnel_name", object{"tunnel_name": `a"b`}, "tunnel_name"},
		{"carrier", object{"from_header": []string{"a b"}}, "from_header"},
		{"carrier twice", object{"from_query": []string{"a", "a"}}, "configured twice"},
		{"identity", object{"identity": []object{{"header": "X_User", "claim": "sub"}}}, "identity"},
		{"origins", object{"origins": []string{"example.com"}}, "origins"},
		{"missing_origin", object{"missing_origin": "maybe"}, "missing_origin"},
		{"leeway", object{"leeway": "-1s"}, "leeway"},
		{"ping_interval", object{"ping_interval": "-1s"}, "ping_interval"},
		{"pong_timeout", object{"pong_timeout": "-1s"}, "pong_timeout"},
		{"idle_timeout", object{"idle_timeout": "-1s"}, "idle_timeout"},
		{"max_lifetime", object{"max_lifetime": "-1s"}, "max_lifetime"},
		{"expiry_grace", object{"expiry_grace": "-1s"}, "expiry_grace"},
		{"on_expiry", object{"on_expiry": "explode"}, "on_expiry"},
		{"on_reject", object{"on_reject": "shout"}, "on_reject"},
		{"first rate", object{"handshake_rate": []object{{"number": 0, "per": "1s"}}}, "handshake_rate"},
		{"rate without a time", object{"handshake_rate": []object{{"number": 1}}}, "handshake_rate"},
		{"rate with a negative burst", object{"handshake_rate": []object{{"number": 1, "per": "1s", "burst": -1}}}, "handshake_rate"},
		{"second rate", object{"handshake_rate": []object{{"number": 3, "per": "1s"}, {"number": 3, "per": "1s", "by": "moon"}}}, "handshake_rate"},
		{"cap behind a rate", object{"max_connections": []object{{"number": "0"}}}, "max_connections"},
		{"cap by", object{"max_connections": []object{{"number": "1", "by": "moon"}}}, "max_connections"},
		{"cap without a number", object{"max_connections": []object{{}}}, "max_connections"},
		{"cap on_full", object{"max_connections": []object{{"number": "1", "on_full": "drop"}}}, "max_connections"},
		{"no issuer", object{"issuers": nil}, "issuer"},
		{"issuer without a name", object{"issuers": []object{{"audience": []string{"a"}}}}, "issuer"},
		{"second issuer", withIssuer(object{"name": second, "audience": []string{"a"}, "jwks": "http://id.example.com/k"}), second},
		{"second issuer without audience", withIssuer(object{"name": second}), "audience"},
		{"second issuer with any audience and another", withIssuer(object{"name": second, "audience": []string{"any", "a"}}), "audience any"},
		{"second issuer is the first", withIssuer(object{"name": "https://id.example.com/", "audience": []string{"a"}}), "twice"},
		{"second issuer is any", withIssuer(object{"name": "any", "audience": []string{"a"}, "jwks_file": "/x"}), "only issuer"},
		{"second issuer's CA", withIssuer(object{"name": second, "audience": []string{"a"}, "tls_ca": "/does/not/exist"}), second},
		{"second issuer's secret", withIssuer(object{"name": second, "audience": []string{"a"}, "secret": "c2hvcnQ="}), "secret"},
		{"second issuer's algorithm", withIssuer(object{"name": second, "audience": []string{"a"}, "algorithms": []string{"HS256"}}), "HS256"},
		{"second issuer's typ", withIssuer(object{"name": second, "audience": []string{"a"}, "typ": []string{"logout+jwt"}}), "logout+jwt"},
		{"second issuer's refresh", withIssuer(object{"name": second, "audience": []string{"a"}, "refresh": "1ms"}), "refresh"},
		{"placeholder of nothing", withIssuer(object{"name": second, "audience": []string{"{env.WSGATE_TEST_ABSENT}"}}), "WSGATE_TEST_ABSENT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			running, _ := newGate(t, rate)
			heldSources, heldTables := references(sources), references(tables)
			all := object{}
			for _, o := range []object{rate, c.config} {
				for name, value := range o {
					all[name] = value
				}
			}
			_, cleanup, err := load(t, gateJSON(all))
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want it to name %q", err, c.says)
			}
			if strings.Contains(err.Error(), "c2hvcnQ") || strings.Contains(err.Error(), "short") {
				t.Errorf("the error holds the secret: %v", err)
			}
			cleanup()
			if s, n := references(sources), references(tables); s != heldSources || n != heldTables {
				t.Errorf("%d sources and %d tables are held, want %d and %d", s, n, heldSources, heldTables)
			}
			if refs, _ := sources.References(running.keys[0]); refs != 1 {
				t.Errorf("the running gate's keys have %d uses", refs)
			}
			if refs, _ := tables.References(running.tables[0]); refs != 1 {
				t.Errorf("the running gate's buckets have %d uses", refs)
			}
		})
	}
}

// withIssuer is the usual issuer and one more.
func withIssuer(more object) object {
	var config object
	_ = json.Unmarshal(gateJSON(), &config)
	config["issuers"] = append(config["issuers"].([]any), more)
	return config
}

// Gates share sources and buckets, also with those of the config before; the
// last one to go ends them.
func TestCleanup(t *testing.T) {
	config := gateJSON(object{"tunnel_name": "cleanup", "handshake_rate": []object{{"number": 3, "per": "1s"}, {"number": 4, "per": "1s"}}})
	before, beforeTables := references(sources), references(tables)
	first, endFirst, err := load(t, config)
	if err != nil {
		t.Fatal(err)
	}
	second, endSecond, err := load(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if first.HandshakeRate[0].table != second.HandshakeRate[0].table || first.HandshakeRate[0].table == first.HandshakeRate[1].table {
		t.Error("buckets belong to a rate of a tunnel, whichever config it is in (S-201)")
	}
	now := time.Now()
	for range 3 {
		first.HandshakeRate[0].table.Allow("k", now)
	}
	endFirst()
	if ok, _ := second.HandshakeRate[0].table.Allow("k", now); ok {
		t.Error("a reload resets the buckets (S-201)")
	}
	if s, n := references(sources), references(tables); s != before+1 || n != beforeTables+2 {
		t.Errorf("%d sources and %d tables are held, want %d and %d", s, n, before+1, beforeTables+2)
	}
	endSecond()
	if err := second.Cleanup(); err != nil { // once more does no harm
		t.Error(err)
	}
	if s, n := references(sources), references(tables); s != before || n != beforeTables {
		t.Errorf("%d sources and %d tables are held, want %d and %d", s, n, before, beforeTables)
	}
}

// Caddy reads JSON strictly: a field with a typing error is no config.
func TestUnknownFields(t *testing.T) {
	for _, config := range []object{
		{"leway": "1s"},
		{"handler_": 1},
		{"issuers": []object{{"name": "a", "audience": []string{"a"}, "jwk": "x"}}},
		{"require": []object{{"claim": "a", "values": []string{"b"}, "value": "c"}}},
		{"handshake_rate": []object{{"number": 1, "per": "1s", "bursts": 2}}},
		{"max_connections": []object{{"number": "1", "limit": 2}}},
		{"max_connections": []object{{"number": 1}}}, // a number is a string there: it may be a placeholder
		{"leeway": "soon"},
	} {
		before := references(sources)
		if _, _, err := load(t, gateJSON(config)); err == nil {
			t.Errorf("%v: accepted", config)
		}
		if references(sources) != before {
			t.Errorf("%v: holds a source", config)
		}
	}
}

// Global placeholders are expanded, once.
func TestConfigPlaceholders(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WSGATE_TEST_NAME", "https://id.example.com/")
	t.Setenv("WSGATE_TEST_AUDIENCE", "{env.WSGATE_TEST_HIDDEN}")
	t.Setenv("WSGATE_TEST_HIDDEN", "hidden")
	t.Setenv("WSGATE_TEST_ORIGIN", "https://app.example.com")
	t.Setenv("WSGATE_TEST_WORD", "word")
	t.Setenv("WSGATE_TEST_CAP", "7")
	g, _ := newGate(t, object{
		"issuers":          []object{{"name": "{env.WSGATE_TEST_NAME}", "secret": "{file." + secret + "}", "audience": []string{"{env.WSGATE_TEST_AUDIENCE}", "chat"}}},
		"origins":          []string{"{env.WSGATE_TEST_ORIGIN}", "same_origin"},
		"tunnel_name":      "{env.WSGATE_TEST_WORD}-1",
		"user_claim":       "{env.WSGATE_TEST_WORD}",
		"from_header":      []string{"Authorization", "X-{env.WSGATE_TEST_WORD}"},
		"from_query":       []string{"q-{env.WSGATE_TEST_WORD}"},
		"from_cookies":     []string{"c-{env.WSGATE_TEST_WORD}"},
		"from_subprotocol": []string{"s-{env.WSGATE_TEST_WORD}"},
		"require":          []object{{"claim": "{env.WSGATE_TEST_WORD}", "values": []string{"{env.WSGATE_TEST_WORD}", "b"}}},
		"identity":         []object{{"header": "X-{env.WSGATE_TEST_WORD}-Id", "claim": "{env.WSGATE_TEST_WORD}"}},
		"max_connections":  []object{{"number": "{env.WSGATE_TEST_CAP}"}},
	})
	got := fmt.Sprintln(g.Issuers[0].Name, g.Issuers[0].Audience, g.Origins, g.TunnelName, g.realm, g.carriers, g.identity, g.Require, g.MaxConnections[0].number)
	want := fmt.Sprintln("https://id.example.com/", []string{"{env.WSGATE_TEST_HIDDEN}", "chat"}, []string{"https://app.example.com", "same_origin"}, "word-1", "word-1",
		"{[Authorization X-word] [q-word] [c-word] [s-word]}", "[{X-word-Id word}]", "[{word [word b]}]", 7)
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := g.verifier.Verify(t.Context(), mint(t, object{"word": "alice"})); err != nil {
		t.Errorf("a good token: %v", err)
	}
	if _, err := g.verifier.Verify(t.Context(), mint(t, object{"word": "alice", "aud": "hidden"})); err == nil {
		t.Error("an audience was expanded twice")
	}
}

func TestDefaults(t *testing.T) {
	g, _ := newGate(t)
	for name, c := range map[string]struct{ got, want any }{
		"leeway":       {*g.Leeway, caddy.Duration(10 * time.Second)},
		"carriers":     {g.carriers, "{[Authorization] [] [] [bearer]}"},
		"identity":     {g.identity, "[{X-User-Id sub}]"},
		"tunnel":       {g.TunnelName, "default"},
		"deny missing": {g.origins.DenyMissing, false},
		"policy":       {g.policy.PingInterval.String() + " " + g.policy.PongTimeout.String() + " " + g.policy.IdleTimeout.String(), "30s 10s 0s"},
		"lifetime":     {g.MaxLifetime, 0},
	} {
		if fmt.Sprint(c.got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	zero, _ := newGate(t, object{"leeway": 0, "ping_interval": 0, "pong_timeout": 0, "user_claim": "uid"})
	if *zero.Leeway != 0 || zero.policy.PingInterval != 0 || zero.policy.PongTimeout != 0 {
		t.Errorf("0 was taken for absent: %+v", zero.policy)
	}
	if fmt.Sprint(zero.identity) != "[{X-User-Id uid}]" {
		t.Errorf("identity %v does not follow user_claim", zero.identity)
	}
}

// The limits' words have defaults, and what needs a token is known.
func TestLimitDefaults(t *testing.T) {
	g, _ := newGate(t, object{
		"handshake_rate":  []object{{"number": 1, "per": "1s"}},
		"max_connections": []object{{"number": "1"}},
	})
	if r, m := g.HandshakeRate[0], g.MaxConnections[0]; r.By != "ip" || m.By != "user" || m.OnFull != "reject" {
		t.Errorf("by %s; by %s %s", r.By, m.By, m.OnFull)
	}
	for by, want := range map[string]bool{
		"ip": false, "user": true, "{http.auth.user.device}": true, "{http.ws_gate.connection_id}": true,
		"{http.request.header.X-Tenant}": false, "{http.request.host}-{http.auth.user.id}": true,
	} {
		if got := needsToken(by); got != want {
			t.Errorf("%s needs a token: %t, want %t", by, got, want)
		}
	}
}

// A socket that a config before let in counts under the caps of this one, the
// oldest first, and not twice.
func TestAdopt(t *testing.T) {
	var far []net.Conn
	for i := range 20 {
		client, clientFar := pair(t)
		backend, backendFar := pair(t)
		far = append(far, clientFar, backendFar)
		tunnel.Start(tunnel.Accepted{
			Identity: tunnel.Identity{ID: fmt.Sprintf("%02d", i), Tunnel: "adopt", User: "alice", Issuer: "i", ClientIP: "192.0.2.7"},
			Policy:   &tunnel.Policy{}, Client: client, Backend: backend, Observer: observer{},
		})
	}
	g, _ := newGate(t, object{"tunnel_name": "adopt", "max_connections": []object{{"number": "20", "on_full": "evict_oldest"}, {"number": "99", "by": "ip"}, {"number": "99", "by": "{http.request.host}"}}})
	g.adopt()
	g.adopt()
	v := visitor(t, g)
	v.token.Issuer, v.token.User = "i", "alice"
	if err := g.takeSlots(v); err != nil {
		t.Fatal(err)
	}
	eventually(t, "evicted", func() bool { return live.Get("00").Ending() })
	for s := range live.All() {
		if s.Ending() != (s.ID == "00") {
			t.Errorf("socket %s is ending: %t", s.ID, s.Ending())
		}
	}
	v.leave()
	for _, conn := range far {
		conn.Close()
	}
	eventually(t, "ended", func() bool { return live.Len() == 0 })
	if n := caps.(interface{ Len() int }).Len(); n != 0 {
		t.Errorf("%d places are still held", n)
	}
}
