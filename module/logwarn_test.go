package module

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"go.uber.org/zap"
	zapobserver "go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
)

// S-116: a site that takes tokens where its access log has them is named at
// startup, unless its tokens are filtered out.
func TestWarnOfTokensInLogs(t *testing.T) {
	gate := func(options object) object {
		var handler object
		_ = json.Unmarshal(gateJSON(options), &handler)
		handler["handler"] = "ws_gate"
		return handler
	}
	query := gate(object{"from_query": []string{"access_token"}})
	header := gate(object{"from_header": []string{"Authorization"}})
	at := func(host string, handlers ...object) object {
		route := object{"handle": handlers}
		if host != "" {
			route["match"] = []object{{"host": []string{host}}}
		}
		return route
	}
	subroute := func(routes ...object) object { return object{"handler": "subroute", "routes": routes} }
	filter := object{"logs": object{"default": object{"writer": object{"output": "discard"}, "encoder": object{
		"format": "filter", "fields": object{"request>uri": object{"filter": "ws_token"}},
	}}}}
	other := object{"logs": object{"default": object{"writer": object{"output": "discard"}, "encoder": object{
		"format": "filter", "fields": object{"request>uri": object{"filter": "delete"}},
	}}}}
	for _, c := range []struct {
		name    string
		routes  []object
		logs    object // of the server
		logging object
		want    []string
	}{
		{"query", []object{at("a.example.com", query)}, object{}, other, []string{"a.example.com"}},
		{"subprotocol, by default", []object{at("a.example.com", gate(nil))}, object{}, other, []string{"a.example.com"}},
		{"a header of its own", []object{at("a.example.com", gate(object{"from_header": []string{"authorization", "X-Token"}}))}, object{}, other, []string{"a.example.com"}},
		{"header only", []object{at("a.example.com", header)}, object{}, other, nil},
		{"no gate", []object{at("a.example.com", object{"handler": "static_response"})}, object{}, other, nil},
		{"no access log", []object{at("a.example.com", query)}, nil, other, nil},
		{"filtered", []object{at("a.example.com", query)}, object{}, filter, nil},
		{"any host", []object{at("", query)}, object{}, other, []string{":8080"}},
		{"nested", []object{at("a.example.com", subroute(at("", subroute(at("", query)))))}, object{}, other, []string{"a.example.com"}},
		{"several", []object{at("b.example.com", query), at("c.example.com", header), at("a.example.com", query, query)}, object{}, other, []string{"a.example.com", "b.example.com"}},
		{"a site that does not log", []object{at("a.example.com", query), at("b.example.com", query)}, object{"skip_hosts": []string{"b.example.com"}}, other, []string{"a.example.com"}},
		{"only some hosts log", []object{at("a.example.com", query), at("b.example.com", query)}, object{"skip_unmapped_hosts": true, "logger_names": object{"a.example.com": []string{"x"}}}, other, []string{"a.example.com"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := object{"listen": []string{":8080"}, "routes": c.routes, "automatic_https": object{"disable": true}}
			if c.logs != nil {
				server["logs"] = c.logs
			}
			if got := warned(t, object{"logging": c.logging, "apps": object{"http": object{"servers": object{"srv0": server}}}}); !slices.Equal(got, c.want) {
				t.Errorf("named %q, want %q", got, c.want)
			}
		})
	}
	t.Run("no HTTP at all", func(t *testing.T) {
		if got := warned(t, object{"apps": object{"ws_gate": object{}}}); got != nil {
			t.Errorf("named %q", got)
		}
	})
}

// warned are the sites that a config's start names.
func warned(t *testing.T, config object) (sites []string) {
	t.Helper()
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	parsed := new(caddy.Config)
	if err := caddy.StrictUnmarshalJSON(raw, parsed); err != nil {
		t.Fatal(err)
	}
	ctx, err := caddy.ProvisionContext(parsed)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := ctx.App("ws_gate")
	if err != nil {
		t.Fatal(err)
	}
	app := loaded.(*App)
	for _, g := range app.gates {
		t.Cleanup(func() { _ = g.Cleanup() })
	}
	core, logs := zapobserver.New(zap.DebugLevel)
	app.logger = zap.New(core)
	app.warnOfTokensInLogs()
	for _, entry := range logs.All() {
		if entry.Level != zap.WarnLevel {
			t.Errorf("logged at %s", entry.Level)
		}
		sites = append(sites, fmt.Sprint(entry.ContextMap()["site"]))
	}
	return sites
}
