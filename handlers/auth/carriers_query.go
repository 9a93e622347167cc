package auth

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// ValidateQuery refuses a from_query without a name.
func ValidateQuery(name string) error {
	if name == "" {
		return fmt.Errorf("checking from_query: %w", errNoName)
	}
	return nil
}

// findQuery notes each parameter of that name, with or without a value. A
// value that cannot be decoded stays as it is, and is refused as a token.
func findQuery(f *finding, query, name string) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		if !isParameter(pair, name) {
			continue
		}
		_, value, _ := strings.Cut(pair, "=")
		if decoded, err := url.QueryUnescape(value); err == nil {
			value = decoded
		}
		f.add(value)
	}
}

// stripQuery returns the query without the parameters of these names. The
// rest is neither decoded nor ordered anew.
func stripQuery(query string, names []string) string {
	pairs := strings.Split(query, "&")
	rest := slices.DeleteFunc(slices.Clone(pairs), func(pair string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return isParameter(pair, name) })
	})
	if len(rest) == len(pairs) {
		return query
	}
	return strings.Join(rest, "&")
}

// isParameter tells whether the pair's name, percent-decoded and with "+" for
// a blank, is exactly this one.
func isParameter(pair, name string) bool {
	raw, _, _ := strings.Cut(pair, "=")
	if !strings.ContainsAny(raw, "%+") {
		return raw == name
	}
	decoded, err := url.QueryUnescape(raw)
	return err == nil && decoded == name
}
