package auth

import (
	"encoding/json"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds the nesting of objects and arrays in a token or a key set.
const maxDepth = 16

// reader reads JSON (RFC 8259) as strictly as a token deserves. Two parsers
// that differ on one text are how a token comes to say one thing to the gate
// and another to the backend (RFC 8725 §2.6), so whatever parsers are known
// to differ on is a flaw: duplicate names, invalid UTF-8, lone surrogates.
//
// Values are string, bool, nil, [json.Number] with the number's own text,
// []any and map[string]any. Strings without an escape share memory with the
// text.
type reader struct {
	text  string
	at    int
	depth int
	// flaw is the first thing that is JSON by its syntax, but ambiguous.
	// Reading goes on, so that a key set can lose one entry and keep the rest.
	flaw error
}

// parseObject reads a text that is one object and nothing else.
func parseObject(text string) (map[string]any, error) {
	r := reader{text: text}
	object := make(map[string]any)
	if err := r.document(func(name string) error { return r.member(object, name) }); err != nil {
		return nil, err
	}
	if r.flaw != nil {
		return nil, r.flaw
	}
	return object, nil
}

// document reads the whole text as an object, and calls member at the value
// of each name, which member reads.
func (r *reader) document(member func(name string) error) error {
	r.space()
	if r.peek() != '{' {
		return errMalformed
	}
	if err := r.object(member); err != nil {
		return err
	}
	r.space()
	if r.at != len(r.text) {
		return errMalformed
	}
	return nil
}

// member reads one value into the object. Of two members with one name the
// first stays, and the object is flawed.
func (r *reader) member(object map[string]any, name string) error {
	value, err := r.value()
	if err != nil {
		return err
	}
	if _, ok := object[name]; ok {
		r.flawed()
		return nil
	}
	object[name] = value
	return nil
}

func (r *reader) value() (any, error) {
	r.space()
	switch b := r.peek(); {
	case b == '"':
		return r.string()
	case b == '{':
		object := make(map[string]any)
		err := r.object(func(name string) error { return r.member(object, name) })
		return object, err
	case b == '[':
		array := []any{}
		err := r.array(func() error {
			element, err := r.value()
			array = append(array, element)
			return err
		})
		return array, err
	case b == '-', '0' <= b && b <= '9':
		return r.number()
	case b == 't':
		return true, r.literal("true")
	case b == 'f':
		return false, r.literal("false")
	case b == 'n':
		return nil, r.literal("null")
	}
	return nil, errMalformed
}

// object reads from "{" to "}", and calls member where each value begins.
func (r *reader) object(member func(name string) error) error {
	return r.list('}', func() error {
		r.space()
		if r.peek() != '"' {
			return errMalformed
		}
		name, err := r.string()
		if err != nil {
			return err
		}
		r.space()
		if r.peek() != ':' {
			return errMalformed
		}
		r.at++
		return member(name)
	})
}

// array reads from "[" to "]", and calls element where each one begins.
func (r *reader) array(element func() error) error {
	return r.list(']', element)
}

// list reads what stands between a bracket and its end, separated by commas.
func (r *reader) list(end byte, item func() error) error {
	if r.depth++; r.depth > maxDepth {
		return errMalformed
	}
	r.at++
	r.space()
	if r.peek() == end {
		r.at++
		r.depth--
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		r.space()
		switch r.peek() {
		case ',':
			r.at++
		case end:
			r.at++
			r.depth--
			return nil
		default:
			return errMalformed
		}
	}
}

// string reads a string, and copies it only when it has escapes in it.
func (r *reader) string() (string, error) {
	r.at++
	start := r.at
	for ; r.at < len(r.text); r.at++ {
		switch b := r.text[r.at]; {
		case b == '"':
			s := r.text[start:r.at]
			r.at++
			if !utf8.ValidString(s) {
				r.flawed()
			}
			return s, nil
		case b == '\\':
			return r.escaped(start)
		case b < ' ':
			return "", errMalformed
		}
	}
	return "", errMalformed
}

// escaped reads on from the first backslash of the string begun at start.
func (r *reader) escaped(start int) (string, error) {
	s := append(make([]byte, 0, r.at-start+32), r.text[start:r.at]...)
	for r.at < len(r.text) {
		b := r.text[r.at]
		r.at++
		switch {
		case b == '"':
			if !utf8.Valid(s) {
				r.flawed()
			}
			return string(s), nil
		case b < ' ':
			return "", errMalformed
		case b != '\\':
			s = append(s, b)
			continue
		}
		var err error
		if s, err = r.escape(s); err != nil {
			return "", err
		}
	}
	return "", errMalformed
}

// escape appends what stands behind a backslash.
func (r *reader) escape(s []byte) ([]byte, error) {
	b := r.peek()
	r.at++
	switch b {
	case '"', '\\', '/':
		return append(s, b), nil
	case 'b':
		return append(s, '\b'), nil
	case 'f':
		return append(s, '\f'), nil
	case 'n':
		return append(s, '\n'), nil
	case 'r':
		return append(s, '\r'), nil
	case 't':
		return append(s, '\t'), nil
	case 'u':
		c, err := r.hex()
		if err != nil {
			return nil, err
		}
		if utf16.IsSurrogate(c) {
			c = r.surrogate(c)
		}
		// U+FFFD is what lenient parsers make of a lone surrogate; spelled
		// as an escape it would be its twin.
		if c == utf8.RuneError {
			r.flawed()
		}
		return utf8.AppendRune(s, c), nil
	}
	return nil, errMalformed
}

// surrogate reads the second half of a pair, and returns U+FFFD when there is
// none; what follows is then left unread.
func (r *reader) surrogate(high rune) rune {
	before := r.at
	if r.peek() == '\\' && r.at+1 < len(r.text) && r.text[r.at+1] == 'u' {
		r.at += 2
		if low, err := r.hex(); err == nil {
			if c := utf16.DecodeRune(high, low); c != utf8.RuneError {
				return c
			}
		}
	}
	r.at = before
	return utf8.RuneError
}

func (r *reader) hex() (rune, error) {
	if len(r.text)-r.at < 4 {
		return 0, errMalformed
	}
	var c rune
	for _, b := range []byte(r.text[r.at : r.at+4]) {
		switch {
		case '0' <= b && b <= '9':
			b -= '0'
		case 'a' <= b && b <= 'f':
			b -= 'a' - 10
		case 'A' <= b && b <= 'F':
			b -= 'A' - 10
		default:
			return 0, errMalformed
		}
		c = c<<4 | rune(b)
	}
	r.at += 4
	return c, nil
}

// number reads a number as its own text (RFC 8259 §6).
func (r *reader) number() (any, error) {
	start := r.at
	if r.peek() == '-' {
		r.at++
	}
	if r.peek() == '0' {
		r.at++
	} else if !r.digits() {
		return nil, errMalformed
	}
	if r.peek() == '.' {
		r.at++
		if !r.digits() {
			return nil, errMalformed
		}
	}
	if b := r.peek(); b == 'e' || b == 'E' {
		r.at++
		if b := r.peek(); b == '+' || b == '-' {
			r.at++
		}
		if !r.digits() {
			return nil, errMalformed
		}
	}
	return json.Number(r.text[start:r.at]), nil
}

// digits reads one digit or more.
func (r *reader) digits() bool {
	start := r.at
	for b := r.peek(); '0' <= b && b <= '9'; b = r.peek() {
		r.at++
	}
	return r.at > start
}

func (r *reader) literal(word string) error {
	if len(r.text)-r.at < len(word) || r.text[r.at:r.at+len(word)] != word {
		return errMalformed
	}
	r.at += len(word)
	return nil
}

func (r *reader) space() {
	for {
		switch r.peek() {
		case ' ', '\t', '\n', '\r':
			r.at++
		default:
			return
		}
	}
}

// peek is the next byte, or 0 at the end; a NUL is nowhere part of JSON.
func (r *reader) peek() byte {
	if r.at < len(r.text) {
		return r.text[r.at]
	}
	return 0
}

func (r *reader) flawed() {
	if r.flaw == nil {
		r.flaw = errAmbiguous
	}
}

// jsonFloat is the value of a JSON number, and false for every other value
// and for numbers that a float64 cannot hold.
func jsonFloat(value any) (float64, bool) {
	n, ok := value.(json.Number)
	if !ok {
		return 0, false
	}
	f, err := strconv.ParseFloat(n.String(), 64)
	return f, err == nil
}
