package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/caddyserver/caddy/v2"
)

// TestNames wants every name that the program shows to an operator, a client
// or a backend in the pages: they are part of the contract.
func TestNames(t *testing.T) {
	pages := all(t)
	for kind, names := range shown(t) {
		if len(names) == 0 {
			t.Errorf("found no %s", kind)
		}
		for _, name := range names {
			mention := `(^|[^\w])` + regexp.QuoteMeta(name) + `($|[^\w])`
			if kind == "reason" || kind == "detail" || strings.HasPrefix(kind, "log") {
				mention = "`" + regexp.QuoteMeta(name) + "`" // some are everyday words
			}
			if !regexp.MustCompile(mention).MatchString(pages) {
				t.Errorf("%s %q: in no page", kind, name)
			}
		}
	}
}

// all is the text of all pages of this folder.
func all(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	for _, page := range pages(t) {
		if filepath.Dir(page) == "." {
			text.WriteString(read(t, page))
		}
	}
	return text.String()
}

// shown are the names by kind, as they stand in the code.
func shown(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{
		"module":   moduleIDs(t),
		"metric":   metrics(t),
		"endpoint": endpoints(t),
	}
	note := func(kind, name string) {
		if name != "" && !slices.Contains(found[kind], name) {
			found[kind] = append(found[kind], name)
		}
	}
	for _, file := range sources(t, "../module", "../handlers") {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				noteCall(t, n, note)
			case *ast.ValueSpec:
				for i, name := range n.Names {
					if i < len(n.Values) {
						noteValue(t, name.Name, n.Values[i], note)
					}
				}
			case *ast.CompositeLit:
				noteLiteral(t, n, note)
			case *ast.AssignStmt: // the line about a refusal has its words in a variable
				for i, left := range n.Lhs {
					if name, ok := left.(*ast.Ident); ok && name.Name == "message" && len(n.Rhs) == len(n.Lhs) {
						note("log line", literal(t, n.Rhs[i]))
					}
				}
			}
			return true
		})
	}
	return found
}

// noteCall notes what loggers are called with.
func noteCall(t *testing.T, call *ast.CallExpr, note func(kind, name string)) {
	t.Helper()
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) == 0 {
		return
	}
	on, _ := selector.X.(*ast.Ident)
	switch name := selector.Sel.Name; {
	case on != nil && on.Name == "zap" && name != "Error" && name != "Any":
		note("log field", literal(t, call.Args[0]))
	case slices.Contains([]string{"Info", "Warn", "Error"}, name) && (on == nil || on.Name != "zap"):
		note("log line", literal(t, call.Args[0]))
	case slices.Contains([]string{"Check", "Log"}, name) && len(call.Args) > 1:
		note("log line", literal(t, call.Args[1]))
	}
}

// noteValue notes constants that are vocabulary.
func noteValue(t *testing.T, name string, value ast.Expr, note func(kind, name string)) {
	t.Helper()
	switch text := literal(t, value); {
	case regexp.MustCompile(`^(reason[A-Z]\w+|resultAccepted)$`).MatchString(name):
		note("reason", text)
	case regexp.MustCompile(`^event[A-Z]\w+$`).MatchString(name):
		note("event", text)
	case name == "hintHeader":
		note("header", text)
	case regexp.MustCompile(`^Code[A-Z]\w+$`).MatchString(name) && name != "CodeNoStatus":
		note("close code", value.(*ast.BasicLit).Value)
	}
}

// noteLiteral notes why sockets end, and why tokens are refused.
func noteLiteral(t *testing.T, of *ast.CompositeLit, note func(kind, name string)) {
	t.Helper()
	typ := ""
	switch of := of.Type.(type) {
	case *ast.Ident:
		typ = of.Name
	case *ast.SelectorExpr:
		typ = of.Sel.Name
	}
	for _, element := range of.Elts {
		switch pair, ok := element.(*ast.KeyValueExpr); {
		case ok && typ == "Cause" && pair.Key.(*ast.Ident).Name == "Reason":
			note("reason", literal(t, pair.Value))
		case ok && typ == "Cause" && pair.Key.(*ast.Ident).Name == "Text":
			note("close reason", literal(t, pair.Value))
		case !ok && typ == "refusal":
			note("detail", literal(t, element))
		}
	}
}

// literal is the value of a string literal, "" for all else.
func literal(t *testing.T, e ast.Expr) string {
	t.Helper()
	if basic, ok := e.(*ast.BasicLit); ok && basic.Kind == token.STRING {
		return text(t, basic)
	}
	return ""
}

// sources are the files of the program below these folders.
func sources(t *testing.T, roots ...string) (files []*ast.File) {
	t.Helper()
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			files = append(files, file)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// moduleIDs are the modules that this repository registers.
func moduleIDs(t *testing.T) (ids []string) {
	t.Helper()
	for _, id := range caddy.Modules() {
		info, err := caddy.GetModule(id)
		if err != nil {
			t.Fatal(err)
		}
		if typ := reflect.TypeOf(info.New()); typ.Kind() == reflect.Pointer && strings.HasPrefix(typ.Elem().PkgPath(), "github.com/wsgate/") {
			ids = append(ids, id)
		}
	}
	return ids
}

// metrics are the names of the metrics.
func metrics(t *testing.T) (names []string) {
	t.Helper()
	ctx, err := caddy.ProvisionContext(new(caddy.Config))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ctx.App("ws_gate"); err != nil {
		t.Fatal(err)
	}
	descriptions := make(chan *prometheus.Desc)
	go func() {
		ctx.GetMetricsRegistry().Describe(descriptions)
		close(descriptions)
	}()
	for d := range descriptions {
		if name := regexp.MustCompile(`"(caddy_ws_gate_\w+)"`).FindStringSubmatch(d.String()); name != nil {
			names = append(names, name[1])
		}
	}
	return names
}

// endpoints are method and path of the admin API, as its comment has them.
func endpoints(t *testing.T) (calls []string) {
	t.Helper()
	ast.Inspect(parse(t, "../module/admin.go"), func(n ast.Node) bool {
		decl, ok := n.(*ast.GenDecl)
		if !ok {
			return true
		}
		for _, call := range regexp.MustCompile(`(?m)^\t(GET|POST|DELETE) +(/ws_gate/[a-z]+)`).FindAllStringSubmatch(decl.Doc.Text(), -1) {
			if name := call[1] + " " + call[2]; !slices.Contains(calls, name) {
				calls = append(calls, name)
			}
		}
		return false
	})
	return calls
}

// TestNoOtherNames wants no name in the pages that the program does not have.
func TestNoOtherNames(t *testing.T) {
	known := shown(t)
	flags := make(map[string]bool)
	commandFlags(t).VisitAll(func(flag *pflag.Flag) { flags[flag.Name] = true })
	for _, page := range pages(t) {
		text := read(t, page)
		for _, name := range regexp.MustCompile(`caddy_ws_gate_\w+`).FindAllString(text, -1) {
			base := regexp.MustCompile(`(_seconds)_(bucket|sum|count)$`).ReplaceAllString(name, "$1")
			if !slices.Contains(known["metric"], base) {
				t.Errorf("%s: there is no metric %s", page, name)
			}
		}
		for _, name := range regexp.MustCompile(`\b(?:http|ws_gate|admin|caddy)\.[a-z_.]*\bws_[a-z_]+`).FindAllString(text, -1) {
			if !slices.Contains(known["module"], name) && name != "http.ws_gate" {
				t.Errorf("%s: there is no module %s", page, name)
			}
		}
		for _, name := range regexp.MustCompile(`\bws_gate\.(?:opened|closed|refused|[a-z]+ed)\b`).FindAllString(text, -1) {
			if !slices.Contains(known["event"], name) {
				t.Errorf("%s: there is no event %s", page, name)
			}
		}
		for _, name := range regexp.MustCompile(`WS_PROXY_([A-Z_]+[A-Z])`).FindAllStringSubmatch(text, -1) {
			if flag := strings.ReplaceAll(strings.ToLower(name[1]), "_", "-"); !flags[flag] && flag != "secret" {
				t.Errorf("%s: there is no variable %s", page, name[0])
			}
		}
		for _, command := range regexp.MustCompile(`(?m)caddy ws-proxy (?:.*\\\n)*.*$`).FindAllString(text, -1) {
			for _, name := range regexp.MustCompile(`\s--([a-z-]+)`).FindAllStringSubmatch(command, -1) {
				if !flags[name[1]] && name[1] != "help" {
					t.Errorf("%s: there is no flag --%s", page, name[1])
				}
			}
		}
		for _, method := range regexp.MustCompile("`(GET|POST|DELETE|PUT|PATCH) (/ws_gate/[a-z]+)").FindAllStringSubmatch(text, -1) {
			if !slices.Contains(known["endpoint"], method[1]+" "+method[2]) {
				t.Errorf("%s: there is no call %s %s", page, method[1], method[2])
			}
		}
	}
}

// TestNamedTests wants the tests that pages name as their proof.
func TestNamedTests(t *testing.T) {
	there := make(map[string]bool)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, f := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`).FindAllStringSubmatch(read(t, path), -1) {
			there[f[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range markdown(t) {
		for _, name := range regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)`").FindAllStringSubmatch(read(t, page), -1) {
			if !there[name[1]] {
				t.Errorf("%s: there is no test %s", page, name[1])
			}
		}
	}
}
