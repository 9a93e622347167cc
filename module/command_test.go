package module_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/standard"
	_ "github.com/caddyserver/caddy/v2/modules/logging"

	_ "github.com/wsgate/caddy-wsgate" // what users build
	"github.com/wsgate/caddy-wsgate/module"
)

// needed are flags without which nothing works.
var needed = []string{"--to", "localhost:3000", "--issuer", "https://id.example.com", "--audience", "chat"}

// parts are what a flag adds to the Caddyfile that it stands for, by place.
type parts struct {
	from, to, audience string // in place of what is there without flags
	issuer, key        string
	global, drain      string
	log, site, proxy   string
	matcher, otherwise string
	grace              string
}

func (p parts) caddyfile() string {
	fill := func(text, usual string) string {
		if text == "" {
			return usual
		}
		return text
	}
	return `{
	admin off
	persist_config off
	grace_period ` + fill(p.grace, "5s") + `
	` + p.global + `
	log default {
		format filter {
			` + fill(p.log, "request>uri ws_token\nrequest>headers>Sec-Websocket-Protocol ws_token\nrequest>headers>Sec-WebSocket-Protocol ws_token") + `
		}
	}
	ws_gate {
		drain {
			` + p.drain + `
		}
	}
}
` + fill(p.from, "http://:8080") + ` {
	` + p.site + `
	` + p.matcher + `
	ws_proxy {
		to ` + fill(p.to, "localhost:3000") + `
		issuer ` + fill(p.issuer, "https://id.example.com") + ` {
			audience ` + fill(p.audience, "chat") + `
			` + p.key + `
		}
		` + p.proxy + `
	}
	` + p.otherwise + `
}
`
}

// TestSidecarFlags holds what each flag does to what stands for it in a
// Caddyfile.
func TestSidecarFlags(t *testing.T) {
	dir := t.TempDir()
	keys, secret := filepath.Join(dir, "keys.json"), filepath.Join(dir, "secret")
	write(t, keys, `{"keys":[]}`)
	write(t, secret, base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n")
	const filters = "request>uri ws_token %\nrequest>headers>Sec-Websocket-Protocol ws_token %\nrequest>headers>Sec-WebSocket-Protocol ws_token %"
	gate := func(lines string) parts { return parts{proxy: lines} }

	cases := []struct {
		name string
		args []string
		env  map[string]string
		only bool // args are all, the needed ones too
		want parts
	}{
		{name: "no more than is needed"},
		{name: "from a port", args: []string{"--from", ":9000"}, want: parts{from: "http://:9000"}},
		{name: "from a hostname", args: []string{"--from", "chat.example.com"}, want: parts{from: "chat.example.com"}},
		{name: "from a hostname and port", args: []string{"--from", "chat.example.com:8443"}, want: parts{from: "https://chat.example.com:8443"}},
		{name: "from a hostname at port 80", args: []string{"--from", "chat.example.com:80"}, want: parts{from: "http://chat.example.com:80"}},
		{name: "from a hostname in plain", args: []string{"--from", "http://chat.example.com"}, want: parts{from: "http://chat.example.com"}},
		{name: "from an IP address", args: []string{"--from", "127.0.0.1:9000"}, want: parts{from: "http://:9000", site: "bind 127.0.0.1"}},
		{name: "from an IPv6 address", args: []string{"--from", "[::1]:9000"}, want: parts{from: "http://:9000", site: "bind ::1"}},
		{name: "from an IP address with TLS", args: []string{"--from", "https://10.0.0.1:9000"}, want: parts{from: "https://10.0.0.1:9000"}},
		{name: "from a unix socket", args: []string{"--from", "unix//run/ws.sock"}, want: parts{from: "http://", site: "bind unix//run/ws.sock"}},
		{name: "several upstreams", args: []string{"--to", "b:2,c:3", "--to", "d:4"}, want: parts{to: "localhost:3000\nto b:2 c:3\nto d:4\nlb_policy least_conn"}},
		{name: "a TLS upstream", args: []string{"--to", "https://a:1", "--issuer", "https://id.example.com", "--audience", "chat"}, only: true, want: parts{to: "https://a:1"}},
		{
			name: "a TLS upstream that is not verified",
			args: []string{"--to", "https://a:1", "--issuer", "https://id.example.com", "--audience", "chat", "--insecure"}, only: true,
			want: parts{to: "https://a:1\ntransport http {\ntls_insecure_skip_verify\n}"},
		},
		{name: "a path", args: []string{"--path", "/ws*"}, want: parts{matcher: "handle /ws* {", otherwise: "}\nhandle {\nrespond 404\n}"}},
		{name: "proxies in front", args: []string{"--trusted-proxies", "10.0.0.0/8 private_ranges"}, want: parts{global: "servers {\ntrusted_proxies static 10.0.0.0/8 private_ranges\ntrusted_proxies_strict\n}"}},
		{
			name: "several issuers", args: []string{"--issuer", "https://other.example.com/", "--typ", "JWT"},
			want: parts{key: "typ JWT\n}\nissuer https://other.example.com/ {\naudience chat\ntyp JWT"},
		},
		{name: "jwks", args: []string{"--jwks", "https://id.example.com/k"}, want: parts{key: "jwks https://id.example.com/k"}},
		{name: "jwks without issuer", args: []string{"--to", "localhost:3000", "--audience", "chat", "--jwks", "https://id.example.com/k"}, only: true, want: parts{issuer: "any", key: "jwks https://id.example.com/k"}},
		{name: "jwks-file", args: []string{"--jwks-file", keys}, want: parts{key: "jwks_file " + keys}},
		{name: "secret-file", args: []string{"--secret-file", secret}, want: parts{key: "secret {file." + secret + "}"}},
		{
			name: "secret", env: map[string]string{"WS_PROXY_SECRET": base64.StdEncoding.EncodeToString(make([]byte, 32))},
			want: parts{key: "secret {env.WS_PROXY_SECRET}"},
		},
		{name: "audience", args: []string{"--audience", "a, b", "--audience", "c"}, want: parts{audience: "chat a b c"}},
		{name: "algorithms", args: []string{"--algorithms", "RS256,ES256"}, want: parts{key: "algorithms RS256 ES256"}},
		{name: "typ", args: []string{"--typ", "at+jwt", "--typ", "JWT"}, want: parts{key: "typ at+jwt JWT"}},
		{name: "tls-ca", args: []string{"--tls-ca", keys}, want: parts{key: "tls_ca " + keys}},
		{name: "leeway", args: []string{"--leeway", "3s"}, want: gate("leeway 3s")},
		{name: "from-header", args: []string{"--from-header", "x-api-token,Authorization"}, want: parts{
			proxy: "from_header x-api-token Authorization",
			log:   strings.ReplaceAll(filters, "%", "") + "\nrequest>headers>X-Api-Token replace REDACTED",
		}},
		{name: "from-query", args: []string{"--from-query", "access_token,t"}, want: parts{
			proxy: "from_query access_token t", log: strings.ReplaceAll(filters, "%", "access_token t"),
		}},
		{name: "from-cookie", args: []string{"--from-cookie", "session"}, want: gate("from_cookies session")},
		{name: "from-subprotocol", args: []string{"--from-subprotocol", "bearer,jwt"}, want: parts{
			proxy: "from_subprotocol bearer jwt", log: strings.ReplaceAll(filters, "%", "bearer jwt"),
		}},
		{name: "forward-token", args: []string{"--forward-token"}, want: gate("forward_token")},
		{name: "user-claim", args: []string{"--user-claim", "email"}, want: gate("user_claim email")},
		{name: "require", args: []string{"--require", "scope=chat:write", "--require", "role=Group A,admin"}, want: gate("require scope chat:write\nrequire role \"Group A\" admin")},
		{name: "identity", args: []string{"--identity", "X-User-Id=sub", "--identity", "X-Roles=realm_access.roles,X-Mail=email"}, want: gate("identity X-User-Id sub\nidentity X-Roles realm_access.roles\nidentity X-Mail email")},
		{name: "origin", args: []string{"--origin", "https://a.example.com", "--origin", "same_origin"}, want: gate("origins https://a.example.com same_origin")},
		{name: "missing-origin", args: []string{"--missing-origin", "deny"}, want: gate("missing_origin deny")},
		{name: "handshake-rate", args: []string{"--handshake-rate", "20/1s burst 40 by ip", "--handshake-rate", "5/1s by user"}, want: gate("handshake_rate 20/1s burst 40 by ip\nhandshake_rate 5/1s by user")},
		{name: "max-connections", args: []string{"--max-connections", "{http.auth.user.max} by {client_ip} evict_oldest"}, want: gate("max_connections {http.auth.user.max} by {client_ip} evict_oldest")},
		{name: "message-rate", args: []string{"--message-rate", "50/1s burst 100 close"}, want: gate("message_rate 50/1s burst 100 close")},
		{name: "byte-rate", args: []string{"--byte-rate", "1MiB/1s by user"}, want: gate("byte_rate 1MiB/1s by user")},
		{name: "max-message-size", args: []string{"--max-message-size", "1MiB"}, want: gate("max_message_size 1MiB")},
		{name: "ping-interval", args: []string{"--ping-interval", "0"}, want: gate("ping_interval 0")},
		{name: "pong-timeout", args: []string{"--pong-timeout", "1s"}, want: gate("pong_timeout 1s")},
		{name: "idle-timeout", args: []string{"--idle-timeout", "1m"}, want: gate("idle_timeout 1m")},
		{name: "max-lifetime", args: []string{"--max-lifetime", "12h"}, want: gate("max_lifetime 12h")},
		{name: "on-expiry", args: []string{"--on-expiry", "keep"}, want: gate("on_expiry keep")},
		{name: "expiry-grace", args: []string{"--expiry-grace", "1m"}, want: gate("expiry_grace 1m")},
		{name: "on-reject", args: []string{"--on-reject", "close"}, want: gate("on_reject close")},
		{name: "tunnel-name", args: []string{"--tunnel-name", "{env.TUNNEL}"}, want: gate("tunnel_name {env.TUNNEL}")},
		{name: "drain-spread", args: []string{"--drain-spread", "1s"}, want: parts{drain: "spread 1s"}},
		{name: "drain-grace", args: []string{"--drain-grace", "2s"}, want: parts{drain: "grace 2s", grace: "2s"}},
		{name: "no grace", args: []string{"--drain-grace", "0s"}, want: parts{drain: "grace 0s", grace: "1ms"}},
		{name: "health and metrics", args: []string{"--health", ":8081", "--metrics"}},
		{name: "admin", args: []string{"--admin", "localhost:2019"}, want: parts{global: "admin localhost:2019"}},
		{name: "access-log", args: []string{"--access-log"}, want: parts{site: "log"}},
		{name: "debug", args: []string{"--debug"}, want: parts{global: "debug"}},

		{name: "all needed from the environment", only: true, env: map[string]string{
			"WS_PROXY_TO": "a:1, b:2", "WS_PROXY_ISSUER": "https://id.example.com", "WS_PROXY_AUDIENCE": "chat\nother",
		}, want: parts{to: "a:1 b:2\nlb_policy least_conn", audience: "chat other"}},
		{name: "a flag takes a variable's place", args: []string{"--leeway", "3s", "--origin", "https://a.example.com"}, env: map[string]string{
			"WS_PROXY_LEEWAY": "nonsense", "WS_PROXY_ORIGIN": "https://b.example.com",
		}, want: gate("leeway 3s\norigins https://a.example.com")},
		{name: "a variable of several values", env: map[string]string{
			"WS_PROXY_HANDSHAKE_RATE": "20/1s by ip; 5/1s by user\n", "WS_PROXY_REQUIRE": "scope=chat:write;role=a,b", "WS_PROXY_IDENTITY": "X-User-Id=sub X-Mail=email",
		}, want: gate("handshake_rate 20/1s by ip\nhandshake_rate 5/1s by user\nrequire scope chat:write\nrequire role a b\nidentity X-User-Id sub\nidentity X-Mail email")},
		{name: "switches by variable", env: map[string]string{"WS_PROXY_FORWARD_TOKEN": "true", "WS_PROXY_ACCESS_LOG": "1", "WS_PROXY_DEBUG": "false"}, want: parts{site: "log", proxy: "forward_token"}},
		{name: "a switch against its variable", args: []string{"--debug=false"}, env: map[string]string{"WS_PROXY_DEBUG": "true"}},
		{name: "variables that are none of ours, or empty", env: map[string]string{
			"WS_PROXY_PORT": "tcp://10.0.0.1:80", "WS_PROXY_SERVICE_HOST": "10.0.0.1", "WS_PROXY_LEEWAY": "", "WS_PROXY_ORIGIN": " ", "WS_PROXY_SECRET": "",
		}},
	}
	tried := make(map[string]bool)
	set := make(map[string]bool)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			args := c.args
			if !c.only {
				args = append(slices.Clone(needed), args...)
			}
			for _, arg := range args {
				name, _, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
				tried[name] = true
			}
			got, err := module.SidecarConfig(args, c.env)
			if err != nil {
				t.Fatal(err)
			}
			text := c.want.caddyfile()
			if strings.Contains(text, "\tadmin localhost") {
				text = strings.Replace(text, "admin off\n", "", 1)
			}
			want, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
			if err != nil {
				t.Fatal(err)
			}
			if g, w := indented(t, got), indented(t, want); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
			noteFields(t, got, set)
		})
	}
	all, _ := module.SidecarFlags()
	for _, name := range all {
		if !tried[name] {
			t.Errorf("no case has --%s", name)
		}
	}
	// What only a Caddyfile can say: how keys are fetched, and what a reload does.
	for _, field := range []string{"on_removal", "refresh", "max_stale", "cooldown", "timeout"} {
		set[field] = true
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[module.Gate](), reflect.TypeFor[module.Issuer]()} {
		for field := range typ.Fields() {
			if tag, _, _ := strings.Cut(field.Tag.Get("json"), ","); tag != "" && !set[tag] {
				t.Errorf("no flag sets %s", tag)
			}
		}
	}
}

// TestSidecarIsQuiet holds the config of the shortest command to what makes it
// a sidecar: no admin endpoint, nothing written, no token in a log.
func TestSidecarIsQuiet(t *testing.T) {
	raw, err := module.SidecarConfig(needed, nil)
	if err != nil {
		t.Fatal(err)
	}
	var config caddy.Config
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	if config.Admin == nil || !config.Admin.Disabled || config.Admin.Config == nil || config.Admin.Config.Persist == nil || *config.Admin.Config.Persist {
		t.Errorf("admin: %+v", config.Admin)
	}
	if config.StorageRaw != nil {
		t.Errorf("storage: %s", config.StorageRaw)
	}
	encoder := string(config.Logging.Logs["default"].EncoderRaw)
	for _, want := range []string{`"format":"filter"`, `"request\u003euri":{"filter":"ws_token"}`, `"request\u003eheaders\u003eSec-Websocket-Protocol":{"filter":"ws_token"}`} {
		if !strings.Contains(encoder, want) {
			t.Errorf("the default log has no %s: %s", want, encoder)
		}
	}
}

// TestSidecarErrors holds errors to naming the flag or variable and its value.
func TestSidecarErrors(t *testing.T) {
	dir := t.TempDir()
	short := filepath.Join(dir, "short")
	write(t, short, base64.StdEncoding.EncodeToString([]byte("hunter2hunter2")))
	const hunter = "aHVudGVyMmh1bnRlcjI" // the same, as it stands there
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		only bool
		want string // begins with
	}{
		{"nothing", nil, nil, true, "--to is required"},
		{"no audience", []string{"--to", "a:1", "--issuer", "https://id.example.com"}, nil, true, "--audience is required"},
		{"no issuer", []string{"--to", "a:1", "--audience", "chat"}, nil, true, "--issuer is required"},
		{"unknown", []string{"--secret", "x"}, nil, false, "unknown flag: --secret"},
		{"twice", []string{"--leeway", "1s", "--leeway", "2s"}, nil, false, `invalid argument "2s" for "--leeway" flag: it is set already`},
		{"duration", []string{"--leeway", "soon"}, nil, false, `--leeway "soon": "soon" is not a duration`},
		{"negative duration", []string{"--pong-timeout", "-1s"}, nil, false, `--pong-timeout "-1s": `},
		{"duration of the drain", []string{"--drain-spread", "soon"}, nil, false, `--drain-spread "soon": `},
		{"grace", []string{"--drain-grace", "soon"}, nil, false, `--drain-grace "soon": `},
		{"variable", nil, map[string]string{"WS_PROXY_LEEWAY": "soon"}, false, `WS_PROXY_LEEWAY "soon": "soon" is not a duration`},
		{"switch", nil, map[string]string{"WS_PROXY_DEBUG": "maybe"}, false, `WS_PROXY_DEBUG "maybe": is neither`},
		{"word", []string{"--on-reject", "explode"}, nil, false, `--on-reject "explode": `},
		{"empty name", []string{"--origin", ","}, nil, false, `--origin ",": is empty`},
		{"empty issuer", []string{"--to", "a:1", "--audience", "chat", "--jwks", "https://id.example.com/k", "--issuer", ""}, nil, true, `--issuer "": is empty`},
		{"empty value", []string{"--user-claim", ""}, nil, false, `--user-claim "": is empty`},
		{"cap", []string{"--max-connections", "2 by user", "--max-connections", "five by user"}, nil, false, `--max-connections "five by user": "five" is neither`},
		{"rate", []string{"--byte-rate", "1MiB"}, nil, false, `--byte-rate "1MiB": `},
		{"more than a rate", []string{"--handshake-rate", "1/1s { evil }"}, nil, false, `--handshake-rate "1/1s { evil }": unexpected argument "{"`},
		{"origin", []string{"--origin", "example.com"}, nil, false, `--origin "example.com": `},
		{"requirement", []string{"--require", "scope"}, nil, false, `--require "scope": is not of the form`},
		{"identity", []string{"--identity", "X_User=sub"}, nil, false, `--identity "X_User=sub": `},
		{"identity in half", []string{"--identity", "X-User="}, nil, false, `--identity "X-User=": is not of the form`},
		{"issuer", []string{"--issuer", "https://id.example.com"}, nil, false, `--issuer "https://id.example.com": `},
		{"plain issuer", []string{"--to", "a:1", "--audience", "chat", "--issuer", "http://id.example.com"}, nil, true, `--issuer "http://id.example.com": `},
		{"any issuer and another", []string{"--issuer", "any"}, nil, false, `--issuer "any": issuer any: must be the only`},
		{"any audience and another", []string{"--audience", "any"}, nil, false, `--audience "chat": audience any`},
		{"algorithm", []string{"--algorithms", "RS256 none"}, nil, false, `--algorithms "RS256 none": `},
		{"algorithm without a secret", []string{"--algorithms", "HS256"}, nil, false, `--algorithms "HS256": `},
		{"two kinds of keys", []string{"--jwks", "https://id.example.com/k"}, map[string]string{"WS_PROXY_JWKS_FILE": "/k"}, false, "--jwks and WS_PROXY_JWKS_FILE: only one"},
		{"keys and a secret", []string{"--jwks", "https://id.example.com/k"}, map[string]string{"WS_PROXY_SECRET": "x"}, false, "--jwks and WS_PROXY_SECRET: only one"},
		{"keys of several", []string{"--jwks", "https://id.example.com/k", "--issuer", "https://b.example.com"}, nil, false, "--jwks belongs to one --issuer"},
		{"password in a URL", []string{"--jwks", "https://u:hunter2@id.example.com/k"}, nil, false, `--jwks "https://…@id.example.com/k": `},
		{"secret", nil, map[string]string{"WS_PROXY_SECRET": hunter}, false, "WS_PROXY_SECRET: decoding secret"},
		{"secret file", []string{"--secret-file", short}, nil, false, `--secret-file "` + short + `": decoding secret`},
		{"missing file", []string{"--jwks-file", dir + "/none"}, nil, false, `--jwks-file "` + dir + `/none": open`},
		{"missing authority", []string{"--tls-ca", dir + "/none"}, nil, false, `--tls-ca "` + dir + `/none": open`},
		{"upstream", []string{"--to", "http://a:443"}, nil, false, `--to "http://a:443": `},
		{"insecure without TLS", []string{"--insecure"}, nil, false, "--insecure is for"},
		{"metrics without health", []string{"--metrics"}, nil, false, "--metrics needs --health"},
		{"path", []string{"--path", "ws"}, nil, false, `--path "ws": does not begin`},
		{"path that names a matcher", []string{"--path", "@ws"}, nil, false, `--path "@ws": does not begin`},
		{"from a bare port", []string{"--from", "8080"}, nil, false, `--from "8080": a port is written :8080`},
		{"from nothing", []string{"--from", ""}, nil, false, `--from "": names no`},
		{"from a path", []string{"--from", "example.com/ws"}, nil, false, `--from "example.com/ws": a path belongs`},
		{"from another scheme", []string{"--from", "wss://example.com"}, nil, false, `--from "wss://example.com": `},
		{"from two", []string{"--from", "example.com,other.com"}, nil, false, `--from "example.com,other.com": is neither`},
		{"from port 443 without a name", []string{"--from", ":443"}, nil, false, `--from ":443": 443 is`},
		{"from a bad port", []string{"--from", ":99999"}, nil, false, `--from ":99999": port 99999`},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := c.args
			if !c.only {
				args = append(slices.Clone(needed), args...)
			}
			_, err := module.SidecarConfig(args, c.env)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%s\nwant %s…", err, c.want)
			}
			for _, secret := range []string{hunter, "hunter2", "flags:"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("says %s: %v", secret, err)
				}
			}
		})
	}
}

// attempts are values that would be more than a value in a Caddyfile.
var attempts = []string{
	"x` {\n\trespond evil\n}\n`", "x\"\nrespond evil\n\"", "x\nrespond evil", "x\r\nrespond evil", "}", "{", "}\n}\nrespond evil",
	"{$WSGATE_TEST_EVIL}", "{$NONE:x` respond evil}", "`", "``", "<<EOF\nx\nEOF", "\\", "x\\", "# comment", "import /etc/passwd", "{block}", "{args[0]}",
	"/x* } respond evil", "x respond evil", "@m", "*", "x\u2028respond evil", "x\x00", "\ufeffx",
}

// TestSidecarInjection tries to say more with a value than the value.
func TestSidecarInjection(t *testing.T) {
	t.Setenv("WSGATE_TEST_EVIL", "x`\nrespond evil\n`")
	all, switches := module.SidecarFlags()
	for _, flag := range all {
		for _, attempt := range attempts {
			if !switches[flag] {
				holds(t, flag, attempt)
				holds(t, flag, "https://a.example.com/"+attempt)
				holds(t, flag, "a="+attempt)
				holds(t, flag, "1/1s "+attempt)
			}
		}
	}
}

// FuzzSidecar looks for further ones.
func FuzzSidecar(f *testing.F) {
	all, _ := module.SidecarFlags()
	for i, attempt := range attempts {
		f.Add(i, attempt)
	}
	f.Fuzz(func(t *testing.T, n int, value string) {
		flag := all[uint(n)%uint(len(all))]
		if strings.HasSuffix(flag, "-file") || flag == "tls-ca" || strings.Contains(value, "{file.") {
			t.Skip("would read any file")
		}
		holds(t, flag, value)
	})
}

// holds holds a value to being refused or being a value: the config has the
// apps, handlers and filters that flags can have, and nothing else.
func holds(t *testing.T, flag, value string) {
	t.Helper()
	args := append(slices.Clone(needed), "--"+flag+"="+value)
	raw, err := module.SidecarConfig(args, nil)
	if err != nil {
		return
	}
	var root map[string]any
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	apps := root["apps"].(map[string]any)
	for name := range apps {
		if name != "http" && name != "ws_gate" && name != "tls" {
			t.Errorf("--%s %q: an app %s", flag, value, name)
		}
	}
	var words []string // what a module is, in the order of the keys around
	walk(root, func(key string, v any) {
		if word, ok := v.(string); ok && slices.Contains([]string{"handler", "protocol", "format", "filter", "writer", "module"}, key) {
			words = append(words, word)
		}
	})
	slices.Sort(words)
	words = slices.DeleteFunc(words, func(word string) bool {
		return slices.Contains([]string{"ws_gate", "reverse_proxy", "ws_tunnel", "filter", "ws_token", "replace", "subroute", "json", "console", "internal", "acme", "zerossl"}, word)
	})
	if flag == "path" {
		words = slices.DeleteFunc(words, func(word string) bool { return word == "static_response" }) // the 404
	}
	if len(words) > 0 || bytes.Contains(raw, []byte(`"body":`)) || flag != "admin" && !bytes.Contains(raw, []byte(`"admin":{"disabled":true,"config":{"persist":false}}`)) {
		t.Errorf("--%s %q: %q in %s", flag, value, words, raw)
	}
}

func TestSidecarHelp(t *testing.T) {
	help, err := module.SidecarHelp()
	if err != nil {
		t.Fatal(err)
	}
	all, _ := module.SidecarFlags()
	for _, name := range all {
		if !strings.Contains(help, "      --"+name+" ") {
			t.Errorf("--%s is not in the help", name)
		}
	}
	if n := strings.Count(help, "caddy ws-proxy --"); n != 3 {
		t.Errorf("%d examples, want 3", n)
	}
	for _, line := range strings.Split(help, "\n") {
		if len(line) > 110 {
			t.Errorf("a line of %d characters: %s", len(line), line)
		}
	}
}

// noteFields notes the keys that stand in gates and issuers of a config.
func noteFields(t *testing.T, raw []byte, set map[string]bool) {
	t.Helper()
	var root any
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	walk(root, func(key string, v any) { set[key] = true })
}

func walk(v any, visit func(key string, v any)) {
	switch v := v.(type) {
	case []any:
		for _, element := range v {
			walk(element, visit)
		}
	case map[string]any:
		for key, member := range v {
			visit(key, member)
			walk(member, visit)
		}
	}
}

func indented(t *testing.T, raw []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
