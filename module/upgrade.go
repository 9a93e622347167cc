package module

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// upgrade lets an admitted handshake go on to the backend and, if that
// accepts, turns it into a tunnel.
func (g *Gate) upgrade(w http.ResponseWriter, v *visit, next caddyhttp.Handler) error {
	uw := &upgradeWriter{ResponseWriter: w, gate: g, visit: v}
	err := next.ServeHTTP(uw, v.r.WithContext(withHandoff(v.r.Context(), uw)))
	switch {
	case uw.upgraded:
		if repl := v.replacer(); repl != nil {
			// What reverse_proxy took for the answer is the transport's dummy.
			repl.Set("http.reverse_proxy.status_code", http.StatusSwitchingProtocols)
		}
		return nil // whatever it was, it is about a request that is over
	case v.place.lost():
		return g.refuse(w, v, errEvicted)
	case uw.switching:
		return g.refuse(w, v, errNoTunnel)
	case err != nil:
		w.Header().Set("Connection", "close")
		if repl := v.replacer(); repl != nil {
			repl.Set("http.ws_gate.reject.reason", reasonBackend)
		}
		g.logRefusal(v, answer{status: statusOf(err), reason: reasonBackend, detail: backendDetail(err)})
		return err
	case uw.status == 0:
		return g.refuse(w, v, errNoAnswer)
	default:
		g.logRefusal(v, answer{status: uw.status, reason: reasonBackend, detail: "answered " + strconv.Itoa(uw.status)})
		return nil
	}
}

// upgradeWriter passes on every answer to a handshake but a 101: that one it
// makes itself, when ws_tunnel hands the backend's connection over.
type upgradeWriter struct {
	http.ResponseWriter
	gate  *Gate
	visit *visit

	status    int  // what was answered in place of a 101
	switching bool // somebody else announced a 101
	upgraded  bool // the 101 is out, and nothing else may be
}

// errTokenChosen keeps a token that was forwarded out of the 101.
var errTokenChosen = errors.New("the backend chose the token for its subprotocol")

// accept completes the handshake: the 101 goes out, and both connections go
// to a tunnel. When it fails, the backend's connection is still the caller's.
func (w *upgradeWriter) accept(b *accepted) error {
	if w.upgraded {
		return http.ErrHijacked // reverse_proxy tried again after a client that was gone
	}
	if w.visit.place.lost() {
		return errEvicted
	}
	if chosen := b.header.Get("Sec-Websocket-Protocol"); chosen != "" && w.gate.ForwardToken {
		rest, pair := w.gate.besideToken(w.visit)
		if chosen != pair && !slices.Contains(rest, chosen) {
			return errTokenChosen
		}
	}
	a := w.gate.accepted(w.visit, b)
	a.Subprotocol = w.answer(b.header)
	w.upgraded = true
	w.ResponseWriter.WriteHeader(http.StatusSwitchingProtocols)
	conn, brw, err := hijackInnermost(w.ResponseWriter)
	if err != nil {
		a.Release()
		return fmt.Errorf("taking over the client's connection: %w", err)
	}
	a.Client, a.ClientEarly = conn, buffered(brw.Reader)
	w.gate.open(w.visit, a)
	return nil
}

// answer makes the backend's 101 the gate's own, and returns the subprotocol
// it names.
func (w *upgradeWriter) answer(of http.Header) (subprotocol string) {
	header := w.Header()
	for name, values := range of {
		if !slices.Contains(hopByHop, name) {
			header[name] = append(header[name], values...)
		}
	}
	header["Connection"] = []string{"Upgrade"}
	header["Upgrade"] = []string{"websocket"}
	if chosen := header["Sec-Websocket-Protocol"]; len(chosen) > 0 {
		subprotocol = chosen[0]
	} else if pair := w.visit.presented.PairPrefix; pair != "" {
		// The backend chose nothing and never saw this offer; Chromium fails a
		// socket whose offer gets no answer (S-123).
		subprotocol = pair
		header["Sec-Websocket-Protocol"] = []string{pair}
	}
	// RFC 6455 spells these so, and some clients insist.
	for canonical, spelled := range websocketFields {
		if values, ok := header[canonical]; ok {
			delete(header, canonical)
			header[spelled] = values
		}
	}
	return subprotocol
}

// hopByHop are the fields of a backend's 101 that are not for the client: a
// 101 has no content (RFC 9110 §15.2.2), and the gate says for itself what
// concerns the connection.
var hopByHop = []string{
	"Connection", "Content-Length", "Keep-Alive", "Proxy-Authenticate", "Proxy-Connection",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// websocketFields are the fields of a 101 that Go spells in a way of its own.
var websocketFields = map[string]string{
	"Sec-Websocket-Accept":     "Sec-WebSocket-Accept",
	"Sec-Websocket-Extensions": "Sec-WebSocket-Extensions",
	"Sec-Websocket-Protocol":   "Sec-WebSocket-Protocol",
}

// Unwrap lets http.ResponseController reach what this writer does not do.
func (w *upgradeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader passes on every status but 101, which only accept sends.
func (w *upgradeWriter) WriteHeader(status int) {
	switch {
	case w.upgraded:
		return // reverse_proxy finishes with the transport's dummy
	case status == http.StatusSwitchingProtocols:
		w.switching = true
		return
	case w.visit.place.lost():
		return // the answer is about the eviction, not what came of it
	case status >= 200 && w.status == 0:
		w.status = status
		w.Header().Set("Connection", "close") // S-86
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write passes on the body of an answer that is not a 101.
func (w *upgradeWriter) Write(p []byte) (int, error) {
	switch {
	case w.upgraded:
		return len(p), nil
	case w.switching || w.visit.place.lost():
		return 0, http.ErrNotSupported
	case w.status == 0:
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// FlushError implements the flushing of http.ResponseController: nothing is
// left to flush once the connection is a tunnel's.
func (w *upgradeWriter) FlushError() error {
	if w.upgraded || w.switching {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack always fails: only ws_tunnel leads to a guarded socket. What was to
// be the 101 is forgotten.
func (w *upgradeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !w.upgraded {
		w.dropAnswer()
	}
	return nil, nil, http.ErrNotSupported
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

// accepted is the socket to be, all but the client's side. What it shares with
// the user's other sockets it holds from here on: before the client knows that
// it is in. Of the claims it takes copies: they are pieces of the token's whole
// payload, which would stay with them.
func (g *Gate) accepted(v *visit, b *accepted) tunnel.Accepted {
	a := tunnel.Accepted{
		Identity: tunnel.Identity{
			ID:        v.id,
			Tunnel:    g.TunnelName,
			User:      strings.Clone(v.token.User),
			Issuer:    v.token.Issuer,
			TokenID:   strings.Clone(v.token.ID),
			SessionID: strings.Clone(v.token.SessionID),
			ClientIP:  v.clientIP(),
			Upstream:  b.upstream,
			Expires:   v.token.Expires,
		},
		Policy:       g.policy,
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
	a.Release = releaseAll(g.releaseSlots(v.id), releaseMessages, releaseBytes)
	return a
}

// open starts the tunnel.
func (g *Gate) open(v *visit, a tunnel.Accepted) {
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
func (g *Gate) lifetime(expires, now time.Time) (time.Duration, *tunnel.Cause) {
	lifetime, cause := time.Duration(g.MaxLifetime), &tunnel.CauseLifetime
	if g.OnExpiry == onExpiryKeep {
		return lifetime, cause
	}
	// Sub stays within a Duration, also for a token that is good until 9999.
	left := expires.Add(time.Duration(*g.Leeway)).Add(time.Duration(g.ExpiryGrace)).Sub(now)
	left = max(left, time.Millisecond)
	if lifetime == 0 || left < lifetime {
		return left, &tunnel.CauseExpired
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
