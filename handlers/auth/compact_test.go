package auth

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// S-37: one text, one meaning.
func TestParseObject(t *testing.T) {
	for text, want := range map[string]error{
		`{}`:        nil,
		" {\t}\r\n": nil,
		`{"a":[1,-0.5e+3,true,false,null,{"b":""}]}`: nil,
		`{"a":"\u00e4\ud83d\ude00\"\\\/\b\f\n\r\t"}`: nil,
		`{"":1,"A":1,"a":1}`:                         nil,
		`{"a":"` + "\ufffd" + `"}`:                   nil, // a literal one is what was signed

		``:                            errMalformed,
		`null`:                        errMalformed,
		`[]`:                          errMalformed,
		`"a"`:                         errMalformed,
		`{`:                           errMalformed,
		`{"a"}`:                       errMalformed,
		`{"a":}`:                      errMalformed,
		`{"a":1,}`:                    errMalformed,
		`{,"a":1}`:                    errMalformed,
		`{"a":[1,]}`:                  errMalformed,
		`{"a":1]`:                     errMalformed,
		`{a:1}`:                       errMalformed,
		`{'a':1}`:                     errMalformed,
		`{"a":1}{}`:                   errMalformed,
		`{"a":1}x`:                    errMalformed,
		"{\"a\":1}\x00":               errMalformed,
		`{"a":01}`:                    errMalformed,
		`{"a":+1}`:                    errMalformed,
		`{"a":1.}`:                    errMalformed,
		`{"a":.5}`:                    errMalformed,
		`{"a":-}`:                     errMalformed,
		`{"a":1e}`:                    errMalformed,
		`{"a":0x10}`:                  errMalformed,
		`{"a":NaN}`:                   errMalformed,
		`{"a":tru}`:                   errMalformed,
		`{"a":truex}`:                 errMalformed,
		`{"a":"\x41"}`:                errMalformed,
		`{"a":"\u00g0"}`:              errMalformed,
		`{"a":"\u00"}`:                errMalformed,
		`{"a":"\`:                     errMalformed,
		`{"a":"`:                      errMalformed,
		"{\"a\":\"\n\"}":              errMalformed,
		"{\"a\":\"\\n\n\"}":           errMalformed,
		`{"a":1}//`:                   errMalformed,
		"\ufeff{}":                    errMalformed,
		"{\"a\":\u00a01}":             errMalformed,
		`{"a":1,"a":1}`:               errAmbiguous,
		`{"a":1,"\u0061":1}`:          errAmbiguous,
		`{"x":[{"a":{"b":0,"b":0}}]}`: errAmbiguous,
		`{"a":"\ud800"}`:              errAmbiguous,
		`{"a":"\udc00\ud800"}`:        errAmbiguous,
		`{"a":"\ud800\u0041"}`:        errAmbiguous,
		`{"a":"\ud800A"}`:             errAmbiguous,
		`{"a":"\ufffd"}`:              errAmbiguous,
		`{"\ud800":1}`:                errAmbiguous,
		"{\"a\":\"\xff\"}":            errAmbiguous,
		"{\"\xc0\x80\":1}":            errAmbiguous,
		"{\"a\":\"\\n\xed\xa0\x80\"}": errAmbiguous,
		strings.Repeat(`{"a":`, 16) + "1" + strings.Repeat("}", 16): nil,
		strings.Repeat(`{"a":`, 17) + "1" + strings.Repeat("}", 17): errMalformed,
	} {
		_, err := parseObject(text)
		if got, want := Detail(err), Detail(want); got != want {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// What is accepted has one form and only one, and encoding/json reads the
// same from it.
func FuzzCompact(f *testing.F) {
	for _, payload := range []string{`{"sub":"a","exp":1}`, `{"a":"\ud83d\ude00","a":1}`, `{"a":[{"b":1.5e3}]}`, `{"a":"\ud800"}`} {
		f.Add(b64([]byte(`{"alg":"ES256"}`))+"."+b64([]byte(payload))+".AAAA", payload)
	}
	f.Add("...", "{")
	f.Add("e30.e30.AB", "{}{}")
	f.Fuzz(func(t *testing.T, token, text string) {
		if c, err := parseCompact(token); err == nil {
			head, payload, signature, _ := split(token)
			if b64(c.signature) != signature || string(c.signed) != head+"."+payload || strings.Count(token, ".") != 2 || len(token) > maxToken {
				t.Errorf("%q is not the only form of what it says", token)
			}
			decoded, _ := strictBase64.DecodeString(payload)
			compareWithStandard(t, string(decoded), c.payload)
		}
		if got, err := parseObject(text); err == nil {
			compareWithStandard(t, text, got)
		} else if Detail(err) == "malformed" && json.Valid([]byte(text)) && strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{") && depthOf(text) <= maxDepth {
			t.Errorf("%q is JSON", text)
		}
	})
}

func compareWithStandard(t *testing.T, text string, got map[string]any) {
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.UseNumber()
	var want map[string]any
	if err := decoder.Decode(&want); err != nil {
		t.Errorf("encoding/json refuses %q: %v", text, err)
	}
	if !reflect.DeepEqual(got, want) || !utf8.ValidString(text) {
		t.Errorf("%q: read %v, encoding/json %v", text, got, want)
	}
}

// depthOf bounds the nesting of a text from above.
func depthOf(text string) int { return strings.Count(text, "{") + strings.Count(text, "[") }
