package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// gate is a running Caddy process.
type gate struct {
	t     testing.TB
	addr  string // host:port of the first site
	admin string // host:port of the admin API
	dir   string // its files: Caddyfile, certificate, data

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended
	err    error         // how it ended; read after exited

	tls    bool // the first site speaks TLS
	killed bool // by the test

	reloaded atomic.Int64 // when, in Unix nanoseconds

	mu      sync.Mutex
	log     []string // lines of standard error
	secrets []string // what must not be in them
}

var lastPort struct {
	sync.Mutex
	n int
}

// freePort returns a port of 127.0.0.1 below the range that the kernel hands
// to others, so that no parallel test gets it before Caddy binds it.
func freePort(t testing.TB) int {
	t.Helper()
	lastPort.Lock()
	defer lastPort.Unlock()
	if lastPort.n == 0 {
		lastPort.n = 12000 + os.Getpid()%8000
	}
	for range 2000 {
		lastPort.n++
		if lastPort.n >= 32000 {
			lastPort.n = 12000
		}
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(lastPort.n)))
		if err == nil {
			ln.Close()
			return lastPort.n
		}
	}
	t.Fatal("no free port")
	return 0
}

// start runs Caddy with a Caddyfile in which {{admin}}, {{port}}, {{port2}}…
// stand for free ports, and {{dir}} for a folder that holds cert.pem and
// key.pem of this test run's certificate authority.
func start(t testing.TB, caddyfile string, env ...string) *gate {
	t.Helper()
	g := &gate{t: t, dir: t.TempDir(), exited: make(chan struct{})}
	writePair(t, g.dir)
	caddyfile = g.expand(caddyfile)
	file := filepath.Join(g.dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	g.cmd = exec.Command(caddyBinary, "run", "--config", file, "--adapter", "caddyfile")
	g.cmd.Dir = g.dir
	g.cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+g.dir+"/data", "XDG_CONFIG_HOME="+g.dir+"/config", "HOME="+g.dir,
		"GORACE=halt_on_error=0")
	g.cmd.Env = append(g.cmd.Env, env...)
	stderr, err := g.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go g.collect(stderr)
	t.Cleanup(g.finish)
	g.awaitReady()
	return g
}

// expand fills in the placeholders of a Caddyfile; the ports stay the same for
// all configurations of one process.
func (g *gate) expand(caddyfile string) string {
	ports := regexp.MustCompile(`\{\{(admin|port\d*)\}\}`)
	known := make(map[string]string)
	if g.admin != "" {
		_, known["admin"], _ = net.SplitHostPort(g.admin)
		_, known["port"], _ = net.SplitHostPort(g.addr)
	}
	caddyfile = ports.ReplaceAllStringFunc(caddyfile, func(m string) string {
		name := strings.Trim(m, "{}")
		if known[name] == "" {
			known[name] = strconv.Itoa(freePort(g.t))
		}
		return known[name]
	})
	if g.admin == "" {
		g.admin = "127.0.0.1:" + known["admin"]
		g.addr = "127.0.0.1:" + known["port"]
		g.tls = strings.Contains(caddyfile, "https://localhost:"+known["port"])
	}
	return strings.ReplaceAll(caddyfile, "{{dir}}", g.dir)
}

func (g *gate) collect(stderr io.Reader) {
	lines := bufio.NewReaderSize(stderr, 1<<16)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			g.mu.Lock()
			g.log = append(g.log, strings.TrimRight(line, "\n"))
			g.mu.Unlock()
		}
		if err != nil {
			break
		}
	}
	g.err = g.cmd.Wait()
	close(g.exited)
}

func (g *gate) awaitReady() {
	g.t.Helper()
	deadline := time.Now().Add(3 * patience)
	for {
		select {
		case <-g.exited:
			g.t.Fatalf("caddy did not start: %v\n%s", g.err, g.tail(40))
		default:
		}
		if resp, err := adminClient.Get("http://" + g.admin + "/config/"); err == nil {
			resp.Body.Close()
			if c, err := net.DialTimeout("tcp", g.addr, time.Second); err == nil {
				c.Close()
				return
			}
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("caddy is not ready\n%s", g.tail(40))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// adminClient keeps no connection: they would count in fds and goroutines.
var adminClient = &http.Client{
	Transport: &http.Transport{DisableKeepAlives: true},
	Timeout:   patience,
}

// finish ends the process and judges what it wrote.
func (g *gate) finish() {
	select {
	case <-g.exited:
		if g.err != nil && !g.killed {
			g.t.Errorf("caddy ended: %v", g.err)
		}
	default:
		_ = g.cmd.Process.Kill()
		<-g.exited
	}
	lines := g.lines()
	for i, line := range lines {
		if strings.Contains(line, "DATA RACE") || strings.HasPrefix(line, "panic:") ||
			strings.HasPrefix(line, "fatal error:") || strings.Contains(line, "http: panic") ||
			strings.Contains(line, `"panic"`) {
			g.t.Errorf("caddy: %s", strings.Join(lines[i:min(i+60, len(lines))], "\n")) // S-208, S-214
			break
		}
	}
	// S-116: no token, no part of one, in any line.
	reported := 0
	for _, line := range lines {
		for _, s := range g.secrets {
			if strings.Contains(line, s) && reported < 5 {
				reported++
				g.t.Errorf("a log line holds the secret %q: %s", s, line)
			}
		}
	}
	if g.t.Failed() {
		g.t.Logf("the end of caddy's log (%d lines):\n%s", len(lines), g.tail(12))
	}
}

// guard has the log searched for the token's claims and signature when the
// process ends. Every wiring sets the ws_token filter, since Caddy's own lines
// copy the request before any handler.
func (g *gate) guard(token string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, part := range strings.Split(token, ".") {
		if i > 0 && len(part) >= 16 { // the header is the same in many tokens, and says no secret
			g.secrets = append(g.secrets, part[:min(len(part), 40)])
			if len(part) > 24 {
				g.secrets = append(g.secrets, part[len(part)-24:])
			}
		}
	}
}

func (g *gate) lines() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.log...)
}

func (g *gate) tail(n int) string {
	lines := g.lines()
	lines = lines[max(0, len(lines)-n):]
	for i, l := range lines {
		if len(l) > 500 {
			lines[i] = l[:500] + "…"
		}
	}
	return strings.Join(lines, "\n")
}

// entries returns the log lines whose message is msg, parsed.
func (g *gate) entries(msg string) []map[string]any {
	var found []map[string]any
	for _, line := range g.lines() {
		if !strings.Contains(line, msg) {
			continue
		}
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == msg {
			found = append(found, entry)
		}
	}
	return found
}

// reload loads another configuration, as `caddy reload` does.
func (g *gate) reload(caddyfile string) error {
	body := g.expand(caddyfile)
	resp, err := adminClient.Post("http://"+g.admin+"/load", "text/caddyfile", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, answer)
	}
	g.reloaded.Store(time.Now().UnixNano())
	return nil
}

// dropped reports whether a connection ended without an answer just after a
// reload: Caddy resets some that the servers of the old config had accepted,
// with any handler. Clients try again, and so do the tests.
func (g *gate) dropped(a answer) bool {
	return a.status == 0 && time.Since(time.Unix(0, g.reloaded.Load())) < 3*time.Second
}

// stop asks the process to end, as a service manager does.
func (g *gate) stop() { _ = g.cmd.Process.Signal(syscall.SIGTERM) }

func (g *gate) pid() int { return g.cmd.Process.Pid }

// fds counts the process's open file descriptors.
func (g *gate) fds() int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.pid()))
	if err != nil {
		g.t.Fatal(err)
	}
	return len(entries)
}

// rss is the process's resident memory in bytes.
func (g *gate) rss() int {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", g.pid()))
	if err != nil {
		g.t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(content))[1])
	if err != nil {
		g.t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// goroutines returns the process's goroutine profile and their number.
func (g *gate) goroutines() (int, string) {
	resp, err := adminClient.Get("http://" + g.admin + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	var n int
	if _, err := fmt.Fscanf(bytes.NewReader(content), "goroutine profile: total %d", &n); err != nil {
		g.t.Fatalf("goroutine profile: %v", err)
	}
	return n, string(content)
}

// connect opens a connection to the first site.
func (g *gate) connect(t testing.TB) *conn {
	t.Helper()
	return g.connectTo(t, g.addr, g.tls)
}

func (g *gate) connectTo(t testing.TB, addr string, secure bool) *conn {
	t.Helper()
	raw, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	tcp := raw.(*net.TCPConn)
	host := addr
	if secure {
		_, port, _ := net.SplitHostPort(addr)
		host = "localhost:" + port
		raw = tls.Client(raw, &tls.Config{ServerName: "localhost", RootCAs: certPool()})
	}
	c := &conn{Conn: raw, t: t, tcp: tcp, host: host, br: bufio.NewReaderSize(raw, 1<<16)}
	t.Cleanup(func() { c.Close() })
	return c
}

// try sends one handshake, reads its whole answer and closes the connection.
func (g *gate) try(t testing.TB, h handshake) answer {
	t.Helper()
	c := g.connect(t)
	defer c.Close()
	c.send([]byte(h.text(c.host)))
	return c.readAnswer(h.method)
}

// refused sends a handshake until the keys have arrived, and expects a status.
func (g *gate) refused(t testing.TB, h handshake, status int) answer {
	t.Helper()
	a := g.settled(t, h)
	if a.status != status {
		t.Errorf("status %d, want %d\n--- sent\n%s\n--- answer\n%s", a.status, status, shorten(h.text(g.addr)), shorten(a.text))
	}
	return a
}

// settled is try, repeated while the answer is that the keys are not there yet.
func (g *gate) settled(t testing.TB, h handshake) answer {
	t.Helper()
	var a answer
	eventually(t, "an answer other than 503", func() bool {
		a = g.try(t, h)
		return a.status != http.StatusServiceUnavailable && !g.dropped(a)
	})
	return a
}

// open makes a handshake that must succeed. While the issuer's keys are on
// their way it tries again.
func (g *gate) open(t testing.TB, h handshake) *conn {
	t.Helper()
	return g.openTo(t, g.addr, g.tls, h)
}

func (g *gate) openTo(t testing.TB, addr string, secure bool, h handshake) *conn {
	t.Helper()
	var c *conn
	var a answer
	eventually(t, "an answer other than 503", func() bool {
		c = g.connectTo(t, addr, secure)
		c.send([]byte(h.text(c.host)))
		a = c.readAnswer(h.method)
		if a.status == http.StatusServiceUnavailable || g.dropped(a) {
			c.Close()
			return false
		}
		return true
	})
	if a.status != http.StatusSwitchingProtocols {
		t.Fatalf("status %d, want 101\n--- sent\n%s\n--- answer\n%s", a.status, shorten(h.text(c.host)), shorten(a.text))
	}
	c.answer = a
	return c
}

func shorten(s string) string {
	if len(s) > 1500 {
		return s[:1500] + "…"
	}
	return s
}

// redaction is the log format that the documentation tells operators to set,
// for the places where tests put tokens.
const redaction = `format filter {
	wrap json
	fields {
		request>uri ws_token token
		request>headers>Sec-Websocket-Protocol ws_token
		request>headers>X-Api-Token ws_token
	}
}`

// wiring is the usual configuration in words that tests vary: one site, the
// gate before /ws*, one backend.
type wiring struct {
	idp       *idp
	issuer    string // further lines of the issuer's block
	gate      string // further lines of the ws_gate block
	upstream  string // host:port, unix//path or https://host:port
	proxy     string // further lines of the reverse_proxy block
	transport string // lines of the transport's block
	global    string // further global options
	site      string // further lines of the site
	tls       bool   // the site speaks TLS
	bare      bool   // no transport ws_tunnel
}

func (w wiring) caddyfile() string {
	address := "http://127.0.0.1:{{port}}"
	if w.tls {
		address = "https://localhost:{{port}}"
		w.site = "bind 127.0.0.1\n\ttls {{dir}}/cert.pem {{dir}}/key.pem\n" + w.site
	}
	transport := "transport ws_tunnel {\n" + w.transport + "\n}"
	if w.bare {
		transport = ""
	}
	issuer := ""
	if w.idp != nil {
		issuer = fmt.Sprintf("issuer %s {\njwks %s\naudience chat\n%s\n}", w.idp.issuer, w.idp.jwksURL(), w.issuer)
		if w.idp.caFile != "" {
			issuer = strings.Replace(issuer, "audience", "tls_ca "+w.idp.caFile+"\naudience", 1)
		}
	}
	return fmt.Sprintf(`{
	admin 127.0.0.1:{{admin}}
	auto_https off
	debug
	persist_config off
	grace_period 2s
	log {
		level DEBUG
		%s
	}
	%s
}
%s {
	%s
	ws_gate /ws* {
		%s
		leeway 0s
		%s
	}
	reverse_proxy /ws* %s {
		%s
		%s
	}
}
`, redaction, w.global, address, w.site, issuer, w.gate, w.upstream, transport, w.proxy)
}

// start runs Caddy with this configuration.
func (w wiring) start(t testing.TB, env ...string) *gate {
	t.Helper()
	return start(t, w.caddyfile(), env...)
}
