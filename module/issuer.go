package module

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
)

// AnyIssuer is the name of an issuer whose tokens need not say who issued
// them.
const AnyIssuer = "any"

// AnyAudience is the audience of an issuer all of whose tokens are accepted.
const AnyAudience = "any"

// Issuer is who may issue tokens, with which keys and for whom.
type Issuer struct {
	// The exact `iss` of the tokens. `any` does not look at `iss`, for
	// home-made tokens; then it must be the only issuer.
	Name string `json:"name"`

	// Where the keys come from: at most one of the three that follow. Without
	// any, by OpenID Connect discovery under the issuer's name.

	// URL of a JWK Set (RFC 7517 §5): https, or http on a loopback host.
	JWKS string `json:"jwks,omitempty"`

	// File with a JWK Set. It is read again every `refresh`.
	JWKSFile string `json:"jwks_file,omitempty"`

	// Shared secret for HS256, HS384 and HS512, in base64 of either alphabet,
	// at least 32 bytes when decoded. Placeholders like {env.JWT_SECRET} are
	// expanded.
	Secret string `json:"secret,omitempty"`

	// The `aud` of the tokens, any of these. Required; `any` alone accepts
	// tokens whatever they are for, and then a token for another service
	// opens this one.
	Audience []string `json:"audience,omitempty"`

	// The signature algorithms to accept. They are never taken from the
	// token. Default: every asymmetric one of RS256, RS384, RS512, PS256,
	// PS384, PS512, ES256, ES384, ES512 and EdDSA; with a secret HS256, HS384
	// and HS512.
	Algorithms []string `json:"algorithms,omitempty"`

	// The token types (`typ`) to accept. Default: any but logout+jwt,
	// dpop+jwt and secevent+jwt, which are never accepted.
	Typ []string `json:"typ,omitempty"`

	// How often keys are fetched; a max-age in Cache-Control between 1m and
	// 24h is honoured in its place. Default: 10m, at least 1s.
	Refresh caddy.Duration `json:"refresh,omitempty"`

	// How long the last good keys serve while they can't be fetched. Default:
	// 24h.
	MaxStale caddy.Duration `json:"max_stale,omitempty"`

	// How often at most tokens with an unknown key id cause a fetch. Default:
	// 30s.
	Cooldown caddy.Duration `json:"cooldown,omitempty"`

	// How long a fetch may take, and a handshake may wait for it. Default:
	// 5s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// PEM file with the certificate authorities of the key endpoint. Default:
	// those of the system.
	TLSCA string `json:"tls_ca,omitempty"`
}

// sources are the key sources of all gates. They are shared between routes
// and outlive a reload, so that no reload has to wait for keys.
var sources = caddy.NewUsagePool()

// pooled is a source in the pool.
type pooled struct{ *auth.Source }

// Destruct stops the source when its last user is gone.
func (p pooled) Destruct() error {
	p.Stop()
	metrics.keys.remove(p.Source)
	return nil
}

// expand replaces the global placeholders in what the operator wrote.
func (i *Issuer) expand(repl *caddy.Replacer) error {
	for option, value := range map[string]*string{
		"issuer": &i.Name, "jwks": &i.JWKS, "jwks_file": &i.JWKSFile, "secret": &i.Secret, "tls_ca": &i.TLSCA,
	} {
		expanded, err := repl.ReplaceOrErr(*value, true, true)
		if err != nil {
			return fmt.Errorf("%s: %w", option, err)
		}
		*value = expanded
	}
	for n, audience := range i.Audience {
		expanded, err := repl.ReplaceOrErr(audience, true, true)
		if err != nil {
			return fmt.Errorf("audience: %w", err)
		}
		i.Audience[n] = expanded
	}
	return nil
}

// sourceConfig says where the issuer's keys come from.
func (i *Issuer) sourceConfig() (auth.SourceConfig, error) {
	config := auth.SourceConfig{
		Issuer:   i.Name,
		JWKS:     i.JWKS,
		File:     i.JWKSFile,
		Refresh:  time.Duration(i.Refresh),
		MaxStale: time.Duration(i.MaxStale),
		Cooldown: time.Duration(i.Cooldown),
		Timeout:  time.Duration(i.Timeout),
		CAFile:   i.TLSCA,
	}
	if i.Secret != "" {
		secret, err := auth.ParseSecret(i.Secret)
		if err != nil {
			return config, fmt.Errorf("secret: %w", err)
		}
		config.Secret = secret
	}
	if i.JWKS == "" && i.JWKSFile == "" && i.Secret == "" {
		if i.Name == AnyIssuer {
			return config, errors.New("issuer any needs jwks, jwks_file or secret")
		}
		config.Discovery = i.Name
	}
	return config, config.Validate()
}

// Check finds what is wrong in the configuration as far as that can be said
// without expanding placeholders, reading files or using the network.
func (i *Issuer) Check() error {
	if err := i.checkAudience(); err != nil {
		return err
	}
	for _, value := range []string{i.Name, i.JWKS, i.JWKSFile, i.Secret, i.TLSCA} {
		if strings.Contains(value, "{") {
			return nil
		}
	}
	if _, err := i.sourceConfig(); err != nil {
		return err
	}
	return auth.ValidateAlgorithms(i.Algorithms, i.Secret != "")
}

// errNoAudience stands for the check that keeps a token for another service
// out (RFC 8725 §3.9).
var errNoAudience = errors.New("audience is required (`audience any` to accept tokens whoever they are for)")

// checkAudience wants audiences, or `any` alone.
func (i *Issuer) checkAudience() error {
	switch {
	case len(i.Audience) == 0:
		return errNoAudience
	case len(i.Audience) > 1 && slices.Contains(i.Audience, AnyAudience):
		return errAnyAudience
	}
	return nil
}

// errAnyAudience keeps `any` from being taken for a name.
var errAnyAudience = errors.New("audience any: must be the only audience")

// build makes the issuer that tokens are checked against, and takes its key
// source from the pool. The key is the pool's, for giving it back.
func (i *Issuer) build(app *App) (issuer *auth.Issuer, key string, err error) {
	if err := i.Check(); err != nil {
		return nil, "", err
	}
	config, err := i.sourceConfig()
	if err != nil {
		return nil, "", err
	}
	issuer = &auth.Issuer{
		Name:        i.Name,
		Any:         i.Name == AnyIssuer,
		Audience:    i.Audience,
		Algorithms:  i.Algorithms,
		Typ:         i.Typ,
		AnyAudience: len(i.Audience) == 1 && i.Audience[0] == AnyAudience,
	}
	if issuer.Any {
		issuer.Name = ""
	}
	if issuer.AnyAudience {
		issuer.Audience = nil
	}
	config.Logger = app.logger
	config.Observe = metrics.fetched
	key = config.Key()
	source, _, err := sources.LoadOrNew(key, func() (caddy.Destructor, error) {
		source, err := auth.NewSource(config)
		if err != nil {
			return nil, err
		}
		metrics.keys.add(source, i.Name)
		return pooled{source}, nil
	})
	if err != nil {
		return nil, "", err
	}
	issuer.Keys = source.(pooled).Source
	app.sources = append(app.sources, issuer.Keys)
	return issuer, key, nil
}
