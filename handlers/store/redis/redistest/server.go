// Package redistest starts Redis servers for tests, and treats them badly.
package redistest

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a Redis server on a port of its own, which keeps nothing on disk.
type Server struct {
	t    testing.TB
	args []string
	dir  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended

	// Addr is where it listens, also after it was started again.
	Addr string
}

// Start starts a server, which ends with the test. More arguments are those of
// redis-server. Where it is not installed, the test says so and is skipped, or
// fails in CI.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is missing: apt-get install redis-server")
		}
		t.Skip("NOT TESTED: redis-server is missing: apt-get install redis-server")
	}
	s := &Server{t: t, args: args, dir: t.TempDir(), Addr: freeAddr(t)}
	s.Start()
	t.Cleanup(s.Kill)
	return s
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it takes no connection
	return l.Addr().String()
}

// URL is what a store is configured with.
func (s *Server) URL() string { return "redis://" + s.Addr + "/0" }

// Port is the port of Addr.
func (s *Server) Port() string {
	_, port, _ := net.SplitHostPort(s.Addr)
	return port
}

// Start starts it again after it was killed, with nothing in it.
func (s *Server) Start() {
	s.t.Helper()
	args := append([]string{"--bind", "127.0.0.1", "--port", s.Port(), "--save", "", "--appendonly", "no", "--dir", s.dir, "--daemonize", "no"}, s.args...)
	s.cmd = exec.Command("redis-server", args...) //nolint:gosec // arguments of tests
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // the child has its own descriptor
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, done := s.cmd, make(chan struct{})
	s.done = done
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	for range 500 {
		if strings.Contains(s.try("PING"), "PONG") {
			return
		}
		select {
		case <-done:
			text, _ := os.ReadFile(log.Name())
			s.t.Fatalf("redis-server ended: %s", text)
		case <-time.After(20 * time.Millisecond):
		}
	}
	text, _ := os.ReadFile(log.Name())
	s.t.Fatalf("redis-server does not answer: %s", text)
}

// Kill ends it at once, as a crash does.
func (s *Server) Kill() {
	_ = s.cmd.Process.Signal(syscall.SIGCONT)
	_ = s.cmd.Process.Kill()
	<-s.done
}

// Pause stops it in the middle of what it does: connections stay open and
// nothing answers. Resume lets it go on.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume undoes Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(signal syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}

// Do sends one command and returns all that came back within a moment, as it
// is on the wire.
func (s *Server) Do(args ...string) string {
	s.t.Helper()
	answer := s.try(args...)
	if answer == "" || strings.HasPrefix(answer, "-") {
		s.t.Fatalf("%s: %q", args, answer)
	}
	return answer
}

func (s *Server) try(args ...string) string {
	conn, err := net.DialTimeout("tcp", s.Addr, 5*time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	var command strings.Builder
	// A second command tells where the answer to the first one ends.
	for _, args := range [][]string{args, {"ECHO", end}} {
		fmt.Fprintf(&command, "*%d\r\n", len(args))
		for _, arg := range args {
			fmt.Fprintf(&command, "$%d\r\n%s\r\n", len(arg), arg)
		}
	}
	if _, err := conn.Write([]byte(command.String())); err != nil {
		return ""
	}
	var answer strings.Builder
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if lines.Text() == end {
			return strings.TrimSuffix(answer.String(), fmt.Sprintf("$%d\n", len(end)))
		}
		answer.WriteString(lines.Text() + "\n")
	}
	return ""
}

// end is nothing that Redis says by itself.
const end = "that was all"
