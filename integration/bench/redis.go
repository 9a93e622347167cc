package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// redis is a server of one gate's own, so that its work is that gate's.
type redis struct {
	addr string
	cmd  *exec.Cmd
}

// startRedis starts a server that keeps nothing on disk.
func startRedis(ctx context.Context, dir string) (*redis, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("redis-server is not installed: apt-get install redis-server")
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	out, err := os.Create(filepath.Join(dir, "redis-"+port+".log"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	r := &redis{addr: addr, cmd: exec.Command(program, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", dir)}
	r.cmd.Stdout, r.cmd.Stderr = out, out
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting redis-server: %w", err)
	}
	for range 200 {
		if _, err = r.questions(); err == nil {
			return r, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
			continue
		}
		break
	}
	r.stop()
	said, _ := os.ReadFile(out.Name())
	return nil, fmt.Errorf("starting redis-server: %w: %s", err, said)
}

func (r *redis) pid() int { return r.cmd.Process.Pid }

func (r *redis) stop() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// questions is how many scripts it was asked to run so far, by INFO
// commandstats. All that a gate asks in its everyday work is a script: one for
// a handshake, one for each batch of sockets that ended, one a second to tell
// that it lives.
func (r *redis) questions() (int, error) {
	conn, err := net.DialTimeout("tcp", r.addr, time.Second)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "INFO commandstats\r\n"); err != nil {
		return 0, err
	}
	br := bufio.NewReader(conn)
	head, err := br.ReadString('\n')
	if err != nil {
		return 0, err
	}
	length, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(head, "$")))
	if err != nil {
		return 0, fmt.Errorf("asking Redis: it says %q", strings.TrimSpace(head))
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(br, text); err != nil {
		return 0, err
	}
	sum := 0
	for line := range strings.Lines(string(text)) {
		for _, command := range []string{"eval", "evalsha", "eval_ro", "evalsha_ro", "fcall"} {
			var calls int
			if rest, ok := strings.CutPrefix(line, "cmdstat_"+command+":calls="); ok {
				if _, err := fmt.Sscanf(rest, "%d", &calls); err != nil {
					return 0, fmt.Errorf("asking Redis: %w", err)
				}
				sum += calls
			}
		}
	}
	return sum, nil
}
