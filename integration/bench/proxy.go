package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// proxy is a contender.
type proxy struct {
	name    string
	addr    string // where clients connect
	admin   string // Caddy's admin API, for the heap profile
	command []string
	env     []string

	cmd     *exec.Cmd
	log     string // file of its output
	exited  chan struct{}
	memory  memory
	figures map[string][]float64 // one a round
}

// plain is the one that all are compared with.
const plain = "Caddy reverse_proxy"

// contenders writes the configurations of all that are installed.
func contenders(o options, dir, backend string) ([]*proxy, error) {
	var only *regexp.Regexp
	if o.only != "" {
		var err error
		if only, err = regexp.Compile(o.only); err != nil {
			return nil, fmt.Errorf("-only: %w", err)
		}
	}
	var all []*proxy
	add := func(name, program, file, config string, args ...string) error {
		if only != nil && name != plain && !only.MatchString(name) {
			return nil
		}
		path, err := exec.LookPath(program)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s is not installed: left out\n", program)
			return nil
		}
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		admin := ""
		if strings.Contains(config, "{{admin}}") {
			if admin, err = freeAddr(); err != nil {
				return err
			}
		}
		sub := filepath.Join(dir, file)
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return err
		}
		config = strings.NewReplacer("{{addr}}", addr, "{{admin}}", admin, "{{dir}}", dir, "{{own}}", sub,
			"{{backend}}", backend, "{{level}}", o.level,
			// Of open files HAProxy wants two a connection and some.
			"{{maxconn}}", strconv.Itoa(o.sockets+500), "{{files}}", strconv.Itoa(o.files()-100)).Replace(config)
		conf := filepath.Join(sub, "config")
		if err := os.WriteFile(conf, []byte(config), 0o600); err != nil {
			return err
		}
		for i := range args {
			args[i] = strings.NewReplacer("{{config}}", conf, "{{own}}", sub).Replace(args[i])
		}
		all = append(all, &proxy{
			name: name, addr: addr, admin: admin, log: filepath.Join(sub, "log"), command: append([]string{path}, args...),
			env:     []string{"XDG_DATA_HOME=" + sub, "XDG_CONFIG_HOME=" + sub, "HOME=" + sub},
			figures: make(map[string][]float64),
		})
		return nil
	}
	caddy := []string{"run", "--config", "{{config}}", "--adapter", "caddyfile"}
	err := errors.Join(
		add("wsgate, ES256", o.binary, "wsgate", caddyHead+`
	ws_gate {
		issuer `+issuerName+` {
			jwks_file {{dir}}/jwks.json
			audience `+audience+`
		}
	}
	reverse_proxy {{backend}} {
		transport ws_tunnel
	}
}
`, append([]string(nil), caddy...)...),
		// The limits are beyond what the load reaches: what is measured is
		// their cost, not their effect.
		add("wsgate, every limit", o.binary, "limits", caddyHead+`
	ws_gate {
		issuer `+issuerName+` {
			jwks_file {{dir}}/jwks.json
			audience `+audience+`
		}
		handshake_rate   1000000/1s by ip
		handshake_rate   1000000/1s by user
		max_connections  1000000 by user
		max_connections  1000000 by ip
		message_rate     100000000/1s
		byte_rate        1GiB/1s burst 1GiB
		max_message_size 1GiB
		idle_timeout     1h
		max_lifetime     12h
	}
	reverse_proxy {{backend}} {
		transport ws_tunnel
	}
}
`, append([]string(nil), caddy...)...),
		add(plain, o.binary, "plain", caddyHead+`
	reverse_proxy {{backend}}
}
`, append([]string(nil), caddy...)...),
		add("HAProxy, ES256", "haproxy", "haproxy", haproxyConfig, "-db", "-f", "{{config}}"),
		add("nginx, no auth", "nginx", "nginx", nginxConfig, "-p", "{{own}}", "-c", "{{config}}", "-e", "stderr"),
	)
	return all, err
}

const caddyHead = `{
	admin {{admin}}
	auto_https off
	persist_config off
	grace_period 1s
	log {
		level {{level}}
	}
}
http://{{addr}} {
`

const haproxyConfig = `global
	maxconn {{maxconn}}
defaults
	mode http
	timeout connect 5s
	timeout client 1h
	timeout server 1h
	timeout tunnel 1h
frontend in
	bind {{addr}}
	http-request set-var(txn.bearer) http_auth_bearer
	http-request set-var(txn.alg) var(txn.bearer),jwt_header_query('$.alg')
	http-request set-var(txn.iss) var(txn.bearer),jwt_payload_query('$.iss')
	http-request set-var(txn.exp) var(txn.bearer),jwt_payload_query('$.exp','int')
	http-request set-var(txn.now) date()
	http-request deny deny_status 401 unless { var(txn.alg) -m str ES256 }
	http-request deny deny_status 401 unless { var(txn.iss) -m str ` + issuerName + ` }
	http-request deny deny_status 401 unless { var(txn.bearer),jwt_verify(txn.alg,"{{dir}}/key.pem") 1 }
	http-request deny deny_status 401 if { var(txn.exp),sub(txn.now) -m int lt 0 }
	http-request del-header Authorization
	default_backend out
backend out
	server one {{backend}}
`

const nginxConfig = `daemon off;
user root;
worker_processes auto;
pid {{own}}/pid;
error_log stderr;
events { worker_connections {{files}}; }
http {
	access_log off;
	client_body_temp_path {{own}}/a;
	proxy_temp_path {{own}}/b;
	fastcgi_temp_path {{own}}/c;
	uwsgi_temp_path {{own}}/d;
	scgi_temp_path {{own}}/e;
	map $http_upgrade $connection_upgrade { default upgrade; '' close; }
	server {
		listen {{addr}} backlog=4096;
		location / {
			proxy_pass http://{{backend}};
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection $connection_upgrade;
			proxy_read_timeout 1h;
			proxy_send_timeout 1h;
		}
	}
}
`

// nextPort is below the range that the system takes for outgoing connections:
// a port of that range may be taken again before the proxy has it.
var nextPort = 20000 + os.Getpid()%10000

func freeAddr() (string, error) {
	for range 2000 {
		if nextPort++; nextPort >= 32000 {
			nextPort = 20000
		}
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(nextPort)))
		if err == nil {
			defer ln.Close()
			return ln.Addr().String(), nil
		}
	}
	return "", errors.New("looking for a free port: there is none")
}

func (p *proxy) pid() int { return p.cmd.Process.Pid }

func (p *proxy) start(ctx context.Context) error {
	p.cmd = exec.CommandContext(ctx, p.command[0], p.command[1:]...)
	p.cmd.Env = append(os.Environ(), p.env...)
	out, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer out.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	p.exited = make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	return nil
}

// ready waits for the first accepted socket.
func (p *proxy) ready(ctx context.Context, t *tokens) error {
	var last error
	for range 200 {
		select {
		case <-p.exited:
			said, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s ended: %s", p.name, said)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		s, err := dial(p.addr, t.next(), 512)
		if err == nil {
			s.drop()
			return nil
		}
		last = err
	}
	return fmt.Errorf("%s is not ready: %w", p.name, last)
}

func (p *proxy) stop() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // nginx takes its workers along
	select {
	case <-p.exited:
	case <-time.After(2 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}
