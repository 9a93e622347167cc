package module

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/handshake"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// Defaults of contract §2.
const (
	defaultLeeway       = 10 * time.Second
	defaultPingInterval = 30 * time.Second
	defaultPongTimeout  = 10 * time.Second
	defaultUserClaim    = "sub"
	defaultUserHeader   = "X-User-Id"
	defaultTunnelName   = "default"
)

// Words that options take.
const (
	missingOriginAllow = "allow"
	missingOriginDeny  = "deny"
	onExpiryClose      = "close"
	onExpiryKeep       = "keep"
	onRemovalKeep      = "keep"
	onRemovalDrain     = "drain"
	onRejectHTTP       = "http"
	onRejectClose      = "close"
)

// Provision implements caddy.Provisioner. It reads files where the config
// names some, and makes no request.
func (g *Gate) Provision(ctx caddy.Context) error {
	g.logger = ctx.Logger()
	iface, err := ctx.App("ws_gate")
	if err != nil {
		return fmt.Errorf("loading app ws_gate: %w", err)
	}
	app := iface.(*App)
	g.store = app.store
	for _, provision := range []func() error{
		g.expand,
		g.provisionName,
		g.provisionCarriers,
		g.provisionIdentity,
		g.provisionOrigins,
		g.provisionPolicy,
		g.provisionLimits,
		func() error { return g.provisionIssuers(app) },
	} {
		if err := provision(); err != nil {
			return err
		}
	}
	app.gates = append(app.gates, g)
	return nil
}

// expand replaces the global placeholders in what the operator wrote; those of
// an issuer are expanded with it.
func (g *Gate) expand() error {
	texts := map[string][]*string{"tunnel_name": {&g.TunnelName}, "user_claim": {&g.UserClaim}}
	add := func(option string, values []string) {
		for n := range values {
			texts[option] = append(texts[option], &values[n])
		}
	}
	add("from_header", g.FromHeader)
	add("from_query", g.FromQuery)
	add("from_cookies", g.FromCookies)
	add("from_subprotocol", g.FromSubprotocol)
	add("origins", g.Origins)
	for n := range g.Require {
		texts["require"] = append(texts["require"], &g.Require[n].Claim)
		add("require", g.Require[n].Values)
	}
	for n := range g.Identity {
		texts["identity"] = append(texts["identity"], &g.Identity[n].Header, &g.Identity[n].Claim)
	}
	repl := caddy.NewReplacer()
	for option, values := range texts {
		for _, value := range values {
			expanded, err := repl.ReplaceOrErr(*value, true, true)
			if err != nil {
				return fmt.Errorf("%s: %w", option, err)
			}
			*value = expanded
		}
	}
	return nil
}

// Cleanup gives back what Provision took, which may be only a part.
func (g *Gate) Cleanup() error {
	for _, key := range g.keys {
		if _, err := sources.Delete(key); err != nil {
			return err
		}
	}
	g.keys = nil
	for _, key := range g.tables {
		if _, err := tables.Delete(key); err != nil {
			return err
		}
	}
	g.tables = nil
	return nil
}

// tunnelName is what may stand in a label and in a quoted string alike.
var tunnelName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}$`)

func (g *Gate) provisionName() error {
	if g.TunnelName == "" {
		g.TunnelName = defaultTunnelName
	}
	if err := CheckTunnelName(g.TunnelName); err != nil {
		return fmt.Errorf("tunnel_name: %w", err)
	}
	g.realm = g.TunnelName
	return nil
}

// CheckTunnelName refuses what can't be a tunnel_name.
func CheckTunnelName(name string) error {
	if !tunnelName.MatchString(name) {
		return fmt.Errorf("%q is not of letters, digits and _.:/- (at most 64)", name)
	}
	return nil
}

func (g *Gate) provisionCarriers() error {
	g.carriers = auth.Carriers{Headers: g.FromHeader, Query: g.FromQuery, Cookies: g.FromCookies, Subprotocols: g.FromSubprotocol}
	if len(g.FromHeader)+len(g.FromQuery)+len(g.FromCookies)+len(g.FromSubprotocol) == 0 {
		g.carriers = auth.DefaultCarriers()
	}
	return g.carriers.Validate()
}

func (g *Gate) provisionIdentity() error {
	if g.UserClaim == "" {
		g.UserClaim = defaultUserClaim
	}
	g.identity = handshake.Identity{{Header: defaultUserHeader, Claim: g.UserClaim}}
	if len(g.Identity) > 0 {
		g.identity = make(handshake.Identity, len(g.Identity))
		for n, header := range g.Identity {
			g.identity[n] = handshake.IdentityHeader{Header: header.Header, Claim: header.Claim}
		}
	}
	if err := g.identity.Validate(); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}

func (g *Gate) provisionOrigins() error {
	origins, err := handshake.ParseOrigins(g.Origins)
	if err != nil {
		return fmt.Errorf("origins: %w", err)
	}
	g.origins.Origins = origins
	switch g.MissingOrigin {
	case "", missingOriginAllow:
	case missingOriginDeny:
		g.origins.DenyMissing = true
	default:
		return fmt.Errorf("missing_origin: %q is neither %s nor %s", g.MissingOrigin, missingOriginAllow, missingOriginDeny)
	}
	return nil
}

func (g *Gate) provisionPolicy() error {
	for option, d := range map[string]caddy.Duration{
		"leeway": duration(&g.Leeway, defaultLeeway), "ping_interval": duration(&g.PingInterval, defaultPingInterval),
		"pong_timeout": duration(&g.PongTimeout, defaultPongTimeout), "idle_timeout": g.IdleTimeout,
		"max_lifetime": g.MaxLifetime, "expiry_grace": g.ExpiryGrace,
	} {
		if d < 0 {
			return fmt.Errorf("%s: %s is negative", option, time.Duration(d))
		}
	}
	switch g.OnExpiry {
	case "", onExpiryClose, onExpiryKeep:
	default:
		return fmt.Errorf("on_expiry: %q is neither %s nor %s", g.OnExpiry, onExpiryClose, onExpiryKeep)
	}
	switch g.OnRemoval {
	case "", onRemovalKeep, onRemovalDrain:
	default:
		return fmt.Errorf("on_removal: %q is neither %s nor %s", g.OnRemoval, onRemovalKeep, onRemovalDrain)
	}
	switch g.OnReject {
	case "", onRejectHTTP, onRejectClose:
	default:
		return fmt.Errorf("on_reject: %q is neither %s nor %s", g.OnReject, onRejectHTTP, onRejectClose)
	}
	for _, r := range g.Require {
		if r.Claim == "" || len(r.Values) == 0 {
			return errors.New("require: needs a claim and at least one value")
		}
	}
	g.policy = &tunnel.Policy{
		PingInterval: time.Duration(*g.PingInterval),
		PongTimeout:  time.Duration(*g.PongTimeout),
		IdleTimeout:  time.Duration(g.IdleTimeout),

		DrainOnRemoval: g.OnRemoval == onRemovalDrain,
	}
	return nil
}

// duration fills in the default of an option for which 0 has a meaning.
func duration(option **caddy.Duration, value time.Duration) caddy.Duration {
	if *option == nil {
		d := caddy.Duration(value)
		*option = &d
	}
	return **option
}

func (g *Gate) provisionIssuers(app *App) error {
	if len(g.Issuers) == 0 {
		return errors.New("issuer: at least one is required")
	}
	repl := caddy.NewReplacer()
	issuers := make([]*auth.Issuer, len(g.Issuers))
	names := make(map[string]bool)
	for n, config := range g.Issuers {
		if err := config.expand(repl); err != nil {
			return fmt.Errorf("issuer %q: %w", config.Name, err)
		}
		switch {
		case config.Name == "":
			return errors.New("issuer: a name is required, or `any`")
		case names[config.Name]:
			return fmt.Errorf("issuer %q: configured twice", config.Name)
		case config.Name == AnyIssuer && len(g.Issuers) > 1:
			return errors.New("issuer any: must be the only issuer")
		}
		names[config.Name] = true
		issuer, key, err := config.build(app)
		if err != nil {
			return fmt.Errorf("issuer %q: %w", config.Name, err)
		}
		g.keys = append(g.keys, key)
		issuers[n] = issuer
	}
	verifier, err := auth.NewVerifier(auth.VerifierConfig{
		Issuers: issuers, Leeway: time.Duration(*g.Leeway), UserClaim: g.UserClaim,
	})
	if err != nil {
		return err
	}
	g.verifier = verifier
	return nil
}
