package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// markdown are all pages of the repository.
func markdown(t *testing.T) (pages []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules" || d.Name() == "testdata"):
			return fs.SkipDir
		case filepath.Ext(path) == ".md":
			pages = append(pages, path)
		}
		return nil
	})
	if err != nil || len(pages) < 8 {
		t.Fatalf("found %q: %v", pages, err)
	}
	return pages
}

var (
	fence    = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	code     = regexp.MustCompile("`[^`\n]+`")
	inline   = regexp.MustCompile(`\]\(<?([^)\s>]+)>?(?: "[^"]*")?\)`)
	referred = regexp.MustCompile(`(?m)^\[[^\]]+\]: (\S+)`)
	html     = regexp.MustCompile(`(?:href|src|srcset)="([^"]+)"`)
)

// TestLinks follows every link that stays in the repository, with its anchor.
func TestLinks(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range markdown(t) {
		prose := fence.ReplaceAllString(read(t, page), "")
		links := inline.FindAllStringSubmatch(prose, -1)
		links = append(links, referred.FindAllStringSubmatch(prose, -1)...)
		links = append(links, html.FindAllStringSubmatch(code.ReplaceAllString(prose, ""), -1)...)
		for _, link := range links {
			path, anchor, _ := strings.Cut(link[1], "#")
			if strings.Contains(path, ":") {
				continue // another host
			}
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if whole, err := filepath.Abs(target); err != nil || !strings.HasPrefix(whole, root) {
				t.Errorf("%s: %s leads out of the repository", page, link[1])
				continue
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", page, err)
				continue
			}
			if anchor != "" && filepath.Ext(target) == ".md" && !slices.Contains(anchors(read(t, target)), anchor) {
				t.Errorf("%s: %s has no heading #%s", page, target, anchor)
			}
		}
	}
}

// TestIndex wants a line for every page, and for every example.
func TestIndex(t *testing.T) {
	index := read(t, "README.md")
	for _, page := range pages(t) {
		if filepath.Dir(page) == "." && page != "README.md" && !strings.Contains(index, "("+page+")") {
			t.Errorf("README.md has no line for %s", page)
		}
	}
	examples, err := filepath.Glob("../examples/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	list := read(t, "../examples/README.md")
	for _, example := range examples {
		if name := filepath.Base(filepath.Dir(example)); !strings.Contains(list, "("+name+"/README.md)") {
			t.Errorf("examples/README.md has no line for %s", name)
		}
	}
}

// anchors are the headings of a page as GitHub links to them.
func anchors(text string) (found []string) {
	times := make(map[string]int)
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		words := regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(heading[1], "$1")
		name := regexp.MustCompile(`[^\pL\pN_ -]`).ReplaceAllString(strings.ToLower(words), "")
		name = strings.ReplaceAll(name, " ", "-")
		if n := times[name]; n > 0 {
			found = append(found, fmt.Sprintf("%s-%d", name, n))
		} else {
			found = append(found, name)
		}
		times[name]++
	}
	return found
}
