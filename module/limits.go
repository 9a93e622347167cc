package module

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/limit"
	"github.com/wsgate/caddy-wsgate/handlers/store"
)

// HandshakeRate is how often requests may come that are alike in something.
type HandshakeRate struct {
	// So many requests …
	Number int `json:"number"`

	// … in this time.
	Per caddy.Duration `json:"per"`

	// How many may come at once. Default: the number.
	Burst int `json:"burst,omitempty"`

	// What is counted: `ip` (default; the client's address as Caddy knows it,
	// IPv6 by /64), `user`, or any placeholder. Rates that need no token are
	// checked before it.
	By string `json:"by,omitempty"`

	// Whether the nodes of a shared store count a client's address together.
	// Each counts for itself without, so that a flood costs the store nothing.
	// Rates by anything else always count together; without a shared store
	// there is nothing to share.
	Shared bool `json:"shared,omitempty"`

	name   string // tells it from other rates of the tunnel
	table  *limit.Table
	shared bool
}

// MaxConnections is how many sockets may be open that are alike in something.
type MaxConnections struct {
	// So many, or a placeholder that names a claim with the number. A token
	// whose claim is no number from 1 on is refused with 403.
	Number string `json:"number"`

	// What is counted: `user` (default), `ip` or any placeholder.
	By string `json:"by,omitempty"`

	// What happens to one more: `reject` (default) it, with 429, or
	// `evict_oldest` of those that are open, with close code 1008.
	OnFull string `json:"on_full,omitempty"`

	number int // 0: a placeholder of the request
}

// What limits count by, beside placeholders.
const (
	byIP   = "ip"
	byUser = "user"
)

// Words of max_connections.
const (
	onFullReject = "reject"
	onFullEvict  = "evict_oldest"
)

// tables are the rates' buckets, by rate and tunnel. They outlive a reload.
var tables = caddy.NewUsagePool()

// pooledTable is a table in the pool.
type pooledTable struct{ *limit.Table }

// Destruct ends the table when its last user is gone.
func (p pooledTable) Destruct() error {
	p.Close()
	return nil
}

// limitError is a refusal because there are too many.
type limitError struct {
	reason string
	detail string
	hint   string // for the client
	wait   time.Duration
	known  bool
}

func (e *limitError) Error() string { return e.detail }

// answer is 429 (RFC 6585 §4). Retry-After is rounded up, so that whoever
// obeys it gets in.
func (e *limitError) answer() answer {
	seconds := max(1, int(math.Ceil(e.wait.Seconds())))
	return answer{
		status: http.StatusTooManyRequests, reason: e.reason, detail: e.detail, known: e.known,
		header: http.Header{"Retry-After": {strconv.Itoa(seconds)}, hintHeader: {e.hint}},
	}
}

// errCapNumber refuses a token whose claim should say how many sockets its
// user may have, and does not.
var errCapNumber = errors.New("the claim with the number of max_connections is missing or no number from 1 on")

// needsToken reports whether what a limit counts by is known only once the
// token is checked.
func needsToken(by string) bool {
	return by == byUser || strings.Contains(by, "{http.auth.user.") || strings.Contains(by, "{http.ws_gate.")
}

// checkBy refuses what limits can't count by.
func checkBy(by string) error {
	if by == byIP || by == byUser || strings.HasPrefix(by, "{") && strings.HasSuffix(by, "}") {
		return nil
	}
	return fmt.Errorf("by %q is neither ip, user nor a placeholder", by)
}

// checkRequestRate holds the request to the rates that need no token.
func (g *Gate) checkRequestRate(v *visit) error {
	rates, err := g.checkRates(v, false)
	if err != nil || len(rates) == 0 {
		return err
	}
	_, err = g.ask(v, rates, nil)
	return err
}

// checkUserRate holds the request to the rates that do. Those that all nodes
// count are asked for together with the caps: it is one question.
func (g *Gate) checkUserRate(v *visit) (err error) {
	v.rates, err = g.checkRates(v, true)
	return err
}

// checkRates holds the request to this node's own count, and returns the rates
// that other nodes count as well.
func (g *Gate) checkRates(v *visit, known bool) (shared []countedRate, err error) {
	for _, r := range g.HandshakeRate {
		if needsToken(r.By) != known {
			continue
		}
		key := v.key(r.By)
		if ok, wait := r.table.Allow(key, time.Now()); !ok {
			return nil, r.refusal(known, wait)
		}
		if r.shared {
			shared = append(shared, countedRate{r, key})
		}
	}
	return shared, nil
}

// countedRate is a rate and what the request counts under.
type countedRate struct {
	*HandshakeRate
	key string
}

// rate is it in numbers.
func (r *HandshakeRate) rate() limit.Rate {
	return limit.Rate{Number: r.Number, Per: time.Duration(r.Per), Burst: r.Burst}
}

// refusal is what a request gets that comes too soon.
func (r *HandshakeRate) refusal(known bool, wait time.Duration) error {
	return &limitError{
		reason: reasonRate, known: known, wait: wait,
		detail: "handshake_rate by " + r.By,
		hint:   fmt.Sprintf("at most %d handshakes in %s", r.Number, time.Duration(r.Per)),
	}
}

// key is what the visit counts under.
func (v *visit) key(by string) string {
	switch by {
	case byIP:
		return addressKey(v.clientIP())
	case byUser:
		return userKey(v.token.Issuer, v.token.User)
	}
	if repl := v.replacer(); repl != nil {
		return repl.ReplaceAll(by, "")
	}
	return ""
}

// userKey is one user: the pair of issuer and user claim, exact bytes. No
// issuer has a NUL in its name.
func userKey(issuer, user string) string { return issuer + "\x00" + user }

// addressKey is one client address: IPv4 as it is, also where it is mapped
// into IPv6, and IPv6 by its /64, of which one client has the whole.
func addressKey(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		prefix, _ := ip.Prefix(64) // never fails: 64 is within IPv6
		return prefix.String()
	}
	return ip.String()
}

// provisionLimits checks the limits and takes the tables from the pool.
func (g *Gate) provisionLimits() error {
	for _, r := range g.HandshakeRate {
		if r.By == "" {
			r.By = byIP
		}
		if err := checkBy(r.By); err != nil {
			return fmt.Errorf("handshake_rate: %w", err)
		}
		if r.Number < 1 || r.Per <= 0 || r.Burst < 0 {
			return errors.New("handshake_rate: needs a number from 1 on, and a time")
		}
		r.name = fmt.Sprintf("%d/%d burst %d by %s", r.Number, r.Per, r.Burst, r.By)
		_, shares := g.store.(store.Shared)
		r.shared = shares && (r.Shared || r.By != byIP)
		key := g.TunnelName + " " + r.name
		table, _, err := tables.LoadOrNew(key, func() (caddy.Destructor, error) {
			return pooledTable{limit.NewTable(r.rate())}, nil
		})
		if err != nil {
			return err
		}
		g.tables = append(g.tables, key)
		r.table = table.(pooledTable).Table
	}
	if err := g.MessageRate.provision(); err != nil {
		return fmt.Errorf("message_rate: %w", err)
	}
	if err := g.ByteRate.provision(); err != nil {
		return fmt.Errorf("byte_rate: %w", err)
	}
	if g.MaxMessageSize < 0 {
		return errors.New("max_message_size: is negative")
	}
	repl := caddy.NewReplacer()
	for _, m := range g.MaxConnections {
		if err := m.provision(repl); err != nil {
			return fmt.Errorf("max_connections: %w", err)
		}
	}
	return nil
}

func (m *MaxConnections) provision(repl *caddy.Replacer) error {
	if m.By == "" {
		m.By = byUser
	}
	if m.OnFull == "" {
		m.OnFull = onFullReject
	}
	if m.OnFull != onFullReject && m.OnFull != onFullEvict {
		return fmt.Errorf("%q is neither %s nor %s", m.OnFull, onFullReject, onFullEvict)
	}
	if err := checkBy(m.By); err != nil {
		return err
	}
	m.Number = repl.ReplaceKnown(m.Number, "")
	if strings.HasPrefix(m.Number, "{") && strings.HasSuffix(m.Number, "}") {
		return nil
	}
	n, err := strconv.Atoi(m.Number)
	if err != nil || n < 1 {
		return fmt.Errorf("%q is neither a number from 1 on nor a placeholder", m.Number)
	}
	m.number = n
	return nil
}

// limit is how many sockets the visitor may have.
func (m *MaxConnections) limit(v *visit) (int, error) {
	if m.number > 0 {
		return m.number, nil
	}
	repl := v.replacer()
	if repl == nil {
		return 0, errCapNumber
	}
	n, err := strconv.ParseFloat(repl.ReplaceAll(m.Number, ""), 64)
	if err != nil || !(n >= 1) || math.IsInf(n, 0) {
		return 0, errCapNumber
	}
	return int(min(n, math.MaxInt32)), nil
}
