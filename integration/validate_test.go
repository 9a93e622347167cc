package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// caddyOn runs a subcommand on a Caddyfile and returns what it said.
func caddyOn(t *testing.T, command, caddyfile string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	writePair(t, dir)
	file := filepath.Join(dir, "Caddyfile")
	text := strings.NewReplacer("{{dir}}", dir, "{{port}}", "18080", "{{admin}}", "12019").Replace(caddyfile)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(caddyBinary, command, "--config", file, "--adapter", "caddyfile")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir+"/data", "XDG_CONFIG_HOME="+dir+"/config", "HOME="+dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Validating and adapting touch no network, and starting does not wait for it.
func TestValidateTouchesNoNetwork(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	jwks := wiring{idp: p, upstream: b.addr}
	discovery := wiring{upstream: b.addr, gate: fmt.Sprintf("issuer %s {\naudience chat\n}", p.issuer)}
	for _, w := range []wiring{jwks, discovery} {
		for _, command := range []string{"validate", "adapt"} {
			if out, err := caddyOn(t, command, w.caddyfile()); err != nil {
				t.Errorf("caddy %s: %v\n%s", command, err, out)
			}
		}
	}
	if n := p.gets.Load() + p.discovered.Load(); n != 0 {
		t.Errorf("the identity provider got %d requests", n)
	}
	if n := b.dials.Load(); n != 0 {
		t.Errorf("the backend got %d connections", n)
	}
}

// A wrong config says where and what.
func TestConfigErrors(t *testing.T) {
	t.Parallel()
	const good = "issuer https://id.example.com/ {\naudience chat\n}"
	for _, c := range []struct {
		block string // of ws_gate
		word  string // the option that the error names
		line  string // the text of the line that it names, the option's unless said; "-" is any of the block, for what is missing
	}{
		{good + "\nno_such_option 1", "no_such_option", ""},
		{good + "\nleeway soon", "leeway", ""},
		{good + "\nleeway", "leeway", ""},
		{good + "\nleeway -1s", "leeway", ""},
		{good + "\nleeway 1s 2s", "leeway", ""},
		{good + "\nleeway 1s\nleeway 2s", "leeway", "leeway 2s"},
		{good + "\nping_interval x", "ping_interval", ""},
		{good + "\npong_timeout x", "pong_timeout", ""},
		{good + "\nexpiry_grace x", "expiry_grace", ""},
		{good + "\non_expiry explode", "on_expiry", ""},
		{good + "\nmissing_origin maybe", "missing_origin", ""},
		{good + "\norigins", "origins", ""},
		{good + "\norigins example.com", "origins", ""},
		{good + "\norigins https://example.com/path", "origins", ""},
		{good + "\nidentity X-User_Id sub", "identity", ""},
		{good + "\nidentity X.User.Id sub", "identity", ""},
		{good + "\nidentity X-User-Id", "identity", ""},
		{good + "\nuser_claim", "user_claim", ""},
		{good + "\ntunnel_name a\ntunnel_name b", "tunnel_name", "tunnel_name b"},
		{good + "\nforward_token yes", "forward_token", ""},
		{"issuer https://id.example.com/ {\naudience chat\nalgorithms none\n}", "algorithms", "algorithms none"},
		{"issuer https://id.example.com/ {\naudience chat\nalgorithms RS257\n}", "algorithms", "algorithms RS257"},
		{"issuer https://id.example.com/ {\naudience chat\nalgorithms HS256\n}", "HS256", "algorithms HS256"},
		{"issuer https://id.example.com/ {\naudience chat\nrefresh 1ms\n}", "refresh", "refresh 1ms"},
		{"issuer https://id.example.com/ {\naudience chat\nrefresh x\n}", "refresh", "refresh x"},
		{"issuer https://id.example.com/ {\naudience chat\nmax_stale x\n}", "max_stale", "max_stale x"},
		{"issuer https://id.example.com/ {\naudience chat\ncooldown x\n}", "cooldown", "cooldown x"},
		{"issuer https://id.example.com/ {\naudience chat\ntimeout x\n}", "timeout", "timeout x"},
		{"issuer https://id.example.com/ {\naudience chat\njwks http://id.example.com/jwks.json\n}", "jwks", "jwks http"}, // S-69
		{"issuer https://id.example.com/ {\naudience chat\njwks ftp://id.example.com/\n}", "jwks", "jwks ftp"},
		{"issuer https://id.example.com/ {\naudience chat\njwks file:///etc/passwd\n}", "jwks", "jwks file"},
		{"issuer https://id.example.com/ {\naudience chat\njwks https://user:pw@id.example.com/\n}", "jwks", "jwks https"},
		{"issuer https://id.example.com/ {\naudience chat\njwks ://\n}", "jwks", "jwks ://"},
		{"issuer https://id.example.com/ {\naudience chat\nsecret c2hvcnQ=\n}", "secret", "secret c2hv"},
		{"issuer https://id.example.com/ {\naudience chat\nno_such 1\n}", "no_such", "no_such 1"},
		{"issuer https://id.example.com/ {\njwks https://id.example.com/k\n}", "audience", "-"},
		{"issuer any {\naudience chat\n}", "issuer", "-"},
		{"issuer http://id.example.com/ {\naudience chat\n}", "issuer", "issuer http"},
		{"leeway 1s", "issuer", "-"},
	} {
		t.Run(strings.ReplaceAll(c.block, "\n", " "), func(t *testing.T) {
			t.Parallel()
			text := fmt.Sprintf("{\n\tadmin 127.0.0.1:{{admin}}\n\tauto_https off\n}\nhttp://127.0.0.1:{{port}} {\n\tws_gate /ws* {\n%s\n\t}\n\treverse_proxy 127.0.0.1:1 {\n\t\ttransport ws_tunnel\n\t}\n}\n", c.block)
			out, err := caddyOn(t, "adapt", text)
			if err == nil {
				// What only provisioning can see is an error of validate.
				out, err = caddyOn(t, "validate", text)
			}
			if err == nil {
				t.Fatal("accepted")
			}
			said := out
			if !strings.Contains(said, c.word) {
				t.Errorf("the error does not name %s: %s", c.word, said)
			}
			want := c.line
			if want == "" {
				want = c.word
			}
			if want == "-" {
				if !strings.Contains(said, "Caddyfile:") {
					t.Errorf("the error names no line: %s", said)
				}
				return
			}
			line := 0
			for i, l := range strings.Split(text, "\n") {
				if strings.HasPrefix(strings.TrimSpace(l), want) {
					line = i + 1
				}
			}
			if !strings.Contains(said, fmt.Sprintf("Caddyfile:%d", line)) {
				t.Errorf("the error does not name Caddyfile:%d: %s", line, said)
			}
		})
	}
}

// A ws_gate in the site needs no order line, and stands before reverse_proxy
// and after the standard authentication directives.
func TestOrder(t *testing.T) {
	t.Parallel()
	out, err := caddyOn(t, "adapt", `{
	admin 127.0.0.1:{{admin}}
	auto_https off
}
http://127.0.0.1:{{port}} {
	reverse_proxy 127.0.0.1:1 {
		transport ws_tunnel
	}
	ws_gate {
		issuer https://id.example.com/ {
			audience chat
		}
	}
	forward_auth 127.0.0.1:2 {
		uri /auth
	}
	basic_auth {
		Bob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
	}
}
`)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	last := -1
	for _, handler := range []string{`"handler":"authentication"`, `"uri":"/auth"`, `"handler":"ws_gate"`, `"protocol":"ws_tunnel"`} {
		at := strings.Index(out, handler)
		if at < last {
			t.Errorf("%s stands before its turn: %s", handler, out)
		}
		if at < 0 {
			t.Errorf("no %s: %s", handler, out)
		}
		last = at
	}
}
