package module

import (
	"errors"
	"net/http"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/handshake"
)

// The vocabulary of contract §5: results of handshakes in metrics, reasons in
// the refusal log and in {http.ws_gate.reject.reason}.
const (
	resultAccepted = "accepted"

	reasonBadRequest    = "bad_request"
	reasonBadVersion    = "bad_version"
	reasonOrigin        = "origin"
	reasonNoToken       = "no_token"
	reasonSeveralTokens = "several_tokens"
	reasonInvalidToken  = "invalid_token"
	reasonNoKeys        = "no_keys"
	reasonRevoked       = "revoked"
	reasonClaims        = "claims"
	reasonRate          = "rate"
	reasonCap           = "cap"
	reasonStore         = "store"
	reasonDraining      = "draining"
	reasonUnsupported   = "unsupported"
	reasonBackend       = "backend"
)

// What the gate refuses by itself.
var (
	errExtendedConnect = errors.New("WebSockets over HTTP/2 and HTTP/3 are not supported yet: let clients use HTTP/1.1 (servers { protocols h1 })")
	errRequirement     = errors.New("a required claim is missing or has another value")
	errNoTunnel        = errors.New("no ws_tunnel behind the gate: configure `transport ws_tunnel` in the reverse_proxy, or use ws_proxy")
	errNoAnswer        = errors.New("no handler behind the gate answered the handshake")
)

// answer is what the client gets for an error.
type answer struct {
	status int
	reason string
	detail string // for the log only
	header http.Header
	known  bool // the client had shown its token
}

// hintHeader tells a developer what no browser shows of a failed handshake.
const hintHeader = "X-Ws-Gate-Hint"

// retryAfter is the answer's guess, in seconds, at when keys are there again.
const retryAfter = "5"

// answerTo maps errors to answers: the statuses of contract §3, the challenges
// of RFC 6750 §3. Causes go to the log, never to the client.
func (g *Gate) answerTo(err error) answer {
	var bad *handshake.Error
	var limited *limitError
	switch {
	case errors.As(err, &bad):
		return badHandshake(bad)
	case errors.Is(err, auth.ErrNoToken):
		return answer{status: http.StatusUnauthorized, reason: reasonNoToken, header: g.challenge("")}
	case errors.Is(err, auth.ErrSeveralTokens):
		return answer{status: http.StatusBadRequest, reason: reasonSeveralTokens}
	case errors.Is(err, auth.ErrLoneSubprotocol):
		return answer{
			status: http.StatusBadRequest, reason: reasonBadRequest, detail: auth.Detail(err),
			header: http.Header{hintHeader: {"offer one more subprotocol beside the token: a browser fails without an answer"}},
		}
	case errors.Is(err, errStore):
		return answer{status: http.StatusServiceUnavailable, reason: reasonStore, detail: err.Error(), header: http.Header{"Retry-After": {retryAfter}}}
	case errors.Is(err, errDraining):
		return drainingAnswer()
	case errors.Is(err, errRevoked):
		return answer{status: http.StatusUnauthorized, reason: reasonRevoked, header: g.challenge("invalid_token")}
	case errors.As(err, &limited):
		return limited.answer()
	case errors.Is(err, errRequirement), errors.Is(err, errCapNumber):
		return answer{status: http.StatusForbidden, reason: reasonClaims, detail: err.Error(), header: g.challenge("insufficient_scope")}
	case errors.Is(err, auth.ErrKeysUnavailable):
		return answer{status: http.StatusServiceUnavailable, reason: reasonNoKeys, detail: auth.Detail(err), header: http.Header{"Retry-After": {retryAfter}}}
	case errors.Is(err, errExtendedConnect), errors.Is(err, errNoTunnel):
		return answer{status: http.StatusNotImplemented, reason: reasonUnsupported, detail: err.Error()}
	case errors.Is(err, errNoAnswer):
		return answer{status: http.StatusBadGateway, reason: reasonBackend, detail: err.Error()}
	default:
		// ErrInvalidToken, and a claim that no header can carry.
		return answer{status: http.StatusUnauthorized, reason: reasonInvalidToken, detail: auth.Detail(err), header: g.challenge("invalid_token")}
	}
}

// closable reports whether the refusal is one that on_reject close turns into
// a close frame: Origin, and everything from the token on.
func (a answer) closable() bool {
	switch a.reason {
	case reasonOrigin, reasonNoToken, reasonSeveralTokens, reasonInvalidToken, reasonRevoked, reasonNoKeys, reasonClaims, reasonCap, reasonStore:
		return true
	case reasonRate:
		return a.known
	}
	return false
}

// badHandshake is the answer to a request that breaks RFC 6455 §4.2.1 or
// comes from where it may not.
func badHandshake(err *handshake.Error) answer {
	a := answer{status: err.Status, reason: reasonBadRequest, detail: err.Detail}
	switch err.Status {
	case http.StatusMethodNotAllowed:
		a.header = http.Header{"Allow": {http.MethodGet}}
	case http.StatusUpgradeRequired:
		a.reason = reasonBadVersion
		// RFC 6455 §4.2.2 and RFC 9110 §15.5.22.
		a.header = http.Header{"Sec-WebSocket-Version": {"13"}, "Upgrade": {"websocket"}}
	case http.StatusForbidden:
		a.reason = reasonOrigin
	}
	return a
}

// challenge is the WWW-Authenticate of RFC 6750 §3.
func (g *Gate) challenge(code string) http.Header {
	value := `Bearer realm="` + g.realm + `"`
	if code != "" {
		value += `, error="` + code + `"`
	}
	return http.Header{"Www-Authenticate": {value}}
}

// refuse answers a request that failed a check. The status is set by Caddy's
// error handling, so that handle_errors applies.
func (g *Gate) refuse(w http.ResponseWriter, v *visit, err error) error {
	a := g.answerTo(err)
	header := w.Header()
	for name, values := range a.header {
		header[name] = values
	}
	if v.handshake {
		// What the client sent behind its handshake is frames, not a request
		// (S-90).
		header.Set("Connection", "close")
	}
	if repl := v.replacer(); repl != nil {
		repl.Set("http.ws_gate.reject.reason", a.reason)
	}
	g.logRefusal(v, a)
	if v.handshake && g.OnReject == onRejectClose && a.closable() {
		return g.refuseByClose(w, v, a)
	}
	return caddyhttp.Error(a.status, errors.New(a.reason))
}

// logRefusal writes the one line that a refusal gets.
func (g *Gate) logRefusal(v *visit, a answer) {
	level, message := zapcore.InfoLevel, "handshake refused"
	if !v.handshake {
		message = "request refused"
	}
	if a.reason == reasonUnsupported {
		level = zapcore.ErrorLevel // the operator has to change something
	}
	if v.handshake {
		metrics.handshakes.WithLabelValues(g.TunnelName, a.reason).Inc()
		emit(eventRefused, func() map[string]any { return eventData(g.refusalFields(v, a)) })
	}
	if c := g.logger.Check(level, message); c != nil {
		c.Write(g.refusalFields(v, a)...)
	}
}

// refusalFields are the fields of the line about a refusal.
func (g *Gate) refusalFields(v *visit, a answer) []zapcore.Field {
	fields := []zapcore.Field{
		zap.String("reason", a.reason),
		zap.Int("status", a.status),
		zap.String("tunnel", g.TunnelName),
		zap.String("client_ip", v.clientIP()),
	}
	if a.detail != "" {
		fields = append(fields, zap.String("detail", a.detail))
	}
	if v.token != nil {
		fields = append(fields, zap.String("user_id", v.token.User), zap.String("issuer", v.token.Issuer))
	}
	return fields
}
