package caddyfile

import (
	"slices"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/handshake"
	"github.com/wsgate/caddy-wsgate/module"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("ws_gate", parseGate)
	// Behind the standard directives that authenticate, before all that
	// answer.
	httpcaddyfile.RegisterDirectiveOrder("ws_gate", httpcaddyfile.After, "forward_auth")
}

// parseGate sets up the handler from Caddyfile tokens. Syntax:
//
//	ws_gate [<matcher>] {
//	    issuer           <name> { … }
//	    leeway           <duration>
//	    from_header      <fields...>
//	    from_query       <parameters...>
//	    from_cookies     <names...>
//	    from_subprotocol <prefixes...>
//	    forward_token
//	    user_claim       <claim>
//	    require          <claim> <values...>
//	    identity         <header> <claim>
//	    origins          <origins...>
//	    missing_origin   allow|deny
//	    handshake_rate   <number>/<duration> [burst <number>] [by ip|user|<placeholder>] [shared]
//	    max_connections  <number>|<placeholder> [by user|ip|<placeholder>] [reject|evict_oldest]
//	    message_rate     <number>/<duration> [burst <number>] [delay|close] [by socket|user]
//	    byte_rate        <size>/<duration> [burst <size>] [delay|close] [by socket|user]
//	    max_message_size <size>
//	    ping_interval    <duration>
//	    pong_timeout     <duration>
//	    idle_timeout     <duration>
//	    max_lifetime     <duration>
//	    on_expiry        close|keep
//	    expiry_grace     <duration>
//	    on_removal       keep|drain
//	    on_reject        http|close
//	    tunnel_name      <name>
//	}
func parseGate(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	d := h.Dispenser
	d.Next() // the directive's name
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	p := newGateParser()
	for d.NextBlock(0) {
		if err := p.option(d.NewFromNextSegment()); err != nil {
			return nil, err
		}
	}
	if err := p.complete(d); err != nil {
		return nil, err
	}
	return p.gate, nil
}

// gateParser fills in a gate, option by option.
type gateParser struct {
	gate *module.Gate
	seen map[string]bool // options that may stand once
}

func newGateParser() *gateParser {
	return &gateParser{gate: new(module.Gate), seen: make(map[string]bool)}
}

// gateOptions are the options of ws_gate, by name.
var gateOptions = map[string]func(p *gateParser, o option) error{
	"issuer":           (*gateParser).issuer,
	"leeway":           func(p *gateParser, o option) error { return o.optionalDuration(&p.gate.Leeway) },
	"from_header":      func(p *gateParser, o option) error { return o.names(&p.gate.FromHeader, auth.ValidateHeader) },
	"from_query":       func(p *gateParser, o option) error { return o.names(&p.gate.FromQuery, auth.ValidateQuery) },
	"from_cookies":     func(p *gateParser, o option) error { return o.names(&p.gate.FromCookies, auth.ValidateCookie) },
	"from_subprotocol": func(p *gateParser, o option) error { return o.names(&p.gate.FromSubprotocol, auth.ValidateSubprotocol) },
	"forward_token":    func(p *gateParser, o option) error { return p.once(o, o.flag(&p.gate.ForwardToken)) },
	"user_claim":       func(p *gateParser, o option) error { return p.once(o, o.word(&p.gate.UserClaim)) },
	"require":          (*gateParser).require,
	"identity":         (*gateParser).identity,
	"origins":          (*gateParser).origins,
	"missing_origin":   func(p *gateParser, o option) error { return p.once(o, o.oneOf(&p.gate.MissingOrigin, "allow", "deny")) },
	"handshake_rate":   (*gateParser).handshakeRate,
	"max_connections":  (*gateParser).maxConnections,
	"message_rate":     func(p *gateParser, o option) error { return p.once(o, o.flowRate(&p.gate.MessageRate, countOf)) },
	"byte_rate":        func(p *gateParser, o option) error { return p.once(o, o.flowRate(&p.gate.ByteRate, sizeOf)) },
	"max_message_size": func(p *gateParser, o option) error { return p.once(o, o.size(&p.gate.MaxMessageSize)) },
	"ping_interval":    func(p *gateParser, o option) error { return o.optionalDuration(&p.gate.PingInterval) },
	"pong_timeout":     func(p *gateParser, o option) error { return o.optionalDuration(&p.gate.PongTimeout) },
	"idle_timeout":     func(p *gateParser, o option) error { return p.once(o, o.duration(&p.gate.IdleTimeout)) },
	"max_lifetime":     func(p *gateParser, o option) error { return p.once(o, o.duration(&p.gate.MaxLifetime)) },
	"on_expiry":        func(p *gateParser, o option) error { return p.once(o, o.oneOf(&p.gate.OnExpiry, "close", "keep")) },
	"expiry_grace":     func(p *gateParser, o option) error { return p.once(o, o.duration(&p.gate.ExpiryGrace)) },
	"on_removal":       func(p *gateParser, o option) error { return p.once(o, o.oneOf(&p.gate.OnRemoval, "keep", "drain")) },
	"on_reject":        func(p *gateParser, o option) error { return p.once(o, o.oneOf(&p.gate.OnReject, "http", "close")) },
	"tunnel_name": func(p *gateParser, o option) error {
		return p.once(o, o.checked(&p.gate.TunnelName, module.CheckTunnelName))
	},
}

// isGateOption reports whether ws_gate has an option of this name.
func isGateOption(name string) bool { return gateOptions[name] != nil }

// option parses one option, which is all that d holds.
func (p *gateParser) option(d *caddyfile.Dispenser) error {
	d.Next()
	o := option{Dispenser: d, name: d.Val()}
	parse := gateOptions[o.name]
	if parse == nil {
		return d.Errf("unrecognized ws_gate option %q", o.name)
	}
	return parse(p, o)
}

// once refuses an option that stands a second time, and passes on what its
// parsing found otherwise.
func (p *gateParser) once(o option, err error) error {
	if p.seen[o.name] {
		return o.Errf("%s: is set already", o.name)
	}
	p.seen[o.name] = true
	return err
}

func (p *gateParser) require(o option) error {
	args := o.RemainingArgs()
	if len(args) < 2 || slices.Contains(args, "") {
		return o.Errf("require: takes a claim and at least one value, none of them empty")
	}
	p.gate.Require = append(p.gate.Require, module.Requirement{Claim: args[0], Values: args[1:]})
	return o.noBlock()
}

func (p *gateParser) identity(o option) error {
	args := o.RemainingArgs()
	if len(args) != 2 {
		return o.Errf("identity: takes a header and a claim")
	}
	identity := module.IdentityHeader{Header: args[0], Claim: args[1]}
	p.gate.Identity = append(p.gate.Identity, identity)
	all := make(handshake.Identity, len(p.gate.Identity))
	for n, header := range p.gate.Identity {
		all[n] = handshake.IdentityHeader(header)
	}
	if err := all.Validate(); err != nil {
		return o.Errf("identity: %v", err)
	}
	return o.noBlock()
}

func (p *gateParser) origins(o option) error {
	return o.words(&p.gate.Origins, func(entry string) error {
		_, err := handshake.ParseOrigins([]string{entry})
		return err
	})
}

// complete checks what no single option shows. d holds the directive.
func (p *gateParser) complete(d *caddyfile.Dispenser) error {
	if len(p.gate.Issuers) == 0 {
		d.Reset()
		d.Next()
		return d.Errf("%s: an issuer is required", d.Val())
	}
	return nil
}
