// Package auth decides whose request it is: it finds the token that a client
// presents, verifies it against the keys of its issuer, and hands out the
// claims of what was verified.
//
// The way of a token is one file a step: carriers*.go find and strip it,
// compact.go and json.go take it apart without leniency, keys.go chooses a
// key, jwx.go (the only file that knows jwx) checks the signature, verify.go
// judges the claims, remember.go spares a reconnect storm all of that.
// source.go and its neighbours keep an issuer's keys fresh in the background.
//
// The package knows nothing of Caddy. No token, claim, cookie or secret is
// ever part of an error or a log line of its own.
package auth
