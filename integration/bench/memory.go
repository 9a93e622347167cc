package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// memory is what one idle socket takes, in KiB.
type memory struct {
	rss   float64 // resident set, as it settles by itself
	after float64 // resident set some seconds after a garbage collection; Go only
	live  float64 // heap and stacks in use after it; Go only
}

// measureMemory opens the sockets, leaves them alone and compares.
func (p *proxy) measureMemory(ctx context.Context, o options, t *tokens) error {
	// What the first handshakes load is no socket's.
	warm, err := p.open(ctx, 200, 512, t)
	if err != nil {
		return err
	}
	drop(warm)
	time.Sleep(time.Second)
	// Each figure is the growth from a state of its own kind: of the resident
	// set as it settles by itself, and of that after a collection. Taking the
	// first from a process that was just made to collect would count the
	// garbage it always holds as the sockets'.
	before, err := p.settledRSS(ctx, o.settle)
	if err != nil {
		return err
	}
	liveBefore, err := p.live()
	if err != nil {
		return err
	}
	collected, err := p.settledRSS(ctx, o.settle)
	if err != nil {
		return err
	}
	sockets, err := p.open(ctx, o.sockets, 512, t)
	if err != nil {
		return err
	}
	var readers sync.WaitGroup
	for _, s := range sockets {
		readers.Go(func() { _, _ = s.next() }) // answers pings; ends when it is dropped
	}
	rss, err := p.settledRSS(ctx, o.settle)
	if err != nil {
		return err
	}
	each := func(b int) float64 { return float64(b) / 1024 / float64(o.sockets) }
	p.memory.rss = each(rss - before)
	if p.admin != "" {
		live, err := p.live()
		if err != nil {
			return err
		}
		p.memory.live = each(live - liveBefore)
		if rss, err = p.settledRSS(ctx, o.settle); err != nil {
			return err
		}
		p.memory.after = each(rss - collected)
	}
	drop(sockets)
	readers.Wait()
	time.Sleep(500 * time.Millisecond)
	return nil
}

// settledRSS waits until the resident set has stayed where it is for a while,
// give or take half a percent; three times as long at most.
func (p *proxy) settledRSS(ctx context.Context, settle time.Duration) (int, error) {
	const looks = 6
	last, still := 0, 0
	for range 3 * looks {
		now, err := family(p.pid())
		if err != nil {
			return 0, err
		}
		moved := now.rss - last
		if max(moved, -moved) < last/200+64<<10 {
			still++
		} else {
			still = 0
		}
		last = now.rss
		if still >= looks {
			break
		}
		select {
		case <-time.After(settle / looks):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return last, nil
}

// live is what a Go process holds in use after two garbage collections; 0 for
// others.
func (p *proxy) live() (int, error) {
	if p.admin == "" {
		return 0, nil
	}
	sum := 0
	for range 2 { // what finalizers and pools let go of is free after the second
		resp, err := http.Get("http://" + p.admin + "/debug/pprof/heap?gc=1&debug=1")
		if err != nil {
			return 0, fmt.Errorf("reading the heap profile: %w", err)
		}
		sum = 0
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var n int
			for _, name := range []string{"# HeapAlloc = %d", "# Stack = %d"} {
				if strings.HasPrefix(lines.Text(), name[:len(name)-2]) {
					if _, err := fmt.Sscanf(lines.Text(), name, &n); err == nil {
						sum += n
					}
				}
			}
		}
		err = lines.Err()
		resp.Body.Close()
		if err != nil {
			return 0, fmt.Errorf("reading the heap profile: %w", err)
		}
	}
	return sum, nil
}
