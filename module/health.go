package module

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
)

// health tells whether the sidecar takes handshakes. It is no site of the
// config, because those end with the config, in no order: while sockets are
// drained this one answers until the process has ended.
type health struct {
	listener net.Listener
	metrics  bool

	registry atomic.Pointer[prometheus.Registry] // of the config that runs, or ran last
}

// listenHealth takes the address of --health; nil without one.
func (s *sidecar) listenHealth() (*health, error) {
	if len(s.settings["health"]) == 0 {
		return nil, nil
	}
	one := s.settings["health"][0]
	address, err := caddy.NewReplacer().ReplaceOrErr(one.text, true, true)
	if err != nil {
		return nil, one.wrap(err)
	}
	if !strings.Contains(address, ":") {
		return nil, one.wrap(errors.New("is not an address such as :8081"))
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, one.wrap(err)
	}
	return &health{listener: listener, metrics: s.on("metrics")}, nil
}

// serve answers until the process ends.
func (h *health) serve() {
	server := &http.Server{
		Handler:           h.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		MaxHeaderBytes:    8 << 10,
	}
	h.gatherer() // of the config that has just begun to run
	err := server.Serve(h.listener)
	caddy.Log().Error("the health endpoint ended", zap.Error(err))
}

func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if draining.Load() || caddy.Exiting() {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "draining\n")
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	if h.metrics {
		mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
			promhttp.HandlerFor(h.gatherer(), promhttp.HandlerOpts{}).ServeHTTP(w, r)
		})
	}
	return mux
}

// gatherer are the metrics of the config that runs, or while the process stops
// of the last one.
func (h *health) gatherer() prometheus.Gatherer {
	if app := running.Load(); app != nil {
		h.registry.Store(app.ctx.GetMetricsRegistry())
	}
	return h.registry.Load()
}
