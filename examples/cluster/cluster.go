package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

//go:embed Caddyfile
var caddyfile []byte

// cluster is two gates, one Redis, one backend, and an identity provider.
type cluster struct {
	dir      string // for logs and Caddy's storage, gone in the end
	redisBin string
	idp      *identityProvider
	backend  string // address
	servers  []*http.Server

	redisAddr string
	redis     *process
	gates     []*gate

	live []*socket // that this program has opened
}

// gate is one node.
type gate struct {
	name  string // A or B, here
	node  string // what it is called in lists
	addr  string // for clients
	admin string // for operators
	*process
}

// start brings everything up: Redis, the backend, the identity provider, and
// two gates from one Caddyfile. On an error nothing is left running.
func start(ctx context.Context, caddy string, config []byte) (c *cluster, err error) {
	c = new(cluster)
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	if c.dir, err = os.MkdirTemp("", "wsgate-cluster-"); err != nil {
		return c, err
	}
	if c.redisBin, err = findRedis(); err != nil {
		return c, err
	}
	if c.redisAddr, err = free(); err != nil {
		return c, err
	}
	if err = c.startRedis(); err != nil {
		return c, err
	}
	if err = c.startServers(); err != nil {
		return c, err
	}
	if caddy == "" {
		caddy = filepath.Join(c.dir, "caddy")
		if err = build(ctx, caddy); err != nil {
			return c, err
		}
	}
	file := filepath.Join(c.dir, "Caddyfile")
	if err = os.WriteFile(file, config, 0o600); err != nil {
		return c, err
	}
	for _, name := range []string{"A", "B"} {
		if err = c.startGate(name, caddy, file); err != nil {
			return c, err
		}
	}
	return c, c.ready()
}

// build makes the gates' program.
func build(ctx context.Context, to string) error {
	fmt.Fprintln(os.Stderr, "building cmd/caddy: a minute or two the first time")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", to, "github.com/wsgate/caddy-wsgate/cmd/caddy").CombinedOutput()
	if err != nil {
		return fmt.Errorf("building cmd/caddy: %w\n%s", err, out)
	}
	return nil
}

var errNoRedis = errors.New("redis-server is not installed: apt-get install redis-server, brew install redis, …")

// findRedis returns the program of Redis, or that of Valkey.
func findRedis() (string, error) {
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errNoRedis
}

// redisArgs are those of a server that keeps nothing on disk.
func (c *cluster) redisArgs() []string {
	return []string{"--bind", "127.0.0.1", "--port", port(c.redisAddr), "--save", "", "--appendonly", "no", "--dir", c.dir}
}

// startRedis starts Redis, with nothing in it.
func (c *cluster) startRedis() (err error) {
	if c.redis, err = spawn("redis-server", filepath.Join(c.dir, "redis.log"), nil, c.redisBin, c.redisArgs()...); err != nil {
		return err
	}
	return c.redis.await("waiting for Redis", func() error {
		conn, err := net.Dial("tcp", c.redisAddr)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		answer := make([]byte, len("+PONG"))
		if _, err = conn.Write([]byte("PING\r\n")); err == nil {
			_, err = conn.Read(answer)
		}
		if err == nil && !bytes.Equal(answer, []byte("+PONG")) {
			err = fmt.Errorf("it says %q", answer)
		}
		return err
	})
}

// startServers starts the backend and the identity provider, in this process.
func (c *cluster) startServers() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.backend = listener.Addr().String()
	c.serve(listener, http.HandlerFunc(serveEcho))
	if listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	if c.idp, err = newIdentityProvider("http://" + listener.Addr().String()); err != nil {
		return errors.Join(err, listener.Close())
	}
	c.serve(listener, c.idp.handler())
	return nil
}

func (c *cluster) serve(l net.Listener, h http.Handler) {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	c.servers = append(c.servers, s)
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "cluster:", err)
		}
	}()
}

// startGate starts one more Caddy. The environment tells it what its own
// ports are; the rest is the same for all.
func (c *cluster) startGate(name, caddy, file string) (err error) {
	g := &gate{name: name}
	if g.addr, err = free(); err != nil {
		return err
	}
	if g.admin, err = free(); err != nil {
		return err
	}
	home := filepath.Join(c.dir, "home-"+name)
	env := []string{
		"PORT=" + port(g.addr), "ADMIN=" + g.admin,
		"REDIS_URL=redis://" + c.redisAddr, "BACKEND=" + c.backend, "ISSUER=" + c.idp.issuer,
		"XDG_DATA_HOME=" + home, "XDG_CONFIG_HOME=" + home, // for this demo: leave nothing behind
	}
	g.process, err = spawn("gate "+name, filepath.Join(c.dir, "gate-"+name+".log"), env, caddy, "run", "--config", file, "--adapter", "caddyfile")
	if err != nil {
		return err
	}
	c.gates = append(c.gates, g)
	return nil
}

// ready waits until both gates have keys, and know of each other: a socket at
// one is in the list of the other.
func (c *cluster) ready() error {
	for i, g := range c.gates {
		other := c.gates[1-i]
		var s *socket
		if err := g.await("waiting for gate "+g.name, func() (err error) {
			s, err = c.open(g, "/chat", "nobody")
			return err
		}); err != nil {
			return err
		}
		err := other.await("waiting for the gates to know of each other", func() error {
			list, err := other.list("nobody")
			if err == nil && len(list) != 1 {
				err = fmt.Errorf("gate %s sees %d sockets in place of the one at %s", other.name, len(list), g.name)
			}
			if err == nil {
				g.node = list[0].Node
			}
			return err
		})
		s.close()
		if err != nil {
			return err
		}
		if err := g.await("waiting for a socket to end", func() error {
			if list, err := g.list("nobody"); err != nil || len(list) > 0 {
				return errors.Join(err, errors.New("it is still in the list"))
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// stop ends everything and removes what it left.
func (c *cluster) stop() {
	for _, s := range c.live {
		s.close()
	}
	for _, g := range slices.Backward(c.gates) {
		g.stop()
	}
	if c.redis != nil {
		c.redis.stop()
	}
	for _, s := range c.servers {
		_ = s.Close()
	}
	_ = os.RemoveAll(c.dir)
}
