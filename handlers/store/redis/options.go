package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/zap"

	"github.com/wsgate/caddy-wsgate/handlers/store"
)

// Options is how a store reaches Redis, and what it does without.
type Options struct {
	// URLs is where Redis is: redis://, rediss:// (TLS) or unix://, with user,
	// password and database, a socket's as ?db=1. More than one, of Sentinels or of a Cluster's
	// nodes, differ in nothing but their hosts.
	URLs []string

	// Sentinel is the name of the master that the Sentinels at URLs watch.
	Sentinel string
	// SentinelPassword is that of the Sentinels themselves.
	SentinelPassword string

	// Cluster tells that the URLs are those of a Redis Cluster's nodes.
	Cluster bool

	// TLS is for rediss URLs.
	TLS *tls.Config

	// Prefix begins every key and channel.
	Prefix string

	// Timeout is how long one question may take, connecting included.
	Timeout time.Duration

	// Deny refuses what can't be asked while Redis is away. Without it this
	// node's own counts apply.
	Deny bool

	// Node is the name of this node for those who read lists.
	Node string

	// Revocations is what this node knows, and learns from others.
	Revocations *store.Revocations

	Events
}

// Events tell the owner of a store what others want. They are called from the
// store's own goroutines, and may be called at the same time.
type Events struct {
	// Evicted ends a connection of this node that made room for another.
	Evicted func(id string)

	// Revoked is called when there are new revocations in the set.
	Revoked func()

	// Asked answers another node; nil for what it does not understand.
	Asked func(question []byte) (answer []byte)

	// Measured tells how long Redis took to decide on a handshake, and
	// whether it failed.
	Measured func(took time.Duration, err error)
}

// Validate tells what is wrong with the options. No password is in the error.
func (o Options) Validate() error {
	_, err := o.client()
	return err
}

// client makes the client, which connects when it is asked something.
func (o Options) client() (*goredis.UniversalOptions, error) {
	if len(o.URLs) == 0 {
		return nil, errors.New("a URL is missing")
	}
	var first *goredis.Options
	var addresses []string
	several := len(o.URLs) > 1 || o.Cluster || o.Sentinel != ""
	for _, text := range o.URLs {
		one, err := o.parse(text)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, one.Addr)
		if first == nil {
			first = one
		} else if one.Username != first.Username || one.Password != first.Password || one.DB != first.DB || one.Network != first.Network || (one.TLSConfig == nil) != (first.TLSConfig == nil) {
			return nil, errors.New("the URLs differ in more than their hosts")
		}
	}
	if o.Cluster && first.DB != 0 {
		return nil, errors.New("a Cluster has no database but 0")
	}
	if first.Network == "unix" && (o.Cluster || o.Sentinel != "") {
		return nil, errors.New("neither a Cluster nor Sentinels are behind a unix socket")
	}
	if several && first.TLSConfig != nil && (o.TLS == nil || o.TLS.ServerName == "") {
		first.TLSConfig.ServerName = "" // every host has to show its own name
	}
	return &goredis.UniversalOptions{
		Addrs: addresses, Username: first.Username, Password: first.Password, DB: first.DB, TLSConfig: first.TLSConfig,
		MasterName: o.Sentinel, SentinelPassword: o.SentinelPassword, IsClusterMode: o.Cluster,
		// Every question has a deadline of its own, which is sooner.
		DialTimeout: patience, ReadTimeout: patience, WriteTimeout: patience, PoolTimeout: patience,
		ContextTimeoutEnabled: true,
		// A connection that Redis closed while it was idle costs a second
		// try, within the same deadline.
		MaxRetries: 1, MinRetryBackoff: -1, MaxRetryBackoff: -1, DialerRetries: 1,
		PoolSize: poolSize, MaxIdleConns: maxIdle,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}, nil
}

// How many connections to Redis there are at most, and when nothing is asked.
const (
	poolSize = 64
	maxIdle  = 8
)

// parse reads one URL.
func (o Options) parse(text string) (*goredis.Options, error) {
	u, err := url.Parse(text)
	// What is wrong may hold the password, or be it: one with # or / in it, or
	// a URL without a scheme.
	if err != nil || u.Opaque != "" || strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") {
		return nil, errors.New("the URL is malformed: it begins with redis://, rediss:// or unix://, and what is special in a password is percent-encoded")
	}
	query := u.Query()
	if u.Scheme == "unix" {
		query.Del("db") // its path is no place for a number
	}
	if len(query) > 0 || u.Fragment != "" {
		return nil, fmt.Errorf("%s: a query or fragment means nothing here", u.Redacted())
	}
	parsed, err := goredis.ParseURL(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", u.Redacted(), strings.TrimPrefix(err.Error(), "redis: "))
	}
	if o.TLS != nil {
		if parsed.TLSConfig == nil {
			return nil, fmt.Errorf("%s: TLS options need a rediss URL", u.Redacted())
		}
		config := o.TLS.Clone()
		if config.ServerName == "" {
			config.ServerName = parsed.TLSConfig.ServerName
		}
		config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
		parsed.TLSConfig = config
	}
	return parsed, nil
}

// silent takes the place of the client's own log: what matters, the store says
// once, see state.go.
type silent struct{}

// Printf implements the client's logger.
func (silent) Printf(context.Context, string, ...any) {}

func init() { goredis.SetLogger(silent{}) }

// SetLogger makes the store write its log there from now on.
func (s *Store) SetLogger(logger *zap.Logger) { s.log.Store(logger) }
