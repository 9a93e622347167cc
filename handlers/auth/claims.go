package auth

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode"
)

// Claims are the claims of a token whose signature was verified.
type Claims struct{ root map[string]any }

// Lookup finds a claim by its path, such as realm_access.roles. At each level
// the whole rest of the path is first tried as one name, since names such as
// https://example.com/roles have dots in them; then it is split at one dot
// after the other, for objects named like kubernetes.io. Names compare exactly. The value is a string, a bool, nil, a
// [json.Number], a []any or a map[string]any.
func (c *Claims) Lookup(path string) (any, bool) { return lookup(c.root, path) }

func lookup(object map[string]any, path string) (any, bool) {
	if value, ok := object[path]; ok {
		return value, true
	}
	for i := 0; i < len(path); i++ {
		if path[i] != '.' {
			continue
		}
		if below, ok := object[path[:i]].(map[string]any); ok {
			if value, ok := lookup(below, path[i+1:]); ok {
				return value, true
			}
		}
	}
	return nil, false
}

// Scalar is a claim that is a string, a number (as its text in the token) or
// a bool.
func (c *Claims) Scalar(path string) (string, bool) {
	value, _ := c.Lookup(path)
	return scalar(value)
}

// HeaderValue is a claim as the value of a header: a scalar, or the scalars
// of an array joined with ",". A claim that is absent, null or empty is not
// present. A value that would not survive in a header as it is refuses the
// token: control characters, blanks around it, a comma in an element, an
// object.
func (c *Claims) HeaderValue(path string) (value string, present bool, err error) {
	claim, ok := c.Lookup(path)
	if !ok || claim == nil {
		return "", false, nil
	}
	if s, ok := scalar(claim); ok {
		if !fitsHeader(s) {
			return "", false, errIdentityClaim
		}
		return s, s != "", nil
	}
	array, ok := claim.([]any)
	if !ok {
		return "", false, errIdentityClaim
	}
	elements := make([]string, 0, len(array))
	for _, element := range array {
		s, ok := scalar(element)
		if !ok || !fitsHeader(s) || strings.Contains(s, ",") {
			return "", false, errIdentityClaim
		}
		if s != "" {
			elements = append(elements, s)
		}
	}
	return strings.Join(elements, ","), len(elements) > 0, nil
}

// Contains tells whether a claim holds any of these values: a string that is
// one of them, or lists one between blanks as scope does (RFC 6749 §3.3), an
// array that has one as an element. Numbers and bools compare by their text.
func (c *Claims) Contains(path string, wanted []string) bool {
	claim, _ := c.Lookup(path)
	has := func(s string) bool { return s != "" && slices.Contains(wanted, s) }
	switch claim := claim.(type) {
	case []any:
		return slices.ContainsFunc(claim, func(element any) bool {
			s, ok := scalar(element)
			return ok && has(s)
		})
	case string:
		return has(claim) || slices.ContainsFunc(strings.Split(claim, " "), has)
	default:
		s, ok := scalar(claim)
		return ok && has(s)
	}
}

// user is the claim that names the user: one that no header, log or counter
// could take for another's.
func (c *Claims) user(path string) (string, error) {
	s, ok := c.Scalar(path)
	if !ok || s == "" || !fitsHeader(s) {
		return "", errUserClaim
	}
	return s, nil
}

// text is a scalar claim at the root, or "".
func (c *Claims) text(name string) string {
	s, _ := scalar(c.root[name])
	return s
}

func scalar(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, true
	case json.Number:
		return value.String(), true
	case bool:
		if value {
			return "true", true
		}
		return "false", true
	}
	return "", false
}

// fitsHeader refuses what a header would lose or be split by: control
// characters, the line separators of Unicode, which some backends take for
// line ends, and blanks at either end.
func fitsHeader(s string) bool {
	return strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(c rune) bool {
		return unicode.IsControl(c) || c == '\u2028' || c == '\u2029'
	})
}
