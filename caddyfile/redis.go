package caddyfile

import (
	"time"

	"github.com/wsgate/caddy-wsgate/module"
)

// redis parses the store of several nodes. Syntax:
//
//	store redis <url...> {
//	    prefix          <text>
//	    on_error        local|deny
//	    timeout         <duration>
//	    sentinel        <master> [<password>]
//	    cluster
//	    tls_ca          <file>
//	    tls_certificate <file> <key file>
//	}
func (o option) redis(r *module.RedisStore) error {
	for o.NextArg() {
		if err := o.valid(o.Val(), module.CheckRedisURL); err != nil {
			return err
		}
		r.URLs = append(r.URLs, o.Val())
	}
	if len(r.URLs) == 0 {
		return o.Errf("store: the URL of Redis is missing")
	}
	set := make(map[string]bool)
	for o.NextBlock(0) {
		inner := option{Dispenser: o.NewFromNextSegment()}
		inner.Next()
		inner.name = inner.Val()
		if set[inner.name] {
			return inner.Errf("%s: is set already", inner.name)
		}
		set[inner.name] = true
		if err := inner.redisOption(r); err != nil {
			return err
		}
	}
	if err := r.CheckKind(); err != nil {
		return o.back().Errf("store: %v", err)
	}
	return nil
}

func (o option) redisOption(r *module.RedisStore) error {
	switch o.name {
	case "prefix":
		return o.word(&r.Prefix)
	case "on_error":
		return o.oneOf(&r.OnError, "local", "deny")
	case "timeout":
		if err := o.atLeast(&r.Timeout, time.Millisecond); err != nil {
			return err
		}
		if d := time.Duration(r.Timeout); d > time.Second {
			return o.Errf("timeout: %s is more than 1s, by which a handshake may be delayed", d)
		}
		return nil
	case "sentinel":
		return o.sentinel(r)
	case "cluster":
		return o.flag(&r.Cluster)
	case "tls_ca":
		return o.word(&r.TLSCA)
	case "tls_certificate":
		if !o.AllArgs(&r.TLSCertificate, &r.TLSKey) {
			return o.Errf("tls_certificate: needs the file of the certificate and that of its key")
		}
		return o.noBlock()
	default:
		return o.Errf("unrecognized redis option %q", o.name)
	}
}

// sentinel does not repeat what may be a password.
func (o option) sentinel(r *module.RedisStore) error {
	args := o.RemainingArgs()
	if len(args) < 1 || len(args) > 2 || args[0] == "" {
		return o.Errf("sentinel: needs the name of the master, and at most a password")
	}
	r.Sentinel = &module.Sentinel{Master: args[0]}
	if len(args) == 2 {
		r.Sentinel.Password = args[1]
	}
	return o.noBlock()
}
