package redis_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

// Defect: what a process held that was stopped stays for as long as if it had
// crashed.
func TestCloseKeepsLeases(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	nodes := startNodes(t, server, 2)
	for _, id := range ids("c", 600) { // more than one script takes
		nodes[0].Adopt(id, "chat", []string{"u"})
	}
	await(t, "all to be told", func() bool { return nodes[0].Changed() == 0 })
	nodes[1].wantCount("u", 600)
	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	nodes[1].wantCount("u", 0)
	nodes[0].wantSaid()
}

// Defect: a process can't stop, or only after a long time, while Redis hangs;
// noticed or not.
func TestCloseWaitsForRedis(t *testing.T) {
	t.Parallel()
	for name, noticed := range map[string]bool{"noticed": true, "not noticed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			n := newNode(t, server.URL(), "a")
			n.Start()
			n.awaitReady(server, 1)
			for _, id := range ids("c", 600) {
				n.Adopt(id, "chat", []string{"u"})
			}
			server.Pause()
			if noticed {
				await(t, "it to be noticed", func() bool { return !n.Up() })
			}
			begin := time.Now()
			n.Close()
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// Defect: the order in which a store is started and closed, or used by those
// who come too late, matters.
func TestCloseInAnyOrder(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	use := func(n *node) {
		n.Acquire(context.Background(), handshake("a", reject("u", 1)))
		n.Adopt("b", "chat", []string{"u"})
		n.Release("a")
		n.Release("b")
		n.Learn(context.Background())
		n.Gather(context.Background(), []byte("1"))
		n.Revoke(context.Background(), user("alice"))
	}
	for range 5 {
		never := newNode(t, server.URL(), "never started")
		use(never)
		if err := never.Close(); err != nil {
			t.Error(err)
		}
		never.Start() // too late
		use(never)

		twice := newNode(t, server.URL(), "started twice")
		twice.Start()
		twice.Start()
		use(twice)
		if err := twice.Close(); err != nil {
			t.Error(err)
		}
		twice.Start()
		use(twice)

		// All at the same time.
		n := newNode(t, server.URL(), "all at once")
		var all sync.WaitGroup
		all.Go(n.Start)
		all.Go(func() { use(n) })
		all.Go(func() { n.Close() })
		all.Wait()
		n.Close()
	}
}
