package module

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/pflag"
)

// sidecarFlag is a flag of `caddy ws-proxy`.
type sidecarFlag struct {
	name  string
	kind  string // what its value is, for the help; "" for a switch
	usage string
	many  bool // whether it may stand repeatedly

	// option is the option of the Caddyfile that it becomes, and block the
	// block of that; "" for what the command itself makes something of.
	option string
	block  string

	// arguments reads the value as the arguments of the option, once for each
	// time that it will stand. nil: the value is the argument; names are all
	// arguments of one.
	arguments func(value string) ([][]string, error)
}

// kindNames are names, several in one value.
const kindNames = "names"

// Blocks that flags become options of.
const (
	ofGate   = "ws_gate"
	ofIssuer = "issuer"
	ofDrain  = "drain"
)

// flagGroup is a section of the help.
type flagGroup struct {
	title string
	flags []sidecarFlag
}

// sidecarFlags are all flags, as the help has them.
var sidecarFlags = []flagGroup{
	{"Addresses", []sidecarFlag{
		{name: "from", kind: "address", usage: "where clients connect: :8080, 127.0.0.1:8080, example.com, unix//run/ws.sock (default :8080)"},
		{name: "to", kind: kindNames, many: true, usage: "the backend, as in reverse_proxy: localhost:3000, https://node1, unix//run/app.sock; several are balanced by live sockets"},
		{name: "path", kind: "path", usage: "what to guard and pass on, such as '/ws*'; all else gets 404 (default everything)"},
		{name: "insecure", usage: "do not verify the certificate of an https backend (dangerous)"},
		{name: "trusted-proxies", kind: kindNames, many: true, usage: "networks of proxies in front whose X-Forwarded-For, -Proto and -Host count, such as 10.0.0.0/8 or private_ranges"},
	}},
	{"Who may enter", []sidecarFlag{
		{name: "issuer", kind: kindNames, many: true, usage: "exact iss of the tokens; any does not look at it (default any if there are keys)"},
		{name: "jwks", kind: "url", option: "jwks", block: ofIssuer, usage: "URL of the issuer's keys (default OIDC discovery under the issuer)"},
		{name: "jwks-file", kind: "file", option: "jwks_file", block: ofIssuer, usage: "file with the issuer's keys, read again every 10m"},
		{name: "secret-file", kind: "file", usage: "file with the shared secret for HS256, HS384 and HS512 in base64, at least 32 bytes; or the secret itself in WS_PROXY_SECRET"},
		{name: "audience", kind: kindNames, many: true, option: "audience", block: ofIssuer, usage: "aud that tokens must have, any of these; any accepts tokens whoever they are for (required)"},
		{name: "algorithms", kind: kindNames, many: true, option: "algorithms", block: ofIssuer, usage: "signature algorithms (default every asymmetric one; with a secret HS256, HS384, HS512)"},
		{name: "typ", kind: kindNames, many: true, option: "typ", block: ofIssuer, usage: "token types (default any but logout+jwt, dpop+jwt, secevent+jwt)"},
		{name: "tls-ca", kind: "file", option: "tls_ca", block: ofIssuer, usage: "PEM file of the authorities for the key endpoint (default the system's)"},
		{name: "leeway", kind: "duration", option: "leeway", block: ofGate, usage: "how far clocks may differ (default 10s)"},
		{name: "from-header", kind: kindNames, many: true, option: "from_header", block: ofGate, usage: "header fields with the token (default Authorization, if no other --from- flag stands)"},
		{name: "from-query", kind: kindNames, many: true, option: "from_query", block: ofGate, usage: "query parameters with the token"},
		{name: "from-cookie", kind: kindNames, many: true, option: "from_cookies", block: ofGate, usage: "cookies with the token; then an allowed Origin is always needed"},
		{name: "from-subprotocol", kind: kindNames, many: true, option: "from_subprotocol", block: ofGate, usage: "subprotocols with the token (default bearer, if no other --from- flag stands)"},
		{name: "forward-token", option: "forward_token", block: ofGate, usage: "leave the token in the request"},
		{name: "user-claim", kind: "claim", option: "user_claim", block: ofGate, usage: "claim that names the user (default sub)"},
		{name: "require", kind: "claim=values", many: true, option: "require", block: ofGate, arguments: claimAndValues, usage: "claim that must be or contain one of the values, separated by commas: scope=chat:write"},
		{name: "identity", kind: "header=claim", many: true, option: "identity", block: ofGate, arguments: headersAndClaims, usage: "header that tells the backend a claim: X-User-Roles=realm_access.roles (default X-User-Id from the user claim)"},
	}},
	{"From where", []sidecarFlag{
		{name: "origin", kind: kindNames, many: true, option: "origins", block: ofGate, usage: "origins whose pages may connect: https://app.example.com, https://*.example.org, same_origin, * (default same_origin)"},
		{name: "missing-origin", kind: "allow|deny", option: "missing_origin", block: ofGate, usage: "handshakes without an Origin, as from programs (default allow)"},
	}},
	{"How much", []sidecarFlag{
		{name: "handshake-rate", kind: "rate", many: true, option: "handshake_rate", block: ofGate, arguments: fields, usage: "'20/1s burst 40 by ip': number/time [burst number] [by ip|user|placeholder]"},
		{name: "max-connections", kind: "cap", many: true, option: "max_connections", block: ofGate, arguments: fields, usage: "'5 by user reject': number|placeholder [by user|ip|placeholder] [reject|evict_oldest]"},
		{name: "message-rate", kind: "rate", option: "message_rate", block: ofGate, arguments: fields, usage: "'50/1s burst 100 delay', client to backend: number/time [burst number] [delay|close] [by socket|user]"},
		{name: "byte-rate", kind: "rate", option: "byte_rate", block: ofGate, arguments: fields, usage: "'1MiB/1s burst 4MiB', the same in bytes"},
		{name: "max-message-size", kind: "size", option: "max_message_size", block: ofGate, usage: "of a message from client to backend, such as 1MiB (default no limit)"},
	}},
	{"How long", []sidecarFlag{
		{name: "ping-interval", kind: "duration", option: "ping_interval", block: ofGate, usage: "how often clients are pinged; 0 turns it off (default 30s)"},
		{name: "pong-timeout", kind: "duration", option: "pong_timeout", block: ofGate, usage: "how long after that a silent client is given up (default 10s)"},
		{name: "idle-timeout", kind: "duration", option: "idle_timeout", block: ofGate, usage: "how long a socket may go without a message (default forever)"},
		{name: "max-lifetime", kind: "duration", option: "max_lifetime", block: ofGate, usage: "how long a socket may live (default as long as its token)"},
		{name: "on-expiry", kind: "close|keep", option: "on_expiry", block: ofGate, usage: "sockets whose token expires (default close)"},
		{name: "expiry-grace", kind: "duration", option: "expiry_grace", block: ofGate, usage: "how long a socket may outlive its token (default 0s)"},
	}},
	{"Running it", []sidecarFlag{
		{name: "on-reject", kind: "http|close", option: "on_reject", block: ofGate, usage: "how handshakes are refused: with a status, or with a close frame that a page can read (default http)"},
		{name: "tunnel-name", kind: "name", option: "tunnel_name", block: ofGate, usage: "label in logs and metrics, and the realm of 401 (default default)"},
		{name: "drain-spread", kind: "duration", option: "spread", block: ofDrain, usage: "when the process stops: the time over which sockets are closed (default 10s)"},
		{name: "drain-grace", kind: "duration", option: "grace", block: ofDrain, usage: "then how long close handshakes may take; plain requests too (default 5s)"},
		{name: "health", kind: "address", usage: "where GET /health answers 200, and 503 once the process stops: :8081 (default off)"},
		{name: "metrics", usage: "Prometheus metrics at /metrics beside /health"},
		{name: "admin", kind: "address", usage: "Caddy's admin endpoint, such as localhost:2019, or off (default off)"},
		{name: "access-log", usage: "log every request, without tokens"},
		{name: "debug", usage: "log more, without tokens"},
	}},
}

// addSidecarFlags defines the flags.
func addSidecarFlags(set *pflag.FlagSet) {
	for _, group := range sidecarFlags {
		for i := range group.flags {
			f := &group.flags[i]
			set.Var(&flagTexts{flag: f}, f.name, f.usage)
			if f.kind == "" {
				set.Lookup(f.name).NoOptDefVal = "true"
			}
		}
	}
}

// flagTexts are the values of one flag as they stand on the command line.
type flagTexts struct {
	flag  *sidecarFlag
	texts []string
}

// String implements pflag.Value.
func (t *flagTexts) String() string { return strings.Join(t.texts, " ") }

// Type implements pflag.Value. It is what the help shows as the value.
func (t *flagTexts) Type() string {
	if t.flag == nil || t.flag.kind == "" {
		return "bool"
	}
	return t.flag.kind
}

// Set implements pflag.Value.
func (t *flagTexts) Set(text string) error {
	if !t.flag.many && len(t.texts) > 0 {
		return errors.New("it is set already")
	}
	t.texts = append(t.texts, text)
	return nil
}

// sidecar is what the flags and the environment say.
type sidecar struct {
	settings map[string][]setting // by the name of the flag
	secret   string               // WS_PROXY_SECRET
}

// setting is one value of a flag, and where it comes from.
type setting struct {
	flag   *sidecarFlag
	source string // --leeway or WS_PROXY_LEEWAY
	text   string
}

// wrap names the flag and its value.
func (s setting) wrap(err error) error {
	return fmt.Errorf("%s %q: %w", s.source, userinfo.ReplaceAllString(s.text, "//…@"), err)
}

// check holds a value to its kind, as far as the option it becomes does not.
func (s setting) check() error {
	switch s.flag.kind {
	case "":
		if _, err := strconv.ParseBool(s.text); err != nil {
			return errors.New("is neither true nor false")
		}
	case kindNames:
		if len(names(s.text)) == 0 {
			return errors.New("is empty")
		}
	}
	return nil
}

// userinfo may hold a password, which errors do not repeat.
var userinfo = regexp.MustCompile(`//[^?#]*@`)

// envPrefix begins the name of every environment variable.
const envPrefix = "WS_PROXY_"

// secretVariable holds the shared secret. The configuration only refers to it.
const secretVariable = envPrefix + "SECRET"

// readSidecar reads the flags, and for those that do not stand on the command
// line the environment. Variables that no flag has are nobody's business:
// Kubernetes makes some for a service that is called ws-proxy.
func readSidecar(set *pflag.FlagSet, lookup func(string) (string, bool)) (*sidecar, error) {
	s := &sidecar{settings: make(map[string][]setting)}
	for _, group := range sidecarFlags {
		for i := range group.flags {
			f := &group.flags[i]
			values, source := set.Lookup(f.name).Value.(*flagTexts).texts, "--"+f.name
			if len(values) == 0 {
				source = envPrefix + strings.ToUpper(strings.ReplaceAll(f.name, "-", "_"))
				variable, _ := lookup(source)
				values = splitVariable(f, variable)
			}
			for _, value := range values {
				one := setting{f, source, value}
				if err := one.check(); err != nil {
					return nil, one.wrap(err)
				}
				s.settings[f.name] = append(s.settings[f.name], one)
			}
		}
	}
	s.secret, _ = lookup(secretVariable)
	return s, nil
}

// splitVariable takes several values of a flag out of its variable. Names need
// no splitting, since one value may hold several of them.
func splitVariable(f *sidecarFlag, variable string) (values []string) {
	whole := []string{variable}
	if f.many && f.kind != kindNames {
		whole = strings.FieldsFunc(variable, func(r rune) bool { return r == ';' || r == '\n' })
	}
	for _, value := range whole {
		if value = strings.TrimSpace(value); value != "" {
			values = append(values, value)
		}
	}
	return values
}

// on tells whether a switch is.
func (s *sidecar) on(name string) bool {
	on, _ := strconv.ParseBool(s.text(name))
	return on
}

// text is the value of a flag that stands once, "" without one.
func (s *sidecar) text(name string) string {
	if settings := s.settings[name]; len(settings) > 0 {
		return settings[0].text
	}
	return ""
}

// texts are the names that a flag holds.
func (s *sidecar) texts(name string) (all []string) {
	for _, one := range s.settings[name] {
		all = append(all, names(one.text)...)
	}
	return all
}

// names are separated by commas and blanks, which no name of ours may hold.
func names(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
}

// fields are the words of an option with a grammar of its own.
func fields(value string) ([][]string, error) { return [][]string{strings.Fields(value)}, nil }

// claimAndValues reads scope=chat:write,chat:admin.
func claimAndValues(value string) ([][]string, error) {
	claim, values, ok := strings.Cut(value, "=")
	if !ok || claim == "" || values == "" {
		return nil, errors.New("is not of the form claim=value, such as scope=chat:write")
	}
	return [][]string{append([]string{claim}, strings.Split(values, ",")...)}, nil
}

// headersAndClaims reads X-User-Id=sub, or several of them.
func headersAndClaims(value string) (lines [][]string, err error) {
	for _, name := range names(value) {
		header, claim, ok := strings.Cut(name, "=")
		if !ok || header == "" || claim == "" {
			return nil, errors.New("is not of the form header=claim, such as X-User-Id=sub")
		}
		lines = append(lines, []string{header, claim})
	}
	return lines, nil
}
