package caddyfile_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/module"
)

// TestEveryFieldHasAnOption compares the configuration that there is with
// what the goldens set: a JSON field that no Caddyfile can set was forgotten.
func TestEveryFieldHasAnOption(t *testing.T) {
	set := make(map[string]bool)
	for name, golden := range goldens(t) {
		_, result, _ := strings.Cut(golden, dashes)
		if strings.HasPrefix(name, "error_") {
			continue
		}
		for _, raw := range gatesIn(t, result) {
			noteSet(reflect.ValueOf(gateOf(t, raw)), set)
		}
		noteApp(t, result, set)
	}
	docs := fieldDocs(t)
	for _, typ := range []reflect.Type{reflect.TypeFor[module.Gate](), reflect.TypeFor[module.App](), reflect.TypeFor[module.RedisStore]()} {
		for field := range fieldsOf(typ) {
			if !set[field] {
				t.Errorf("%s: no golden sets it", field)
			}
			if docs[field] == "" {
				t.Errorf("%s: has no doc comment, which is its documentation", field)
			}
		}
	}
}

// noteApp notes the fields of the app and of its store that a config sets.
func noteApp(t *testing.T, config string, set map[string]bool) {
	t.Helper()
	var root struct {
		Apps struct {
			Gate json.RawMessage `json:"ws_gate"`
		} `json:"apps"`
	}
	if err := json.Unmarshal([]byte(config), &root); err != nil {
		t.Fatal(err)
	}
	if root.Apps.Gate == nil {
		return
	}
	app := new(module.App)
	if err := caddy.StrictUnmarshalJSON(root.Apps.Gate, app); err != nil {
		t.Fatalf("%v in %s", err, root.Apps.Gate)
	}
	noteSet(reflect.ValueOf(app), set)
	var store struct {
		Module string `json:"module"`
		module.RedisStore
	}
	if err := json.Unmarshal(app.StoreRaw, &store); app.StoreRaw != nil && err != nil {
		t.Fatal(err)
	}
	if store.Module == "redis" {
		noteSet(reflect.ValueOf(store.RedisStore), set)
	}
}

// gatesIn are the configurations of all ws_gate handlers in a config, without
// what says that they are such.
func gatesIn(t testing.TB, config string) (gates []json.RawMessage) {
	t.Helper()
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, element := range v {
				walk(element)
			}
		case map[string]any:
			if v["handler"] == "ws_gate" {
				delete(v, "handler")
				raw, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				gates = append(gates, raw)
				return
			}
			for _, member := range v {
				walk(member)
			}
		}
	}
	var root any
	if err := json.Unmarshal([]byte(config), &root); err != nil {
		t.Fatal(err)
	}
	walk(root)
	return gates
}

// gateOf reads a configuration as Caddy does: what it does not know is an
// error.
func gateOf(t testing.TB, raw json.RawMessage) *module.Gate {
	t.Helper()
	gate := new(module.Gate)
	if err := caddy.StrictUnmarshalJSON(raw, gate); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	return gate
}

// noteSet notes the fields that are there in v and in what it holds.
func noteSet(v reflect.Value, set map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			noteSet(v.Elem(), set)
		}
	case reflect.Slice:
		for i := range v.Len() {
			noteSet(v.Index(i), set)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if field.Tag.Get("json") != "" && !v.Field(i).IsZero() {
				set[v.Type().Name()+"."+field.Name] = true
				noteSet(v.Field(i), set)
			}
		}
	}
}

// fieldsOf are the configurable fields of a type and of those that it holds.
func fieldsOf(typ reflect.Type) map[string]bool {
	fields := make(map[string]bool)
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct {
		return fields
	}
	for field := range typ.Fields() {
		if field.Tag.Get("json") != "" {
			fields[typ.Name()+"."+field.Name] = true
			for inner := range fieldsOf(field.Type) {
				fields[inner] = true
			}
		}
	}
	return fields
}

// fieldDocs are the doc comments of the fields of all types of the module.
func fieldDocs(t *testing.T) map[string]string {
	t.Helper()
	packages, err := parser.ParseDir(token.NewFileSet(), "../module", func(info fs.FileInfo) bool { //nolint:staticcheck // SA1019: one directory, no build tags
		return !strings.HasSuffix(info.Name(), "_test.go")
	}, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	docs := make(map[string]string)
	ast.Inspect(packages["module"], func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if structure, ok := spec.Type.(*ast.StructType); ok {
			for _, field := range structure.Fields.List {
				for _, name := range field.Names {
					docs[spec.Name.Name+"."+name.Name] = field.Doc.Text()
				}
			}
		}
		return false
	})
	return docs
}

// FuzzAdapt holds whatever stands in a block to this: parsing never panics,
// what it accepts is a configuration that Caddy takes, and no time or number
// in it is negative.
func FuzzAdapt(f *testing.F) {
	for _, golden := range goldens(f) {
		config, _, _ := strings.Cut(golden, dashes)
		for _, directive := range []string{"ws_gate", "ws_proxy"} {
			if _, block, ok := strings.Cut(config, "\t"+directive+" "); ok {
				args, block, _ := strings.Cut(block, "{\n")
				f.Add(args, block, directive == "ws_proxy")
			}
		}
	}
	f.Fuzz(func(t *testing.T, args, block string, proxy bool) {
		directive := "ws_gate "
		if proxy {
			directive = "ws_proxy "
		}
		config := ":8080 {\n\t" + directive + args + "{\n" + block + "\n\t}\n}\n"
		if strings.Contains(config, "import") {
			t.Skip("could read any file")
		}
		result, err := adapt(config)
		if err != nil {
			return
		}
		for _, raw := range gatesIn(t, result) {
			gate := gateOf(t, raw)
			for _, d := range []*caddy.Duration{gate.Leeway, gate.PingInterval, gate.PongTimeout, &gate.IdleTimeout, &gate.MaxLifetime, &gate.ExpiryGrace} {
				if d != nil && *d < 0 {
					t.Errorf("a negative time in %s", raw)
				}
			}
			for _, r := range gate.HandshakeRate {
				if r.Number < 1 || r.Per <= 0 || r.Burst < 0 {
					t.Errorf("no rate: %s", raw)
				}
			}
			if len(gate.Issuers) == 0 {
				t.Errorf("no issuer: %s", raw)
			}
			for _, issuer := range gate.Issuers {
				if len(issuer.Audience) == 0 {
					t.Errorf("an issuer without audience: %s", raw)
				}
			}
		}
	})
}
