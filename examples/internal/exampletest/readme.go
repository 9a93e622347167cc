package exampletest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// block is a marked command of a README and what it prints.
type block struct {
	script   string
	terminal bool // it goes on, the reader opens another terminal
	fails    bool

	shows bool // whether the README says what it prints
	want  string
}

var fence = regexp.MustCompile("(?ms)^```([^`\n]*)\n(.*?)^```[ \t]*$")

// blocks finds what is marked in a README.
func blocks(readme string) ([]block, error) {
	var found []block
	for _, m := range fence.FindAllStringSubmatch(readme, -1) {
		info, text := strings.Fields(m[1]), m[2]
		if !slices.Contains(info, "test") {
			continue
		}
		switch strings.Join(info, " ") {
		case "sh test":
			found = append(found, block{script: text})
		case "sh test fails":
			found = append(found, block{script: text, fails: true})
		case "sh test terminal":
			found = append(found, block{script: text, terminal: true})
		case "text test":
			if len(found) == 0 || found[len(found)-1].shows {
				return nil, fmt.Errorf("no command prints %q", text)
			}
			last := &found[len(found)-1]
			last.shows, last.want = true, text
		default:
			return nil, fmt.Errorf("%q is no known mark", m[1])
		}
	}
	for _, b := range found {
		if b.terminal && !b.shows {
			return nil, fmt.Errorf("the text does not say what %q prints once it is ready", b.script)
		}
	}
	return found, nil
}

// pattern matches lines as a README shows them. Blanks at the end of a line,
// which nobody sees, do not count.
func pattern(text string) string {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		line = regexp.QuoteMeta(strings.TrimRight(line, " "))
		lines = append(lines, strings.ReplaceAll(line, "…", `[^\n]*`)+`[ \r]*`)
	}
	return strings.Join(lines, "\n")
}

// isOutput tells whether the lines are all that was printed.
func isOutput(want, got string) bool {
	return regexp.MustCompile(`\A` + pattern(want) + `\n*\z`).MatchString(got)
}

// inOutput tells whether the lines are among what was printed so far.
func inOutput(want, got string) bool {
	return regexp.MustCompile(`(?m)^` + pattern(want) + `$`).MatchString(got)
}
