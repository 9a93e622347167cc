package handshake

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// SameOrigin is the entry of an allow-list that stands for the request's own
// scheme, host and port.
const SameOrigin = "same_origin"

// Origins is an allow-list of origins (RFC 6454). It is immutable and safe for
// concurrent use.
type Origins struct {
	same     bool                // same_origin
	any      bool                // *
	exact    map[string]struct{} // https://app.example.com
	wild     []wildcard          // https://*.example.org
	literals map[string]struct{} // null, file://
}

// wildcard matches hosts with at least one more label before the suffix.
type wildcard struct {
	scheme, suffix, port string // the suffix starts with its dot
}

// ParseOrigins reads an allow-list; an empty one is [SameOrigin]. An entry is
//
//   - same_origin;
//   - an origin as browsers write it: scheme://host[:port];
//   - one with a wildcard as the leftmost label, https://*.example.org, which
//     stands for one or more labels, so not for example.org itself;
//   - *, any well-formed origin; that leaves out null, which every sandboxed
//     page on the web can send;
//   - null, or a scheme without a host such as file://, taken literally.
//
// Scheme and host compare without regard to case, and the default port of http
// and https equals none. An error quotes the entry and says what is wrong.
func ParseOrigins(entries []string) (*Origins, error) {
	o := &Origins{exact: map[string]struct{}{}, literals: map[string]struct{}{}}
	if len(entries) == 0 {
		o.same = true
	}
	for _, entry := range entries {
		if err := o.add(entry); err != nil {
			return nil, fmt.Errorf("parsing origin %q: %w", entry, err)
		}
	}
	return o, nil
}

func (o *Origins) add(entry string) error {
	switch entry {
	case SameOrigin:
		o.same = true
		return nil
	case "*":
		o.any = true
		return nil
	case "null":
		o.literals[entry] = struct{}{}
		return nil
	}
	if scheme, ok := strings.CutSuffix(entry, "://"); ok {
		switch scheme = lower(scheme); {
		case !validScheme(scheme):
			return errScheme
		case scheme == "http", scheme == "https":
			return errHost // most likely a placeholder that came out empty
		}
		o.literals[entry] = struct{}{}
		return nil
	}
	scheme, rest, ok := strings.Cut(entry, "://")
	suffix, isWild := strings.CutPrefix(rest, "*.")
	if !ok || !isWild {
		parsed, err := parseOrigin(entry)
		if err != nil {
			return err
		}
		o.exact[parsed.String()] = struct{}{}
		return nil
	}
	parsed, err := parseOrigin(scheme + "://" + suffix)
	if err != nil {
		return err
	}
	// 127.0.0.1 is no subdomain of 0.0.1.
	if parsed.host[0] == '[' || isDigits(parsed.host[strings.LastIndexByte(parsed.host, '.')+1:]) {
		return errors.New("a wildcard needs a domain name behind it")
	}
	o.wild = append(o.wild, wildcard{parsed.scheme, "." + parsed.host, parsed.port})
	return nil
}

// RequestOrigin is what a request says about where it comes from and where it
// was going.
type RequestOrigin struct {
	// Every line of the Origin field.
	Values []string

	// The scheme, and the Host with its port if there is one, of the request as
	// the client made it: behind a proxy that ends TLS, those of the public
	// site. They are looked at for same_origin only.
	Scheme, Host string
}

// Allows tells whether a request that has an Origin field comes from one of
// the origins. It takes exactly one value, which must be well-formed or be
// listed literally; anything else is refused: two lines, a list (RFC 6454 §7.1
// allows one, no browser sends it), an empty value, null, a path, userinfo,
// a trailing dot, anything outside ASCII.
func (o *Origins) Allows(in RequestOrigin) bool {
	if len(in.Values) != 1 {
		return false
	}
	value := in.Values[0]
	if _, ok := o.literals[value]; ok {
		return true
	}
	origin, err := parseOrigin(value)
	if err != nil {
		return false
	}
	if o.any {
		return true
	}
	if o.same {
		own, err := parseOrigin(in.Scheme + "://" + in.Host)
		if err == nil && own == origin {
			return true
		}
	}
	if _, ok := o.exact[origin.String()]; ok {
		return true
	}
	for _, w := range o.wild {
		if w.matches(origin) {
			return true
		}
	}
	return false
}

// matches relies on the host being well-formed: whatever stands before the
// suffix is a label, since no host starts with a dot.
func (w wildcard) matches(o origin) bool {
	return o.scheme == w.scheme && o.port == w.port && strings.HasSuffix(o.host, w.suffix)
}

// origin is the triple of RFC 6454 §4 in lower case; the port is empty where
// it is the scheme's default one.
type origin struct {
	scheme, host, port string
}

func (o origin) String() string {
	if o.port == "" {
		return o.scheme + "://" + o.host
	}
	return o.scheme + "://" + o.host + ":" + o.port
}

var (
	errScheme   = errors.New("not of the form scheme://host[:port]")
	errPath     = errors.New("an origin has no path, query or fragment")
	errUserinfo = errors.New("an origin has no user information")
	errHost     = errors.New("the host is not a plain ASCII name or address")
	errDot      = errors.New("the host has an empty label or a trailing dot")
	errWildcard = errors.New("a wildcard may only be the whole leftmost label")
	errPort     = errors.New("the port is not a number from 1 to 65535")
)

// parseOrigin reads the ASCII serialization of an origin (RFC 6454 §6.2) and
// accepts nothing else: not what a URL parser would repair.
func parseOrigin(s string) (origin, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	scheme = lower(scheme)
	if !ok || !validScheme(scheme) {
		return origin{}, errScheme
	}
	switch {
	case strings.ContainsAny(rest, "/?#\\"):
		return origin{}, errPath
	case strings.Contains(rest, "@"):
		return origin{}, errUserinfo
	case strings.Contains(rest, "*"):
		return origin{}, errWildcard
	}
	host, port, hasPort := cutPort(rest)
	host = lower(host)
	if err := checkHost(host); err != nil {
		return origin{}, err
	}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || !isDigits(port) || port[0] == '0' {
			return origin{}, errPort
		}
		if scheme == "http" && n == 80 || scheme == "https" && n == 443 {
			port = ""
		}
	}
	return origin{scheme, host, port}, nil
}

// cutPort splits at the last colon that is not part of an IPv6 address.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || i < strings.LastIndexByte(s, ']') {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// checkHost accepts an IPv6 address in brackets and in its short form, as
// browsers write it, or dot-separated labels of letters, digits, hyphens and
// underscores. Names in other scripts come as xn-- labels.
func checkHost(host string) error {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		if !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return errHost
		}
		// Go writes the last 32 bits of a mapped address with dots, browsers do not.
		if !addr.Is4In6() && addr.String() != inner {
			return fmt.Errorf("the address is not in its short form %q", "["+addr.String()+"]")
		}
		return nil
	}
	if host == "" {
		return errHost
	}
	for i := 0; i < len(host); i++ {
		c := host[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return errHost
		}
	}
	if strings.HasPrefix(host, ".") || strings.HasSuffix(host, ".") || strings.Contains(host, "..") {
		return errDot
	}
	return nil
}

// validScheme wants a lower-case scheme (RFC 3986 §3.1).
func validScheme(s string) bool {
	if s == "" || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := 1; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '+', c == '-', c == '.':
		default:
			return false
		}
	}
	return true
}

func isDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// lower folds ASCII only, for the reason that equalFold does.
func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if lowerByte(s[i]) != s[i] {
			return lowerAll([]byte(s))
		}
	}
	return s
}

func lowerAll(b []byte) string {
	for i, c := range b {
		b[i] = lowerByte(c)
	}
	return string(b)
}
