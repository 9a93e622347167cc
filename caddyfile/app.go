package caddyfile

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2"
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
//	    store <name> [<arguments...>] { … }
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
		var err error
		switch {
		case o.name == "store" && app.StoreRaw == nil:
			app.StoreRaw, err = o.store()
		case o.name == "drain" && app.Drain == nil:
			app.Drain = new(module.Drain)
			err = o.drain(app.Drain)
		case o.name == "store" || o.name == "drain":
			err = o.Errf("%s: is set already", o.name)
		default:
			err = o.Errf("unrecognized ws_gate option %q", o.name)
		}
		if err != nil {
			return nil, err
		}
	}
	return httpcaddyfile.App{Name: "ws_gate", Value: caddyconfig.JSON(app, nil)}, nil
}

// store parses the module that counts live sockets.
func (o option) store() (json.RawMessage, error) {
	if !o.NextArg() {
		return nil, o.Errf("store: its name is missing")
	}
	name := o.Val()
	info, err := caddy.GetModule("ws_gate.stores." + name)
	if err != nil {
		return nil, o.Errf("store: there is none named %q", name)
	}
	store := info.New()
	switch store := store.(type) {
	case *module.RedisStore:
		err = o.redis(store)
	case caddyfile.Unmarshaler:
		err = store.UnmarshalCaddyfile(o.NewFromNextSegment())
	default:
		err = o.noBlock()
	}
	if err != nil {
		return nil, err
	}
	return caddyconfig.JSONModuleObject(store, "module", name, nil), nil
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
