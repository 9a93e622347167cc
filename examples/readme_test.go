// Package examples follows the repository's own README, as the packages below
// it follow those of the examples.
package examples

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wsgate/caddy-wsgate/examples/internal/exampletest"
)

// TestReadme is the five minutes of somebody who has nothing but the README
// and a socket server of their own: it types the marked commands in an empty
// folder, with the program that the README tells to build.
func TestReadme(t *testing.T) {
	exampletest.NeedNode(t)
	if out, err := exec.Command("npm", "install", "--silent", "--prefix", t.TempDir(), "ws").CombinedOutput(); err != nil {
		exampletest.Missing(t, "the npm package ws, which is neither cached nor to be had from a registry: %v\n%s", err, out)
	}
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "caddy")
	build := exec.Command("go", "build", "-o", program, "./cmd/caddy")
	build.Dir = ".."
	if !strings.Contains(string(text), "go build -o caddy ./cmd/caddy\n") {
		t.Errorf("README.md does not build the program with %s", build)
	}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
	t.Setenv("WSGATE_TEST_CADDY", program)
	t.Chdir(t.TempDir())
	// Where the examples' READMEs build the program, this one has it already.
	readme := strings.ReplaceAll(string(text), "./caddy run", "go run ../../cmd/caddy run")
	if err := os.WriteFile("README.md", []byte(readme), 0o600); err != nil {
		t.Fatal(err)
	}
	exampletest.New(t, 3000, 8080).Follow()
}
