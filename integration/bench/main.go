// Command bench puts the same load through the gate (an ES256 token checked at
// each handshake), through Caddy's reverse_proxy from the same build without
// any check, and through HAProxy (jwt_verify) and nginx (no check) where they
// are installed, and prints what it cost beside each other.
//
//	go run ./integration/bench
//	go run ./integration/bench -stores    handshakes with the redis store, beside that in memory
//
// Everything runs on loopback. All proxies are up at the same time and take
// turns in every round, so that the ratios hold whatever else the machine does;
// the figures themselves are those of this machine. The client and the backend
// live in this process, whose time is not counted: CPU is the proxy's user and
// system time, memory its resident set less what it was before.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	sockets   int           // idle sockets for the memory figures
	rounds    int           // turns of every proxy
	duration  time.Duration // of one measurement
	settle    time.Duration // how long memory stays as it is before it counts
	echoers   int           // sockets that echo small messages
	streams   int           // sockets that echo large ones
	sameToken bool          // one token for all handshakes
	level     string        // log level of both Caddys
	only      string        // regular expression over names
	binary    string        // a Caddy that was built before
	stores    bool          // compare stores in place of proxies
}

// files is how many a process holds at most: the proxies have two sockets for
// each idle one, and this process both outer ends.
func (o options) files() int { return 2*o.sockets + 2000 }

func main() {
	var o options
	flag.IntVar(&o.sockets, "sockets", 5000, "idle sockets to measure memory with")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of the CPU measurements")
	flag.DurationVar(&o.duration, "duration", 2*time.Second, "length of each CPU measurement")
	flag.DurationVar(&o.settle, "settle", 3*time.Second, "how long memory must stay the same before it is read")
	flag.IntVar(&o.echoers, "echoers", 64, "sockets that echo 128-byte messages, one at a time each")
	flag.IntVar(&o.streams, "streams", 8, "sockets that echo 16 KiB messages without a pause")
	flag.BoolVar(&o.sameToken, "same-token", false, "use one token for all handshakes, in place of a new one for each")
	flag.StringVar(&o.level, "log", "INFO", "log level of both Caddys (INFO is Caddy's default; it goes to a file)")
	flag.StringVar(&o.only, "only", "", "measure only proxies whose name matches, beside plain Caddy")
	flag.StringVar(&o.binary, "caddy", "", "a caddy binary with the plugin; built from ./cmd/caddy if empty")
	flag.BoolVar(&o.stores, "stores", false, "compare handshakes with the redis store and with that in memory, and nothing else")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// run measures all that are installed and writes the table.
func run(ctx context.Context, o options, out io.Writer) error {
	if err := raiseFileLimit(uint64(o.files())); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "wsgate-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.binary == "" {
		o.binary = filepath.Join(dir, "caddy")
		fmt.Fprintln(os.Stderr, "building cmd/caddy")
		build := exec.CommandContext(ctx, "go", "build", "-o", o.binary, "github.com/wsgate/caddy-wsgate/cmd/caddy")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("building cmd/caddy: %w", err)
		}
	}
	issuer, err := newIssuer(dir)
	if err != nil {
		return err
	}
	back, err := startBackend()
	if err != nil {
		return err
	}
	defer back.Close()
	if o.stores {
		return runStores(ctx, o, dir, back.addr(), newTokens(issuer, o), out)
	}
	proxies, err := contenders(o, dir, back.addr())
	if err != nil {
		return err
	}
	defer func() {
		for _, p := range proxies {
			p.stop()
		}
	}()
	tokens := newTokens(issuer, o)

	for _, p := range proxies {
		if err := p.start(ctx); err != nil {
			return err
		}
		if err := p.ready(ctx, tokens); err != nil {
			return err
		}
	}
	for _, p := range proxies {
		fmt.Fprintf(os.Stderr, "%-22s idle memory, %d sockets\n", p.name, o.sockets)
		if err := p.measureMemory(ctx, o, tokens); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for round := range o.rounds {
		// The order turns, so that nobody always follows the same one.
		order := slices.Concat(proxies[round%len(proxies):], proxies[:round%len(proxies)])
		for _, load := range loads {
			for _, p := range order {
				if err := ctx.Err(); err != nil {
					return errors.New("interrupted")
				}
				used, err := p.measure(ctx, o, tokens, load)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", p.name, load.name, err)
				}
				p.figures[load.name] = append(p.figures[load.name], used)
				fmt.Fprintf(os.Stderr, "%-22s round %d, %s: %.3g\n", p.name, round+1, load.name, used)
			}
		}
	}
	fmt.Fprintf(out, "%s, %d cores, %s; %d idle sockets, %d rounds of %v, %s\n\n",
		time.Now().Format("2006-01-02"), runtime.NumCPU(), runtime.Version(), o.sockets, o.rounds, o.duration,
		map[bool]string{false: "a new token for each handshake", true: "the same token for all handshakes"}[o.sameToken])
	table(out, proxies)
	return nil
}

// raiseFileLimit lets this process and the proxies that it starts hold n files.
func raiseFileLimit(n uint64) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("reading the limit of open files: %w", err)
	}
	if limit.Max < n {
		higher := syscall.Rlimit{Cur: n, Max: n} // root may
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &higher); err != nil {
			return fmt.Errorf("%d open files are needed, the hard limit is %d: choose fewer -sockets", n, limit.Max)
		}
		return nil
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raising the limit of open files: %w", err)
	}
	return nil
}
