package module

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis"
)

func init() {
	caddy.RegisterModule(new(RedisStore))
}

// RedisStore is the store of several nodes that guard the same backends. Caps
// are exact across all of them, rates by user and by placeholder count
// together, a revocation holds everywhere, and the admin API of any node
// reaches all. It works with Redis from 6.2 on and with Valkey.
//
// Live sockets never depend on Redis: while it is away they go on, and
// handshakes are decided as on_error says. When it is back, live sockets are
// counted again.
type RedisStore struct {
	// Where Redis is: `redis://`, `rediss://` (TLS) or `unix://`, with user,
	// password and number of the database as in
	// `rediss://user:password@host:6379/0`, or `unix:///run/redis.sock?db=0`. Keep the password in a placeholder
	// such as `{env.REDIS_URL}`. Several, for `sentinel` and `cluster`, differ
	// only in their hosts. What is special in a URL is percent-encoded.
	URLs []string `json:"urls,omitempty"`

	// What begins every key and channel. Nodes that share Redis and the prefix
	// share everything. Default: `wsgate:`.
	Prefix string `json:"prefix,omitempty"`

	// What decides while Redis is away: `local` (default), this node's own
	// counts; or `deny`, nothing, and requests get 503.
	OnError string `json:"on_error,omitempty"`

	// How long one question may take, connecting included. At most 1s, by
	// which a handshake is delayed at most. Default: 500ms.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The URLs are those of Sentinels, which know where the master of this
	// name is.
	Sentinel *Sentinel `json:"sentinel,omitempty"`

	// The URLs are those of nodes of a Redis Cluster. All keys of a tunnel are
	// in one slot.
	Cluster bool `json:"cluster,omitempty"`

	// A file of PEM certificates to trust in place of the system's, for
	// `rediss://`.
	TLSCA string `json:"tls_ca,omitempty"`

	// A file with the PEM certificate to show, for `rediss://`.
	TLSCertificate string `json:"tls_certificate,omitempty"`

	// The file with its key.
	TLSKey string `json:"tls_key,omitempty"`

	key    string // in the pool
	store  *redis.Store
	logger *zap.Logger
}

// Sentinel is how Sentinels are asked.
type Sentinel struct {
	// The name of the master.
	Master string `json:"master"`

	// The password of the Sentinels themselves, if they have one.
	Password string `json:"password,omitempty"`
}

// Defaults of RedisStore.
const (
	defaultPrefix       = "wsgate:"
	defaultStoreTimeout = 500 * time.Millisecond
)

// Words of on_error.
const (
	onErrorLocal = "local"
	onErrorDeny  = "deny"
)

// CaddyModule returns the Caddy module information.
func (*RedisStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "ws_gate.stores.redis",
		New: func() caddy.Module { return new(RedisStore) },
	}
}

// redisStores are the stores in use, by their configuration: live sockets hold
// leases, and a reload must not lose them.
var redisStores = caddy.NewUsagePool()

// pooledRedis is a store in the pool.
type pooledRedis struct{ *redis.Store }

// Destruct ends a store that no config uses any more.
func (p pooledRedis) Destruct() error { return p.Close() }

// Provision implements caddy.Provisioner. It makes no connection.
func (r *RedisStore) Provision(ctx caddy.Context) error {
	r.logger = ctx.Logger()
	if err := r.expand(); err != nil {
		return err
	}
	if r.Prefix == "" {
		r.Prefix = defaultPrefix
	}
	if r.OnError == "" {
		r.OnError = onErrorLocal
	}
	if r.OnError != onErrorLocal && r.OnError != onErrorDeny {
		return fmt.Errorf("on_error: %q is neither %s nor %s", r.OnError, onErrorLocal, onErrorDeny)
	}
	if r.Timeout == 0 {
		r.Timeout = caddy.Duration(defaultStoreTimeout)
	}
	if time.Duration(r.Timeout) < time.Millisecond || time.Duration(r.Timeout) > storePatience {
		return fmt.Errorf("timeout: %s is not within 1ms and %s", time.Duration(r.Timeout), storePatience)
	}
	options, err := r.options()
	if err != nil {
		return err
	}
	key, err := json.Marshal(r)
	if err != nil {
		return err
	}
	pooled, _, err := redisStores.LoadOrNew(string(key), func() (caddy.Destructor, error) {
		s, err := redis.New(options)
		return pooledRedis{s}, err
	})
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	r.key, r.store = string(key), pooled.(pooledRedis).Store
	return nil
}

// CheckRedisURL refuses what is no URL of Redis.
func CheckRedisURL(text string) error {
	return redis.Options{URLs: []string{text}}.Validate()
}

// CheckKind refuses kinds of Redis that exclude each other.
func (r *RedisStore) CheckKind() error {
	switch {
	case r.Cluster && r.Sentinel != nil:
		return errors.New("cluster and sentinel exclude each other")
	case len(r.URLs) > 1 && !r.Cluster && r.Sentinel == nil:
		return errors.New("several URLs need cluster or sentinel")
	}
	return nil
}

// expand replaces global placeholders.
func (r *RedisStore) expand() error {
	texts := map[string]*string{"prefix": &r.Prefix, "tls_ca": &r.TLSCA, "tls_certificate": &r.TLSCertificate, "tls_key": &r.TLSKey}
	for i := range r.URLs {
		texts[fmt.Sprintf("URL %d", i+1)] = &r.URLs[i]
	}
	if r.Sentinel != nil {
		texts["sentinel"], texts["sentinel password"] = &r.Sentinel.Master, &r.Sentinel.Password
	}
	repl := caddy.NewReplacer()
	for option, text := range texts {
		expanded, err := repl.ReplaceOrErr(*text, true, true)
		if err != nil && strings.HasPrefix(option, "URL") {
			err = errors.New("a placeholder in it is unknown or empty") // what looks like one may be a password
		}
		if err != nil {
			return fmt.Errorf("%s: %w", option, err)
		}
		*text = expanded
	}
	return nil
}

// options are those of the store. Errors name no password.
func (r *RedisStore) options() (redis.Options, error) {
	if err := r.CheckKind(); err != nil {
		return redis.Options{}, err
	}
	o := redis.Options{
		URLs: r.URLs, Cluster: r.Cluster, Prefix: r.Prefix, Timeout: time.Duration(r.Timeout), Deny: r.OnError == onErrorDeny,
		Node: node, Revocations: &revocations,
		Events: redis.Events{Evicted: evict, Revoked: func() { closeRevoked() }, Asked: obey, Measured: metrics.asked},
	}
	if r.Sentinel != nil {
		if r.Sentinel.Master == "" {
			return o, errors.New("sentinel: the name of the master is missing")
		}
		o.Sentinel, o.SentinelPassword = r.Sentinel.Master, r.Sentinel.Password
	}
	if (r.TLSCertificate == "") != (r.TLSKey == "") {
		return o, errors.New("tls_certificate: needs the file of the certificate and that of its key")
	}
	if r.TLSCA == "" && r.TLSCertificate == "" {
		return o, nil
	}
	o.TLS = new(tls.Config)
	if r.TLSCA != "" {
		pem, err := os.ReadFile(r.TLSCA)
		if err != nil {
			return o, fmt.Errorf("tls_ca: %w", err)
		}
		o.TLS.RootCAs = x509.NewCertPool()
		if !o.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return o, fmt.Errorf("tls_ca: %s: no certificate in it", r.TLSCA)
		}
	}
	if r.TLSCertificate != "" {
		certificate, err := tls.LoadX509KeyPair(r.TLSCertificate, r.TLSKey)
		if err != nil {
			return o, fmt.Errorf("tls_certificate: %w", err)
		}
		o.TLS.Certificates = []tls.Certificate{certificate}
	}
	return o, nil
}

// Start implements remoteStore.
func (r *RedisStore) Start() {
	r.store.SetLogger(r.logger)
	r.store.Start()
}

// Up implements remoteStore.
func (r *RedisStore) Up() bool { return r.store.Up() }

// Cleanup gives back what Provision took.
func (r *RedisStore) Cleanup() error {
	if r.key == "" {
		return nil
	}
	_, err := redisStores.Delete(r.key)
	r.key = ""
	return err
}

// Store implements the interface of stores.
func (r *RedisStore) Store() store.Store { return r.store }

// Interface guards.
var (
	_ caddy.Provisioner  = (*RedisStore)(nil)
	_ caddy.CleanerUpper = (*RedisStore)(nil)
	_ storeModule        = (*RedisStore)(nil)
	_ remoteStore        = (*RedisStore)(nil)
)
