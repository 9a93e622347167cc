package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// origin reads a key set once: the text of a JWK Set, and how long it is good.
type origin func(ctx context.Context) (text string, fresh time.Duration, err error)

// newOrigin is the origin that the configuration names. It does no I/O.
func newOrigin(c SourceConfig, roots *x509.CertPool) origin {
	switch {
	case c.File != "":
		return func(context.Context) (string, time.Duration, error) {
			text, err := readFile(c.File)
			return text, c.Refresh, err
		}
	case c.JWKS != "":
		f := newFetcher(c.Timeout, roots)
		return func(ctx context.Context) (string, time.Duration, error) {
			return f.keySet(ctx, c.JWKS, c.Refresh)
		}
	default:
		f := newFetcher(c.Timeout, roots)
		return func(ctx context.Context) (string, time.Duration, error) {
			address, err := f.discover(ctx, c.Discovery)
			if err != nil {
				return "", 0, err
			}
			return f.keySet(ctx, address, c.Refresh)
		}
	}
}

// keySet gets a JWK Set. Its media type is not looked at: many issuers send
// another, and what is not a key set has no usable key.
func (f *fetcher) keySet(ctx context.Context, address string, refresh time.Duration) (string, time.Duration, error) {
	text, header, err := f.get(ctx, address, "application/jwk-set+json, application/json;q=0.9")
	if err != nil {
		return "", 0, fmt.Errorf("getting the key set: %w", err)
	}
	return text, maxAge(header, refresh), nil
}

var (
	errDiscovery  = errors.New("reading the configuration of the issuer: it is not an OpenID configuration")
	errWrongName  = errors.New("reading the configuration of the issuer: it names another issuer")
	errBadAddress = errors.New("reading the configuration of the issuer: jwks_uri is not a URL that keys are fetched from")
	errDowngraded = errors.New("reading the configuration of the issuer: jwks_uri leaves https")
)

// discover gets the address of an issuer's JWK Set. The document must name
// exactly the issuer that was asked (OpenID Connect Discovery 1.0 §4.3), and
// its jwks_uri obeys the rules of a configured one. It is read anew with
// every fetch, since the address may change.
func (f *fetcher) discover(ctx context.Context, issuer string) (string, error) {
	text, _, err := f.get(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", "application/json")
	if err != nil {
		return "", fmt.Errorf("getting the configuration of the issuer: %w", err)
	}
	document, err := parseObject(text)
	if err != nil {
		return "", errDiscovery
	}
	if document["issuer"] != issuer {
		return "", errWrongName
	}
	address, ok := document["jwks_uri"].(string)
	if !ok {
		return "", errDiscovery
	}
	// The issuer's text stays out of the error, whatever it is.
	if validateURL(address) != nil {
		return "", errBadAddress
	}
	if isHTTPS(issuer) && !isHTTPS(address) {
		return "", errDowngraded
	}
	return address, nil
}

func isHTTPS(address string) bool {
	return len(address) >= 6 && strings.EqualFold(address[:6], "https:")
}

// readFile reads a key set from a regular file, within the bounds of a
// fetched one. Anything else could block, or never end.
func readFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("reading jwks_file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("reading jwks_file: %q is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading jwks_file: %w", err)
	}
	defer file.Close()
	body, err := io.ReadAll(io.LimitReader(file, maxBody+1))
	if err != nil {
		return "", fmt.Errorf("reading jwks_file: %w", err)
	}
	if len(body) > maxBody {
		return "", fmt.Errorf("reading jwks_file: %q is longer than 1 MiB", path)
	}
	return string(body), nil
}

// readRoots reads the certificates of tls_ca; without one, the system's serve.
func readRoots(c SourceConfig) (*x509.CertPool, error) {
	if c.RootCAs != nil || c.CAFile == "" {
		return c.RootCAs, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading tls_ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading tls_ca: %q holds no PEM certificate", c.CAFile)
	}
	return roots, nil
}
