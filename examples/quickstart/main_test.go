package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/gorilla/websocket"
)

// anyPort has every part listen on a free port.
var anyPort = addresses{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"}

// runMain, in the environment, makes this test binary the program itself.
const runMain = "QUICKSTART_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		preferred = anyPort
		main()
	}
	os.Exit(m.Run())
}

func TestQuickstart(t *testing.T) {
	d, err := start(anyPort)
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			if err := caddy.Stop(); err != nil {
				t.Error(err)
			}
			d.cleanUp()
		}
	}
	defer stop()
	waitForKeys(t, d)

	t.Run("good token", func(t *testing.T) {
		tests := map[string]struct {
			form  string
			offer func(token string) (query string, header http.Header)
		}{
			"RS256 in Authorization": {"alg=RS256", func(token string) (string, http.Header) {
				return "", http.Header{"Authorization": {"Bearer " + token}}
			}},
			"ES256 as a subprotocol": {"alg=ES256", func(token string) (string, http.Header) {
				return "", http.Header{"Sec-Websocket-Protocol": {"bearer, " + token + ", demo.v1"}}
			}},
			"RS256 in a cookie": {"alg=RS256", func(token string) (string, http.Header) {
				return "", http.Header{"Cookie": {sessionCookie + "=" + token}, "Origin": {"http://" + d.gate}}
			}},
			"ES256 in the query": {"alg=ES256&exp=1m", func(token string) (string, http.Header) {
				return "?a=1&access_token=" + token, http.Header{}
			}},
		}
		for name, tc := range tests {
			t.Run(name, func(t *testing.T) {
				query, header := tc.offer(d.fetchToken(t, "sub=alice&name=Alice+Doe&"+tc.form))
				header.Set("X-User-Id", "root")
				conn, res, err := dial(d, query, header)
				if err != nil {
					t.Fatalf("%v: %s", err, status(res))
				}
				defer conn.Close()
				var got hello
				if err := conn.ReadJSON(&got); err != nil {
					t.Fatal(err)
				}
				if got.Identity["X-User-Id"] != "alice" || got.Identity["X-User-Name"] != "Alice Doe" || got.SawToken {
					t.Errorf("the backend was told %+v", got)
				}
				for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
					echo(t, conn, kind, []byte("hello"))
				}
			})
		}
	})

	t.Run("refused", func(t *testing.T) {
		bearer := func(form string) http.Header {
			return http.Header{"Authorization": {"Bearer " + d.fetchToken(t, form)}}
		}
		tests := []struct {
			name      string
			header    http.Header
			status    int
			challenge string
		}{
			{"cookie without an Origin", http.Header{"Cookie": {sessionCookie + "=" + d.fetchToken(t, "")}}, http.StatusForbidden, ""},
			{"no token", http.Header{}, http.StatusUnauthorized, `Bearer realm="quickstart"`},
			{"expired", bearer("bad=expired"), http.StatusUnauthorized, `error="invalid_token"`},
			{"audience", bearer("bad=audience"), http.StatusUnauthorized, `error="invalid_token"`},
			{"RS256, foreign key", bearer("bad=key"), http.StatusUnauthorized, `error="invalid_token"`},
			{"ES256, foreign key", bearer("bad=key&alg=ES256"), http.StatusUnauthorized, `error="invalid_token"`},
			{"foreign page", http.Header{"Origin": {"https://evil.example"}, "Authorization": bearer("")["Authorization"]}, http.StatusForbidden, ""},
		}
		for _, tc := range tests {
			t.Run(tc.name, func(t *testing.T) {
				conn, res, err := dial(d, "", tc.header)
				if err == nil {
					conn.Close()
					t.Fatal("it is let in")
				}
				if res == nil || res.StatusCode != tc.status || !strings.Contains(res.Header.Get("Www-Authenticate"), tc.challenge) {
					t.Errorf("%v: %s, want %d %s", err, status(res), tc.status, tc.challenge)
				}
			})
		}
	})

	t.Run("without WebSocket", func(t *testing.T) {
		for query, want := range map[string]string{"?access_token=" + d.fetchToken(t, "sub=alice"): `"X-User-Id":"alice"`, "": ""} {
			res, err := http.Get("http://" + d.gate + "/ws" + query)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if !strings.Contains(string(body), want) || strings.Contains(string(body), "connection") || (res.StatusCode == http.StatusOK) != (want != "") {
				t.Errorf("%s %s, want %s", res.Status, body, want)
			}
		}
	})

	t.Run("expiry closes the socket", func(t *testing.T) {
		conn, res, err := dial(d, "", http.Header{"Authorization": {"Bearer " + d.fetchToken(t, "exp=2")}})
		if err != nil {
			t.Fatalf("%v: %s", err, status(res))
		}
		defer conn.Close()
		wantClose(t, conn, 3000)
	})

	t.Run("page", func(t *testing.T) {
		for path, want := range map[string]string{"/": "<title>wsgate quickstart", "/app.js": "WebSocket", "/style.css": "color-scheme", "/idp/jwks.json": "demo-ES256"} {
			res, err := http.Get("http://" + d.gate + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(want)) {
				t.Errorf("%s: %s, %v", path, res.Status, err)
			}
			policy := res.Header.Get("Content-Security-Policy")
			if !strings.HasPrefix(path, "/idp/") && (!strings.HasPrefix(policy, "default-src 'none'; ") || strings.Contains(policy, "unsafe")) {
				t.Errorf("%s: its policy is %q", path, policy)
			}
		}
	})

	t.Run("admin API", func(t *testing.T) { testAdmin(t, d) })

	t.Run("stop", func(t *testing.T) {
		stop()
		for _, address := range []string{d.gate, d.idp, d.backend} {
			if conn, err := net.Dial("tcp", address); err == nil {
				conn.Close()
				t.Errorf("%s still listens", address)
			}
		}
		if _, err := os.Stat(d.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", d.dir, err)
		}
	})
}

// program is the quickstart as a process of its own.
type program struct {
	*demo
	cmd       *exec.Cmd
	commands  []string // to paste
	log       bytes.Buffer
	home, tmp string
}

// runProgram starts it and reads what it says about itself. It ends with the
// test, if not before.
func runProgram(t *testing.T) *program {
	t.Helper()
	p := &program{demo: &demo{}, home: t.TempDir(), tmp: t.TempDir(), cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), runMain+"=1", "HOME="+p.home, "XDG_CONFIG_HOME=", "XDG_DATA_HOME=", "TMPDIR="+p.tmp)
	p.cmd.Stderr = &p.log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if where, ok := strings.CutPrefix(line, "page "); ok {
			p.gate = strings.TrimPrefix(strings.TrimSpace(where), "http://")
		}
		if where, ok := strings.CutPrefix(line, "admin API "); ok {
			p.admin = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(where), "http://"), "/ws_gate/connections")
		}
		if strings.HasPrefix(line, "curl ") {
			p.commands = append(p.commands, line)
		}
		if strings.HasPrefix(line, "Ctrl-C") {
			break
		}
	}
	return p
}

// interrupt is Ctrl-C.
func (p *program) interrupt(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
}

// TestProgram runs the program itself, follows its instructions with a shell
// and curl, and stops it with a signal while a socket is open.
func TestProgram(t *testing.T) {
	p := runProgram(t)
	watchdog := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer watchdog.Stop()
	if len(p.commands) != 3 {
		t.Errorf("%d commands to paste", len(p.commands))
	}
	wants := []string{"HTTP/1.1 101 ", "HTTP/1.1 401 ", "HTTP/1.1 401 "}
	for i, command := range p.commands {
		answer := paste(t, command)
		if !strings.HasPrefix(answer, wants[i]) {
			t.Errorf("command %d answers %q", i+1, answer)
		}
		if told := strings.Contains(answer, `"X-User-Id":"alice"`); told != (i == 0) {
			t.Errorf("command %d: identity told: %v", i+1, told)
		}
	}

	conn, res, err := dial(p.demo, "", http.Header{"Authorization": {"Bearer " + p.fetchToken(t, "")}})
	if err != nil {
		t.Fatalf("%v: %s", err, status(res))
	}
	defer conn.Close()
	p.interrupt(t)
	wantClose(t, conn, websocket.CloseServiceRestart)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGINT: %v\n%s", err, &p.log)
	}
	for _, dir := range []string{p.home, p.tmp} {
		if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
			t.Errorf("left behind in %s: %v, %v", dir, files, err)
		}
	}
	for _, address := range []string{p.gate, p.admin} {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			t.Errorf("%s still listens", address)
		}
	}
	if strings.Contains(p.log.String(), "eyJ") {
		t.Errorf("a token is in the log:\n%s", &p.log)
	}
}

// paste runs a command in a shell until curl gives up, again while the gate
// has no keys yet.
func paste(t *testing.T, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		out, _ := exec.CommandContext(ctx, "sh", "-c", command).Output() // 28: the two seconds are over
		if !bytes.HasPrefix(out, []byte("HTTP/1.1 503 ")) || ctx.Err() != nil {
			return string(out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// fetchToken asks the identity provider through the gate's site, as the page does.
func (d *demo) fetchToken(t *testing.T, form string) string {
	t.Helper()
	res, err := http.Post("http://"+d.gate+"/idp/token", "application/x-www-form-urlencoded", strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", res.Status, body, err)
	}
	return strings.TrimSpace(string(body))
}

func dial(d *demo, query string, header http.Header) (*websocket.Conn, *http.Response, error) {
	dialer := websocket.Dialer{HandshakeTimeout: 10 * time.Second}
	return dialer.Dial("ws://"+d.gate+"/ws"+query, header)
}

// waitForKeys returns when the gate has fetched the issuer's keys.
func waitForKeys(t *testing.T, d *demo) {
	t.Helper()
	header := http.Header{"Authorization": {"Bearer " + d.fetchToken(t, "")}}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, res, err := dial(d, "", header)
		if err == nil {
			conn.Close()
			return
		}
		if res == nil || res.StatusCode != http.StatusServiceUnavailable || time.Now().After(deadline) {
			t.Fatalf("%v: %s", err, status(res))
		}
	}
}

func echo(t *testing.T, conn *websocket.Conn, kind int, message []byte) {
	t.Helper()
	if err := conn.WriteMessage(kind, message); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	gotKind, got, err := conn.ReadMessage()
	if err != nil || gotKind != kind || !bytes.Equal(got, message) {
		t.Errorf("got %d %q, %v", gotKind, got, err)
	}
}

// wantClose reads until the gate closes the socket.
func wantClose(t *testing.T, conn *websocket.Conn, code int) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	for {
		if _, _, err := conn.ReadMessage(); err != nil {
			if !websocket.IsCloseError(err, code) {
				t.Errorf("got %v, want close code %d", err, code)
			}
			return
		}
	}
}

func status(res *http.Response) string {
	if res == nil {
		return "no answer"
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, 200))
	return res.Status + " " + string(body)
}
