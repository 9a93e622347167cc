package store_test

import (
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

// The same contract, with one server for all of it.
func TestRedis(t *testing.T) {
	server := redistest.Start(t)
	var n atomic.Int64
	newRedis := func(t *testing.T) store.Store {
		return newShared(t, server, "test"+strconv.FormatInt(n.Add(1), 10)+":")
	}
	testStore(t, newRedis)
}

func newShared(t *testing.T, server *redistest.Server, prefix string) store.Store {
	s, err := redis.New(redis.Options{URLs: []string{server.URL()}, Prefix: prefix, Timeout: 5 * time.Second, Deny: true, Revocations: new(store.Revocations)})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
