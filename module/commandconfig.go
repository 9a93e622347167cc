package module

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
)

// adapt makes a config of the flags, in JSON. On its way it is a Caddyfile,
// so that every option has the grammar, the checks and the defaults that it
// has there; an error names the flag in place of the line.
func (s *sidecar) adapt() ([]byte, error) {
	text, err := s.caddyfile()
	if err != nil {
		return nil, err
	}
	adapter := caddyconfig.GetAdapter("caddyfile")
	if adapter == nil {
		return nil, errors.New("this build has no Caddyfile adapter")
	}
	config, _, err := adapter.Adapt([]byte(text.String()), map[string]any{"filename": flagsFile})
	if err != nil {
		return nil, s.blame(text, err)
	}
	return config, nil
}

// caddyfile writes what stands in a Caddyfile for the flags.
func (s *sidecar) caddyfile() (*flagsText, error) {
	for _, check := range []func() error{s.checkRequired, s.checkKeys, s.checkFiles} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	c := &flagsText{of: make(map[int]setting)}
	for _, write := range []func(*flagsText) error{s.writeGlobal, s.writeSite} {
		if err := write(c); err != nil {
			return nil, err
		}
	}
	return c, c.err
}

func (s *sidecar) checkRequired() error {
	switch {
	case len(s.texts("to")) == 0:
		return errNoUpstream
	case len(s.settings["audience"]) == 0:
		return errNoAud
	case s.on("metrics") && s.text("health") == "":
		return errNoHealth
	case s.on("insecure") && !slices.ContainsFunc(s.texts("to"), func(to string) bool { return strings.HasPrefix(to, "https://") }):
		return errNoHTTPS
	}
	return nil
}

// checkKeys finds out whether it is clear whose keys there are, and looks at
// the secret.
func (s *sidecar) checkKeys() error {
	var keys []setting
	for _, name := range []string{"jwks", "jwks-file", "secret-file"} {
		keys = append(keys, s.settings[name]...)
	}
	if s.secret != "" {
		keys = append(keys, setting{source: secretVariable})
	}
	issuers := s.issuers()
	switch {
	case len(keys) > 1:
		return fmt.Errorf("%s and %s: only one can say which the keys are", keys[0].source, keys[1].source)
	case len(keys) == 0 && len(issuers) == 0:
		return errNoKeys
	case len(keys) > 0 && len(issuers) > 1:
		return fmt.Errorf("%s %w", keys[0].source, errKeysOfSome)
	}
	if s.secret != "" {
		if _, err := auth.ParseSecret(s.secret); err != nil {
			return fmt.Errorf("%s: %w", secretVariable, err)
		}
	}
	return nil
}

// checkFiles finds out whether the files that flags name can be read. Files
// with a placeholder in their name are met later.
func (s *sidecar) checkFiles() error {
	for _, name := range []string{"jwks-file", "tls-ca", "secret-file"} {
		for _, one := range s.settings[name] {
			if strings.Contains(one.text, "{") && name != "secret-file" {
				continue
			}
			content, err := os.ReadFile(one.text)
			if err == nil && name == "secret-file" {
				_, err = auth.ParseSecret(string(content))
			}
			if err != nil {
				return one.wrap(err)
			}
		}
	}
	return nil
}

// issuers are the settings that name one each.
func (s *sidecar) issuers() (all []setting) {
	for _, one := range s.settings["issuer"] {
		for _, name := range names(one.text) {
			all = append(all, setting{one.flag, one.source, name})
		}
	}
	return all
}

// writeGlobal writes the global options.
func (s *sidecar) writeGlobal(c *flagsText) error {
	c.write("{")
	admin := s.first("admin", "off")
	c.option(admin, "admin", admin.text)
	c.write("persist_config off")
	if s.on("debug") {
		c.write("debug")
	}
	// A request that never ends would keep the sockets from being drained.
	grace := s.first("drain-grace", defaultGrace.String())
	if d, err := caddy.ParseDuration(grace.text); err != nil {
		return grace.wrap(errors.New("is not a duration such as 30s or 5m"))
	} else if d == 0 {
		grace.text = "1ms" // 0 is forever there
	}
	c.option(grace, "grace_period", grace.text)
	if err := s.writeLog(c); err != nil {
		return err
	}
	c.write("ws_gate {")
	c.write("drain {")
	err := s.writeOptions(c, ofDrain)
	c.write("}", "}")
	if proxies := s.settings["trusted-proxies"]; len(proxies) > 0 {
		c.write("servers {")
		c.option(proxies[0], "trusted_proxies static", s.texts("trusted-proxies")...)
		c.write("trusted_proxies_strict", "}")
	}
	c.write("}")
	return err
}

// writeLog takes the tokens out of everything that is logged. The access log
// is a part of the default log.
func (s *sidecar) writeLog(c *flagsText) error {
	parameters, err := s.expanded("from-query", "from-subprotocol")
	if err != nil {
		return err
	}
	headers, err := s.expanded("from-header")
	if err != nil {
		return err
	}
	c.write("log default {", "format filter {")
	c.option(s.first("from-query", ""), "request>uri ws_token", parameters...)
	// The second is how reverse_proxy spells it for the backend, which it logs
	// when debugging.
	for _, field := range []string{"Sec-Websocket-Protocol", "Sec-WebSocket-Protocol"} {
		c.option(s.first("from-subprotocol", ""), "request>headers>"+field+" ws_token", parameters...)
	}
	for _, header := range headers {
		if header = http.CanonicalHeaderKey(header); header != "Authorization" && header != "Cookie" && header != "Proxy-Authorization" { // Caddy's own
			c.option(s.first("from-header", ""), "", "request>headers>"+header, "replace", redacted)
		}
	}
	c.write("}", "}")
	return nil
}

// expanded are the names of flags with their placeholders filled in as the
// gate will.
func (s *sidecar) expanded(flags ...string) (all []string, err error) {
	repl := caddy.NewReplacer()
	for _, flag := range flags {
		for _, one := range s.settings[flag] {
			for _, name := range names(one.text) {
				if name, err = repl.ReplaceOrErr(name, true, true); err != nil {
					return nil, one.wrap(err)
				}
				all = append(all, name)
			}
		}
	}
	return all, nil
}

// writeSite writes the one site there is.
func (s *sidecar) writeSite(c *flagsText) error {
	from := s.first("from", s.from())
	site, bind, err := parseFrom(from.text)
	if err != nil {
		return from.wrap(err)
	}
	c.option(from, "", site)
	c.open()
	if bind != "" {
		c.option(from, "bind", bind)
	}
	if s.on("access-log") {
		c.write("log")
	}
	if path := s.settings["path"]; len(path) == 0 {
		err = s.writeProxy(c)
	} else {
		if !strings.HasPrefix(path[0].text, "/") {
			return path[0].wrap(errors.New("does not begin with a slash"))
		}
		c.option(path[0], "handle", path[0].text)
		c.open()
		err = s.writeProxy(c)
		c.write("}", "handle {", "respond 404", "}")
	}
	c.write("}")
	return err
}

// writeProxy writes the ws_proxy. Upstreams stand in its block, where none of
// them can be taken for a matcher.
func (s *sidecar) writeProxy(c *flagsText) error {
	c.write("ws_proxy {")
	for _, one := range s.settings["to"] {
		c.option(one, "to", names(one.text)...)
	}
	if len(s.texts("to")) > 1 {
		c.write("lb_policy least_conn")
	}
	if s.on("insecure") {
		c.write("transport http {", "tls_insecure_skip_verify", "}")
	}
	issuers := s.issuers()
	if len(issuers) == 0 {
		issuers = []setting{s.first("issuer", AnyIssuer)}
	}
	for _, issuer := range issuers {
		c.option(issuer, "issuer", issuer.text)
		c.open()
		if err := s.writeOptions(c, ofIssuer); err != nil {
			return err
		}
		if err := s.writeSecret(c); err != nil {
			return err
		}
		c.write("}")
	}
	err := s.writeOptions(c, ofGate)
	c.write("}")
	return err
}

// writeSecret says where the secret is: it does not stand in the config.
func (s *sidecar) writeSecret(c *flagsText) error {
	if s.secret != "" {
		c.write("secret {env." + secretVariable + "}")
	}
	for _, one := range s.settings["secret-file"] {
		// Absolute, because {file.name} is another placeholder in Caddyfiles.
		path, err := filepath.Abs(one.text)
		if err == nil && strings.ContainsAny(path, `{}\`) {
			err = errors.New("holds a brace or a backslash")
		}
		if err != nil {
			return one.wrap(err)
		}
		c.option(one, "secret", "{file."+path+"}")
	}
	return nil
}

// writeOptions writes what the flags of a block become.
func (s *sidecar) writeOptions(c *flagsText, block string) error {
	for _, group := range sidecarFlags {
		for i := range group.flags {
			f := &group.flags[i]
			if f.block != block {
				continue
			}
			settings := s.settings[f.name]
			if f.kind == kindNames && len(settings) > 0 {
				all := s.texts(f.name)
				c.option(setting{f, settings[0].source, strings.Join(all, " ")}, f.option, all...)
				continue
			}
			for _, one := range settings {
				if err := writeOption(c, one); err != nil {
					return one.wrap(err)
				}
			}
		}
	}
	return nil
}

func writeOption(c *flagsText, one setting) error {
	if one.flag.kind == "" {
		if on, _ := strconv.ParseBool(one.text); on {
			c.option(one, one.flag.option)
		}
		return nil
	}
	lines := [][]string{{one.text}}
	if one.flag.arguments != nil {
		var err error
		if lines, err = one.flag.arguments(one.text); err != nil {
			return err
		}
	}
	for _, arguments := range lines {
		c.option(one, one.flag.option, arguments...)
	}
	return nil
}

// first is the first setting of a flag, or one with its default.
func (s *sidecar) first(name, otherwise string) setting {
	if settings := s.settings[name]; len(settings) > 0 {
		return settings[0]
	}
	return setting{source: "--" + name, text: otherwise}
}

// from is where clients connect.
func (s *sidecar) from() string {
	if from := s.text("from"); from != "" {
		return from
	}
	return ":8080"
}

// hostname is what may stand before the port of --from, beside an IP address.
var hostname = regexp.MustCompile(`^[A-Za-z0-9*]([A-Za-z0-9.*_-]*[A-Za-z0-9])?$`)

// parseFrom reads --from as the address of a site, and the address to listen
// on where that is another. An IP address is the latter: clients and proxies
// that connect to it call the site whatever they like.
func parseFrom(text string) (site, bind string, err error) {
	if text, err = caddy.NewReplacer().ReplaceOrErr(text, true, true); err != nil {
		return "", "", err
	}
	if strings.HasPrefix(text, "unix/") || strings.HasPrefix(text, "fd/") {
		return "http://", text, nil
	}
	if _, err := strconv.Atoi(text); err == nil {
		return "", "", fmt.Errorf("a port is written :%s", text)
	}
	a, err := httpcaddyfile.ParseAddress(text)
	if err != nil {
		return "", "", err
	}
	ip, errIP := netip.ParseAddr(a.Host)
	isName := a.Host != "" && errIP != nil
	if a.Scheme == "" {
		a.Scheme = "http"
		if isName && a.Port != strconv.Itoa(caddyhttp.DefaultHTTPPort) {
			a.Scheme = "https"
		}
	}
	switch {
	case a.Host == "" && a.Port == "":
		return "", "", errors.New("names no port, address or host")
	case a.Scheme != "http" && a.Scheme != "https":
		return "", "", fmt.Errorf("clients connect by http or https, not %q", a.Scheme)
	case a.Path != "":
		return "", "", errors.New("a path belongs into --path")
	case isName && !hostname.MatchString(a.Host):
		return "", "", errors.New("is neither a port, an IP address, a hostname nor any of these with a port")
	case a.Scheme == "https" && a.Host == "":
		return "", "", errors.New("https needs a hostname")
	case a.Scheme == "http" && a.Port == strconv.Itoa(caddyhttp.DefaultHTTPSPort):
		return "", "", errors.New("443 is the port of https, which needs a hostname")
	}
	if errIP == nil && a.Scheme == "http" {
		a.Host, bind = "", ip.String()
	}
	host := a.Host
	if errIP == nil && ip.Is6() && host != "" {
		host = "[" + host + "]"
	}
	if a.Port != "" {
		host += ":" + a.Port
	}
	return a.Scheme + "://" + host, bind, nil
}
