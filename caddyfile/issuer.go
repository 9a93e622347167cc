package caddyfile

import (
	"strings"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/module"
)

// issuer parses one issuer. Syntax:
//
//	issuer <name>|any {
//	    jwks       <url>
//	    jwks_file  <path>
//	    secret     <base64>
//	    audience   <audiences...>|any
//	    algorithms <names...>
//	    typ        <types...>
//	    refresh    <duration>
//	    max_stale  <duration>
//	    cooldown   <duration>
//	    timeout    <duration>
//	    tls_ca     <path>
//	}
func (p *gateParser) issuer(o option) error {
	issuer := new(module.Issuer)
	if !o.NextArg() || o.Val() == "" {
		return o.Errf("issuer: its name is missing (the tokens' exact `iss`, or `any`)")
	}
	issuer.Name = o.Val()
	if o.NextArg() {
		return o.Errf("issuer: unexpected argument %q", o.Val())
	}
	for _, other := range p.gate.Issuers {
		switch {
		case other.Name == issuer.Name:
			return o.Errf("issuer: %q is configured already", issuer.Name)
		case other.Name == module.AnyIssuer || issuer.Name == module.AnyIssuer:
			return o.Errf("issuer any: must be the only issuer")
		}
	}
	seen := make(map[string]option)
	for o.NextBlock(0) {
		d := o.NewFromNextSegment()
		d.Next()
		inner := option{Dispenser: d, name: d.Val()}
		parse := issuerOptions[inner.name]
		if parse == nil {
			return d.Errf("unrecognized issuer option %q", inner.name)
		}
		if _, ok := seen[inner.name]; ok {
			return d.Errf("%s: is set already", inner.name)
		}
		seen[inner.name] = inner
		if err := parse(issuer, inner); err != nil {
			return err
		}
	}
	p.gate.Issuers = append(p.gate.Issuers, issuer)
	if algorithms, ok := seen["algorithms"]; ok {
		if err := auth.ValidateAlgorithms(issuer.Algorithms, issuer.Secret != ""); err != nil {
			return algorithms.back().Errf("algorithms: %v", err)
		}
	}
	if err := issuer.Check(); err != nil {
		return o.back().Errf("issuer %q: %v", issuer.Name, err)
	}
	return nil
}

// issuerOptions are the options of an issuer, by name.
var issuerOptions = map[string]func(i *module.Issuer, o option) error{
	"jwks":       func(i *module.Issuer, o option) error { return o.checked(&i.JWKS, validJWKS) },
	"jwks_file":  func(i *module.Issuer, o option) error { return o.word(&i.JWKSFile) },
	"secret":     func(i *module.Issuer, o option) error { return o.checked(&i.Secret, validSecret) },
	"audience":   func(i *module.Issuer, o option) error { return o.words(&i.Audience, notEmpty) },
	"algorithms": func(i *module.Issuer, o option) error { return o.words(&i.Algorithms, validAlgorithm) },
	"typ":        func(i *module.Issuer, o option) error { return o.words(&i.Typ, notEmpty) },
	"refresh":    func(i *module.Issuer, o option) error { return o.atLeast(&i.Refresh, time.Second) },
	"max_stale":  func(i *module.Issuer, o option) error { return o.atLeast(&i.MaxStale, time.Second) },
	"cooldown":   func(i *module.Issuer, o option) error { return o.atLeast(&i.Cooldown, time.Millisecond) },
	"timeout":    func(i *module.Issuer, o option) error { return o.atLeast(&i.Timeout, time.Millisecond) },
	"tls_ca":     func(i *module.Issuer, o option) error { return o.word(&i.TLSCA) },
}

func notEmpty(word string) error {
	if word == "" {
		return errEmpty
	}
	return nil
}

func validJWKS(url string) error {
	return (&auth.SourceConfig{JWKS: url}).Validate()
}

// validAlgorithm takes every name there is; whether it goes with the issuer's
// keys is known at the end of the block.
func validAlgorithm(name string) error {
	return auth.ValidateAlgorithms([]string{name}, strings.HasPrefix(name, "HS"))
}

// validSecret keeps the secret itself out of what it says.
func validSecret(text string) error {
	_, err := auth.ParseSecret(text)
	return err
}
