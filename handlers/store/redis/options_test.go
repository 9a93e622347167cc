package redis_test

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/wsgate/caddy-wsgate/handlers/store/redis"
)

// Defect: what is wrong is taken, or the error holds the password: also where
// it is not percent-encoded, so that it is not where one looks for it.
func TestErrorsHoldPassword(t *testing.T) {
	t.Parallel()
	const password = "s3cret"
	for _, tc := range []struct {
		name string
		o    redis.Options
	}{
		{"no URL", redis.Options{}},
		{"no scheme", at1("user:s3cret@host:6379")},
		{"no scheme and no user", at1(":s3cret@host:6379")},
		{"no scheme and no colon", at1("s3cret@host:6379")},
		{"another scheme", at1("http://user:s3cret@host:6379")},
		{"an unknown database", at1("redis://user:s3cret@host:6379/x")},
		{"a path", at1("redis://user:s3cret@host:6379/1/2")},
		{"a slash in the password", at1("redis://user:1/s3cret@host:6379/0")},
		{"a hash in the password", at1("redis://user:1#s3cret@host:6379/0")},
		{"a question mark in the password", at1("redis://user:1?s3cret@host:6379/0")},
		{"a slash in a password without user", at1("redis://:1/s3cret@host:6379/0")},
		{"a percent sign in the password", at1("redis://user:s3cret%zz@host:6379/0")},
		{"a control character", at1("redis://user:s3cret\n@host:6379/0")},
		{"a bad port", at1("redis://user:s3cret@host:port/0")},
		{"a query", at1("redis://user:s3cret@host:6379/0?skip_verify=true")},
		{"a query that checks no certificate", at1("rediss://user:s3cret@host:6379/0?skip_verify=true")},
		{"a fragment", at1("redis://user:s3cret@host:6379/0#x")},
		{"a query of a socket", at1("unix://user:s3cret@/run/redis.sock?db=1&pool_size=1")},
		{"no path of a socket", at1("unix://user:s3cret@")},
		{"other users", redis.Options{URLs: []string{"redis://a:s3cret@x", "redis://b:s3cret@y"}, Cluster: true}},
		{"other passwords", redis.Options{URLs: []string{"redis://a:s3cret@x", "redis://a:s3cret2@y"}, Cluster: true}},
		{"TLS and not", redis.Options{URLs: []string{"rediss://a:s3cret@x", "redis://a:s3cret@y"}, Cluster: true}},
		{"a socket and not", redis.Options{URLs: []string{"redis://a:s3cret@x", "unix://a:s3cret@/y"}, Cluster: true}},
		{"a database of a Cluster", redis.Options{URLs: []string{"redis://a:s3cret@x/1"}, Cluster: true}},
		{"a socket of a Cluster", redis.Options{URLs: []string{"unix://a:s3cret@/x"}, Cluster: true}},
		{"a socket of a Sentinel", redis.Options{URLs: []string{"unix://a:s3cret@/x"}, Sentinel: "main"}},
		{"options of TLS without it", redis.Options{URLs: []string{"redis://a:s3cret@x"}, TLS: new(tls.Config)}},
	} {
		err := tc.o.Validate()
		if err == nil {
			t.Errorf("%s: no error", tc.name)
		} else if strings.Contains(err.Error(), password) {
			t.Errorf("%s: the password is in the error: %v", tc.name, err)
		}
	}
	for _, url := range []string{
		"redis://host", "redis://host:6379/15", "rediss://user:p%40%2F%23%3F%25@host", "redis://:@host", "redis://[::1]:6379/0",
		"unix:///run/redis.sock", "unix://user:s3cret@/run/redis.sock?db=3",
	} {
		if err := at1(url).Validate(); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func at1(url string) redis.Options { return redis.Options{URLs: []string{url}} }

// Defect: all nodes of a Cluster, or the master that Sentinels name, have to
// show the name of the first URL.
func TestServerNameOfOthers(t *testing.T) {
	t.Parallel()
	urls := []string{"rediss://one:1", "rediss://two:1"}
	for _, tc := range []struct {
		name string
		o    redis.Options
		want string
	}{
		{"one", redis.Options{URLs: urls[:1]}, "one"},
		{"one with options", redis.Options{URLs: urls[:1], TLS: new(tls.Config)}, "one"},
		{"a Cluster", redis.Options{URLs: urls, Cluster: true}, ""},
		{"one node of a Cluster", redis.Options{URLs: urls[:1], Cluster: true}, ""},
		{"Sentinels", redis.Options{URLs: urls, Sentinel: "main", TLS: new(tls.Config)}, ""},
		{"a name of its own", redis.Options{URLs: urls, Sentinel: "main", TLS: &tls.Config{ServerName: "three"}}, "three"},
	} {
		if name, hasTLS, err := tc.o.ServerName(); name != tc.want || !hasTLS || err != nil {
			t.Errorf("%s: %q, %t, %v, want %q", tc.name, name, hasTLS, err, tc.want)
		}
	}
}
