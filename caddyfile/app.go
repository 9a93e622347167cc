package caddyfile

import (
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/wsgate/caddy-wsgate/module"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("ws_gate", parseApp)
}

// parseApp sets up the app from the global option. Syntax:
//
//	ws_gate {
//	    drain {
//	        spread <duration>
//	        grace  <duration>
//	    }
//	}
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		return nil, d.Err("ws_gate: is set already")
	}
	app := new(module.App)
	d.Next() // the option's name
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	for d.NextBlock(0) {
		o := option{Dispenser: d.NewFromNextSegment()}
		o.Next()
		o.name = o.Val()
		if o.name != "drain" {
			return nil, o.Errf("unrecognized ws_gate option %q", o.name)
		}
		if app.Drain != nil {
			return nil, o.Errf("drain: is set already")
		}
		app.Drain = new(module.Drain)
		if err := o.drain(app.Drain); err != nil {
			return nil, err
		}
	}
	return httpcaddyfile.App{Name: "ws_gate", Value: caddyconfig.JSON(app, nil)}, nil
}

func (o option) drain(drain *module.Drain) error {
	if o.NextArg() {
		return o.Errf("drain: unexpected argument %q", o.Val())
	}
	for o.NextBlock(0) {
		inner := option{Dispenser: o.NewFromNextSegment()}
		inner.Next()
		inner.name = inner.Val()
		var err error
		switch inner.name {
		case "spread":
			err = inner.optionalDuration(&drain.Spread)
		case "grace":
			err = inner.optionalDuration(&drain.Grace)
		default:
			err = inner.Errf("unrecognized drain option %q", inner.name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
