package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// sidecar is a running `caddy ws-proxy`.
type sidecar struct {
	*gate
	health string // host:port
}

// startSidecar runs the command on free ports. Its log says all that it can.
func startSidecar(t *testing.T, env []string, args ...string) *sidecar {
	t.Helper()
	s := &sidecar{gate: &gate{t: t, dir: t.TempDir(), exited: make(chan struct{})}}
	s.addr = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s.health = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s.cmd = s.command(env, append([]string{"--from", s.addr, "--health", s.health, "--debug", "--access-log"}, args...)...)
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go s.collect(stderr)
	t.Cleanup(s.finish)
	eventuallyWithin(t, 3*patience, "the health endpoint answers 200", func() bool {
		select {
		case <-s.exited:
			t.Fatalf("caddy ws-proxy did not start: %v\n%s", s.err, s.tail(40))
		default:
		}
		return s.get("/health") == http.StatusOK
	})
	return s
}

func (s *sidecar) command(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(caddyBinary, append([]string{"ws-proxy"}, args...)...)
	cmd.Dir = s.dir
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "WS_PROXY_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "XDG_DATA_HOME="+s.dir+"/data", "XDG_CONFIG_HOME="+s.dir+"/config", "HOME="+s.dir, "GORACE=halt_on_error=0")
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// get asks the health listener and returns the status, 0 without an answer.
func (s *sidecar) get(path string) int {
	resp, err := adminClient.Get("http://" + s.health + path)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// keysOf are the flags for the tokens of an identity provider.
func keysOf(p *idp) []string {
	return []string{"--issuer", p.issuer, "--jwks", p.jwksURL(), "--audience", "chat"}
}

// dial opens a WebSocket as a library does.
func (s *sidecar) dial(header http.Header, subprotocols ...string) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dialer := websocket.Dialer{Subprotocols: subprotocols, EnableCompression: true}
	c, resp, err := dialer.DialContext(ctx, "ws://"+s.addr+"/ws", header)
	if err == nil {
		s.t.Cleanup(func() { c.Close() })
		_ = c.SetReadDeadline(time.Now().Add(patience))
	}
	return c, resp, err
}

// openAs dials until the keys are there.
func (s *sidecar) openAs(t *testing.T, header http.Header, subprotocols ...string) *websocket.Conn {
	t.Helper()
	var c *websocket.Conn
	eventually(t, "a socket", func() bool {
		var resp *http.Response
		var err error
		c, resp, err = s.dial(header, subprotocols...)
		if err != nil && (resp == nil || resp.StatusCode != http.StatusServiceUnavailable) {
			t.Fatalf("dialling: %v %+v", err, resp)
		}
		return err == nil
	})
	return c
}

// missing says loudly what is not there to test with; under CI that fails.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf("NOT TESTED: "+format, args...) // not under CI, see above
}

// tool finds a program that a backend needs.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, "%s is not installed: .ci/run must install it", name)
	}
	return path
}

// script runs a backend whose first line of output is its port.
func script(t *testing.T, dir, program, text string) string {
	t.Helper()
	cmd := exec.Command(program, "-")
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("%s said: %s", program, stderr.String())
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	port, errPort := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || errPort != nil {
		t.Fatalf("%s did not start: %q %v", program, line, err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// Both backends send first what they know of the client, then every message
// back; at "close" they close with 4002.
const (
	nodeBackend = `
const { WebSocketServer } = require('ws')
const server = new WebSocketServer({
  host: '127.0.0.1', port: 0, perMessageDeflate: true, maxPayload: 1 << 24,
  handleProtocols: (offered) => offered.has('chat.v1') ? 'chat.v1' : false,
})
server.on('listening', () => console.log(server.address().port))
server.on('connection', (socket, request) => {
  socket.on('error', (err) => console.error(err))
  socket.on('message', (data, binary) => {
    if (String(data) === 'close') socket.close(4002, 'enough')
    else socket.send(data, { binary })
  })
  socket.send([request.headers['x-user-id'], request.headers['x-mail'], request.headers.authorization, request.headers['sec-websocket-protocol'], request.url].join(' '))
})
`
	pythonBackend = `
import asyncio, websockets

async def serve(socket):
    request = getattr(socket, "request", None)  # since 13
    headers = request.headers if request else socket.request_headers
    path = request.path if request else socket.path
    said = [headers.get(name, "") for name in ("X-User-Id", "X-Mail", "Authorization", "Sec-WebSocket-Protocol")]
    await socket.send(" ".join(said + [path]))
    async for message in socket:
        if message == "close":
            await socket.close(4002, "enough")
        else:
            await socket.send(message)

async def main():
    async with websockets.serve(serve, "127.0.0.1", 0, subprotocols=["chat.v1"], max_size=1 << 24) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await asyncio.Future()

asyncio.run(main())
`
)

// newNode runs a server of the npm package ws.
func newNode(t *testing.T) string {
	t.Helper()
	node, npm := tool(t, "node"), tool(t, "npm")
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, npm, "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "ws@8.18.3")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		missing(t, "npm install ws: %v\n%s", err, out)
	}
	return script(t, dir, node, nodeBackend)
}

// newPython runs a server of Debian's python3-websockets.
func newPython(t *testing.T) string {
	t.Helper()
	for _, python := range []string{"/usr/bin/python3", "python3"} { // Debian's own first: its packages are only there
		if exec.Command(python, "-c", "import websockets").Run() == nil {
			return script(t, t.TempDir(), python, pythonBackend)
		}
	}
	missing(t, "no python3 has websockets: .ci/run must install python3-websockets (apt-get install python3-websockets)")
	return ""
}

// The command as a new user tries it, in front of servers as they are written
// in Node and in Python.
func TestSidecarBackends(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) string{
		"gorilla": func(t *testing.T) string { return newEcho(t).addr },
		"node":    newNode,
		"python":  newPython,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newIDP(t)
			addr := start(t)
			s := startSidecar(t, nil, append(keysOf(p), "--to", addr, "--leeway", "0s", "--identity", "X-User-Id=sub", "--identity", "X-Mail=email")...)
			token := p.token(s.gate, claims{"email": "alice@example.com"})
			ways := map[string]*websocket.Conn{
				"subprotocol": s.openAs(t, nil, "bearer", token, "chat.v1"),
				"header":      s.openAs(t, http.Header{"Authorization": {"Bearer " + token}}, "chat.v1"),
			}
			for way, c := range ways {
				if c.Subprotocol() != "chat.v1" {
					t.Errorf("%s: subprotocol %q", way, c.Subprotocol())
				}
				if name != "gorilla" {
					_, greeting, err := c.ReadMessage()
					if want := "alice alice@example.com  chat.v1 /ws"; err != nil || string(greeting) != want {
						t.Errorf("%s: the backend got %q, %v; want %q", way, greeting, err, want)
					}
				}
				for _, message := range [][]byte{[]byte("hello"), []byte(strings.Repeat("again and ", 5000)), random(1 << 20)} {
					kind := websocket.TextMessage
					if len(message) == 1<<20 {
						kind = websocket.BinaryMessage
					}
					if err := c.WriteMessage(kind, message); err != nil {
						t.Fatal(err)
					}
					gotKind, got, err := c.ReadMessage()
					if err != nil || gotKind != kind || !bytes.Equal(got, message) {
						t.Fatalf("%s: %d bytes came back as %d of kind %d, %v", way, len(message), len(got), gotKind, err)
					}
				}
			}
			// A close by either side arrives with its code.
			c := ways["subprotocol"]
			_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4001, "bye"), time.Now().Add(patience))
			expectCloseError(t, c, 4001)
			if name != "gorilla" {
				c = ways["header"]
				_ = c.WriteMessage(websocket.TextMessage, []byte("close"))
				expectCloseError(t, c, 4002)
			}
			eventually(t, "the end of a socket in the log", func() bool { return len(s.entries("connection closed")) > 0 })
			// Whoever has no good token does not get there.
			expired := p.token(s.gate, claims{"exp": time.Now().Add(-time.Hour).Unix()})
			for what, header := range map[string]http.Header{
				"no token": nil, "an expired token": {"Authorization": {"Bearer " + expired}},
			} {
				if _, resp, err := s.dial(header); err == nil || resp == nil || resp.StatusCode != http.StatusUnauthorized {
					t.Errorf("%s: %v %+v", what, err, resp)
				}
			}
		})
	}
}

func expectCloseError(t *testing.T, c *websocket.Conn, code int) {
	t.Helper()
	_, _, err := c.ReadMessage()
	var closed *websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != code {
		t.Errorf("ended with %v, want close code %d", err, code)
	}
}

// SIGTERM: the health endpoint turns to 503 and stays while sockets get their
// 1012 one after the other; then the process ends, well.
func TestSidecarDrain(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	s := startSidecar(t, nil, append(keysOf(p), "--to", newEcho(t).addr, "--drain-spread", "3s", "--drain-grace", "2s")...)
	header := http.Header{"Authorization": {"Bearer " + p.token(s.gate, nil)}}
	var open []*websocket.Conn
	for range 3 {
		open = append(open, s.openAs(t, header))
	}
	ended := make(chan error, len(open))
	for _, c := range open {
		go func() {
			_, _, err := c.ReadMessage()
			ended <- err
		}()
	}
	s.stop()
	eventually(t, "503 from the health endpoint", func() bool { return s.get("/health") == http.StatusServiceUnavailable })
	select {
	case <-s.exited:
		t.Fatal("ended before its sockets were drained")
	default:
	}
	for range open {
		select {
		case err := <-ended:
			var closed *websocket.CloseError
			if !errors.As(err, &closed) || closed.Code != 1012 {
				t.Errorf("a socket ended with %v, want 1012", err)
			}
		case <-time.After(patience):
			t.Fatal("a socket was not closed")
		}
	}
	select {
	case <-s.exited:
	case <-time.After(patience):
		t.Fatal("the process did not end")
	}
}

// A backend that is gone, bad tokens, tokens in every place, at the level that
// says most: no line holds any of them.
func TestSidecarLog(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	s := startSidecar(t, nil, append(keysOf(p), "--to", b.addr, "--from-query", "access_token,t",
		"--from-header", "X-Api-Token", "--from-subprotocol", "bearer", "--from-cookie", "session", "--path", "/ws*")...)
	good, bad := p.token(s.gate, nil), p.token(s.gate, claims{"aud": "other"})
	opaque := "not-even-a-token-" + strconv.Itoa(os.Getpid())
	s.mu.Lock()
	s.secrets = append(s.secrets, opaque)
	s.mu.Unlock()
	s.open(t, hello().toPath("?access_token="+good))
	for _, token := range []string{bad, opaque} {
		s.refused(t, hello().toPath("?t="+token), http.StatusUnauthorized)
		s.refused(t, hello("X-Api-Token: "+token), http.StatusUnauthorized)
		s.refused(t, hello().offering("bearer", token), http.StatusUnauthorized)
		s.refused(t, hello("Cookie: session="+token, "Origin: http://"+s.addr), http.StatusUnauthorized)
	}
	s.refused(t, hello("X-Api-Token: "+good).to("/elsewhere?access_token="+good), http.StatusNotFound)
	b.answers(func(*upstream) string { return "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" })
	s.refused(t, hello().toPath("?access_token="+good), http.StatusInternalServerError)
	b.answers(func(u *upstream) string { u.Close(); return "" })
	s.refused(t, hello().toPath("?t="+good), http.StatusBadGateway)
	// What is left to the backend is in the log of its round trip, with the
	// name of the field in another spelling.
	forwarding := startSidecar(t, nil, append(keysOf(p), "--to", newEcho(t).addr, "--forward-token")...)
	forwarding.guard(good)
	forwarding.open(t, hello().offering("bearer", good, "chat.v1"))
	eventually(t, "the round trip", func() bool { return len(forwarding.entries("upstream roundtrip")) > 0 })
	eventually(t, "the access log", func() bool { return len(s.entries("handled request")) >= 10 })
	if !strings.Contains(strings.Join(s.lines(), "\n"), "access_token=REDACTED") {
		t.Error("no line shows that a token was taken out")
	}
}

// The health listener has what it was told to have and nothing else; nothing
// is written; the secret is nowhere but in the environment.
func TestSidecarSecretMetricsAndFiles(t *testing.T) {
	t.Parallel()
	secret := random(32)
	encoded := base64.StdEncoding.EncodeToString(secret)
	admin := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s := startSidecar(t, []string{
		"WS_PROXY_SECRET=" + encoded, "WS_PROXY_TO=" + newEcho(t).addr, "WS_PROXY_AUDIENCE=chat", "WS_PROXY_METRICS=true",
		"WS_PROXY_TUNNEL_NAME={env.TENANT}", "TENANT=acme", "WS_PROXY_REQUIRE=scope=chat:write,chat:admin",
	}, "--admin", admin)
	s.secrets = append(s.secrets, encoded)
	claim := func(scope string) string {
		token := hs256(secret, `{"alg":"HS256"}`, fmt.Sprintf(`{"aud":"chat","sub":"bob","scope":%q,"exp":%d}`, scope, time.Now().Add(time.Hour).Unix()))
		s.guard(token)
		return token
	}
	s.open(t, bearer(claim("read chat:write")))
	s.refused(t, bearer(claim("read")), http.StatusForbidden)
	if a := s.try(t, hello()); !strings.Contains(a.text, `realm="acme"`) {
		t.Errorf("the placeholder in --tunnel-name: %s", a.text)
	}
	resp, err := adminClient.Get("http://" + s.health + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`caddy_ws_gate_handshakes_total{result="accepted",tunnel="acme"} 1`, `caddy_ws_gate_connections{tunnel="acme"} 1`, "go_goroutines"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	for _, path := range []string{"/", "/config/", "/debug/pprof/", "/ws_gate/connections", "/ws", "/health/"} {
		if status := s.get(path); status != http.StatusNotFound {
			t.Errorf("%s on the health listener: %d", path, status)
		}
	}
	resp, err = adminClient.Get("http://" + admin + "/config/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if config, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || strings.Contains(string(config), encoded) {
		t.Errorf("the admin endpoint: %s %s", resp.Status, config)
	}
	if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.pid())); bytes.Contains(cmdline, []byte(encoded)) {
		t.Error("the secret is on the command line")
	}
	_ = filepath.WalkDir(s.dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".json") && strings.Contains(path, "autosave") {
			t.Errorf("wrote %s", path)
		}
		return nil
	})
}

// Without --admin there is none, and TLS to the backend is verified.
func TestSidecarTLSUpstream(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newTLSBackend(t)
	strict := startSidecar(t, nil, append(keysOf(p), "--to", b.addr)...)
	strict.refused(t, bearer(p.token(strict.gate, nil)), http.StatusBadGateway)
	if len(strict.entries("admin endpoint disabled")) == 0 {
		t.Error("an admin endpoint without --admin")
	}
	lax := startSidecar(t, nil, append(keysOf(p), "--to", b.addr, "--insecure")...)
	lax.open(t, bearer(p.token(lax.gate, nil)))
	if head := b.next(t).head; !strings.Contains(head, "X-User-Id: alice") {
		t.Errorf("the backend got %s", head)
	}
}

// What only running finds out names its flag too, and the process ends with 1.
func TestSidecarFailsToStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := &sidecar{gate: &gate{t: t, dir: t.TempDir()}}
	garbage := filepath.Join(s.dir, "garbage")
	if err := os.WriteFile(garbage, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--health", taken.Addr().String()}, `--health \"` + taken.Addr().String() + `\": listen`},
		{[]string{"--health", "8081"}, `--health \"8081\": is not an address`},
		{[]string{"--from", taken.Addr().String()}, `--from \"` + taken.Addr().String() + `\": `},
		{[]string{"--tls-ca", garbage}, `--tls-ca \"` + garbage + `\": `},
		{[]string{"--trusted-proxies", "10.0.0"}, `--trusted-proxies \"10.0.0\": `},
		{[]string{"--tunnel-name", "{env.NONE}"}, `--tunnel-name \"{env.NONE}\": `},
		{[]string{"--leeway", "soon"}, `--leeway \"soon\": `},
		{[]string{"--nonsense"}, "unknown flag: --nonsense"},
	} {
		out, err := s.command(nil, append([]string{
			"--from", fmt.Sprintf("127.0.0.1:%d", freePort(t)), "--to", "127.0.0.1:1", "--issuer", "https://id.example.com", "--audience", "chat",
		}[boolToInt(c.args[0] == "--from")*2:], c.args...)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%v: ended with %v, want 1", c.args, err)
		}
		if !strings.Contains(string(out), c.want) || strings.Contains(string(out), "hunter2") {
			t.Errorf("%v: says\n%swant %s", c.args, out, c.want)
		}
	}
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestSidecarHelp(t *testing.T) {
	t.Parallel()
	out, err := exec.Command(caddyBinary, "ws-proxy", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Examples:", "Addresses:", "Who may enter:", "From where:", "How much:", "How long:", "Running it:", "WS_PROXY_SECRET"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	list, err := exec.Command(caddyBinary, "help").Output()
	if err != nil || !strings.Contains(string(list), "ws-proxy") {
		t.Errorf("caddy help does not list it: %v\n%s", err, list)
	}
}
