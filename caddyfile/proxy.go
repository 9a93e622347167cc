package caddyfile

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func init() {
	httpcaddyfile.RegisterDirective("ws_proxy", parseProxy)
	httpcaddyfile.RegisterDirectiveOrder("ws_proxy", httpcaddyfile.Before, "reverse_proxy")
}

// parseProxy parses ws_proxy, which is ws_gate and behind it a reverse_proxy
// with the transport ws_tunnel:
//
//	ws_proxy [<matcher>] <upstreams...> {
//	    <options of ws_gate...>
//	    <options of reverse_proxy...>
//	}
//
// A `transport http` in it is understood as ws_tunnel, which has the same
// options.
func parseProxy(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	h.Next() // the directive's name again: looking for the matcher went back to the start
	gate, rest, err := splitProxy(h.NewFromNextSegment())
	if err != nil {
		return nil, err
	}
	proxy := new(reverseproxy.Handler)
	if err := proxy.UnmarshalCaddyfile(rest); err != nil {
		return nil, err
	}
	if err := proxy.FinalizeUnmarshalCaddyfile(h); err != nil {
		return nil, err
	}
	if err := tunnelled(proxy); err != nil {
		return nil, h.Errf("ws_proxy: %v", err)
	}
	route := caddyhttp.Route{HandlersRaw: []json.RawMessage{
		caddyconfig.JSONModuleObject(gate.gate, "handler", "ws_gate", nil),
		caddyconfig.JSONModuleObject(proxy, "handler", "reverse_proxy", nil),
	}}
	if matcher != nil {
		route.MatcherSetsRaw = []caddy.ModuleMap{matcher}
	}
	return []httpcaddyfile.ConfigValue{{Class: "route", Value: route}}, nil
}

// splitProxy parses the gate's options of a ws_proxy and returns a dispenser
// with what is left for reverse_proxy.
func splitProxy(d *caddyfile.Dispenser) (*gateParser, *caddyfile.Dispenser, error) {
	p := newGateParser()
	d.Next() // the directive's name
	rest := []caddyfile.Token{d.Token()}
	for d.NextArg() {
		rest = append(rest, d.Token())
	}
	// Braces like the directive's name: those of an upstream in quotes would be
	// quoted too, and open no block.
	open, end := rest[0], rest[0]
	open.Text, end.Text = "{", "}"
	open.Line = rest[len(rest)-1].Line
	rest = append(rest, open)
	for d.NextBlock(0) {
		segment := d.NextSegment()
		if segment[0].Text == "transport" && len(segment) > 1 && !tunnels(segment[1].Text) {
			d := caddyfile.NewDispenser(segment)
			d.Next()
			return nil, nil, d.Errf("transport: %v", errTransport)
		}
		if !isGateOption(segment[0].Text) {
			rest = append(rest, segment...)
			continue
		}
		if err := p.option(caddyfile.NewDispenser(segment)); err != nil {
			return nil, nil, err
		}
	}
	if err := p.complete(d); err != nil {
		return nil, nil, err
	}
	if len(rest) > 1 && rest[len(rest)-1].Text == "{" {
		rest = rest[:len(rest)-1] // nothing but the gate's options
	} else {
		end.Line = rest[len(rest)-1].Line + 1
		rest = append(rest, end)
	}
	return p, caddyfile.NewDispenser(rest), nil
}

// tunnels reports whether a transport of this name becomes ws_tunnel.
func tunnels(transport string) bool { return transport == "http" || transport == "ws_tunnel" }

// tunnelled gives the proxy the transport ws_tunnel.
func tunnelled(proxy *reverseproxy.Handler) error {
	transport := map[string]any{}
	if proxy.TransportRaw != nil {
		if err := json.Unmarshal(proxy.TransportRaw, &transport); err != nil {
			return err
		}
	}
	transport["protocol"] = "ws_tunnel"
	proxy.TransportRaw = caddyconfig.JSON(transport, nil)
	return leastConn(proxy)
}

// leastConn makes `lb_policy least_conn` mean the one that counts sockets.
func leastConn(proxy *reverseproxy.Handler) error {
	if proxy.LoadBalancing == nil || proxy.LoadBalancing.SelectionPolicyRaw == nil {
		return nil
	}
	var policy map[string]any
	if err := json.Unmarshal(proxy.LoadBalancing.SelectionPolicyRaw, &policy); err != nil {
		return err
	}
	if policy["policy"] == "least_conn" {
		policy["policy"] = "ws_least_conn"
		proxy.LoadBalancing.SelectionPolicyRaw = caddyconfig.JSON(policy, nil)
	}
	return nil
}
