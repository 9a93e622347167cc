package caddyfile_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/standard"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"

	_ "github.com/wsgate/caddy-wsgate" // what users build
)

var update = flag.Bool("update", false, "write what comes out into testdata/adapt")

// dashes part a golden's Caddyfile from what comes of it.
const dashes = "----------\n"

// TestAdapt holds every file of testdata/adapt to its second half: JSON, or
// the text of an error. To accept what comes out now, after reading it:
//
//	go test ./caddyfile -run TestAdapt -update
func TestAdapt(t *testing.T) {
	for name, golden := range goldens(t) {
		t.Run(name, func(t *testing.T) {
			config, want, _ := strings.Cut(golden, dashes)
			got, err := adapt(config)
			if err != nil {
				got = err.Error() + "\n"
				blames(t, config, got)
			}
			if failing := strings.HasPrefix(name, "error_"); failing != (err != nil) {
				t.Fatalf("error: %v", err)
			}
			if *update {
				write(t, name, config+dashes+got)
			} else if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// blames holds an error to naming the file, the line marked with `# wrong` and
// the option on it (if it is ours), and to never repeating a secret.
func blames(t *testing.T, config, said string) {
	t.Helper()
	number, option := 0, ""
	for i, line := range strings.Split(config, "\n") {
		if strings.Contains(line, "# wrong") {
			number, option = i+1, strings.Fields(line)[0]
		}
	}
	if option == "" {
		t.Fatalf("mark the line that is at fault with `# wrong`: %s", said)
	}
	if at := fmt.Sprintf("Caddyfile:%d", number); !regexp.MustCompile(regexp.QuoteMeta(at) + `\b`).MatchString(said) {
		t.Errorf("does not name %s: %s", at, said)
	}
	if !strings.Contains(said, option) && !strings.Contains(config, "# wrong, says Caddy") {
		t.Errorf("does not name %s: %s", option, said)
	}
	for _, secret := range regexp.MustCompile(`(?m)(?:secret |user:|hunter2 )(\w+)`).FindAllStringSubmatch(config, -1) {
		if strings.Contains(said, secret[1]) {
			t.Errorf("repeats a secret (contract §2): %s", said)
		}
	}
}

func adapt(config string) (string, error) {
	result, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(config), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return "", err
	}
	var pretty bytes.Buffer
	err = json.Indent(&pretty, result, "", "\t")
	return pretty.String() + "\n", err
}

// goldens are the files of testdata/adapt by name.
func goldens(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/adapt/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no goldens:", err)
	}
	all := make(map[string]string, len(files))
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".txt")] = strings.ReplaceAll(string(content), "\r\n", "\n")
	}
	return all
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join("testdata", "adapt", name+".txt"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
