// Package sidecar runs the gate as its Containerfile would, without a
// container engine: the program is built from what the file copies, with the
// command that it runs, and started in a root that holds nothing else and
// cannot be written to, as the user and in the environment that it names.
package sidecar

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"debug/elf"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/wsgate/caddy-wsgate/examples/internal/exampletest"
)

// containerfile is what the test takes from the Containerfile.
type containerfile struct {
	sources    []string // what is copied from the repository
	build      string   // the command that makes the program
	program    string   // where it is
	user       string
	env        []string
	entrypoint []string
}

func readContainerfile(t *testing.T) (c containerfile) {
	t.Helper()
	content, err := os.ReadFile("Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(content), "\\\n", " ")
	for line := range strings.SplitSeq(text, "\n") {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "COPY":
			if words[1] == "--from=build" {
				if words[2] == "/caddy" {
					c.program = words[3]
				}
				continue
			}
			c.sources = append(c.sources, words[1:len(words)-1]...)
		case "RUN":
			_, command, _ := strings.Cut(line, "CGO_ENABLED=0 ")
			c.build = "CGO_ENABLED=0 " + command
		case "USER":
			c.user = words[1]
		case "ENV":
			c.env = append(c.env, words[1:]...)
		case "ENTRYPOINT":
			if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "ENTRYPOINT ")), &c.entrypoint); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(c.sources) == 0 || !strings.Contains(c.build, "-o /caddy ") || c.program == "" || c.user == "" || len(c.entrypoint) == 0 {
		t.Fatalf("the Containerfile is not as this test knows it: %+v", c)
	}
	return c
}

// The image is made once for all tests.
var (
	imageOnce sync.Once
	imageRoot string
)

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "wsgate-sidecar-")
	if err != nil {
		panic(err)
	}
	imageRoot = folder
	code := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(code)
}

// image is a folder with what the second stage copies.
func (c containerfile) image(t *testing.T) (root string) {
	t.Helper()
	imageOnce.Do(func() { c.makeImage(t, imageRoot) })
	if _, err := os.Stat(filepath.Join(imageRoot, c.program)); err != nil {
		t.Fatal("the image was not made: ", err)
	}
	return imageRoot
}

func (c containerfile) makeImage(t *testing.T, root string) {
	t.Helper()
	source := t.TempDir()
	for _, name := range c.sources {
		from, to := filepath.Join("../..", name), filepath.Join(source, name)
		info, err := os.Stat(from)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			err = os.CopyFS(to, os.DirFS(from))
		} else {
			err = copyFile(from, to, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(root, c.program)
	for _, dir := range []string{filepath.Dir(program), filepath.Join(root, "data")} { // engines make /data, to mount on
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // another user reads it
			t.Fatal(err)
		}
	}
	build := exec.Command("sh", "-c", strings.Replace(c.build, "-o /caddy ", "-o '"+program+"' ", 1))
	build.Dir = source
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
	if err := os.Chmod(root, 0o755); err != nil { //nolint:gosec // the same
		t.Fatal(err)
	}
}

func copyFile(from, to string, mode os.FileMode) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, mode)
}

// TestImage holds the program to what an image needs of it: it is static, and
// about the size of Caddy.
func TestImage(t *testing.T) {
	c := readContainerfile(t)
	program := filepath.Join(c.image(t), c.program)
	file, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if libraries, err := file.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Errorf("is not static: %q, %v", libraries, err)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("needs a loader")
		}
	}
	info, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	if mib := info.Size() >> 20; mib > 70 {
		t.Errorf("has %d MiB", mib)
	} else {
		t.Logf("has %d MiB", mib)
	}
}

// stage is what the gate stands between.
type stage struct {
	issuer, backend string
	key             *ecdsa.PrivateKey

	mu   sync.Mutex
	seen []http.Header // what the backend was told
}

// newStage starts an identity provider and a backend that echoes.
func newStage(t *testing.T) *stage {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{key: key}
	public, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	idp := httptest.NewServer(mux)
	t.Cleanup(idp.Close)
	s.issuer = idp.URL
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, idp.URL, idp.URL+"/jwks")
	})
	mux.HandleFunc("/jwks", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":%q,"y":%q}]}`, encode(public[1:33]), encode(public[33:]))
	})
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Header.Clone())
		s.mu.Unlock()
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			kind, message, err := conn.ReadMessage()
			if err != nil || conn.WriteMessage(kind, message) != nil {
				return
			}
		}
	}))
	t.Cleanup(backend.Close)
	s.backend = backend.Listener.Addr().String()
	return s
}

func encode(p []byte) string { return base64.RawURLEncoding.EncodeToString(p) }

func (s *stage) token(t *testing.T, user string) string {
	t.Helper()
	claims := fmt.Sprintf(`{"iss":%q,"aud":"chat","sub":%q,"exp":%d}`, s.issuer, user, time.Now().Add(time.Hour).Unix())
	text := encode([]byte(`{"alg":"ES256","kid":"1"}`)) + "." + encode([]byte(claims))
	sum := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + encode(append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...))
}

// container is the running program.
type container struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan error
	ws   string // addresses
	http string
}

// run starts the program as an engine does: alone in its namespace of
// processes, in a root that cannot be written to but for a tmpfs at /data, as
// the user of the file, without a capability or a way to get one.
func (c containerfile) run(t *testing.T, env ...string) *container {
	t.Helper()
	root := c.image(t)
	if os.Getuid() != 0 {
		exampletest.Missing(t, "root, to start a program in a root and a namespace of its own")
	}
	for _, tool := range []string{"setpriv", "chroot", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			exampletest.Missing(t, "%s (Debian: util-linux, coreutils)", tool)
		}
	}
	r := &container{done: make(chan error, 1), ws: freeAddress(t), http: freeAddress(t)}
	const script = `mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" &&
		mount -t tmpfs -o size=1m,mode=1777 tmpfs "$0/data" &&
		user=$1 && shift && exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid \
			chroot --userspec="$user" --groups= "$0" "$@"`
	r.cmd = exec.Command("sh", append([]string{"-c", script, root, c.user}, c.entrypoint...)...)
	// Later ones win: an engine, too, puts what it is told behind the image's.
	r.cmd.Env = append(append(slices.Clone(c.env), env...), "WS_PROXY_FROM="+r.ws, "WS_PROXY_HEALTH="+r.http, "PATH="+os.Getenv("PATH"))
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	r.cmd.Stdout, r.cmd.Stderr = &r.log, &r.log
	if err := r.cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) {
			exampletest.Missing(t, "namespaces of its own for a process: %v", err)
		}
		t.Fatal(err)
	}
	go func() { r.done <- r.cmd.Wait() }()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		if t.Failed() {
			t.Logf("the log:\n%s", &r.log)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if status, _ := r.get("/health"); status == http.StatusOK {
			return r
		}
		select {
		case err := <-r.done:
			t.Fatalf("ended: %v\n%s", err, &r.log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("is not healthy")
		}
	}
}

// freeAddress is drawn from those that the kernel gives to nobody else by
// itself as long as this one is free.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (r *container) get(path string) (status int, body string) {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + r.http + path)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

func (r *container) dial(token string) (*websocket.Conn, *http.Response, error) {
	header := http.Header{}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	return websocket.DefaultDialer.Dial("ws://"+r.ws+"/", header)
}

// TestRun is the life of a container: it becomes healthy, guards a socket,
// and on SIGTERM drains within the time that the manifests leave it.
func TestRun(t *testing.T) {
	c, s := readContainerfile(t), newStage(t)
	const spread, grace = 2 * time.Second, time.Second
	r := c.run(t, "WS_PROXY_TO="+s.backend, "WS_PROXY_ISSUER="+s.issuer, "WS_PROXY_AUDIENCE=chat", "WS_PROXY_MAX_CONNECTIONS=50 by user",
		"WS_PROXY_DRAIN_SPREAD="+spread.String(), "WS_PROXY_DRAIN_GRACE="+grace.String(), "GOMEMLIMIT=200MiB")

	t.Run("as nobody, with nothing", func(t *testing.T) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		uid, _, _ := strings.Cut(c.user, ":")
		for _, want := range []string{`Uid:\t` + uid + `\t` + uid, `Groups:\t\s*\n`, `CapEff:\t0+\n`, `CapPrm:\t0+\n`, `NoNewPrivs:\t1\n`, `NSpid:\t\d+\t1\n`} {
			if !regexp.MustCompile(want).Match(status) {
				t.Errorf("no %s in\n%s", want, status)
			}
		}
	})

	t.Run("guards", func(t *testing.T) {
		if conn, resp, err := r.dial(""); err == nil {
			conn.Close()
			t.Error("lets in without a token")
		} else if resp == nil || resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("without a token: %v, %+v", err, resp)
		}
		conn, resp, err := r.dial(s.token(t, "alice"))
		if err != nil {
			t.Fatalf("%v %+v", err, resp)
		}
		defer conn.Close()
		if err := conn.WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, message, err := conn.ReadMessage(); err != nil || string(message) != "hello" {
			t.Errorf("%q, %v", message, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.seen) != 1 || s.seen[0].Get("X-User-Id") != "alice" || s.seen[0].Get("Authorization") != "" {
			t.Errorf("the backend was told %v", s.seen)
		}
	})

	t.Run("metrics", func(t *testing.T) {
		if status, body := r.get("/metrics"); status != http.StatusOK || !strings.Contains(body, "caddy_ws_gate_handshakes_total") {
			t.Errorf("%d: %s", status, body)
		}
	})

	t.Run("drains", func(t *testing.T) {
		var closed sync.WaitGroup
		for n := range 20 {
			conn, resp, err := r.dial(s.token(t, fmt.Sprint("user", n)))
			if err != nil {
				t.Fatalf("%v %+v", err, resp)
			}
			closed.Go(func() {
				defer conn.Close()
				_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
				if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseServiceRestart) {
					t.Errorf("got %v, want 1012", err)
				}
			})
		}
		begin := time.Now()
		if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(spread); ; time.Sleep(10 * time.Millisecond) {
			if status, _ := r.get("/health"); status == http.StatusServiceUnavailable {
				break
			}
			if time.Now().After(deadline) {
				t.Error("is still healthy while it drains")
				break
			}
		}
		closed.Wait()
		select {
		case err := <-r.done:
			if err != nil {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("does not end")
		}
		// Close handshakes, plain requests, and the last lines of the log.
		if took := time.Since(begin); took > spread+2*grace+2*time.Second {
			t.Errorf("took %s", took)
		}
	})

	for line := range strings.Lines(r.log.String()) {
		for _, sign := range []string{"eyJ", "read-only", "permission denied", "panic", `"level":"error"`} {
			if strings.Contains(line, sign) {
				t.Errorf("%q is in the log: %s", sign, line)
			}
		}
	}
}

// TestUnit lets systemd read the unit, with the program and the environment
// where this machine has them, and rate what is open to it.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		exampletest.Missing(t, "systemd-analyze (Debian: apt-get install systemd)")
	}
	content, err := os.ReadFile("wsgate.service")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "wsgate.service")
	text := strings.NewReplacer("=/usr/bin/caddy ", "="+self+" ", "=/etc/wsgate.env", "="+filepath.Join(folder, "wsgate.env")).Replace(string(content))
	if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify", "--man=no", unit}, {"security", "--offline=yes", "--threshold=15", unit}} {
		out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
		if err != nil || args[0] == "verify" && len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, out)
		}
	}
	stop := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)s$`).FindStringSubmatch(text)
	if stop == nil || stop[1] != "30" {
		t.Errorf("TimeoutStopSec is %q, and 10 s, 5 s and 5 s have to fit", stop)
	}
}

// TestManifests holds the Containerfile, the compose file and what Kustomize
// makes to their schemas, and the times and ports in them to each other. It is
// a program with a module of its own.
func TestManifests(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles Kustomize and the types of Kubernetes")
	}
	program := filepath.Join(t.TempDir(), "validate")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = "validate"
	if out, err := build.CombinedOutput(); err != nil {
		if strings.Contains(string(out), "dial tcp") || strings.Contains(string(out), "module lookup disabled") {
			exampletest.Missing(t, "the modules of validate/go.mod: %s", out)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(program, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// TestEnvironments wants every variable in the files to be a flag's: a wrong
// one would be silently without effect.
func TestEnvironments(t *testing.T) {
	c := readContainerfile(t)
	out, err := exec.Command(filepath.Join(c.image(t), c.program), "ws-proxy", "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	flags := make(map[string]bool)
	for _, flag := range regexp.MustCompile(`(?m)^ +--([a-z-]+)`).FindAllStringSubmatch(string(out), -1) {
		flags["WS_PROXY_"+strings.ToUpper(strings.ReplaceAll(flag[1], "-", "_"))] = true
	}
	for _, file := range []string{"Containerfile", "compose.yaml", "base/kustomization.yaml", "wsgate.env", "wsgate.service", "README.md"} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`WS_PROXY_[A-Z_]*[A-Z]`).FindAllString(string(content), -1) {
			if !flags[name] && name != "WS_PROXY_SECRET" {
				t.Errorf("%s: %s is no variable of caddy ws-proxy", file, name)
			}
		}
	}
}
