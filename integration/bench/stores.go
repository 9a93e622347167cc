package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// guarded is a gate whose handshakes ask a store. With redis it has a server
// of its own.
type guarded struct {
	*proxy
	limits string
	redis  *redis // nil: the store is in memory
	turns  []storeTurn
}

// storeTurn is what one turn of handshakes came to.
type storeTurn struct {
	perSecond float64 // handshakes
	cpu       float64 // µs of the gate, for each
	redisCPU  float64 // µs of Redis, for each
	asked     float64 // scripts that Redis ran, for each
}

// storeLimits are what is asked of a store: a slot, a token of a bucket, both.
// Nobody is refused: users are many.
var storeLimits = []string{
	"max_connections 5 by user",
	"handshake_rate 20/1s by user",
	"max_connections 5 by user\n\t\thandshake_rate 20/1s by user",
}

// runStores puts the same handshakes through gates with both stores, in turns,
// and writes what they cost beside each other.
func runStores(ctx context.Context, o options, dir, backend string, t *tokens, out io.Writer) (err error) {
	if o.sameToken {
		return errors.New("-stores needs many users: -same-token has one")
	}
	var all []*guarded
	defer func() {
		for _, g := range all {
			g.stop()
			if g.redis != nil {
				g.redis.stop()
			}
		}
	}()
	for i, limits := range storeLimits {
		for _, shared := range []bool{false, true} {
			g, err := newGuarded(ctx, o, filepath.Join(dir, fmt.Sprintf("store-%d-%v", i, shared)), backend, limits, shared)
			if g != nil {
				all = append(all, g)
			}
			if err != nil {
				return err
			}
			if err := errors.Join(g.start(ctx), g.ready(ctx, t)); err != nil {
				return err
			}
		}
	}
	for round := range o.rounds + 1 { // the first one warms up
		order := slices.Concat(all[round%len(all):], all[:round%len(all)])
		for _, g := range order {
			turn, err := g.turn(ctx, o, t)
			if err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			fmt.Fprintf(os.Stderr, "%-70s round %d: %.0f/s, %.0f µs\n", g.name, round, turn.perSecond, turn.cpu)
			if round > 0 {
				g.turns = append(g.turns, turn)
			}
		}
	}
	opened := make(map[*guarded]float64)
	for _, g := range all {
		if g.redis != nil {
			if opened[g], err = g.roundTrips(ctx, o, t); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
		}
	}
	fmt.Fprintf(out, "%s, %d cores, %s; %d rounds of %v, a new ES256 token and another user for each handshake, Redis on the same machine\n\n",
		time.Now().Format("2006-01-02"), runtime.NumCPU(), runtime.Version(), o.rounds, o.duration)
	storeTable(out, all, opened)
	return ctx.Err()
}

// newGuarded writes the configuration of a gate, and starts Redis for it.
func newGuarded(ctx context.Context, o options, dir, backend, limits string, shared bool) (*guarded, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	g := &guarded{limits: strings.ReplaceAll(limits, "\n\t\t", ", "), proxy: &proxy{
		addr: addr, log: filepath.Join(dir, "log"),
		env: []string{"XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "HOME=" + dir},
	}}
	store := "memory"
	if shared {
		if g.redis, err = startRedis(ctx, dir); err != nil {
			return nil, err
		}
		// The machine is as busy as it can be: patience, so that no handshake
		// is decided without Redis.
		store = "redis redis://" + g.redis.addr + " {\n\t\t\ttimeout 1s\n\t\t}"
	}
	g.name, _, _ = strings.Cut(store, " ")
	g.name += " store, " + g.limits
	head := strings.NewReplacer("{{addr}}", addr, "{{admin}}", "off", "{{level}}", o.level).Replace(caddyHead)
	head = strings.Replace(head, "\n}\nhttp", "\n\tws_gate {\n\t\tstore "+store+"\n\t}\n}\nhttp", 1)
	conf := filepath.Join(dir, "config")
	g.command = []string{o.binary, "run", "--config", conf, "--adapter", "caddyfile"}
	return g, os.WriteFile(conf, []byte(head+`
	ws_gate {
		issuer `+issuerName+` {
			jwks_file `+jwksFile(filepath.Dir(dir))+`
			audience `+audience+`
		}
		`+limits+`
	}
	reverse_proxy `+backend+` {
		transport ws_tunnel
	}
}
`), 0o600)
}

// asked is how many scripts this gate's Redis has run; 0 without one.
func (g *guarded) asked() (int, error) {
	if g.redis == nil {
		return 0, nil
	}
	return g.redis.questions()
}

// redisCPU is the time that this gate's Redis has used.
func (g *guarded) redisCPU() (time.Duration, error) {
	if g.redis == nil {
		return 0, nil
	}
	s, err := family(g.redis.pid())
	return s.cpu, err
}

// turn opens sockets and drops them at once, some at a time.
func (g *guarded) turn(ctx context.Context, o options, t *tokens) (storeTurn, error) {
	askedBefore, err1 := g.asked()
	redisBefore, err2 := g.redisCPU()
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var took time.Duration
	used, err3 := g.during(func() {
		begin := time.Now()
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for time.Since(begin) < o.duration && ctx.Err() == nil && done.Load() < handshakesPerTurn && failed.Load() == nil {
					s, err := dial(g.addr, t.next(), 512)
					if err != nil {
						failed.CompareAndSwap(nil, &err)
						return
					}
					s.drop()
					done.Add(1)
				}
			})
		}
		wg.Wait()
		took = time.Since(begin)
	})
	redisAfter, err4 := g.redisCPU()
	askedAfter, err5 := g.asked()
	if err := failed.Load(); err != nil {
		return storeTurn{}, *err
	}
	if err := errors.Join(err1, err2, err3, err4, err5, ctx.Err()); err != nil {
		return storeTurn{}, err
	}
	n := float64(done.Load())
	turn := storeTurn{
		perSecond: n / took.Seconds(),
		cpu:       float64(used.Microseconds()) / n,
		redisCPU:  float64((redisAfter - redisBefore).Microseconds()) / n,
		asked:     float64(askedAfter-askedBefore) / n,
	}
	if g.redis != nil && turn.asked < 1 {
		return turn, fmt.Errorf("asking Redis %.3f times a handshake: some were decided without it", turn.asked)
	}
	return turn, nil
}

// roundTrips opens sockets, keeps them, and returns how often Redis was asked
// for each. Nothing ends meanwhile of which it would have to be told.
func (g *guarded) roundTrips(ctx context.Context, o options, t *tokens) (float64, error) {
	before, err := g.asked()
	if err != nil {
		return 0, err
	}
	sockets, err := g.open(ctx, o.sockets, 512, t)
	if err != nil {
		return 0, err
	}
	after, err := g.asked()
	drop(sockets)
	return float64(after-before) / float64(len(sockets)), err
}

// storeTable writes the figures as Markdown, those of redis with their ratio
// to memory.
func storeTable(w io.Writer, all []*guarded, opened map[*guarded]float64) {
	fmt.Fprintln(w, "| each handshake asks for | store | handshakes per second | CPU µs per handshake | CPU µs of Redis | round trips to Redis | with the socket's end |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- |")
	for i, g := range all {
		base := all[i-i%2] // in memory
		if g.redis == nil {
			fmt.Fprintf(w, "| %s | memory | %s | %s | – | – | – |\n", g.limits,
				g.figure(base, storeTurn.rate), g.figure(base, storeTurn.gateCPU))
			continue
		}
		fmt.Fprintf(w, "| %s | redis | %s | %s | %.0f | %.2f | %.2f |\n", g.limits,
			g.figure(base, storeTurn.rate), g.figure(base, storeTurn.gateCPU),
			g.median(func(t storeTurn) float64 { return t.redisCPU }), opened[g],
			g.median(func(t storeTurn) float64 { return t.asked }))
	}
	fmt.Fprintln(w, "\nMedians over the rounds; in parentheses the ratio to the memory store, round by round.")
}

func (t storeTurn) rate() float64    { return t.perSecond }
func (t storeTurn) gateCPU() float64 { return t.cpu }

func (g *guarded) median(of func(storeTurn) float64) float64 {
	values := make([]float64, len(g.turns))
	for i, turn := range g.turns {
		values[i] = of(turn)
	}
	return median(values)
}

func (g *guarded) figure(base *guarded, of func(storeTurn) float64) string {
	ratios := make([]float64, len(g.turns))
	for i, turn := range g.turns {
		ratios[i] = of(turn) / of(base.turns[i])
	}
	return figure(g.median(of), median(ratios))
}
