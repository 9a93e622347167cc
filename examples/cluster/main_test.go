package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/examples/internal/exampletest"
)

// runMain, in the environment, makes this test binary the program itself.
const runMain = "CLUSTER_RUN_MAIN"

// caddy is the gates' program, built once, or before, say a release.
var caddy = os.Getenv("WSGATE_TEST_CADDY")

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		main()
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "wsgate-cluster-test-")
	if err != nil {
		panic(err)
	}
	if _, err := findRedis(); err == nil && caddy == "" {
		caddy = filepath.Join(dir, "caddy")
		out, err := exec.Command("go", "build", "-o", caddy, "../../cmd/caddy").CombinedOutput()
		if err != nil {
			panic(string(out))
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func needRedis(t *testing.T) {
	t.Helper()
	if _, err := findRedis(); err != nil {
		exampletest.Missing(t, "%v", err)
	}
}

// program is this example, with directories of its own to leave things in.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	needRedis(t)
	home, tmp := t.TempDir(), t.TempDir()
	cmd := exec.Command(os.Args[0], append([]string{"-caddy", caddy}, args...)...)
	cmd.Env = append(os.Environ(), runMain+"=yes", "HOME="+home, "TMPDIR="+tmp)
	cmd.Stderr = new(bytes.Buffer)
	cmd.WaitDelay = time.Minute
	t.Cleanup(func() {
		for _, dir := range []string{home, tmp} {
			if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
				t.Errorf("left behind in %s: %v, %v", dir, files, err)
			}
		}
	})
	return cmd
}

// TestStory runs the program to its end. What it prints is what the README
// says, with … for what differs from run to run.
func TestStory(t *testing.T) {
	cmd := program(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, cmd.Stderr, out)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?ms)^```text\n(.*?)^```$").FindSubmatch(readme)
	if shown == nil {
		t.Fatal("README.md does not say what it prints")
	}
	pattern := strings.ReplaceAll(regexp.QuoteMeta(string(shown[1])), "…", `[^\n]*`)
	if !regexp.MustCompile(`\A` + pattern + `\z`).Match(out) {
		t.Errorf("it prints\n%s\nand not, as the README says,\n%s", out, shown[1])
	}
}

// TestNotices takes something away from the Caddyfile, and wants the story to
// fail at the step that is about it.
func TestNotices(t *testing.T) {
	needRedis(t)
	for name, tc := range map[string]struct{ old, now, step string }{
		"a cap that is too high":       {"max_connections 3 by user\n", "max_connections 4 by user\n", "step 1: alice at B was let in, in place of 429"},
		"rates in place of caps":       {"max_connections 3 by user\n", "handshake_rate 3/1h by user\n", "step 1: waiting for a place: 429"},
		"nobody evicted":               {" evict_oldest", "", "step 2: carol at B: 429"},
		"no local counts":              {"{$REDIS_URL:redis://127.0.0.1:6379}", "{$REDIS_URL} {\n on_error deny\n}", "step 6: dave at A: 503"},
		"a cap that nobody reaches":    {"max_connections 3 by user\n", "max_connections 3 by ip\n", "step 1: bob at A: 429"},
		"a configuration that is none": {"audience demo", "", "waiting for gate A: gate A has ended"},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(tc.step, "step 1: waiting") {
				defer func(p time.Duration) { patience = p }(patience)
				patience = 2 * time.Second
			}
			config := bytes.Replace(caddyfile, []byte(tc.old), []byte(tc.now), 1)
			if bytes.Equal(config, caddyfile) {
				t.Fatalf("the Caddyfile has no %q", tc.old)
			}
			err := run(t.Context(), caddy, config, false, io.Discard)
			if err == nil || !strings.HasPrefix(err.Error(), tc.step) {
				t.Errorf("got %v, want %s…", err, tc.step)
			}
		})
	}
}

// A program that fails says so to whoever calls it.
func TestStatus(t *testing.T) {
	cmd := program(t)
	cmd.Args[2] = filepath.Join(t.TempDir(), "missing")
	err := cmd.Run()
	var status *exec.ExitError
	if !errors.As(err, &status) || status.ExitCode() != 1 {
		t.Errorf("ended with %v and said %s", err, cmd.Stderr)
	}
}

// TestStay types what -stay says in a shell, and then Ctrl-C.
func TestStay(t *testing.T) {
	cmd := program(t, "-stay")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	script := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "  Ctrl-C") {
			break
		}
		if text, ok := strings.CutPrefix(line, "    "); ok && !strings.Contains(text, "   ") {
			if strings.Contains(text, "redis-server") || strings.Contains(text, "valkey-server") {
				text += " >/dev/null & server=$!; sleep 3; kill $server" // until Ctrl-C
			}
			script += text + "\n"
		}
	}
	script = strings.ReplaceAll(script, "& sleep 1;", "& sleep 4;") // a machine that tests a lot is slow
	typed := exec.CommandContext(t.Context(), "sh", "-c", script)
	typed.WaitDelay = time.Second
	said, err := typed.CombinedOutput()
	if err != nil {
		t.Errorf("%v", err)
	}
	for text, times := range map[string]int{
		"HTTP/1.1 101 ": 3, "hello alice": 3, "HTTP/1.1 429 ": 1, // a cap
		`"user":"alice"`: 3, "lunch?": 3, `{"sent":3}`: 1, // a list and a message
		"token revoked": 3, `{"closed":3}`: 1, "HTTP/1.1 401 ": 1, `{"lifted":1}`: 1, // a revocation
		"wsgate:{all}:nodes": 1, "redis is away": 2,
	} {
		if n := strings.Count(string(said), text); n != times {
			t.Errorf("%q %d times, want %d", text, n, times)
		}
	}
	if t.Failed() {
		t.Logf("the commands\n%s\nsaid\n%s", script, said)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v: %s", err, cmd.Stderr)
	}
}
