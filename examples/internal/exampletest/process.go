package exampletest

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that must happen. It is no
// measurement: a busy machine may be slow, a test that never ends is worse.
const patience = 2 * time.Minute

// process is a command in a shell, with whatever that starts.
type process struct {
	script string
	cmd    *exec.Cmd
	ended  chan struct{}
	err    error // once ended

	mu     sync.Mutex
	output bytes.Buffer
}

// Write takes what the command prints.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

// printed is what there is so far.
func (p *process) printed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// start runs the script in a process group of its own, and kills all of it
// when the test ends.
func (e *Example) start(script string) *process {
	e.t.Helper()
	p := &process{script: strings.TrimSpace(script), ended: make(chan struct{})}
	p.cmd = exec.Command("sh", "-e", "-c", e.typed(script))
	p.cmd.Dir, p.cmd.Env = e.Dir, e.env
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = patience
	if err := p.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	e.t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		_ = p.cmd.Process.Kill()
	}
	<-p.ended
}

// wait returns when the command has ended.
func (p *process) wait(t testing.TB) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("%s: has not ended within %v and printed\n%s", p.script, patience, p.printed())
	}
}

// await returns when the lines have been printed.
func (p *process) await(t testing.TB, lines string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if inOutput(lines, p.printed()) {
			return
		}
		select {
		case <-p.ended:
			t.Fatalf("%s: ended (%v) and printed\n%s", p.script, p.err, p.printed())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: is to print\n%s\nand has printed\n%s", p.script, lines, p.printed())
		}
	}
}
