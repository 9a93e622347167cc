package auth

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

func claimsOf(t *testing.T, text string) *Claims {
	t.Helper()
	root, err := parseObject(text)
	if err != nil {
		t.Fatal(err)
	}
	return &Claims{root: root}
}

func TestClaimsLookup(t *testing.T) {
	c := claimsOf(t, `{
		"a":{"b":{"c":"deep"},"b.c":"nearer"},
		"https://x.example/roles":"dots","x":{"https://y.example":{"z":"both"}},
		"n":12.50,"t":true,"f":false,"null":null,"list":[1],"":"empty"
	}`)
	for path, want := range map[string]string{
		"a.b.c": "nearer", "https://x.example/roles": "dots",
		"n": "12.50", "t": "true", "f": "false", "": "empty",
	} {
		if got, ok := c.Scalar(path); !ok || got != want {
			t.Errorf("%q: %q, %v", path, got, ok)
		}
	}
	for _, path := range []string{"A", "a.b.d", "a", "null", "list", "list.0", "n.x", "missing", ".", "a."} {
		if got, ok := c.Scalar(path); ok {
			t.Errorf("%q: %q", path, got)
		}
	}
	// An object whose name has dots: kubernetes.io and its like.
	if got, ok := c.Scalar("x.https://y.example.z"); !ok || got != "both" {
		t.Errorf("an object with dots in its name: %q, %v", got, ok)
	}
	if value, ok := c.Lookup("null"); !ok || value != nil {
		t.Error("null is not absent")
	}
}

func TestClaimsHeaderValue(t *testing.T) {
	c := claimsOf(t, `{
		"s":"a, b","n":1e3,"t":true,"u":"ü","placeholder":"{env.HOME}",
		"list":["a",1,true],"gaps":["","a",""],
		"null":null,"empty":"","none":[],"blank list":[""],
		"crlf":"a\r\nX: 1","nul":"\u0000","tab":"a\tb","lf":"a\n","vt":"a\u000bb","del":"a\u007f","c1":"a\u0085b",
		"ls":"a\u2028b","lead":" a","trail":"a ","nbsp":"a\u00a0","only":" ",
		"object":{"a":1},"comma":["a,b"],"nested":[["a"]],"nulls":[null],"objects":[{}],"bad element":["a","b\n"],"blank element":["a"," b"]
	}`)
	for path, want := range map[string]string{
		"s": "a, b", "n": "1e3", "t": "true", "u": "ü", "placeholder": "{env.HOME}", // S-51
		"list": "a,1,true", "gaps": "a",
	} {
		if got, present, err := c.HeaderValue(path); got != want || !present || err != nil {
			t.Errorf("%s: %q, %v, %v", path, got, present, err)
		}
	}
	for _, path := range []string{"missing", "null", "empty", "none", "blank list"} { // S-104
		if got, present, err := c.HeaderValue(path); got != "" || present || err != nil {
			t.Errorf("%s: %q, %v, %v", path, got, present, err)
		}
	}
	for _, path := range []string{ // S-108
		"crlf", "nul", "tab", "lf", "vt", "del", "c1", "ls", "lead", "trail", "nbsp", "only",
		"object", "comma", "nested", "nulls", "objects", "bad element", "blank element",
	} {
		got, present, err := c.HeaderValue(path)
		if got != "" || present || !errors.Is(err, ErrInvalidToken) {
			t.Errorf("%s: %q, %v, %v", path, got, present, err)
		}
	}
}

func TestClaimsContains(t *testing.T) {
	c := claimsOf(t, `{
		"scope":"chat:read chat:write","name":"two words","roles":["a","b c",3,true],"n":3,"t":true,
		"empty":"","null":null,"object":{"a":1},"list":[["a"],null]
	}`)
	for _, row := range []struct {
		path string
		any  []string
		want bool
	}{
		{"scope", []string{"chat:write"}, true},
		{"scope", []string{"x", "chat:read"}, true},
		{"scope", []string{"chat"}, false},
		{"scope", []string{"chat:writer"}, false},
		{"scope", []string{"CHAT:WRITE"}, false},
		{"name", []string{"two words"}, true},
		{"roles", []string{"a"}, true},
		{"roles", []string{"b"}, false},
		{"roles", []string{"b c"}, true},
		{"roles", []string{"3"}, true},
		{"roles", []string{"true"}, true},
		{"n", []string{"3"}, true},
		{"n", []string{"3.0"}, false},
		{"t", []string{"true"}, true},
		{"empty", []string{""}, false},
		{"null", []string{"", "null"}, false},
		{"object", []string{"a"}, false},
		{"object.a", []string{"1"}, true},
		{"list", []string{"a"}, false},
		{"missing", []string{"a"}, false},
		{"scope", nil, false},
	} {
		if got := c.Contains(row.path, row.any); got != row.want {
			t.Errorf("%s %q: %v", row.path, row.any, got)
		}
	}
}

func TestParseSecret(t *testing.T) {
	secret := []byte(strings.Repeat("\xfb\xff\xfe", 11)) // 33 bytes; both alphabets differ on it
	long := append(secret, 1)                            // 34 bytes: needs padding
	for _, text := range []string{
		base64.StdEncoding.EncodeToString(long), base64.RawStdEncoding.EncodeToString(long),
		base64.URLEncoding.EncodeToString(long), base64.RawURLEncoding.EncodeToString(long),
		base64.StdEncoding.EncodeToString(long) + "\n",
	} {
		if got, err := ParseSecret(text); err != nil || string(got) != string(long) {
			t.Errorf("%s: %x, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "short", base64.StdEncoding.EncodeToString(secret[:31]), "not base64, but long enough to be a secret of some kind!",
		"\n" + base64.StdEncoding.EncodeToString(secret)[:20] + "\n" + base64.StdEncoding.EncodeToString(secret)[20:], base64.StdEncoding.EncodeToString(long[:32]) + "===",
	} {
		_, err := ParseSecret(text)
		if err == nil {
			t.Errorf("%q accepted", text)
		} else if text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("the error repeats the secret: %v", err)
		}
	}
}
