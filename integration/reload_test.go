package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// site writes one of the sites of the reload tests.
func (r reloadSites) site(address, log, options string) string {
	cert := ""
	if strings.HasPrefix(address, "https") {
		cert = "bind 127.0.0.1\n\ttls {{dir}}/cert.pem {{dir}}/key.pem"
	}
	return fmt.Sprintf(`%s {
	%s
	%s
	ws_gate /ws* {
		issuer %s {
			jwks %s
			audience chat
		}
		leeway 0s
		%s
	}
	reverse_proxy /ws* %s {
		transport ws_tunnel
	}
}
`, address, cert, log, r.idp.issuer, r.idp.jwksURL(), options, r.backend.addr)
}

type reloadSites struct {
	idp     *idp
	backend *backend
}

func (r reloadSites) caddyfile(options string) string {
	return `{
	admin 127.0.0.1:{{admin}}
	auto_https off
	debug
	persist_config off
	grace_period 2s
}
` + r.site("http://127.0.0.1:{{port}}", "", options) +
		r.site("http://127.0.0.1:{{port1}}", "log", options) +
		r.site("https://localhost:{{port2}}", "", options) +
		r.site("https://localhost:{{port3}}", "log", options)
}

// start runs the sites with the ports filled in, so that every reload has the
// same.
func (r reloadSites) start(t *testing.T) (g *gate, addrs map[string]bool, caddyfile func(options string) string) {
	t.Helper()
	ports := []string{"{{port1}}", "{{port2}}", "{{port3}}"}
	numbers := make([]string, len(ports))
	for i := range ports {
		numbers[i] = fmt.Sprint(freePort(t))
	}
	caddyfile = func(options string) string {
		text := r.caddyfile(options)
		for i, p := range ports {
			text = strings.ReplaceAll(text, p, numbers[i])
		}
		return text
	}
	g = start(t, caddyfile("tunnel_name first"))
	return g, map[string]bool{
		g.addr: false, "127.0.0.1:" + numbers[0]: false, "127.0.0.1:" + numbers[1]: true, "127.0.0.1:" + numbers[2]: true,
	}, caddyfile
}

// S-199: a reload in the middle of a 100 MB message leaves it intact and the
// socket alive; plain and TLS, with and without access logs, in both
// directions at once.
func TestReloadMidMessage(t *testing.T) {
	t.Parallel()
	size := 100 << 20
	if testing.Short() {
		size = 10 << 20
	}
	r := reloadSites{newIDP(t), newBackend(t)}
	g, addrs, caddyfile := r.start(t)
	payload := random(1 << 20)
	sum := sha256.New()
	for range size / len(payload) {
		sum.Write(payload)
	}
	want := sum.Sum(nil)

	type socket struct {
		name string
		c    *conn
		u    *upstream
	}
	var sockets []socket
	for addr, secure := range addrs {
		c := g.openTo(t, addr, secure, bearer(r.idp.token(g, nil)))
		sockets = append(sockets, socket{fmt.Sprintf("tls %v, %s", secure, addr), c, r.backend.next(t)})
	}

	// Every sender stops half-way until the reloads are over, so that they fall
	// into the message whatever the machine's speed.
	var half, done sync.WaitGroup
	reloaded := make(chan struct{})
	stream := func(w io.Writer, head []byte) error {
		if _, err := w.Write(head); err != nil {
			half.Done()
			return err
		}
		n := size / len(payload)
		for i := range n {
			if i == n/2 {
				half.Done()
				<-reloaded
			}
			if _, err := w.Write(payload); err != nil {
				if i < n/2 {
					half.Done()
				}
				return err
			}
		}
		return nil
	}
	drain := func(r io.Reader, head []byte) error {
		got := make([]byte, len(head))
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, head) {
			return fmt.Errorf("header %x, want %x: %w", got, head, err)
		}
		sum := sha256.New()
		if _, err := io.CopyN(sum, r, int64(size)); err != nil {
			return err
		}
		if !bytes.Equal(sum.Sum(nil), want) {
			return fmt.Errorf("the message changed")
		}
		return nil
	}
	up := append(header(0x82, true, size), 0, 0, 0, 0)
	down := header(0x82, false, size)
	far := time.Now().Add(4 * time.Minute)
	for _, s := range sockets {
		s.c.SetDeadline(far)
		s.u.SetDeadline(far)
		half.Add(2)
		for what, run := range map[string]func() error{
			"client sending":    func() error { return stream(s.c, up) },
			"backend receiving": func() error { return drain(s.u.br, up) },
			"backend sending":   func() error { return stream(s.u, down) },
			"client receiving":  func() error { return drain(s.c.br, down) },
		} {
			done.Add(1)
			go func() {
				defer done.Done()
				if err := run(); err != nil {
					t.Errorf("%s, %s: %v", s.name, what, err)
				}
			}()
		}
	}
	half.Wait()
	for i := range 3 {
		begin := time.Now()
		if err := g.reload(caddyfile(fmt.Sprintf("tunnel_name after%d", i))); err != nil {
			t.Errorf("reload: %v", err)
		}
		if d := time.Since(begin); d > 15*time.Second {
			t.Errorf("the reload took %v: it waited for sockets", d)
		}
	}
	close(reloaded)
	done.Wait()
	for _, s := range sockets { // alive, in order
		s.c.send(masked(0x81, []byte("after")))
		if f := s.u.read(); string(f.payload) != "after" {
			t.Errorf("%s: the backend got %q", s.name, f.payload)
		}
		s.u.send(unmasked(0x81, []byte("after")))
		if f := s.c.readPonging(); string(f.payload) != "after" {
			t.Errorf("%s: the client got %q", s.name, f.payload)
		}
	}
}

// S-199: many idle sockets, three reloads, one of them to a config with
// another backend: the old sockets stay where they are, new ones follow the
// new config. A client that does not read holds nothing up.
func TestReloadIdleSockets(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b, other := newBackend(t), newBackend(t)
	w := wiring{idp: p, upstream: b.addr, gate: "ping_interval 0"}
	g := w.start(t)
	var conns []*conn
	var ups []*upstream
	for range 50 {
		c, u := pair(t, g, p, b)
		conns, ups = append(conns, c), append(ups, u)
	}
	_, stuck := pair(t, g, p, b)
	go func() { // fills what is between it and a client that never reads
		stuck.SetWriteDeadline(time.Now().Add(patience))
		for {
			if _, err := stuck.Conn.Write(unmasked(0x82, make([]byte, 1<<16))); err != nil {
				return
			}
		}
	}()
	for i := range 3 {
		if i == 1 {
			w.upstream = other.addr
		}
		w.gate = fmt.Sprintf("ping_interval 0\ntunnel_name t%d", i)
		begin := time.Now()
		if err := g.reload(w.caddyfile()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d > 15*time.Second {
			t.Errorf("the reload took %v: it waited for a socket", d)
		}
		for j, c := range conns {
			frame := masked(0x81, []byte(fmt.Sprintf("%d after %d", j, i)))
			c.send(frame)
			ups[j].expectBytes(frame)
			back := unmasked(0x81, []byte("back"))
			ups[j].send(back)
			c.expectBytes(back)
		}
	}
	pair(t, g, p, other)
}

// An expiry that was set before a reload still holds after it.
func TestReloadKeepsPolicy(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	w := wiring{idp: p, upstream: b.addr}
	g := w.start(t)
	warm, _ := pair(t, g, p, b)
	warm.Close()
	exp := time.Now().Add(4 * time.Second).Truncate(time.Second)
	c, _ := pairWith(t, g, b, bearer(p.mint("ES256", claims{"exp": exp.Unix()})))
	w.gate = "on_expiry keep"
	if err := g.reload(w.caddyfile()); err != nil {
		t.Fatal(err)
	}
	c.expectClose(3000)
	if d := time.Since(exp); d < -time.Second || d > 8*time.Second {
		t.Errorf("closed %v after the token expired", d)
	}
}

// S-203: a config that is refused changes nothing.
func TestReloadRefused(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	w := wiring{idp: p, upstream: b.addr}
	g := w.start(t)
	c, u := pair(t, g, p, b)
	for _, bad := range []wiring{
		{gate: "ping_interval soon"},
		{gate: "no_such_option 1"},
		{issuer: "jwks http://192.0.2.1/jwks.json"},
		{gate: "origins example.com/path"},
		{transport: "dial_timeout x"},
		{gate: "issuer https://missing.example/ {\n jwks_file {{dir}}/missing.json\n audience a\n}"},
	} {
		bad.idp, bad.upstream = p, b.addr
		if err := g.reload(bad.caddyfile()); err == nil {
			t.Errorf("accepted: %+v", bad)
		}
		frame := masked(0x81, []byte("x"))
		c.send(frame)
		u.expectBytes(frame)
		u.send(unmasked(0x81, []byte("y")))
		c.expectBytes(unmasked(0x81, []byte("y")))
		pair(t, g, p, b)
	}
	// What the refused configs acquired is released, what the running one holds
	// is not: a good reload and a handshake after all that.
	w.gate = "tunnel_name again"
	if err := g.reload(w.caddyfile()); err != nil {
		t.Fatal(err)
	}
	pair(t, g, p, b)
	g.refused(t, hello(), http.StatusUnauthorized)
}

// S-204: when the process stops, sockets are told 1012 at a frame boundary,
// spread over a while, none with a byte inside a frame, and the process ends.
func TestStop(t *testing.T) {
	t.Parallel()
	p := newIDP(t)
	b := newBackend(t)
	g := wiring{idp: p, upstream: b.addr, global: "ws_gate {\ndrain {\nspread 2s\ngrace 2s\n}\n}"}.start(t)
	var conns []*conn
	var ups []*upstream
	for range 5 {
		c, u := pair(t, g, p, b)
		conns, ups = append(conns, c), append(ups, u)
	}
	part := unhex("82 7E 0400 01020304050607080900")
	midframe, mu := pair(t, g, p, b)
	mu.send(part)
	midframe.expectBytes(part)
	g.stop()
	for i, c := range conns {
		c.SetReadDeadline(time.Now().Add(40 * time.Second))
		f, err := readFrame(c.br)
		if err != nil {
			t.Errorf("socket %d: %v instead of a close frame", i, err)
			continue
		}
		if f.code() != 1012 {
			t.Errorf("socket %d: frame %x, code %d, want 1012", i, f.first, f.code())
		}
		go func() { _, _ = c.Write(masked(0x88, closing(1012, ""))) }()
		ups[i].SetReadDeadline(time.Now().Add(40 * time.Second))
		if f, err := readFrame(ups[i].br); err == nil && (f.first != 0x88 || f.code() != 1001) {
			t.Errorf("socket %d: the backend got frame %x, code %d", i, f.first, f.code())
		}
	}
	midframe.SetReadDeadline(time.Now().Add(40 * time.Second))
	if rest, _ := io.ReadAll(midframe.br); len(rest) != 0 {
		t.Errorf("%x inside an unfinished frame", rest)
	}
	select {
	case <-g.exited:
		if g.err != nil {
			t.Errorf("caddy ended: %v", g.err)
		}
	case <-time.After(60 * time.Second):
		t.Error("caddy does not end")
	}
}
