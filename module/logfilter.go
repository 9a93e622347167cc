package module

import (
	"net/url"
	"regexp"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/logging"
)

func init() {
	caddy.RegisterModule(new(TokenFilter))
}

// TokenFilter is a log field filter that takes tokens out of URIs and header
// values and leaves everything else as it is: the values of the query
// parameter `access_token` and of those named, what follows the subprotocol
// `bearer` or one of those named, and whatever has the shape of a JSON Web
// Token.
//
// Caddy's access and error logs hold the request as it came, from before any
// handler. Where tokens come in the query or as subprotocols, filter
// `request>uri` and `request>headers>Sec-Websocket-Protocol`, in the site's
// log and in the default log:
//
//	format filter {
//		request>uri                                ws_token
//		request>headers>Sec-Websocket-Protocol     ws_token
//	}
type TokenFilter struct {
	// Query parameters and subprotocol prefixes that carry tokens, beside
	// `access_token` and `bearer`.
	Parameters []string `json:"parameters,omitempty"`
}

// redacted stands where a token was.
const redacted = "REDACTED"

// CaddyModule returns the Caddy module information.
func (*TokenFilter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.logging.encoders.filter.ws_token",
		New: func() caddy.Module { return new(TokenFilter) },
	}
}

// UnmarshalCaddyfile sets up the filter from Caddyfile tokens. Syntax:
//
//	<field> ws_token [<parameters...>]
func (f *TokenFilter) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the filter's name
	f.Parameters = d.RemainingArgs()
	if d.NextBlock(0) {
		d.Prev() // to the line of the option
		return d.Err("ws_token: takes no block")
	}
	return nil
}

// Provision implements caddy.Provisioner.
func (f *TokenFilter) Provision(ctx caddy.Context) error {
	noteFilter(ctx)
	return nil
}

// Filter implements logging.LogFieldFilter.
func (f *TokenFilter) Filter(in zapcore.Field) zapcore.Field {
	if values, ok := in.Interface.(caddyhttp.LoggableStringArray); ok {
		clean := make(caddyhttp.LoggableStringArray, len(values))
		pair := false // a token may stand on the line behind its prefix
		for i, value := range values {
			clean[i], pair = f.redactLine(value, pair)
		}
		return zap.Array(in.Key, clean)
	}
	if in.Type == zapcore.StringType {
		in.String = f.redact(in.String)
	}
	return in
}

// jwtShape is a JSON Web Token, or what a client left of one: base64url of
// something that begins like a JSON object, and at least one more part. The
// second form is a token in base64url once more, as Kubernetes' clients send it.
var jwtShape = regexp.MustCompile(`e(?:y[A-DI-L]|w[k-r0-3])[A-Za-z0-9_-]{8,}(?:(?:\.|%2[Ee])[A-Za-z0-9_=-]*)+|ZX[lcd][A-Za-z0-9_=-]{20,}`)

func (f *TokenFilter) redact(text string) string {
	text, _ = f.redactLine(text, false)
	return text
}

// redactLine redacts one of several lines. pair tells that the one before
// ended with a prefix, and whether this one does.
func (f *TokenFilter) redactLine(text string, pair bool) (string, bool) {
	text = f.redactQuery(text)
	text, pair = f.redactSubprotocols(text, pair)
	return jwtShape.ReplaceAllString(text, redacted), pair
}

// redactQuery replaces the values of the parameters that carry tokens.
func (f *TokenFilter) redactQuery(uri string) string {
	path, query, ok := strings.Cut(uri, "?")
	if !ok {
		return uri
	}
	pairs := strings.Split(query, "&")
	for i, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if ok && value != "" && f.carries(name, "access_token") {
			pairs[i] = name + "=" + redacted
		}
	}
	return path + "?" + strings.Join(pairs, "&")
}

// redactSubprotocols replaces what follows a prefix in an offer, in either
// form: "bearer, <token>" and "bearer.<token>". pair is as in redactLine.
func (f *TokenFilter) redactSubprotocols(list string, pair bool) (string, bool) {
	if strings.HasPrefix(list, "/") {
		return list, false // a URI
	}
	entries := strings.Split(list, ",")
	for i, entry := range entries {
		bare := strings.TrimSpace(entry)
		if bare == "" {
			continue // no element of the list (RFC 9110 §5.6.1)
		}
		if pair {
			entries[i] = strings.Replace(entry, bare, redacted, 1)
			pair = false
			continue
		}
		pair = f.carries(bare, "bearer")
		for _, prefix := range append([]string{"bearer", kubernetesPrefix}, f.Parameters...) {
			prefix = strings.TrimSuffix(prefix, ".") + "."
			if strings.HasPrefix(bare, prefix) && len(bare) > len(prefix) {
				entries[i] = strings.Replace(entry, bare, prefix+redacted, 1)
			}
		}
	}
	return strings.Join(entries, ","), pair
}

// kubernetesPrefix is the subprotocol in which Kubernetes' clients send
// tokens.
const kubernetesPrefix = "base64url.bearer.authorization.k8s.io."

// carries reports whether a parameter or prefix, as it stands in a request,
// is one that tokens come with.
func (f *TokenFilter) carries(name, standard string) bool {
	if decoded, err := url.QueryUnescape(name); err == nil {
		name = decoded
	}
	if name == standard {
		return true
	}
	for _, parameter := range f.Parameters {
		if name == parameter {
			return true
		}
	}
	return false
}

// Interface guards.
var (
	_ caddy.Provisioner      = (*TokenFilter)(nil)
	_ caddyfile.Unmarshaler  = (*TokenFilter)(nil)
	_ logging.LogFieldFilter = (*TokenFilter)(nil)
)
