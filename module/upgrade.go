package module

import (
	"bufio"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// upgrade lets an admitted handshake go on to the backend and, if that
// accepts, turns it into a tunnel.
func (g *Gate) upgrade(w http.ResponseWriter, v *visit, next caddyhttp.Handler) error {
	h := new(handoff)
	defer h.abandon()
	uw := &upgradeWriter{ResponseWriter: w, gate: g, visit: v, handoff: h}
	err := next.ServeHTTP(uw, v.r.WithContext(withHandoff(v.r.Context(), h)))
	switch {
	case uw.upgraded:
		return nil // whatever it was, it is about a request that is over
	case v.place.lost():
		return g.refuse(w, v, errEvicted)
	case uw.switching:
		return g.refuse(w, v, errNoTunnel)
	case err != nil:
		w.Header().Set("Connection", "close")
		g.logRefusal(v, answer{status: statusOf(err), reason: reasonBackend, detail: backendDetail(err)})
		return err
	case uw.status == 0:
		return g.refuse(w, v, errNoAnswer)
	default:
		g.logRefusal(v, answer{status: uw.status, reason: reasonBackend, detail: "answered " + strconv.Itoa(uw.status)})
		return nil
	}
}

// upgradeWriter holds back the 101 until both connections are there.
type upgradeWriter struct {
	http.ResponseWriter
	gate    *Gate
	visit   *visit
	handoff *handoff

	status    int  // what was answered in place of a 101
	switching bool // a 101 was announced
	upgraded  bool // and the tunnel runs
}

// Unwrap lets http.ResponseController reach what this writer does not do.
func (w *upgradeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader passes on every status but 101, which waits for Hijack.
func (w *upgradeWriter) WriteHeader(status int) {
	if status == http.StatusSwitchingProtocols {
		w.switching = true
		return
	}
	if w.visit.place.lost() {
		return // the answer is about the eviction, not what came of it
	}
	if status >= 200 && w.status == 0 {
		w.status = status
		w.Header().Set("Connection", "close") // S-86
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write passes on the body of an answer that is not a 101.
func (w *upgradeWriter) Write(p []byte) (int, error) {
	if w.switching || w.visit.place.lost() {
		return 0, http.ErrNotSupported
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// Hijack completes the handshake: the 101 goes out, both connections go to a
// tunnel, and the caller gets a connection on which nothing happens any more.
func (w *upgradeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !w.switching || w.upgraded {
		return nil, nil, http.ErrNotSupported
	}
	backend := w.handoff.take()
	if backend == nil || w.visit.place.lost() {
		w.dropAnswer()
		if backend != nil {
			_ = backend.conn.Close()
		}
		return nil, nil, http.ErrNotSupported
	}
	subprotocol := w.completeAnswer()
	w.ResponseWriter.WriteHeader(http.StatusSwitchingProtocols)
	w.upgraded = true
	conn, brw, err := hijackInnermost(w.ResponseWriter)
	if err != nil {
		_ = backend.conn.Close()
		return nil, nil, err
	}
	w.gate.open(w.visit, backend, subprotocol, conn, buffered(brw.Reader))
	done := finishedConn{conn}
	return done, bufio.NewReadWriter(bufio.NewReaderSize(done, 1), bufio.NewWriterSize(done, 1)), nil
}

// completeAnswer makes the backend's 101 the gate's own, and returns the
// subprotocol it names.
func (w *upgradeWriter) completeAnswer() (subprotocol string) {
	header := w.Header()
	for _, name := range [...]string{"Content-Length", "Transfer-Encoding", "Trailer", "Keep-Alive"} {
		header.Del(name) // a 101 has no content, RFC 9110 §15.2.2
	}
	// reverse_proxy spells WebSocket headers as RFC 6455 does.
	const field = "Sec-WebSocket-Protocol"
	if chosen := header[field]; len(chosen) > 0 { //nolint:staticcheck // SA1008: the spelling is meant
		return chosen[0]
	}
	if pair := w.visit.presented.PairPrefix; pair != "" {
		// The backend chose nothing and never saw this offer; Chromium fails a
		// socket whose offer gets no answer (S-123).
		header[field] = []string{pair} //nolint:staticcheck // SA1008: the spelling is meant
		return pair
	}
	return ""
}

// dropAnswer forgets a 101 that can't be kept.
func (w *upgradeWriter) dropAnswer() {
	header := w.Header()
	for name := range header {
		if name != "Server" && name != "Alt-Svc" {
			delete(header, name)
		}
	}
}

// open starts the tunnel.
func (g *Gate) open(v *visit, b *accepted, subprotocol string, client net.Conn, early []byte) {
	a := tunnel.Accepted{
		Identity: tunnel.Identity{
			ID:          v.id,
			Tunnel:      g.TunnelName,
			User:        v.token.User,
			Issuer:      v.token.Issuer,
			TokenID:     v.token.ID,
			SessionID:   v.token.SessionID,
			ClientIP:    v.clientIP(),
			Upstream:    b.upstream,
			Subprotocol: subprotocol,
			Expires:     v.token.Expires,
		},
		Policy:       g.policy,
		Client:       client,
		ClientEarly:  early,
		Backend:      b.conn,
		BackendEarly: b.early,
		Reserved:     b.reserved,
		Observer:     observer{},
	}
	a.Lifetime, a.LifetimeCause = g.lifetime(v.token.Expires, time.Now())
	user := userKey(v.token.Issuer, v.token.User)
	messages, releaseMessages := g.MessageRate.pace("message_rate", g.TunnelName, user)
	bytes, releaseBytes := g.ByteRate.pace("byte_rate", g.TunnelName, user)
	a.Limits = tunnel.Limits{MaxMessage: g.MaxMessageSize, Messages: messages, Bytes: bytes}
	a.Release = releaseAll(releaseSlots(v.id), releaseMessages, releaseBytes)
	s := tunnel.Start(a)
	// What was decided after the last look, and before there was a socket to
	// find.
	if v.place != nil && !v.place.hand() {
		s.Close(causeEvicted)
	}
	if revoked(v.token) {
		s.Close(causeRevoked)
	}
	if draining.Load() {
		s.Close(causeDrain)
	}
}

// releaseAll calls every one that is there.
func releaseAll(all ...func()) func() {
	all = slices.DeleteFunc(all, func(release func()) bool { return release == nil })
	if len(all) == 1 {
		return all[0]
	}
	return func() {
		for _, release := range all {
			release()
		}
	}
}

// lifetime is how long a socket whose token expires then may live from now
// on, and why it ends: min(exp + leeway + expiry_grace, now + max_lifetime).
func (g *Gate) lifetime(expires, now time.Time) (time.Duration, tunnel.Cause) {
	lifetime, cause := time.Duration(g.MaxLifetime), tunnel.CauseLifetime
	if g.OnExpiry == onExpiryKeep {
		return lifetime, cause
	}
	// Sub stays within a Duration, also for a token that is good until 9999.
	left := expires.Add(time.Duration(*g.Leeway)).Add(time.Duration(g.ExpiryGrace)).Sub(now)
	left = max(left, time.Millisecond)
	if lifetime == 0 || left < lifetime {
		return left, tunnel.CauseExpired
	}
	return lifetime, cause
}

// plainWriter lets no handler behind the gate take over the connection of a
// request that is not a handshake.
type plainWriter struct{ http.ResponseWriter }

// Unwrap lets http.ResponseController reach what this writer does not do.
func (w plainWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack always fails: such a connection would be unguarded.
func (w plainWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, http.ErrNotSupported
}
