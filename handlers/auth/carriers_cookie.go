package auth

import (
	"fmt"
	"slices"
	"strings"
)

// blanks is optional whitespace, OWS of RFC 9110 §5.6.3.
const blanks = " \t"

// ValidateCookie refuses a from_cookies that is no cookie name (RFC 6265 §4.1.1).
func ValidateCookie(name string) error {
	if name == "" {
		return fmt.Errorf("checking from_cookies: %w", errNoName)
	}
	if !isToken(name) {
		return fmt.Errorf("checking from_cookies: %q is not a cookie name", name)
	}
	return nil
}

// findCookie notes each pair of that name in all Cookie lines. Double quotes
// around the value are no part of it (RFC 6265 §4.1.1).
func findCookie(f *finding, lines []string, name string) {
	for _, line := range lines {
		for line != "" {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			key, value, _ := strings.Cut(pair, "=")
			if strings.Trim(key, blanks) != name {
				continue
			}
			value = strings.Trim(value, blanks)
			if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
				value = value[1 : len(value)-1]
			}
			f.add(value)
		}
	}
}

// stripCookies returns the Cookie lines without the pairs of these names. A
// line from which nothing was taken stays byte for byte; one of which nothing
// is left goes.
func stripCookies(lines, names []string) []string {
	carries := func(pair string) bool {
		key, _, _ := strings.Cut(pair, "=")
		return slices.Contains(names, strings.Trim(key, blanks))
	}
	kept := make([]string, 0, len(lines))
	for _, line := range lines {
		pairs := strings.Split(line, ";")
		rest := slices.DeleteFunc(slices.Clone(pairs), carries)
		if len(rest) == len(pairs) {
			kept = append(kept, line)
			continue
		}
		// The blank that followed the semicolon has nothing to follow when
		// the first pair is gone.
		if line = strings.TrimLeft(strings.Join(rest, ";"), blanks); line != "" {
			kept = append(kept, line)
		}
	}
	return kept
}
