// Package monitoring holds the dashboard and the alerting rules to the metrics
// that the program has.
package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/wsgate/caddy-wsgate" // what users build
)

// vocabulary is what labels may say (contract §5); nil: what the operator
// named, or Prometheus itself.
var vocabulary = map[string][]string{
	"tunnel": nil, "upstream": nil, "issuer": nil, "instance": nil, "le": nil,
	"direction": {"in", "out"},
	"closed_by": {"client", "backend", "gate"},
	"result": {
		"accepted", "bad_request", "bad_version", "origin", "rate", "no_token", "several_tokens", "invalid_token", "revoked",
		"no_keys", "claims", "cap", "store", "draining", "unsupported", "backend", "success", "failure",
	},
	"reason": {
		"normal", "protocol", "too_big", "rate", "evicted", "admin", "revoked", "expired", "lifetime", "ping_timeout",
		"idle_timeout", "drain", "backend_lost", "client_lost",
	},
}

var desc = regexp.MustCompile(`^Desc\{fqName: "(caddy_ws_gate_\w+)", .* variableLabels: \{([\w,]*)\}\}$`)

// registered are the metrics of the program with their labels.
func registered(t *testing.T) map[string][]string {
	t.Helper()
	ctx, err := caddy.ProvisionContext(new(caddy.Config))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ctx.App("ws_gate"); err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		ctx.GetMetricsRegistry().Describe(descs)
		close(descs)
	}()
	metrics := make(map[string][]string)
	for d := range descs {
		if m := desc.FindStringSubmatch(d.String()); m != nil {
			metrics[m[1]] = strings.Split(m[2], ",")
		} else if strings.Contains(d.String(), "ws_gate") {
			t.Errorf("not understood: %s", d)
		}
	}
	if len(metrics) < 9 {
		t.Fatalf("only %v", metrics)
	}
	return metrics
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

var (
	used     = regexp.MustCompile(`caddy_ws_gate_\w+`)
	selector = regexp.MustCompile(`(caddy_ws_gate_\w+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
	grouping = regexp.MustCompile(`\b(?:by|on|without)\s*\(([^)]*)\)`)
)

// check holds one expression to the metrics, and returns their names.
func check(t *testing.T, where, expr string, metrics map[string][]string) (names []string) {
	t.Helper()
	if strings.Count(expr, "(") != strings.Count(expr, ")") || strings.Count(expr, "{") != strings.Count(expr, "}") || strings.Count(expr, `"`)%2 != 0 {
		t.Errorf("%s: brackets or quotes: %s", where, expr)
	}
	known := []string{"instance"}
	for _, m := range selector.FindAllStringSubmatch(expr, -1) {
		name, labels := m[1], metrics[m[1]]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, cut := strings.CutSuffix(name, suffix); cut && strings.HasSuffix(base, "_seconds") {
				name, labels = base, slices.Clone(metrics[base])
				if suffix == "_bucket" {
					labels = append(labels, "le")
				}
			}
		}
		if labels == nil {
			t.Errorf("%s: there is no metric %s", where, m[1])
			continue
		}
		if strings.HasSuffix(name, "_total") && !strings.Contains(expr, "rate("+m[0]+"[") && !strings.Contains(expr, "increase("+m[0]+"[") && !strings.HasPrefix(expr, "label_values(") {
			t.Errorf("%s: %s is a counter, and neither rate nor increase is taken", where, name)
		}
		names = append(names, name)
		labels = append(slices.Clone(labels), "instance")
		known = append(known, labels...)
		for _, match := range matcher.FindAllStringSubmatch(m[2], -1) {
			words, there := vocabulary[match[1]]
			if !there || !slices.Contains(labels, match[1]) {
				t.Errorf("%s: %s has no label %s", where, name, match[1])
			}
			for _, word := range strings.Split(match[3], "|") {
				if words != nil && !slices.Contains(words, word) {
					t.Errorf("%s: %s is never %q", where, match[1], word)
				}
			}
		}
	}
	for _, m := range grouping.FindAllStringSubmatch(expr, -1) {
		for _, label := range strings.Split(m[1], ",") {
			if label = strings.TrimSpace(label); !slices.Contains(known, label) {
				t.Errorf("%s: groups by %s, which none of its metrics has", where, label)
			}
		}
	}
	return names
}

// Every panel asks for metrics and labels that there are, and no metric is
// left out.
func TestDashboard(t *testing.T) {
	metrics := registered(t)
	var dashboard struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat, RefID string }
		}
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	text := read(t, "dashboard.json")
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	shown := make(map[string]bool)
	ids := make(map[int]bool)
	legend := regexp.MustCompile(`\{\{(\w+)\}\}`)
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || p.GridPos.H == 0 || p.Title == "" {
			t.Errorf("panel %d %q: its id or its place", p.ID, p.Title)
		}
		ids[p.ID] = true
		if (len(p.Targets) == 0) != (p.Type == "row") {
			t.Errorf("%s: %d queries", p.Title, len(p.Targets))
		}
		for _, target := range p.Targets {
			for _, name := range check(t, p.Title, target.Expr, metrics) {
				shown[name] = true
			}
			for _, m := range legend.FindAllStringSubmatch(target.LegendFormat, -1) {
				if !regexp.MustCompile(`by \([^)]*\b` + m[1] + `\b`).MatchString(target.Expr) {
					t.Errorf("%s: the legend names %s, and the query does not group by it", p.Title, m[1])
				}
			}
		}
	}
	variables := make(map[string]bool)
	for _, v := range dashboard.Templating.List {
		variables[v.Name] = true
		check(t, v.Name, v.Definition, metrics)
	}
	for _, m := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(text, -1) {
		if !variables[m[1]] && !strings.HasPrefix(m[1], "__") {
			t.Errorf("$%s is no variable", m[1])
		}
	}
	for name := range metrics {
		if !shown[name] {
			t.Errorf("no panel shows %s", name)
		}
	}
}

// Every rule asks for metrics and labels that there are, and its texts name
// labels that it has.
func TestAlerts(t *testing.T) {
	metrics := registered(t)
	text := read(t, "alerts.yml")
	rules := strings.Split(text, "\n      - alert: ")[1:]
	if len(rules) < 10 || strings.Count(text, "alert:") != len(rules) {
		t.Fatalf("%d rules", len(rules))
	}
	names := make(map[string]bool)
	for _, rule := range rules {
		name, _, _ := strings.Cut(rule, "\n")
		m := regexp.MustCompile(`(?m)^        expr: ([^|>].*)$`).FindStringSubmatch(rule)
		if m == nil || names[name] {
			t.Errorf("%s: has no expr of one line, or is there twice", name)
			continue
		}
		names[name] = true
		if len(check(t, name, m[1], metrics)) == 0 {
			t.Errorf("%s: is about no metric of ours", name)
		}
		for _, wanted := range []string{"severity: ", "summary: "} {
			if !strings.Contains(rule, wanted) {
				t.Errorf("%s: no %s", name, wanted)
			}
		}
		for _, label := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(rule, -1) {
			for _, by := range grouping.FindAllStringSubmatch(m[1], -1) {
				if !slices.Contains(regexp.MustCompile(`\W+`).Split(by[1], -1), label[1]) {
					t.Errorf("%s: names %s, which %q drops", name, label[1], by[0])
				}
			}
		}
	}
}

// The README's table is the list of metrics.
func TestReadme(t *testing.T) {
	metrics := registered(t)
	listed := make(map[string]bool)
	for _, line := range strings.Split(read(t, "README.md"), "\n") {
		if !strings.HasPrefix(line, "| `caddy_ws_gate_") {
			continue
		}
		cells := strings.Split(line, "|")
		for _, name := range used.FindAllString(cells[1], -1) {
			listed[name] = true
			want := slices.Sorted(slices.Values(metrics[name]))
			got := strings.Split(strings.ReplaceAll(strings.TrimSpace(cells[2]), "`", ""), ", ")
			slices.Sort(got)
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s has the labels %v, not %v", name, want, got)
			}
		}
	}
	for name := range metrics {
		if !listed[name] {
			t.Errorf("%s is not listed", name)
		}
	}
	if len(listed) != len(metrics) {
		t.Errorf("%d are listed, there are %d", len(listed), len(metrics))
	}
}

// What the README shows of a Caddyfile is one.
func TestReadmeCaddyfiles(t *testing.T) {
	blocks := regexp.MustCompile("(?ms)^```caddyfile\n(.*?)^```$").FindAllStringSubmatch(read(t, "README.md"), -1)
	if len(blocks) == 0 {
		t.Fatal("none found")
	}
	for _, block := range blocks {
		_, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(block[1]), nil)
		if err != nil || len(warnings) > 0 {
			t.Errorf("%v %v:\n%s", err, warnings, block[1])
		}
	}
}
