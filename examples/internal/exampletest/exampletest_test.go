package exampletest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestBlocks(t *testing.T) {
	readme := "# Title\n```sh\nnot this\n```\n\n```sh test\nnpm ci\nnode mint.mjs\n```\n" +
		"```sh test terminal\nnode backend.mjs\n```\nIt says\n```text test\non port 3000\n```\n" +
		"```js\nnor(this)\n```\n```sh test fails\nfalse\n```\n```text test\n```\n```text\nnothing\n```\n"
	want := []block{
		{script: "npm ci\nnode mint.mjs\n"},
		{script: "node backend.mjs\n", terminal: true, shows: true, want: "on port 3000\n"},
		{script: "false\n", fails: true, shows: true},
	}
	if got, err := blocks(readme); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for name, wrong := range map[string]string{
		"unknown mark":             "```sh test later\ntrue\n```\n",
		"unknown language":         "```python test\npass\n```\n",
		"output without a command": "```text test\nhello\n```\n",
		"output twice":             "```sh test\ntrue\n```\n```text test\na\n```\n```text test\nb\n```\n",
		"never ready":              "```sh test terminal\nsleep 60\n```\n",
	} {
		if got, err := blocks(wrong); err == nil {
			t.Errorf("%s: taken as %+v", name, got)
		}
	}
}

func TestOutput(t *testing.T) {
	tests := map[string]struct {
		want, got string
		is, in    bool
	}{
		"the same":             {"hello\n", "hello\n", true, true},
		"two lines":            {"a\nb\n", "a\nb\n", true, true},
		"blanks at the end":    {"closed: 1006\n", "closed: 1006 \n\n", true, true},
		"a part of a line":     {"…port…\n", "on port 3000\n", true, true},
		"… is within a line":   {"a…b\n", "a\nb\n", false, false},
		"a line too many":      {"a\n", "a\nb\n", false, true},
		"a line before":        {"a\n", "b\na\n", false, true},
		"a line too few":       {"a\nb\n", "a\n", false, false},
		"a prefix of the line": {"alice\n", "alice2\n", false, false},
		"no pattern":           {"a.c (x)\n", "abc (x)\n", false, false},
		"nothing":              {"", "", true, true},
		"something":            {"", "a\n", false, false},
	}
	for name, tc := range tests {
		if got := isOutput(tc.want, tc.got); got != tc.is {
			t.Errorf("%s: is the output: %v", name, got)
		}
		if got := inOutput(tc.want, tc.got); got != tc.in && name != "something" {
			t.Errorf("%s: is in the output: %v", name, got)
		}
	}
}

// Tokens that a log line must not hold, as judge finds them.
func TestToken(t *testing.T) {
	for text, want := range map[string]bool{
		`"uri":"/chat?access_token=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln"`: true,
		`["bearer.eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9"]`:                      true,
		`"uri":"/chat?access_token=REDACTED","msg":"handshake refused"`:             false,
	} {
		if token.MatchString(text) != want {
			t.Errorf("%s: want %v", text, want)
		}
	}
}

func examples(t *testing.T, name string) []string {
	t.Helper()
	files, err := filepath.Glob("../../*/" + name)
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples/*/%s: %v", name, err)
	}
	return files
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Each folder is for somebody to take away, so each has its own copy of what
// signs tokens. They stay the same.
func TestMintIsTheSame(t *testing.T) {
	files := examples(t, "mint.mjs")
	for _, file := range files[1:] {
		if read(t, file) != read(t, files[0]) {
			t.Errorf("%s differs from %s", file, files[0])
		}
	}
}

// Packages are pinned by version and content, not by where somebody got them.
func TestPackagesArePinned(t *testing.T) {
	for _, file := range examples(t, "package.json") {
		var manifest struct{ Dependencies map[string]string }
		if err := json.Unmarshal([]byte(read(t, file)), &manifest); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for name, version := range manifest.Dependencies {
			if !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(version) {
				t.Errorf("%s: %s is not pinned: %q", file, name, version)
			}
		}
		lock := filepath.Join(filepath.Dir(file), "package-lock.json")
		var locked struct {
			Packages map[string]struct{ Version, Resolved, Integrity string }
		}
		if err := json.Unmarshal([]byte(read(t, lock)), &locked); err != nil {
			t.Fatalf("%s: %v", lock, err)
		}
		for path, p := range locked.Packages {
			if p.Resolved != "" {
				t.Errorf("%s: %s names a registry: npm install --package-lock-only --omit-lockfile-registry-resolved=true", lock, path)
			}
			if path != "" && (p.Version == "" || !strings.HasPrefix(p.Integrity, "sha512-")) {
				t.Errorf("%s: %s has no version or no digest", lock, path)
			}
		}
	}
}

// What a reader makes in an example's folder does not get into the repository.
func TestIgnored(t *testing.T) {
	lines := strings.Split(read(t, "../../../.gitignore"), "\n")
	for _, name := range []string{"node_modules/", ".env"} {
		if !slices.Contains(lines, name) {
			t.Errorf(".gitignore has no line %s", name)
		}
	}
}

// Marks of all examples' READMEs, also of those that no New follows.
func TestMarks(t *testing.T) {
	for _, file := range examples(t, "README.md") {
		if _, err := blocks(read(t, file)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}
