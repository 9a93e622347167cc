// Command quickstart shows the gate at work on one machine: an identity
// provider, a WebSocket backend that knows nothing of tokens, Caddy with the
// gate between them, and a page to try it from. Everything listens on loopback
// and nothing is left behind.
package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/wsgate/caddy-wsgate"
)

//go:embed Caddyfile
var caddyfile string

//go:embed page
var page embed.FS

// addresses says where the parts listen; admin is Caddy's admin endpoint.
type addresses struct{ gate, idp, backend, admin string }

// preferred are the addresses that the Caddyfile names. A port that is taken
// is replaced by a free one.
var preferred = addresses{"127.0.0.1:8080", "127.0.0.1:9081", "127.0.0.1:9082", "127.0.0.1:2019"}

func main() {
	caddy.TrapSignals() // SIGINT and SIGTERM drain the sockets, as in any Caddy
	d, err := start(preferred)
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
	caddy.OnExit(func(context.Context) { d.cleanUp() })
	fmt.Print(d.welcome())
	select {} // Caddy exits the process
}

// demo is the running whole.
type demo struct {
	addresses

	// What remains when Caddy has stopped.
	dir     string
	servers []*http.Server
}

// start brings up the identity provider, the backend and Caddy, in this order.
// On an error nothing is left running.
func start(want addresses) (d *demo, err error) {
	d = &demo{}
	defer func() {
		if err != nil {
			d.cleanUp()
		}
	}()
	if d.dir, err = os.MkdirTemp("", "wsgate-quickstart-"); err != nil {
		return d, fmt.Errorf("making a directory for Caddy's storage: %w", err)
	}
	// Caddy keeps an instance id beside its storage, in the user's home.
	if err = os.Setenv("XDG_DATA_HOME", d.dir); err != nil {
		return d, fmt.Errorf("moving Caddy's data directory: %w", err)
	}
	if err = os.CopyFS(d.dir, page); err != nil {
		return d, fmt.Errorf("unpacking the page: %w", err)
	}
	idpListener, err := listen(want.idp)
	if err != nil {
		return d, fmt.Errorf("listening for the identity provider: %w", err)
	}
	d.idp = idpListener.Addr().String()
	idp, err := newIdentityProvider("http://" + d.idp)
	if err != nil {
		return d, errors.Join(fmt.Errorf("making signing keys: %w", err), idpListener.Close())
	}
	d.serve(idpListener, idp.handler())

	backendListener, err := listen(want.backend)
	if err != nil {
		return d, fmt.Errorf("listening for the backend: %w", err)
	}
	d.backend = backendListener.Addr().String()
	d.serve(backendListener, backendHandler())

	if d.gate, err = free(want.gate); err != nil {
		return d, fmt.Errorf("finding a port for the gate: %w", err)
	}
	if d.admin, err = free(want.admin); err != nil {
		return d, fmt.Errorf("finding a port for the admin endpoint: %w", err)
	}
	if err = d.runCaddy(); err != nil {
		return d, fmt.Errorf("starting Caddy: %w", err)
	}
	return d, nil
}

// listen takes the address, or any free port of the same host.
func listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err == nil {
		return l, nil
	}
	host, _, splitErr := net.SplitHostPort(address)
	if splitErr != nil {
		return nil, err
	}
	return net.Listen("tcp", net.JoinHostPort(host, "0"))
}

// free returns an address that listen can take, for Caddy to listen there.
func free(address string) (string, error) {
	l, err := listen(address)
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// serve runs an HTTP server until cleanUp closes it.
func (d *demo) serve(l net.Listener, h http.Handler) {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	d.servers = append(d.servers, s)
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "quickstart:", err)
		}
	}()
}

// runCaddy adapts the Caddyfile with the addresses in use and loads it.
func (d *demo) runCaddy() error {
	_, port, err := net.SplitHostPort(d.gate)
	if err != nil {
		return err
	}
	config := strings.NewReplacer(
		":8080", ":"+port,
		"127.0.0.1:9081", d.idp,
		"127.0.0.1:9082", d.backend,
		"127.0.0.1:2019", d.admin,
		`"page"`, quote(filepath.Join(d.dir, "page")),
		`"storage"`, quote(filepath.Join(d.dir, "storage")),
	).Replace(caddyfile)
	adapter := caddyconfig.GetAdapter("caddyfile")
	adapted, _, err := adapter.Adapt([]byte(config), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	return caddy.Load(adapted, true)
}

// quote writes a path as the Caddyfile does, where a backslash is itself.
func quote(path string) string { return `"` + path + `"` }

// cleanUp stops what Caddy does not own and removes the directory.
func (d *demo) cleanUp() {
	for _, s := range d.servers {
		_ = s.Close()
	}
	if d.dir != "" {
		_ = os.RemoveAll(d.dir)
	}
}

//go:embed welcome.txt
var welcome string

// welcome says what runs where and what to paste.
func (d *demo) welcome() string {
	return strings.NewReplacer(
		"$GATE", "http://"+d.gate,
		"$IDP", "http://"+d.idp,
		"$BACKEND", "ws://"+d.backend+"/ws",
		"$ADMIN", "http://"+d.admin,
	).Replace(welcome)
}
