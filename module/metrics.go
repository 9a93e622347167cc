package module

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// metricsNamespace and metricsSubsystem begin the name of every metric.
const (
	metricsNamespace = "caddy"
	metricsSubsystem = "ws_gate"
)

// metrics are the collectors of this process. A registry is new with every
// config, so they are registered again and keep what they counted. No label
// holds a user, an address of a client or an origin.
var metrics = newCollectors()

type collectors struct {
	handshakes *prometheus.CounterVec   // tunnel, result
	closes     *prometheus.CounterVec   // tunnel, closed_by, reason
	duration   *prometheus.HistogramVec // tunnel
	rtt        *prometheus.HistogramVec // tunnel
	fetches    *prometheus.CounterVec   // issuer, result
	storeTime  prometheus.Histogram
	storeFails prometheus.Counter
	storeUp    prometheus.GaugeFunc
	sockets    *socketCollector
	keys       *keyCollector
}

func newCollectors() *collectors {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help, Buckets: buckets}, []string{"tunnel"})
	}
	return &collectors{
		handshakes: counter("handshakes_total", "Handshakes by what came of them.", "tunnel", "result"),
		closes:     counter("closes_total", "Sockets that ended, by who ended them and why.", "tunnel", "closed_by", "reason"),
		duration:   histogram("connection_duration_seconds", "How long sockets lived.", []float64{.1, 1, 10, 60, 300, 1800, 3600, 4 * 3600, 12 * 3600, 24 * 3600}),
		rtt:        histogram("ping_rtt_seconds", "How long the gate's pings took to be answered.", []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}),
		fetches:    counter("jwks_fetches_total", "Attempts to fetch keys.", "issuer", "result"),
		storeTime:  prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "store_request_seconds", Help: "How long a shared store took to decide on a handshake.", Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1}}),
		storeFails: prometheus.NewCounter(prometheus.CounterOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "store_failures_total", Help: "Questions of handshakes that a shared store did not answer."}),
		storeUp:    prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "store_up", Help: "Whether the store can be reached; that in memory always can."}, storeUp),
		sockets:    newSocketCollector(),
		keys:       &keyCollector{sources: make(map[*auth.Source]string)},
	}
}

// register makes the metrics part of a config's registry.
func (c *collectors) register(registry *prometheus.Registry) {
	for _, collector := range []prometheus.Collector{c.handshakes, c.closes, c.duration, c.rtt, c.fetches, c.storeTime, c.storeFails, c.storeUp, c.sockets, c.keys} {
		_ = registry.Register(collector) // fails only where it is registered already
	}
}

// fetched counts one attempt to fetch keys.
func (c *collectors) fetched(event auth.FetchEvent) {
	c.fetches.WithLabelValues(event.Issuer, event.Result()).Inc()
}

// asked notes one question to a shared store.
func (c *collectors) asked(took time.Duration, err error) {
	c.storeTime.Observe(took.Seconds())
	if err != nil {
		c.storeFails.Inc()
	}
}

// storeUp is 1 if the store can be reached, or else 0.
func storeUp() float64 {
	if app := running.Load(); app != nil && app.remote != nil && !app.remote.Up() {
		return 0
	}
	return 1
}

// socketCollector tells what is known of live sockets at the moment of a
// scrape, so that nothing is counted on the way of a frame.
type socketCollector struct {
	connections, upstreams, messages, bytes *prometheus.Desc

	mu sync.Mutex
	// ended is the traffic of sockets that are gone, by tunnel. A tunnel that
	// ever had a socket stays.
	ended map[string]*[2]tunnel.Traffic
}

func newSocketCollector() *socketCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, name), help, labels, nil)
	}
	return &socketCollector{
		connections: desc("connections", "Live sockets.", "tunnel"),
		upstreams:   desc("upstream_connections", "Live sockets by the backend they lead to.", "tunnel", "upstream"),
		messages:    desc("messages_total", "Data messages that passed; in is from the client.", "tunnel", "direction"),
		bytes:       desc("bytes_total", "Payload of data messages that passed, as on the wire; in is from the client.", "tunnel", "direction"),
		ended:       make(map[string]*[2]tunnel.Traffic),
	}
}

// opened makes the socket's tunnel known.
func (c *socketCollector) opened(s *tunnel.Socket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of(s.Tunnel)
	live.Add(s)
}

// closed keeps what the socket counted, in the same step in which it ceases
// to be live: a scrape sees it once.
func (c *socketCollector) closed(s *tunnel.Socket, end tunnel.Summary) {
	c.mu.Lock()
	defer c.mu.Unlock()
	add(&c.of(s.Tunnel)[0], end.In)
	add(&c.of(s.Tunnel)[1], end.Out)
	live.Remove(s)
}

func (c *socketCollector) of(name string) *[2]tunnel.Traffic {
	if c.ended[name] == nil {
		c.ended[name] = new([2]tunnel.Traffic)
	}
	return c.ended[name]
}

func add(sum *tunnel.Traffic, t tunnel.Traffic) {
	sum.Messages += t.Messages
	sum.Bytes += t.Bytes
}

// Describe implements prometheus.Collector.
func (c *socketCollector) Describe(out chan<- *prometheus.Desc) {
	out <- c.connections
	out <- c.upstreams
	out <- c.messages
	out <- c.bytes
}

// Collect implements prometheus.Collector.
func (c *socketCollector) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	sums := make(map[string]*[2]tunnel.Traffic, len(c.ended))
	for name, ended := range c.ended {
		sum := *ended
		sums[name] = &sum
	}
	sockets := live.All()
	c.mu.Unlock()
	count := make(map[string]int)
	type upstream struct{ tunnel, address string }
	upstreams := make(map[upstream]int)
	for s := range sockets {
		in, trafficOut := s.Traffic()
		add(&sums[s.Tunnel][0], in)
		add(&sums[s.Tunnel][1], trafficOut)
		count[s.Tunnel]++
		upstreams[upstream{s.Tunnel, s.Upstream}]++
	}
	for name, sum := range sums {
		out <- prometheus.MustNewConstMetric(c.connections, prometheus.GaugeValue, float64(count[name]), name)
		for i, direction := range [...]string{"in", "out"} {
			out <- prometheus.MustNewConstMetric(c.messages, prometheus.CounterValue, float64(sum[i].Messages), name, direction)
			out <- prometheus.MustNewConstMetric(c.bytes, prometheus.CounterValue, float64(sum[i].Bytes), name, direction)
		}
	}
	for key, n := range upstreams {
		out <- prometheus.MustNewConstMetric(c.upstreams, prometheus.GaugeValue, float64(n), key.tunnel, key.address)
	}
}

// keyCollector tells how old the keys are that serve.
type keyCollector struct {
	mu      sync.Mutex
	sources map[*auth.Source]string // issuer
}

var keysAge = prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, "jwks_age_seconds"), "Time since the last good answer with keys; absent before the first.", []string{"issuer"}, nil)

func (c *keyCollector) add(source *auth.Source, issuer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sources[source] = issuer
}

func (c *keyCollector) remove(source *auth.Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sources, source)
}

// Describe implements prometheus.Collector.
func (c *keyCollector) Describe(out chan<- *prometheus.Desc) { out <- keysAge }

// Collect implements prometheus.Collector.
func (c *keyCollector) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	ages := make(map[string]float64)
	for source, issuer := range c.sources {
		age, ok := source.Age()
		// Of several sources for one issuer the worst counts.
		if ok && age.Seconds() >= ages[issuer] {
			ages[issuer] = age.Seconds()
		}
	}
	c.mu.Unlock()
	for issuer, age := range ages {
		out <- prometheus.MustNewConstMetric(keysAge, prometheus.GaugeValue, age, issuer)
	}
}
