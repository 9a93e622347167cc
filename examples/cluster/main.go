// Command cluster shows two gates that share a Redis, on one machine: a cap, a
// list, a message and a revocation that reach over both of them, and what
// happens without Redis. It says what it does and what came of it, and ends
// with status 1 if that is not what it should be.
//
//	go run ./examples/cluster          tells the story, and ends
//	go run ./examples/cluster -stay    runs until Ctrl-C, with commands to paste
//
// It needs Go and redis-server. Everything listens on loopback, on free ports,
// and nothing is left behind.
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	stay := flag.Bool("stay", false, "keep everything running until Ctrl-C, with commands to paste")
	caddy := flag.String("caddy", "", "a caddy binary with the plugin; built from ./cmd/caddy if empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *caddy, caddyfile, *stay, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// run starts the cluster, and tells its story or leaves it to the reader.
func run(ctx context.Context, caddy string, config []byte, stay bool, out io.Writer) error {
	c, err := start(ctx, caddy, config)
	if err != nil {
		return err
	}
	defer c.stop()
	if stay {
		fmt.Fprint(out, c.welcome())
		<-ctx.Done()
		return nil
	}
	return c.tell(ctx, out)
}

//go:embed stay.txt
var stayText string

// welcome says what runs where and what to paste.
func (c *cluster) welcome() string {
	a, b := c.gates[0], c.gates[1]
	return strings.NewReplacer(
		"$GATE_A", "http://"+a.addr, "$GATE_B", "http://"+b.addr,
		"$ADMIN_A", "http://"+a.admin, "$ADMIN_B", "http://"+b.admin,
		"$LOG_A", a.log, "$LOG_B", b.log,
		"$NODE_A", a.node, "$NODE_B", b.node,
		"$BACKEND", "ws://"+c.backend, "$TOKEN", c.idp.issuer+"/token",
		"$REDIS_PID", fmt.Sprint(c.redis.cmd.Process.Pid),
		"$REDIS_COMMAND", c.redisBin+" "+strings.ReplaceAll(strings.Join(c.redisArgs(), " "), "--save  ", "--save '' "),
		"$REDIS_CLI", strings.Replace(filepath.Base(c.redisBin), "-server", "-cli", 1)+" -p "+port(c.redisAddr),
		"$REDIS", "redis://"+c.redisAddr,
	).Replace(stayText)
}
