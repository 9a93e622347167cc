package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Defaults of [SourceConfig].
const (
	DefaultRefresh  = 10 * time.Minute
	DefaultMaxStale = 24 * time.Hour
	DefaultCooldown = 30 * time.Second
	DefaultTimeout  = 5 * time.Second
)

// SourceConfig says where the keys of one issuer come from. One and only one
// of JWKS, Discovery, File and Secret is set.
type SourceConfig struct {
	// Issuer names the issuer in logs and events. It decides nothing.
	Issuer string

	// JWKS is the URL of a JWK Set: https, or http on a loopback host.
	JWKS string
	// Discovery is an issuer's URL, whose OpenID configuration names the JWK
	// Set (OpenID Connect Discovery 1.0 §4). Same rules as JWKS.
	Discovery string
	// File is the path of a JWK Set.
	File string
	// Secret is a shared secret for HS256, HS384 and HS512, decoded; at least
	// 32 bytes.
	Secret []byte

	// Refresh is the time between two fetches, where the answer's
	// Cache-Control says nothing else. Default 10m, at least 1s.
	Refresh time.Duration
	// MaxStale is how long the last good keys serve while fetching fails.
	// Default 24h.
	MaxStale time.Duration
	// Cooldown is the least time between two fetches for keys that are not in
	// the set. Default 30s.
	Cooldown time.Duration
	// Timeout bounds one fetch, and the wait of a handshake for one. Default 5s.
	Timeout time.Duration

	// CAFile holds the PEM certificates that JWKS and Discovery are verified
	// with, in place of the system's.
	CAFile string
	// RootCAs does the same, and goes before CAFile.
	RootCAs *x509.CertPool

	// Logger gets "keys fetched" and "fetching keys failed". Default: none.
	Logger *zap.Logger
	// Observe is called after every fetch, from the source's own goroutine.
	Observe func(FetchEvent)
}

// FetchEvent tells of one attempt to fetch keys.
type FetchEvent struct {
	Issuer string
	// Err is nil after a good answer.
	Err error
	// Keys is the number of keys that now serve.
	Keys int
	// Age is the time since the last good answer; negative if there was none.
	Age time.Duration
}

// Result is "success" or "failure", for a metric's label.
func (e FetchEvent) Result() string {
	if e.Err != nil {
		return "failure"
	}
	return "success"
}

// Validate checks everything that needs no file and no network.
func (c *SourceConfig) Validate() error {
	origins := 0
	for _, set := range []bool{c.JWKS != "", c.Discovery != "", c.File != "", len(c.Secret) > 0} {
		if set {
			origins++
		}
	}
	switch {
	case origins == 0:
		return errors.New("checking the source of keys: none of jwks, jwks_file, secret and discovery is configured")
	case origins > 1:
		return errors.New("checking the source of keys: only one of jwks, jwks_file, secret and discovery may be configured")
	}
	if len(c.Secret) > 0 && len(c.Secret) < minSecret {
		return fmt.Errorf("checking secret: it has %d bytes, and needs at least %d", len(c.Secret), minSecret)
	}
	if c.JWKS != "" {
		if err := validateURL(c.JWKS); err != nil {
			return fmt.Errorf("checking jwks: %w", err)
		}
	}
	if c.Discovery != "" {
		if err := validateIssuerURL(c.Discovery); err != nil {
			return fmt.Errorf("checking the issuer for discovery: %w", err)
		}
	}
	if c.CAFile != "" && c.JWKS == "" && c.Discovery == "" {
		return errors.New("checking tls_ca: nothing is fetched that it could verify")
	}
	return c.validateTimes()
}

func (c *SourceConfig) validateTimes() error {
	for _, option := range []struct {
		name  string
		value time.Duration
		least time.Duration
	}{
		{"refresh", c.Refresh, time.Second},
		{"max_stale", c.MaxStale, time.Second},
		{"cooldown", c.Cooldown, 0},
		{"timeout", c.Timeout, time.Millisecond},
	} {
		if option.value != 0 && option.value < option.least {
			return fmt.Errorf("checking %s: %s is less than %s", option.name, option.value, option.least)
		}
	}
	return nil
}

// withDefaults returns the configuration with every time filled in.
func (c SourceConfig) withDefaults() SourceConfig {
	for _, option := range []struct {
		value    *time.Duration
		standard time.Duration
	}{
		{&c.Refresh, DefaultRefresh},
		{&c.MaxStale, DefaultMaxStale},
		{&c.Cooldown, DefaultCooldown},
		{&c.Timeout, DefaultTimeout},
	} {
		if *option.value == 0 {
			*option.value = option.standard
		}
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	return c
}

// Key is equal for configurations that may share one source. It is a hash,
// since a secret may be in it. Logger and Observe are no part of it; the
// content of CAFile is, so that a renewed one makes a new source.
func (c *SourceConfig) Key() string {
	full := c.withDefaults()
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q %x ", full.Issuer, full.JWKS, full.Discovery, full.File, sha256.Sum256(full.Secret))
	fmt.Fprintf(h, "%d %d %d %d %q %p", full.Refresh, full.MaxStale, full.Cooldown, full.Timeout, full.CAFile, full.RootCAs)
	if full.CAFile != "" {
		content, err := os.ReadFile(full.CAFile)
		fmt.Fprintf(h, " %x %t", sha256.Sum256(content), err == nil)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// origin is where the keys come from, for logs: never with a query, which may
// hold an API key.
func (c *SourceConfig) origin() string {
	switch {
	case c.File != "":
		return c.File
	case len(c.Secret) > 0:
		return "secret"
	}
	u, err := url.Parse(c.JWKS + c.Discovery)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// validateURL takes https URLs, and http where it stays on this machine. It
// refuses addresses that are link-local, such as a cloud's metadata service;
// for names, the dialer checks what they resolve to.
func validateURL(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return errors.New("it is not a URL")
	}
	host := u.Hostname()
	// A query may hold an API key, and errors end in logs.
	shown := (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%q is neither an https URL nor http on a loopback host", shown)
	case host == "":
		return fmt.Errorf("%q has no host", shown)
	case u.User != nil:
		return fmt.Errorf("%q has credentials in it", shown)
	case u.Fragment != "" || strings.HasSuffix(text, "#"):
		return fmt.Errorf("%q has a fragment", shown)
	case u.Scheme == "http" && !isLoopbackHost(host):
		return fmt.Errorf("%q: http is only for a loopback host, use https", shown)
	}
	if address, err := netip.ParseAddr(host); err == nil && isLinkLocal(address) {
		return fmt.Errorf("%q is a link-local address", shown)
	}
	return nil
}

// validateIssuerURL adds that an issuer has no query (OpenID Connect
// Discovery 1.0 §3).
func validateIssuerURL(text string) error {
	if err := validateURL(text); err != nil {
		return err
	}
	if strings.Contains(text, "?") {
		return errors.New("an issuer has no query")
	}
	return nil
}

// isLoopbackHost tells whether a URL's host is this machine by its spelling.
// Names still have to resolve to it.
func isLoopbackHost(host string) bool {
	if address, err := netip.ParseAddr(host); err == nil {
		return address.Unmap().IsLoopback()
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// nat64 is the well-known prefix under which IPv4 is reached from IPv6 (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// isLinkLocal tells whether an address is link-local in any of its spellings.
func isLinkLocal(address netip.Addr) bool {
	address = address.Unmap()
	if nat64.Contains(address) {
		octets := address.As16()
		address = netip.AddrFrom4([4]byte(octets[12:]))
	}
	return address.IsLinkLocalUnicast() || address.IsLinkLocalMulticast()
}
