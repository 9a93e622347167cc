package wsgate_test

import (
	"bytes"
	"encoding/json"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/wsgate/caddy-wsgate"
)

const modulePath = "github.com/wsgate/caddy-wsgate"

// listing is xcaddy.json: the JSON fields of xcaddy.Builder, and beside them
// what a reader of the list of plugins wants to know.
type listing struct {
	// Fields of xcaddy.Builder.
	OS           string        `json:"os,omitempty"`
	Arch         string        `json:"arch,omitempty"`
	ARM          string        `json:"arm,omitempty"`
	Cgo          bool          `json:"cgo,omitempty"`
	CaddyVersion string        `json:"caddy_version,omitempty"`
	Plugins      []dependency  `json:"plugins,omitempty"`
	Replacements []replacement `json:"replacements,omitempty"`
	TimeoutGet   time.Duration `json:"timeout_get,omitempty"`
	TimeoutBuild time.Duration `json:"timeout_build,omitempty"`
	RaceDetector bool          `json:"race_detector,omitempty"`
	SkipCleanup  bool          `json:"skip_cleanup,omitempty"`
	SkipBuild    bool          `json:"skip_build,omitempty"`
	Debug        bool          `json:"debug,omitempty"`
	BuildFlags   string        `json:"build_flags,omitempty"`
	ModFlags     string        `json:"mod_flags,omitempty"`

	// Ours.
	Name          string   `json:"name"`
	Description   string   `json:"description"`
	Modules       []string `json:"modules"`
	Directives    []string `json:"directives"`
	GlobalOptions []string `json:"global_options,omitempty"`
}

type dependency struct {
	PackagePath string `json:"module_path,omitempty"`
	Version     string `json:"version,omitempty"`
}

type replacement struct {
	Old string `json:"old,omitempty"`
	New string `json:"new,omitempty"`
}

func readListing(t *testing.T) listing {
	t.Helper()
	content, err := os.ReadFile("xcaddy.json")
	if err != nil {
		t.Fatal(err)
	}
	var l listing
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		t.Fatalf("xcaddy.json: %v", err)
	}
	return l
}

func TestXcaddyBuild(t *testing.T) {
	l := readListing(t)
	gomod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^module\s+(\S+)$`).FindSubmatch(gomod)
	if m == nil || string(m[1]) != modulePath {
		t.Fatalf("go.mod: module is not %s", modulePath)
	}
	m = regexp.MustCompile(`(?m)^(?:require)?\s+github\.com/caddyserver/caddy/v2\s+(\S+)`).FindSubmatch(gomod)
	if m == nil {
		t.Fatal("go.mod: no requirement of github.com/caddyserver/caddy/v2")
	}
	if want := string(m[1]); l.CaddyVersion != want {
		t.Errorf("xcaddy.json: caddy_version is %q, go.mod requires %q", l.CaddyVersion, want)
	}
	if len(l.Plugins) != 1 || l.Plugins[0].PackagePath != modulePath {
		t.Errorf("xcaddy.json: plugins are %+v, want %s alone", l.Plugins, modulePath)
	}
	if l.Name == "" || l.Description == "" {
		t.Error("xcaddy.json: name and description must be set")
	}
}

func TestXcaddyModules(t *testing.T) {
	l := readListing(t)
	var registered []string
	for _, id := range caddy.Modules() {
		info, err := caddy.GetModule(id)
		if err != nil {
			t.Fatal(err)
		}
		typ := reflect.TypeOf(info.New())
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if ours := strings.HasPrefix(typ.PkgPath(), modulePath); ours || strings.Contains(id, "ws_") {
			registered = append(registered, id)
		}
	}
	listed := slices.Sorted(slices.Values(l.Modules))
	slices.Sort(registered)
	if !slices.Equal(listed, registered) {
		t.Errorf("xcaddy.json lists %q, registered are %q", listed, registered)
	}
}

func TestXcaddyDirectives(t *testing.T) {
	l := readListing(t)
	adapter := caddyconfig.GetAdapter("caddyfile")
	if adapter == nil {
		t.Fatal("no Caddyfile adapter")
	}
	// What is known fails, if at all, by what its block lacks.
	known := func(caddyfile, unknown string) bool {
		_, _, err := adapter.Adapt([]byte(caddyfile), nil)
		return err == nil || !strings.Contains(err.Error(), unknown)
	}
	var directives, options []string
	for _, name := range []string{"ws_gate", "ws_proxy", "ws_tunnel"} {
		if known("http://127.0.0.1:1 {\n\t"+name+" {\n\t}\n}\n", "unrecognized directive") {
			directives = append(directives, name)
		}
		if known("{\n\t"+name+" {\n\t}\n}\n", "unrecognized global option") {
			options = append(options, name)
		}
	}
	if !slices.Equal(l.Directives, directives) {
		t.Errorf("xcaddy.json lists the directives %q, known are %q", l.Directives, directives)
	}
	if !slices.Equal(l.GlobalOptions, options) {
		t.Errorf("xcaddy.json lists the global options %q, known are %q", l.GlobalOptions, options)
	}
}

// imports returns the import paths of every Go file under root, by file.
func imports(t *testing.T, root string) map[string][]string {
	t.Helper()
	found := make(map[string][]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		found[filepath.ToSlash(path)] = nil
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			found[filepath.ToSlash(path)] = append(found[filepath.ToSlash(path)], p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// under tells whether the import path p is root or lies below it.
func under(p, root string) bool { return p == root || strings.HasPrefix(p, root+"/") }

// The core knows nothing of Caddy, and its packages know of each other only
// where the design has an arrow.
func TestHandlersImports(t *testing.T) {
	arrows := map[string][]string{
		"limit":       {"store"},
		"tunnel":      {"store"},
		"store/redis": {"store"},
	}
	// The contract of stores is held to all of them in one place.
	forTests := map[string][]string{"store": {"store/redis", "store/redis/redistest"}, "store/redis": {"store/redis/redistest"}}
	files := imports(t, "handlers")
	if len(files) == 0 {
		t.Fatal("no Go file under handlers/")
	}
	for file, paths := range files {
		pkg := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(file)), "handlers/")
		for _, p := range paths {
			if under(p, "github.com/caddyserver") {
				t.Errorf("%s imports %s: handlers/ is free of Caddy", file, p)
			}
			if !under(p, modulePath) {
				continue
			}
			target, ok := strings.CutPrefix(p, modulePath+"/handlers/")
			if !ok {
				t.Errorf("%s imports %s: imports go wsgate, caddyfile, module, handlers, never back", file, p)
				continue
			}
			if strings.HasSuffix(file, "_test.go") && slices.Contains(forTests[pkg], target) {
				continue
			}
			if target != pkg && !slices.Contains(arrows[pkg], target) && !strings.HasPrefix(target, pkg+"/internal") {
				t.Errorf("%s imports handlers/%s: the design has no such arrow", file, target)
			}
		}
	}
}

// jwx/v2 is unmaintained upstream; one file can be moved to its successor.
func TestJwxBehindOneFile(t *testing.T) {
	for file, paths := range imports(t, ".") {
		if file == "handlers/auth/jwx.go" || strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, p := range paths {
			if under(p, "github.com/lestrrat-go/jwx") {
				t.Errorf("%s imports %s: only handlers/auth/jwx.go may", file, p)
			}
		}
	}
}

// The black-box tests see a process and its sockets, nothing else.
func TestIntegrationImports(t *testing.T) {
	for file, paths := range imports(t, "integration") {
		for _, p := range paths {
			if under(p, modulePath) && p != modulePath+"/handlers/store/redis/redistest" { // which starts a server
				t.Errorf("%s imports %s", file, p)
			}
		}
	}
}
