package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
)

// patience bounds every wait for what must happen. It measures nothing.
var patience = 30 * time.Second

// process is a program that this one has started.
type process struct {
	name  string
	log   string // file of its output
	cmd   *exec.Cmd
	ended chan struct{}
}

// spawn starts a program, with more variables in its environment. What it
// prints is added to the log.
func spawn(name, log string, env []string, program string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has a descriptor of its own
	p := &process{name: name, log: log, cmd: exec.Command(program, args...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// kill ends it at once, as a crash does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// stop asks it to end, and does not wait long.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.ended:
	case <-time.After(2 * time.Second):
		p.kill()
	}
}

// await tries until it works, as long as the process runs.
func (p *process) await(what string, try func() error) error {
	return await(what, func() error {
		select {
		case <-p.ended:
			return final{fmt.Errorf("%s has ended and said\n%s", p.name, tail(p.log))}
		default:
			return try()
		}
	})
}

// final is an error that no patience helps against.
type final struct{ error }

// await tries until it works.
func await(what string, try func() error) error {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil {
			return nil
		}
		if errors.As(err, new(final)) || time.Now().After(end) {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// read is all of a log, or why it can't be read.
func read(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// tail is the end of a log.
func tail(file string) string {
	lines := strings.Split(read(file), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// free returns an address that nothing listens at. Its port is below those
// that systems take for outgoing connections, so that it stays free for a
// while; it is drawn by lot, so that several of these programs may run.
func free() (string, error) {
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 21000+rand.N(11000))
		if l, err := net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", errors.New("looking for a free port: there is none")
}

// port is the port of an address.
func port(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }
