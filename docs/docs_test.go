// Package docs holds the documentation to the program: every Caddyfile in it
// is valid, every option has its section, every name that the program shows to
// somebody is explained, every link leads somewhere.
package docs

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/wsgate/caddy-wsgate" // what users build
)

// pages are the files whose contents are tested. Those of the examples are
// run by the examples' own tests.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("*.md")
	if err != nil || len(found) < 2 {
		t.Fatalf("found %q: %v", found, err)
	}
	return append(found, "../README.md", "../examples/sidecar/README.md")
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// block is one ```caddyfile of a page. A comment before it, such as
//
//	<!-- caddyfile: in ws_gate -->
//
// says that it is a part, and of what.
var block = regexp.MustCompile("(?ms)^(?:<!-- caddyfile: ([^\n]*?) -->\n+)?```caddyfile\n(.*?)^```$")

// wholes are what parts are put into.
var wholes = map[string]string{
	"":           "%s",
	"in a site":  "example.com {\n%s\n}\n",
	"in ws_gate": "example.com {\n\tws_gate {\n\t\tissuer https://id.example.com/ {\n\t\t\taudience chat\n\t\t}\n%s\n\t}\n}\n",
	"in issuer":  "example.com {\n\tws_gate {\n\t\tissuer https://id.example.com/ {\n\t\t\taudience chat\n%s\n\t\t}\n\t}\n}\n",
}

// TestCaddyfiles adapts every Caddyfile, and provisions what comes of it, as
// `caddy validate` does.
func TestCaddyfiles(t *testing.T) {
	files := newFiles(t)
	blocks := 0
	for _, page := range pages(t) {
		text := read(t, page)
		for _, found := range block.FindAllStringSubmatchIndex(text, -1) {
			blocks++
			mark := ""
			if found[2] >= 0 {
				mark = text[found[2]:found[3]]
			}
			line := 1 + strings.Count(text[:found[4]], "\n")
			t.Run(fmt.Sprintf("%s:%d", filepath.Base(page), line), func(t *testing.T) {
				whole, known := wholes[mark]
				if !known {
					t.Fatalf("the comment says %q", mark)
				}
				config := adapt(t, fmt.Sprintf(whole, text[found[4]:found[5]]))
				validate(t, files.stand(t, config))
			})
		}
		if fences := strings.Count(text, "\n```caddyfile"); fences != len(block.FindAllString(text, -1)) {
			t.Errorf("%s: %d Caddyfiles begin, of which not all end", page, fences)
		}
	}
	if blocks == 0 {
		t.Error("no Caddyfile found")
	}
}

func adapt(t *testing.T, text string) []byte {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatalf("%v, of\n%s", err, text)
	}
	for _, warning := range warnings {
		if !strings.Contains(warning.Message, "not formatted") { // columns are for readers
			t.Errorf("warning: %s", warning)
		}
	}
	return config
}

func validate(t *testing.T, config []byte) {
	t.Helper()
	var parsed caddy.Config
	if err := json.Unmarshal(config, &parsed); err != nil {
		t.Fatal(err)
	}
	parsed.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": t.TempDir()}, "module", "file_system", nil)
	if err := caddy.Validate(&parsed); err != nil {
		t.Errorf("%v, of\n%s", err, config)
	}
}

// files stand in for those that the examples name, which are on no machine
// that runs tests.
type files struct{ certificates, keys, secret string }

func newFiles(t *testing.T) files {
	t.Helper()
	dir := t.TempDir()
	f := files{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "jwks.json"), filepath.Join(dir, "secret")}
	server := httptest.NewTLSServer(nil)
	server.Close()
	secret := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for path, content := range map[string]string{
		f.certificates: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})),
		// RFC 8037, appendix A.2.
		f.keys:   `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
		f.secret: secret,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, page := range pages(t) {
		for _, name := range regexp.MustCompile(`\{env\.(\w+)\}`).FindAllStringSubmatch(read(t, page), -1) {
			value := secret
			if strings.HasSuffix(name[1], "_URL") {
				value = "redis://127.0.0.1:6379/0"
			}
			t.Setenv(name[1], value)
		}
	}
	return f
}

// stand puts the files in place of those that a config names.
func (f files) stand(t *testing.T, config []byte) []byte {
	t.Helper()
	for _, replace := range []struct{ option, path string }{
		{`"tls_ca": ?"[^"]*"`, `"tls_ca":` + strconv.Quote(f.certificates)},
		{`"jwks_file": ?"[^"]*"`, `"jwks_file":` + strconv.Quote(f.keys)},
		{`\{file\.[^}"]*\}`, "{file." + f.secret + "}"},
	} {
		config = regexp.MustCompile(replace.option).ReplaceAllLiteral(config, []byte(replace.path))
	}
	return config
}

// TestMarks wants no page whose commands are marked as runnable and run by no
// test. Those of the README are run by examples/readme_test.go.
func TestMarks(t *testing.T) {
	for _, page := range pages(t) {
		marked := regexp.MustCompile("(?m)^```\\w+ test\\b").MatchString(read(t, page))
		if marked && filepath.Dir(page) == "." {
			t.Errorf("%s: its commands are marked as runnable, and no test runs them", page)
		}
	}
}
