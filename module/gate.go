package module

import (
	"net/http"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/handshake"
	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

func init() {
	caddy.RegisterModule(new(Gate))
}

// Gate is a handler that guards WebSocket backends with JSON Web Tokens. It
// checks the opening handshake (RFC 6455 §4.2.1), its origin and its token
// before anything reaches the backend, takes the token out of the request,
// tells the backend who is there by identity headers, and watches over the
// socket for as long as it lives.
//
// It stands in front of a reverse_proxy whose transport is ws_tunnel: once the
// backend has accepted, the socket leaves the request and costs next to
// nothing while it is idle, and config reloads do not touch it. Where such a
// transport is missing, and over HTTP/2 and HTTP/3, handshakes are refused
// with 501.
//
// Requests that are not handshakes (the polling of socket.io and SignalR,
// server-sent events) are held to the same origins and tokens.
//
// Placeholders, once a request is admitted:
//
//	{http.auth.user.id}               the user, see user_claim
//	{http.auth.user.<claim>}          a claim that is a string, number or boolean
//	{http.ws_gate.connection_id}      of a handshake, empty for other requests
//
// and for error routes, once it is refused:
//
//	{http.ws_gate.reject.reason}      bad_request, origin, no_token, invalid_token, …
type Gate struct {
	// Who may issue tokens, and with which keys. At least one; a token is
	// checked with the keys of the issuer that it names and no others.
	Issuers []*Issuer `json:"issuers,omitempty"`

	// How far clocks may differ when `exp`, `nbf` and `iat` are judged.
	// Default: 10s.
	Leeway *caddy.Duration `json:"leeway,omitempty"`

	// Header fields that may carry the token: `Authorization` with the Bearer
	// scheme (RFC 6750 §2.1); any other with the token as its whole value, or
	// behind "Bearer ". With no source at all configured: `Authorization`, and
	// the subprotocol `bearer`.
	FromHeader []string `json:"from_header,omitempty"`

	// Query parameters that may carry the token. URLs are logged in many
	// places: filter your logs with `ws_token`.
	FromQuery []string `json:"from_query,omitempty"`

	// Cookies that may carry the token. A browser sends them by itself, to
	// whichever page asks: a handshake whose token came from a cookie is
	// refused unless it has an allowed Origin.
	FromCookies []string `json:"from_cookies,omitempty"`

	// Subprotocols that may carry the token, for browsers, whose API lets them
	// set nothing else. `bearer` stands for the pair "bearer", "<token>" and
	// for "bearer.<token>"; a prefix that begins with `base64url.` and ends in
	// a dot is followed by the token in base64url.
	FromSubprotocol []string `json:"from_subprotocol,omitempty"`

	// Whether the token stays in the request where the client put it. Default:
	// false, the backend never sees it.
	ForwardToken bool `json:"forward_token,omitempty"`

	// The claim that names the user, as a path (`a.b.c`). It must be a
	// non-empty string, number or boolean, or the token is refused. Default:
	// `sub`.
	UserClaim string `json:"user_claim,omitempty"`

	// Claims that a token must have beside a good signature. Every entry must
	// hold; a token that lacks one gets 403.
	Require []Requirement `json:"require,omitempty"`

	// Headers that tell the backend who is there. Whatever the client sent
	// under these names, in any spelling, is removed. Default: `X-User-Id`
	// from the user claim; any entry replaces that.
	Identity []IdentityHeader `json:"identity,omitempty"`

	// The origins (RFC 6454) from which browsers may connect: `same_origin`,
	// `https://app.example.com`, or `https://*.example.org` where the asterisk
	// stands for one or more labels. Default: `same_origin`.
	Origins []string `json:"origins,omitempty"`

	// What to do with a handshake that has no Origin field, as those of
	// programs that are not browsers: `allow` (default) or `deny`.
	MissingOrigin string `json:"missing_origin,omitempty"`

	// How often requests may come, handshakes and others. Every entry applies.
	HandshakeRate []*HandshakeRate `json:"handshake_rate,omitempty"`

	// How many sockets may be open at once. Every entry applies.
	MaxConnections []*MaxConnections `json:"max_connections,omitempty"`

	// How many messages a client may send. Fragments of one count once,
	// control frames do not count. Default: no limit.
	MessageRate *FlowRate `json:"message_rate,omitempty"`

	// How many bytes of messages a client may send, as they are on the wire.
	// Default: no limit.
	ByteRate *FlowRate `json:"byte_rate,omitempty"`

	// How large a client's message may be, in bytes on the wire over all its
	// fragments. The client gets close code 1009 before any of the excess is
	// passed on. Default: 0, no limit.
	MaxMessageSize int64 `json:"max_message_size,omitempty"`

	// How often the client is pinged. Default: 30s; 0 turns pings off, and
	// with them the check whether the client still lives.
	PingInterval *caddy.Duration `json:"ping_interval,omitempty"`

	// How long after a ping was due a client without any sign of life is
	// given up. Default: 10s.
	PongTimeout *caddy.Duration `json:"pong_timeout,omitempty"`

	// How long a socket may go without a data message either way. Default: 0,
	// forever.
	IdleTimeout caddy.Duration `json:"idle_timeout,omitempty"`

	// How long a socket may live. Default: 0, as long as its token.
	MaxLifetime caddy.Duration `json:"max_lifetime,omitempty"`

	// What happens when the token of a live socket expires: `close` (default)
	// or `keep`.
	OnExpiry string `json:"on_expiry,omitempty"`

	// How long a socket may outlive its token, beyond `leeway`. Default: 0.
	ExpiryGrace caddy.Duration `json:"expiry_grace,omitempty"`

	// What happens to live sockets when no config has a gate of this name any
	// more: `keep` (default) leaves them to their lifetime, `drain` closes
	// them with 1012.
	OnRemoval string `json:"on_removal,omitempty"`

	// How a refused handshake is answered: `http` (default), with its status;
	// or `close`, which accepts the upgrade and at once sends a close frame,
	// because that is all a browser lets a page see: 3000 for a status of 401,
	// 3003 for 403, 1013 for 429 and 503, 1002 for 400. It applies to Origin
	// and from the token on, never to requests that are no good handshake.
	OnReject string `json:"on_reject,omitempty"`

	// The name of this gate in logs, metrics, the admin API and in the realm
	// of WWW-Authenticate. Default: `default`.
	TunnelName string `json:"tunnel_name,omitempty"`

	// What Provision makes of the above; not changed afterwards.
	carriers auth.Carriers
	verifier *auth.Verifier
	identity handshake.Identity
	origins  handshake.OriginPolicy
	policy   *tunnel.Policy
	realm    string
	store    store.Store
	keys     []string // of the sources in the pool, to be given back
	tables   []string // of the rates' tables, likewise
	logger   *zap.Logger
}

// Requirement is a claim and the values of which it must have one.
type Requirement struct {
	// The path of the claim, `a.b.c`.
	Claim string `json:"claim"`

	// The claim must equal one of these, or contain one: as an array, or as a
	// string of words separated by spaces, like `scope` (RFC 8693 §4.2).
	Values []string `json:"values"`
}

// IdentityHeader fills one header from one claim.
type IdentityHeader struct {
	// The header field, letters, digits and hyphens: `_` and `.` are refused,
	// since backends fold them into hyphens.
	Header string `json:"header"`

	// The path of the claim, `a.b.c`. Strings, numbers and booleans are passed
	// on as they are, arrays of them joined with commas. An absent claim
	// leaves the header absent.
	Claim string `json:"claim"`
}

// CaddyModule returns the Caddy module information.
func (*Gate) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.ws_gate",
		New: func() caddy.Module { return new(Gate) },
	}
}

// checks is what a request has to pass, in this order. Each returns nil, or
// an error that answer.go maps to what the client gets.
var checks = []func(*Gate, *visit) error{
	(*Gate).checkRequest,
	(*Gate).checkDraining,
	(*Gate).checkOrigin,
	(*Gate).checkRequestRate,
	(*Gate).findToken,
	(*Gate).checkAmbient,
	(*Gate).verifyToken,
	(*Gate).checkRevoked,
	(*Gate).identify,
	(*Gate).checkRequired,
	(*Gate).checkUserRate,
	(*Gate).takeSlots,
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	v := newVisit(r)
	defer v.leave()
	for _, check := range checks {
		if err := check(g, v); err != nil {
			return g.refuse(w, v, err)
		}
	}
	if v.handshake {
		return g.upgrade(w, v, next)
	}
	return next.ServeHTTP(plainWriter{w}, r)
}

// checkRequest holds the request to RFC 6455 §4.2.1.
func (g *Gate) checkRequest(v *visit) error {
	switch {
	case handshake.IsExtendedConnect(v.r):
		return errExtendedConnect
	case v.handshake:
		return handshake.Check(v.r)
	default:
		return handshake.CheckPlain(v.r)
	}
}

// checkOrigin judges where the request comes from.
func (g *Gate) checkOrigin(v *visit) error {
	scheme, host := requestOrigin(v.r)
	return handshake.CheckOrigin(v.r, g.origins, scheme, host, false)
}

// findToken looks for the one token of the request.
func (g *Gate) findToken(v *visit) (err error) {
	v.presented, err = g.carriers.Find(v.r)
	return err
}

// checkAmbient refuses a token that a browser may have sent by itself, unless
// the request says where it comes from (S-77).
func (g *Gate) checkAmbient(v *visit) error {
	if !v.presented.Ambient {
		return nil
	}
	scheme, host := requestOrigin(v.r)
	return handshake.CheckOrigin(v.r, g.origins, scheme, host, true)
}

// verifyToken checks the token with the keys of its issuer.
func (g *Gate) verifyToken(v *visit) (err error) {
	v.token, err = g.verifier.Verify(v.r.Context(), v.presented.Token)
	return err
}

// checkRequired holds the claims to what the operator requires.
func (g *Gate) checkRequired(v *visit) error {
	for _, r := range g.Require {
		if !v.token.Claims.Contains(r.Claim, r.Values) {
			return errRequirement
		}
	}
	return nil
}

// identify makes the request clean and tells the backend who is there. The
// order matters: what Connection names is removed before the identity is set,
// and the identity is set last of all.
func (g *Gate) identify(v *visit) error {
	if v.handshake {
		handshake.Clean(v.r)
	} else {
		handshake.CleanPlain(v.r)
		g.identity.WrapTrailers(v.r)
	}
	if !g.ForwardToken {
		g.carriers.Strip(v.r)
	}
	g.identity.Strip(v.r.Header)
	if err := g.identity.Set(v.r.Header, v.token.Claims.HeaderValue); err != nil {
		return err
	}
	v.setPlaceholders()
	return nil
}

// requestOrigin is the origin at which the client sees this server. What
// proxies in front say of it counts only where the server trusts them.
func requestOrigin(r *http.Request) (scheme, host string) {
	scheme, host = "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	if trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool); trusted {
		switch r.Header.Get("X-Forwarded-Proto") {
		case "https", "wss": // Traefik names the scheme of a handshake's own URL
			scheme = "https"
		case "http", "ws":
			scheme = "http"
		}
		if forwarded := r.Header.Get("X-Forwarded-Host"); forwarded != "" {
			host = forwarded
		}
	}
	return scheme, host
}

// Interface guards.
var (
	_ caddy.Provisioner           = (*Gate)(nil)
	_ caddy.CleanerUpper          = (*Gate)(nil)
	_ caddyhttp.MiddlewareHandler = (*Gate)(nil)
)
