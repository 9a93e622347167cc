package module

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// scrape are the values of a registry by name and labels.
func scrape(t testing.TB, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			slices.Sort(labels)
			key := family.GetName() + "{" + strings.Join(labels, ",") + "}"
			switch {
			case m.GetCounter() != nil:
				values[key] = m.GetCounter().GetValue()
			case m.GetGauge() != nil:
				values[key] = m.GetGauge().GetValue()
			case m.GetHistogram() != nil:
				values[key] = float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return values
}

// unusedName is a tunnel's that has counted nothing yet.
func unusedName(prefix string) string { return prefix + "-" + newConnectionID(time.Now()) }

// registered is a registry as a new config has it.
func registered(t testing.TB) *prometheus.Registry {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	metrics.register(registry)
	return registry
}

// The names and labels are those of contract §5, and nothing that says who a
// client is is among them; upstream_connections is on top of it.
func TestMetricNames(t *testing.T) {
	want := map[string]string{
		"caddy_ws_gate_connections":                 "tunnel",
		"caddy_ws_gate_handshakes_total":            "result,tunnel",
		"caddy_ws_gate_closes_total":                "closed_by,reason,tunnel",
		"caddy_ws_gate_messages_total":              "direction,tunnel",
		"caddy_ws_gate_bytes_total":                 "direction,tunnel",
		"caddy_ws_gate_connection_duration_seconds": "tunnel",
		"caddy_ws_gate_ping_rtt_seconds":            "tunnel",
		"caddy_ws_gate_jwks_age_seconds":            "issuer",
		"caddy_ws_gate_jwks_fetches_total":          "issuer,result",
		"caddy_ws_gate_store_failures_total":        "",
		"caddy_ws_gate_store_request_seconds":       "",
		"caddy_ws_gate_store_up":                    "",
		"caddy_ws_gate_upstream_connections":        "tunnel,upstream",
	}
	name := unusedName("names")
	issuer := "https://id.example.com/" + name
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`)
	}))
	defer keys.Close()
	source, err := auth.NewSource(auth.SourceConfig{Issuer: issuer, JWKS: keys.URL, Observe: metrics.fetched})
	if err != nil {
		t.Fatal(err)
	}
	metrics.keys.add(source, issuer)
	defer metrics.keys.remove(source)
	registry := registered(t)
	if values := scrape(t, registry); len(values) > 0 && values["caddy_ws_gate_jwks_age_seconds{issuer="+issuer+"}"] != 0 {
		t.Error("an age before the first answer")
	}
	source.Start()
	defer source.Stop()
	s, _, _ := liveSocket(t, tunnel.Identity{ID: "m1", Tunnel: name, User: "alice", Issuer: issuer, ClientIP: "192.0.2.1", Upstream: "node1:3000"})
	observer{}.Pong(s, time.Millisecond)
	gone, _, _ := liveSocket(t, tunnel.Identity{ID: "m2", Tunnel: name, User: "alice", Upstream: "node1:3000"})
	gone.Cut()
	eventually(t, "ended", func() bool { return live.Get("m2") == nil })
	eventually(t, "fetched", func() bool { _, ok := source.Age(); return ok })
	families := make(map[string]string)
	eventually(t, "complete", func() bool {
		gathered, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range gathered {
			for _, m := range family.GetMetric() {
				var labels []string
				for _, l := range m.GetLabel() {
					labels = append(labels, l.GetName())
				}
				slices.Sort(labels)
				families[family.GetName()] = strings.Join(labels, ",")
			}
			if family.GetHelp() == "" {
				t.Errorf("%s has no help", family.GetName())
			}
		}
		return len(families) >= len(want)
	})
	if !maps.Equal(families, want) {
		t.Errorf("got %v, want %v", families, want)
	}
	values := scrape(t, registry)
	for key, want := range map[string]float64{
		"caddy_ws_gate_connections{tunnel=" + name + "}":                              1,
		"caddy_ws_gate_upstream_connections{tunnel=" + name + ",upstream=node1:3000}": 1,
		"caddy_ws_gate_handshakes_total{result=accepted,tunnel=" + name + "}":         2,
		"caddy_ws_gate_connection_duration_seconds{tunnel=" + name + "}":              1,
		"caddy_ws_gate_ping_rtt_seconds{tunnel=" + name + "}":                         1,
		"caddy_ws_gate_jwks_fetches_total{issuer=" + issuer + ",result=success}":      1,
	} {
		if got := values[key]; got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if age, ok := values["caddy_ws_gate_jwks_age_seconds{issuer="+issuer+"}"]; !ok || age <= 0 || age > 60 {
		t.Errorf("the keys are %v old, %t", age, ok)
	}
	for key := range values {
		if strings.Contains(key, "alice") || strings.Contains(key, "192.0.2.1") {
			t.Errorf("%s says who the client is", key)
		}
	}
}

// Counters only rise while sockets come, send and go, in two registries as two
// configs have them; at the end all is counted, once.
func TestCountersOnlyRise(t *testing.T) {
	const sockets, messages = 40, 25
	name := unusedName("rise")
	first, second := registered(t), registered(t)
	base := scrape(t, first)
	done := make(chan bool)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		before := base
		for {
			for _, registry := range []*prometheus.Registry{first, second} {
				now := scrape(t, registry)
				for key, value := range before {
					if strings.Contains(key, "_total") && now[key] < value {
						t.Errorf("%s fell from %v to %v", key, value, now[key])
					}
				}
				before = now
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	var all sync.WaitGroup
	for i := range sockets {
		all.Go(func() {
			nearClient, client := net.Pipe()
			nearBackend, backend := net.Pipe()
			tunnel.Start(tunnel.Accepted{
				Identity: tunnel.Identity{ID: fmt.Sprint("rise", i), Tunnel: name, Upstream: fmt.Sprint("node", i%2)},
				Policy:   new(tunnel.Policy), Client: nearClient, Backend: nearBackend, Observer: observer{},
			})
			go func() { _, _ = io.Copy(io.Discard, backend) }()
			frame := []byte{0x82, 0x83, 0, 0, 0, 0, 1, 2, 3}
			for range messages {
				_, _ = client.Write(frame)
			}
			client.Close()
			backend.Close()
		})
	}
	all.Wait()
	eventually(t, "ended", func() bool {
		return scrape(t, first)["caddy_ws_gate_connections{tunnel="+name+"}"] == 0
	})
	close(done)
	watcher.Wait()
	now := scrape(t, second)
	for key, want := range map[string]float64{
		"caddy_ws_gate_connections{tunnel=" + name + "}":                      0,
		"caddy_ws_gate_handshakes_total{result=accepted,tunnel=" + name + "}": sockets,
		"caddy_ws_gate_connection_duration_seconds{tunnel=" + name + "}":      sockets,
	} {
		if now[key] != want {
			t.Errorf("%s is %v, want %v", key, now[key], want)
		}
	}
	closes := 0.0
	for key, value := range now {
		if strings.HasPrefix(key, "caddy_ws_gate_closes_total") && strings.Contains(key, "tunnel="+name+"") {
			closes += value
		}
		if strings.Contains(key, "upstream_connections{tunnel="+name+"") {
			t.Errorf("%s is %v though none is left", key, value)
		}
	}
	if closes != sockets {
		t.Errorf("%v closes, want %d", closes, sockets)
	}
}
