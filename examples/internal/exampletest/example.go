package exampletest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Example is a copy of an example's folder, in which its README is followed.
type Example struct {
	Dir string

	t         testing.TB
	blocks    []block
	env       []string
	caddy     string      // the program
	ports     map[int]int // in the README, on this machine
	terminals []*process
}

// command is how a README starts the gate.
const command = "go run ../../cmd/caddy"

// New copies the example in the current folder and gives it free ports for
// those that its files name.
func New(t testing.TB, ports ...int) *Example {
	t.Helper()
	e := &Example{t: t, Dir: t.TempDir(), ports: make(map[int]int)}
	for _, port := range ports {
		e.ports[port] = freePort(t)
	}
	e.copyFolder()
	var err error
	if e.blocks, err = blocks(e.Read("README.md")); err != nil {
		t.Fatalf("README.md: %v", err)
	}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !slices.Contains([]string{"JWT_SECRET", "TOKEN", "NODE_OPTIONS"}, name) {
			e.env = append(e.env, v)
		}
	}
	home := t.TempDir()
	e.env = append(e.env,
		"CADDY_ADMIN=127.0.0.1:"+strconv.Itoa(freePort(t)), "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home, "GORACE=halt_on_error=0",
		"npm_config_prefer_offline=true", "npm_config_audit=false", "npm_config_fund=false", "npm_config_update_notifier=false",
	)
	e.build()
	t.Cleanup(e.judge) // runs when the terminals, which are started later, are closed
	return e
}

// copyFolder copies the files, with the ports of this machine in them.
func (e *Example) copyFolder() {
	e.t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		e.t.Fatal(err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() || name == ".env" || strings.HasSuffix(name, ".go") {
			continue // what a reader made, and the test
		}
		content, err := os.ReadFile(name)
		if err != nil {
			e.t.Fatal(err)
		}
		if name != "package-lock.json" {
			content = []byte(e.move(string(content)))
		}
		if err := os.WriteFile(filepath.Join(e.Dir, name), content, 0o600); err != nil {
			e.t.Fatal(err)
		}
	}
}

var number = regexp.MustCompile(`\b\d+\b`)

// move puts the ports of this machine in the place of the README's.
func (e *Example) move(text string) string {
	return number.ReplaceAllStringFunc(text, func(digits string) string {
		if n, err := strconv.Atoi(digits); err == nil && e.ports[n] != 0 {
			return strconv.Itoa(e.ports[n])
		}
		return digits
	})
}

// build makes the gate's program, from this folder as the README does. `go
// run` keeps what it has linked, so that only the first of all examples waits.
func (e *Example) build() {
	e.t.Helper()
	if e.caddy = os.Getenv("WSGATE_TEST_CADDY"); e.caddy != "" {
		return // a program that was built before, say a release
	}
	e.caddy = filepath.Join(e.t.TempDir(), "caddy")
	args := strings.Fields(command)[1:]
	if raced {
		args = slices.Insert(args, 1, "-race")
	}
	args = append(slices.Insert(args, 1, "-exec", "cp"), e.caddy)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		e.t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// typed is the script with the program for the command that builds it.
func (e *Example) typed(script string) string {
	return strings.ReplaceAll(script, command, e.caddy)
}

// Follow does what the README says, from its first mark to its last. What runs
// in terminals goes on until the test ends.
func (e *Example) Follow() {
	e.t.Helper()
	for _, b := range e.blocks {
		if b.terminal {
			e.Terminal(b.script, b.want)
			continue
		}
		p := e.start(b.script)
		p.wait(e.t)
		switch got := p.printed(); {
		case p.err != nil && !b.fails && strings.HasPrefix(b.script, "npm ci"):
			Missing(e.t, "the npm packages, which are neither cached nor to be had from a registry: %v\n%s", p.err, got)
		case b.fails == (p.err == nil):
			e.t.Fatalf("%s: ended with %v and printed\n%s", p.script, p.err, got)
		case b.shows && !isOutput(b.want, got):
			e.t.Fatalf("%s: printed\n%s\nand not, as the README says,\n%s", p.script, got, b.want)
		}
	}
	_ = e.gate()
}

// Terminal runs one more command that goes on until the test ends, and returns
// when it has printed the lines.
func (e *Example) Terminal(script, ready string) {
	e.t.Helper()
	p := e.start(script)
	e.terminals = append(e.terminals, p)
	p.await(e.t, ready)
}

// Run runs a command beside the README's and returns what it prints. It must
// succeed.
func (e *Example) Run(script string) string {
	e.t.Helper()
	p := e.start(script)
	p.wait(e.t)
	if p.err != nil {
		e.t.Fatalf("%s: ended with %v and printed\n%s", p.script, p.err, p.printed())
	}
	return strings.TrimSpace(p.printed())
}

// BackendDown kills the backends. The gate then answers a good token with 502
// and an error line of Caddy's own, which holds the request as it came; judge
// looks whether the token is in it.
func (e *Example) BackendDown(url string, header http.Header, subprotocols ...string) {
	e.t.Helper()
	for _, p := range e.terminals {
		if !strings.Contains(p.script, command) {
			p.kill()
		}
	}
	e.Refused("a backend that is down", http.StatusBadGateway, url, header, subprotocols...)
	e.gate().await(e.t, `…"status":502…`)
}

// Logged waits for what the README says of the gate's terminal: why the client
// was refused, once without a token and once with another audience.
func (e *Example) Logged() {
	e.t.Helper()
	e.gate().await(e.t, `…"reason":"no_token"…`)
	e.gate().await(e.t, `…"reason":"invalid_token"…"detail":"audience"…`)
}

// gate is what the README starts, once it runs.
func (e *Example) gate() *process {
	e.t.Helper()
	for _, p := range e.terminals {
		if strings.Contains(p.script, command) {
			return p
		}
	}
	e.t.Fatalf("README.md does not start the gate with %s", command)
	return nil
}

// Script runs a module of JavaScript beside the README's and returns what it
// prints.
func (e *Example) Script(module string, env ...string) string {
	e.t.Helper()
	file := filepath.Join(e.Dir, "script.mjs")
	if err := os.WriteFile(file, []byte(e.move(module)), 0o600); err != nil {
		e.t.Fatal(err)
	}
	return e.Run("env " + strings.Join(env, " ") + " node script.mjs")
}

// AlsoGate starts a second gate, with more options in its block and with tokens
// in URLs filtered, at a port that the README does not name.
func (e *Example) AlsoGate(port int, options ...string) {
	e.t.Helper()
	if e.ports[port] == 0 {
		e.ports[port] = freePort(e.t)
	}
	config := regexp.MustCompile(`(?m)^:\d+ \{`).ReplaceAllString(e.Read("Caddyfile"), ":"+strconv.Itoa(e.ports[port])+" {")
	config = strings.Replace(config, "\trequest>", "\trequest>uri ws_token\n\t\t\trequest>", 1)
	config = strings.Replace(config, "\t\tissuer", "\t\t"+strings.Join(options, "\n\t\t")+"\n\t\tissuer", 1)
	name := fmt.Sprintf("Caddyfile.%d", port)
	if err := os.WriteFile(filepath.Join(e.Dir, name), []byte(config), 0o600); err != nil {
		e.t.Fatal(err)
	}
	e.Terminal(fmt.Sprintf("CADDY_ADMIN=127.0.0.1:%d %s run --envfile .env --config %s --adapter caddyfile", freePort(e.t), command, name),
		"…serving initial configuration…")
}

// Read returns the text of a file in the example's copy, say of a package.
func (e *Example) Read(name string) string {
	e.t.Helper()
	content, err := os.ReadFile(filepath.Join(e.Dir, name))
	if err != nil {
		e.t.Fatal(err)
	}
	return string(content)
}

// Env is added to the environment of what runs from now on.
func (e *Example) Env(variables ...string) { e.env = append(e.env, variables...) }

// URL puts the ports of this machine into a URL.
func (e *Example) URL(url string) string { return e.move(url) }

var (
	token = regexp.MustCompile(`eyJ[\w-]{8,}\.[\w-]{8,}`) // or what is left of one
	crash = regexp.MustCompile(`DATA RACE|(?m)^(panic|fatal error):|http: panic|"panic"`)
)

// judge looks through what the terminals printed: no token, no secret, no
// crash of the gate.
func (e *Example) judge() {
	secret := ""
	if env, err := os.ReadFile(filepath.Join(e.Dir, ".env")); err == nil { // a test that ends early has none
		_, secret, _ = strings.Cut(strings.TrimSpace(string(env)), "=")
	}
	for _, p := range e.terminals {
		printed := p.printed()
		for line := range strings.SplitSeq(printed, "\n") {
			if token.MatchString(line) || (secret != "" && strings.Contains(line, secret)) {
				e.t.Errorf("%s: printed a secret: %s", p.script, line)
			}
		}
		if at := crash.FindStringIndex(printed); at != nil {
			e.t.Errorf("%s: %s", p.script, printed[at[0]:min(at[0]+4000, len(printed))])
		}
		if e.t.Failed() {
			e.t.Logf("%s: printed at the end\n%s", p.script, printed[max(0, len(printed)-4000):])
		}
	}
}

// Missing says loudly what is not there to test with; under CI that fails.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("MISSING: "+format, args...)
	}
	t.Skipf("NOT TESTED, MISSING: "+format, args...) // not under CI, see above
}

// NeedNode tells whether there is a Node.js for the examples.
func NeedNode(t testing.TB) {
	t.Helper()
	for _, name := range []string{"node", "npm"} {
		if _, err := exec.LookPath(name); err != nil {
			Missing(t, "%s is not installed (Debian: apt-get install nodejs npm)", name)
		}
	}
	out, err := exec.Command("node", "--version").Output()
	major, _, _ := strings.Cut(strings.TrimPrefix(string(out), "v"), ".")
	if n, errNumber := strconv.Atoi(major); err != nil || errNumber != nil || n < 20 {
		Missing(t, "Node.js 20 or newer; node --version says %q", out)
	}
}

// freePort returns a port of 127.0.0.1 below the range that the kernel hands
// to others, so that nobody gets it before a backend or the gate binds it. It
// is drawn by lot: the examples' tests run side by side and know nothing of
// each other.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 21000 + rand.N(11000)
		if ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}
