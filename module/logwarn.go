package module

import (
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// filters remembers the config that last provisioned a ws_token filter. Logs
// are set up before apps, so an app can tell whether its config has one.
var filters struct {
	mu     sync.Mutex
	config <-chan struct{} // closed when that config ends, and no other's
}

// noteFilter remembers that the config of ctx has a ws_token filter.
func noteFilter(ctx caddy.Context) {
	filters.mu.Lock()
	defer filters.mu.Unlock()
	filters.config = ctx.Done()
}

// hasFilter reports whether the config of ctx has a ws_token filter.
func hasFilter(ctx caddy.Context) bool {
	filters.mu.Lock()
	defer filters.mu.Unlock()
	return filters.config != nil && filters.config == ctx.Done()
}

// warnOfTokensInLogs names the sites whose access logs would hold tokens:
// those that take them in the query or as subprotocols, and log, in a config
// without any ws_token filter. Authorization and Cookie are redacted by Caddy
// itself.
func (a *App) warnOfTokensInLogs() {
	if hasFilter(a.ctx) {
		return
	}
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return // no HTTP, no access log
	}
	for name, server := range app.(*caddyhttp.App).Servers {
		if server.Logs == nil {
			continue
		}
		for _, site := range sitesWithTokensInURI(server.Routes, strings.Join(server.Listen, " ")) {
			a.logger.Warn("this site takes tokens in the query or as subprotocols, and its access log would hold them: filter request>uri and request>headers>Sec-Websocket-Protocol with ws_token",
				zap.String("site", site), zap.String("server", name))
		}
	}
}

// sitesWithTokensInURI are the hosts of routes that lead to such a gate; site
// is what stands for routes without a host.
func sitesWithTokensInURI(routes caddyhttp.RouteList, site string) (sites []string) {
	for _, route := range routes {
		site := site
		for _, set := range route.MatcherSets {
			for _, matcher := range set {
				if hosts, ok := matcher.(*caddyhttp.MatchHost); ok && len(*hosts) > 0 {
					site = strings.Join(*hosts, " ")
				}
			}
		}
		for _, handler := range route.Handlers {
			switch h := handler.(type) {
			case *caddyhttp.Subroute:
				sites = append(sites, sitesWithTokensInURI(h.Routes, site)...)
			case *Gate:
				if len(h.carriers.Query)+len(h.carriers.Subprotocols) > 0 {
					sites = append(sites, site)
				}
			}
		}
	}
	slices.Sort(sites)
	return slices.Compact(sites)
}
