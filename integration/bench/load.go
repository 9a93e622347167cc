package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// load is one kind of work. It runs until its time is over and returns how
// much was done; the proxy's CPU time is divided by that.
type load struct {
	name string
	unit time.Duration // of the figure: CPU time in this unit for each piece
	run  func(ctx context.Context, p *proxy, o options, t *tokens) (pieces float64, used time.Duration, err error)
}

var loads = []load{
	{"CPU µs per echoed 128 B message", time.Microsecond, echoSmall},
	{"CPU s per GB (16 KiB messages)", time.Second, echoLarge},
	{"CPU µs per handshake", time.Microsecond, handshakes},
}

// measure runs one turn of a load and returns the figure.
func (p *proxy) measure(ctx context.Context, o options, t *tokens, l load) (float64, error) {
	pieces, used, err := l.run(ctx, p, o, t)
	if err != nil {
		return 0, err
	}
	if pieces == 0 {
		return 0, errors.New("nothing was done")
	}
	return float64(used) / float64(l.unit) / pieces, nil
}

// during returns the proxy's CPU time while fn runs, with what it still does
// shortly after.
func (p *proxy) during(fn func()) (time.Duration, error) {
	before, err := family(p.pid())
	if err != nil {
		return 0, err
	}
	fn()
	time.Sleep(200 * time.Millisecond)
	after, err := family(p.pid())
	return after.cpu - before.cpu, err
}

// handshakes opens sockets and drops them at once, some at a time.
func handshakes(ctx context.Context, p *proxy, o options, t *tokens) (float64, time.Duration, error) {
	var done, failed atomic.Int64
	var first atomic.Pointer[error]
	end := time.Now().Add(o.duration)
	used, err := p.during(func() {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for time.Now().Before(end) && ctx.Err() == nil && done.Load() < handshakesPerTurn {
					s, err := dial(p.addr, t.next(), 512)
					if err != nil {
						first.CompareAndSwap(nil, &err)
						if failed.Add(1) > 10 {
							return
						}
						continue
					}
					s.drop()
					done.Add(1)
				}
			})
		}
		wg.Wait()
	})
	if e := first.Load(); err == nil && e != nil {
		err = fmt.Errorf("%d handshakes failed: %w", failed.Load(), *e)
	}
	return float64(done.Load()), used, err
}

// open makes n sockets, some at a time.
func (p *proxy) open(ctx context.Context, n, buffer int, t *tokens) ([]*socket, error) {
	sockets := make([]*socket, n)
	errs := make(chan error, n)
	var turn atomic.Int64
	var wg sync.WaitGroup
	for range min(n, 32) {
		wg.Go(func() {
			for {
				i := int(turn.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return
				}
				s, err := dial(p.addr, t.next(), buffer)
				if err != nil {
					errs <- err
					return
				}
				sockets[i] = s
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		drop(sockets)
		return nil, fmt.Errorf("opening sockets: %w", err)
	default:
		return sockets, ctx.Err()
	}
}

func drop(sockets []*socket) {
	for _, s := range sockets {
		if s != nil {
			s.drop()
		}
	}
}

// echoSmall has every socket send a small message, wait for it, and so on.
func echoSmall(ctx context.Context, p *proxy, o options, t *tokens) (float64, time.Duration, error) {
	return echo(ctx, p, o, t, o.echoers, 128, 1, func(n int64) float64 { return float64(n) })
}

// echoLarge keeps several large messages under way on every socket. A byte
// counts in both directions.
func echoLarge(ctx context.Context, p *proxy, o options, t *tokens) (float64, time.Duration, error) {
	const size = 16 << 10
	return echo(ctx, p, o, t, o.streams, size, 16, func(n int64) float64 { return 2 * float64(n) * size / 1e9 })
}

func echo(ctx context.Context, p *proxy, o options, t *tokens, n, size, window int, pieces func(int64) float64) (float64, time.Duration, error) {
	sockets, err := p.open(ctx, n, 4096, t)
	if err != nil {
		return 0, 0, err
	}
	defer drop(sockets)
	message := append(appendHeader(nil, 0x82, true, size), make([]byte, size)...)
	errs := make(chan error, 2*n)
	var counting atomic.Bool
	var count atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for _, s := range sockets {
		credit := make(chan struct{}, window)
		for range window {
			credit <- struct{}{}
		}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-credit:
				}
				if _, err := s.Write(message); err != nil {
					errs <- err
					return
				}
			}
		})
		wg.Go(func() {
			for {
				length, err := s.next()
				if err == nil {
					_, err = s.br.Discard(length)
				}
				if err == nil && length != size {
					err = fmt.Errorf("a message of %d bytes came back", length)
				}
				if err != nil {
					select {
					case <-stop: // dropped below
					default:
						errs <- err
					}
					return
				}
				if counting.Load() {
					count.Add(1)
				}
				credit <- struct{}{}
			}
		})
	}
	time.Sleep(200 * time.Millisecond) // under way everywhere
	before, err := family(p.pid())
	if err != nil {
		return 0, 0, err
	}
	counting.Store(true)
	select {
	case <-time.After(o.duration):
	case <-ctx.Done():
	case err = <-errs:
	}
	counting.Store(false)
	after, gone := family(p.pid())
	close(stop)
	drop(sockets)
	wg.Wait()
	return pieces(count.Load()), after.cpu - before.cpu, errors.Join(err, gone)
}
