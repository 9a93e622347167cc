package docs

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/wsgate/caddy-wsgate/module"
)

const reference = "options.md"

// section is one option in the reference: a heading, and on the first line
// below it the syntax and the default.
type section struct {
	block, name    string // the heading of level 2 that it stands under, and its own
	syntax, normal string
	body           string
}

var (
	heading2   = regexp.MustCompile(`(?m)^## (.*)$`)
	heading4   = regexp.MustCompile("(?m)^#### `([^`]+)`$")
	syntaxLine = regexp.MustCompile("(?m)\\A\n+`([^`]+)` · (.*)$")
)

// sections are the options of the reference, by block.
func sections(t *testing.T) map[string][]section {
	t.Helper()
	found := make(map[string][]section)
	text := read(t, reference)
	for _, block := range split(heading2, text) {
		for _, part := range split(heading4, block.body) {
			s := section{block: block.title, name: part.title, body: part.body}
			m := syntaxLine.FindStringSubmatch(part.body)
			if m == nil {
				t.Errorf("%s: no line with syntax and default", s.name)
				continue
			}
			s.syntax, s.normal = m[1], m[2]
			found[s.block] = append(found[s.block], s)
		}
	}
	return found
}

// part is a heading and what stands below it.
type part struct{ title, body string }

// split cuts a text at headings, and drops what stands above the first.
func split(heading *regexp.Regexp, text string) (parts []part) {
	at := heading.FindAllStringSubmatchIndex(text, -1)
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		parts = append(parts, part{text[m[2]:m[3]], text[m[1]:end]})
	}
	return parts
}

// TestOptions holds the reference to the program: every option that the
// parsers know has a section there with the parsers' syntax, and no other has
// one. What it names as the default, the field's own documentation does too.
func TestOptions(t *testing.T) {
	reference := sections(t)
	fields := fieldDocs(t)
	for _, of := range []struct {
		block, file, function, options string
		types                          []string
	}{
		{"Options of ws_gate", "../caddyfile/gate.go", "parseGate", "gateOptions", []string{"Gate"}},
		{"Options of issuer", "../caddyfile/issuer.go", "issuer", "issuerOptions", []string{"Issuer"}},
		{"Global options", "../caddyfile/app.go", "parseApp", "", []string{"App"}},
	} {
		syntax := syntaxOf(t, of.file, " {4}", of.function)
		if of.options == "gateOptions" { // limits have parsers of their own
			maps.Copy(syntax, syntaxOf(t, "../caddyfile/limits.go", "", "handshakeRate", "maxConnections", "flowRate"))
		}
		if of.options != "" {
			if known := keysOf(t, of.file, of.options); !slices.Equal(known, names(syntax)) {
				t.Errorf("%s: the comment of %s has %q, %s has %q", of.file, of.function, names(syntax), of.options, known)
			}
		}
		var documented []string
		for _, s := range reference[of.block] {
			documented = append(documented, s.name)
			if s.syntax != syntax[s.name] {
				t.Errorf("%s: the syntax is %q, that of the parser %q", s.name, s.syntax, syntax[s.name])
			}
			for _, field := range of.types {
				checkDefault(t, s, fields[field+"."+s.name]+fields[field+"."+s.name+"s"])
			}
			checkShape(t, s)
		}
		slices.Sort(documented)
		if !slices.Equal(documented, names(syntax)) {
			t.Errorf("%q: documented are %q, there are %q", of.block, documented, names(syntax))
		}
	}
}

// checkShape wants an example and what the client sees.
func checkShape(t *testing.T, s section) {
	t.Helper()
	if !strings.Contains(s.body, "```caddyfile") && s.block != "Global options" {
		t.Errorf("%s: has no example", s.name)
	}
	for _, example := range block.FindAllStringSubmatch(s.body, -1) {
		if !regexp.MustCompile(`(?m)^\s*` + s.name + `\b`).MatchString(example[2]) {
			t.Errorf("%s: is not in its example", s.name)
		}
	}
	if !strings.Contains(s.body, "*The client sees*") && s.block != "Options of issuer" {
		t.Errorf("%s: does not say what the client sees", s.name)
	}
}

var defaults = regexp.MustCompile("default (?:a [a-z]+ of )?`([^`]+)`|`([^`]+)` \\(default\\)")

// checkDefault wants each default in the field's documentation.
func checkDefault(t *testing.T, s section, doc string) {
	t.Helper()
	if !strings.Contains(s.normal, "default") && !strings.Contains(s.normal, "required") {
		t.Errorf("%s: has no default, and is not required", s.name)
	}
	for _, m := range defaults.FindAllStringSubmatch(s.normal, -1) {
		words := strings.Fields(m[1] + m[2])
		word := words[len(words)-1]
		if word == "0s" {
			word = "0" // as comments have it
		}
		if !regexp.MustCompile(`(^|\W)` + regexp.QuoteMeta(word) + `($|\W)`).MatchString(doc) {
			t.Errorf("%s: default %q, but the field's documentation says %q", s.name, word, doc)
		}
	}
}

// syntaxOf reads the options in the comments of parsers' functions, which stand
// in a block or by themselves.
func syntaxOf(t *testing.T, path, indent string, functions ...string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	ast.Inspect(parse(t, path), func(n ast.Node) bool {
		if f, ok := n.(*ast.FuncDecl); ok && slices.Contains(functions, f.Name.Name) {
			for _, line := range regexp.MustCompile(`(?m)^\t`+indent+`(\w+)(.*)$`).FindAllStringSubmatch(f.Doc.Text(), -1) {
				syntax := strings.Join(strings.Fields(line[0]), " ")
				if strings.HasSuffix(syntax, " {") {
					syntax += " … }"
				}
				found[line[1]] = syntax
			}
		}
		return true
	})
	if len(found) == 0 {
		t.Fatalf("%s: the comments of %q have no option", path, functions)
	}
	return found
}

// keysOf are the keys of a map in the source, sorted.
func keysOf(t *testing.T, path, variable string) (keys []string) {
	t.Helper()
	ast.Inspect(parse(t, path), func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && spec.Names[0].Name == variable {
			for _, entry := range spec.Values[0].(*ast.CompositeLit).Elts {
				keys = append(keys, text(t, entry.(*ast.KeyValueExpr).Key))
			}
		}
		return true
	})
	if len(keys) == 0 {
		t.Fatalf("%s: found no %s", path, variable)
	}
	slices.Sort(keys)
	return keys
}

func names(syntax map[string]string) (sorted []string) {
	for name := range syntax {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	return sorted
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// text is the value of a string literal.
func text(t *testing.T, e ast.Expr) string {
	t.Helper()
	s, err := strconv.Unquote(e.(*ast.BasicLit).Value)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fieldDocs are the comments of the module's fields by type and JSON name. To
// the comment of a field belong those of the type that it holds.
func fieldDocs(t *testing.T) map[string]string {
	t.Helper()
	packages, err := parser.ParseDir(token.NewFileSet(), "../module", func(info fs.FileInfo) bool { //nolint:staticcheck // SA1019: one directory, no build tags
		return !strings.HasSuffix(info.Name(), "_test.go")
	}, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	docs := make(map[string]string)
	whole := make(map[string]string)   // all of a type
	element := make(map[string]string) // of a field
	ast.Inspect(packages["module"], func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		structure, ok := spec.Type.(*ast.StructType)
		if !ok {
			return false
		}
		for _, field := range structure.Fields.List {
			if field.Tag == nil {
				continue
			}
			tag, _, _ := strings.Cut(reflect.StructTag(text(t, field.Tag)).Get("json"), ",")
			docs[spec.Name.Name+"."+tag] = field.Doc.Text()
			whole[spec.Name.Name] += field.Doc.Text()
			ast.Inspect(field.Type, func(n ast.Node) bool {
				if name, ok := n.(*ast.Ident); ok {
					element[spec.Name.Name+"."+tag] = name.Name
				}
				return true
			})
		}
		return false
	})
	for field, typ := range element {
		docs[field] += whole[typ]
	}
	return docs
}

var jsonBlock = regexp.MustCompile("(?ms)^```json\n(.*?)^```$")

// TestJSON holds the whole configuration in the reference to the program: it
// loads, and has every field that there is.
func TestJSON(t *testing.T) {
	found := jsonBlock.FindAllStringSubmatch(read(t, reference), -1)
	if len(found) != 1 {
		t.Fatalf("%d configurations", len(found))
	}
	config := []byte(found[0][1])
	validate(t, newFiles(t).stand(t, config))
	var tree any
	if err := json.Unmarshal(config, &tree); err != nil {
		t.Fatal(err)
	}
	there := members(tree)
	for _, typ := range []reflect.Type{reflect.TypeFor[module.Gate](), reflect.TypeFor[module.App](), reflect.TypeFor[module.TokenFilter]()} {
		for _, field := range fieldsOf(typ) {
			if !there[field] {
				t.Errorf("%s: %s is not in the configuration", typ, field)
			}
		}
	}
}

// members are the names of all members.
func members(tree any) map[string]bool {
	found := make(map[string]bool)
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, element := range v {
				walk(element)
			}
		case map[string]any:
			for name, member := range v {
				found[name] = true
				walk(member)
			}
		}
	}
	walk(tree)
	return found
}

// fieldsOf are the JSON names of a type's fields and of those of the types
// that it holds.
func fieldsOf(typ reflect.Type) (fields []string) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct {
		return nil
	}
	for field := range typ.Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "-" {
			fields = append(fields, name)
			fields = append(fields, fieldsOf(field.Type)...)
		}
	}
	return fields
}

// TestStores wants the options of every store but the default one in the page
// about several nodes.
func TestStores(t *testing.T) {
	for _, info := range caddy.GetModules("ws_gate.stores") {
		for _, field := range fieldsOf(reflect.TypeOf(info.New())) {
			if !regexp.MustCompile("(?m)^\\|.*`" + field + "[ `]").MatchString(read(t, "nodes.md")) {
				t.Errorf("nodes.md: no row for %s of %s", field, info.ID)
			}
		}
	}
}

var flagRow = regexp.MustCompile("(?m)^\\| `--([a-z-]+)` \\|((?:[^|\\\\]|\\\\\\|)*)\\|")

// TestFlags holds the table of flags to the command.
func TestFlags(t *testing.T) {
	documented := make(map[string]string)
	for _, row := range flagRow.FindAllStringSubmatch(read(t, reference), -1) {
		documented[row[1]] = strings.ReplaceAll(strings.TrimSpace(row[2]), `\|`, "|")
	}
	commandFlags(t).VisitAll(func(flag *pflag.Flag) {
		kind, ok := documented[flag.Name]
		delete(documented, flag.Name)
		if want := flag.Value.Type(); !ok {
			t.Errorf("no row for --%s", flag.Name)
		} else if kind != want && !(kind == "" && want == "bool") {
			t.Errorf("--%s takes %q, not %q", flag.Name, want, kind)
		}
	})
	for name := range documented {
		t.Errorf("there is no flag --%s", name)
	}
}

// commandFlags are the flags of `caddy ws-proxy`.
func commandFlags(t *testing.T) *pflag.FlagSet {
	t.Helper()
	command, ok := caddycmd.Commands()["ws-proxy"]
	if !ok {
		t.Fatal("there is no command ws-proxy")
	}
	cmd := new(cobra.Command)
	command.CobraFunc(cmd)
	return cmd.Flags()
}
