package module

import (
	"net/http"
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
// those that take them in the query, as subprotocols or in a header of their
// own, and log, in a config without any ws_token filter. Authorization and
// Cookie are redacted by Caddy itself.
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
		for _, site := range exposedSites(server.Routes, strings.Join(server.Listen, " ")) {
			if !logged(server.Logs, strings.Fields(site.name)) {
				continue
			}
			a.logger.Warn("this site's access log would hold tokens: filter the fields with ws_token",
				zap.String("site", site.name), zap.String("server", name), zap.Strings("fields", site.fields))
		}
	}
}

// logged reports whether the requests for any of these hosts are. Hosts that a
// wildcard leaves out count as logged.
func logged(logs *caddyhttp.ServerLogConfig, hosts []string) bool {
	return slices.ContainsFunc(hosts, func(host string) bool {
		_, mapped := logs.LoggerNames[host]
		return mapped || !logs.SkipUnmappedHosts && !slices.Contains(logs.SkipHosts, host)
	})
}

// exposedSite is a site and the fields of its access log that hold tokens.
type exposedSite struct {
	name   string
	fields []string
}

// exposedSites are the sites of the routes that lead to a gate whose tokens
// an access log would hold; name is what stands for routes without a host.
func exposedSites(routes caddyhttp.RouteList, name string) (sites []exposedSite) {
	for _, route := range routes {
		name := name
		for _, set := range route.MatcherSets {
			for _, matcher := range set {
				if hosts, ok := matcher.(*caddyhttp.MatchHost); ok && len(*hosts) > 0 {
					name = strings.Join(*hosts, " ")
				}
			}
		}
		for _, handler := range route.Handlers {
			switch h := handler.(type) {
			case *caddyhttp.Subroute:
				sites = append(sites, exposedSites(h.Routes, name)...)
			case *Gate:
				if fields := h.exposedFields(); len(fields) > 0 {
					sites = append(sites, exposedSite{name, fields})
				}
			}
		}
	}
	slices.SortStableFunc(sites, func(a, b exposedSite) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(sites, func(a, b exposedSite) bool { return a.name == b.name && slices.Equal(a.fields, b.fields) })
}

// exposedFields are the fields of an access log that would hold the gate's
// tokens.
func (g *Gate) exposedFields() (fields []string) {
	if len(g.carriers.Query) > 0 {
		fields = append(fields, "request>uri")
	}
	if len(g.carriers.Subprotocols) > 0 {
		fields = append(fields, "request>headers>Sec-Websocket-Protocol")
	}
	for _, name := range g.carriers.Headers {
		if name = http.CanonicalHeaderKey(name); name != "Authorization" && name != "Proxy-Authorization" && name != "Cookie" {
			fields = append(fields, "request>headers>"+name)
		}
	}
	return fields
}
