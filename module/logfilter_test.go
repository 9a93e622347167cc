package module

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

const (
	// sampleToken is the example of RFC 7519 §3.1.
	sampleToken = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	// opaque is a token only by where it stands.
	opaque = "s3cr3t-0paque"
)

// S-116: every way in which a token stands in a URI or an offer.
func TestRedact(t *testing.T) {
	encoded := base64.RawURLEncoding.EncodeToString([]byte(sampleToken))
	f := &TokenFilter{Parameters: []string{"ticket", "base64url.custom."}}
	for _, c := range []struct{ name, text, want string }{
		{"query", "/ws?access_token=" + opaque, "/ws?access_token=REDACTED"},
		{"query among others", "/ws?a=1&access_token=" + opaque + "&b=%20x", "/ws?a=1&access_token=REDACTED&b=%20x"},
		{"query twice", "/ws?access_token=" + opaque + "&access_token=" + opaque + "2", "/ws?access_token=REDACTED&access_token=REDACTED"},
		{"named parameter", "/ws?ticket=" + opaque, "/ws?ticket=REDACTED"},
		{"name in percent-encoding", "/ws?%61ccess%5Ftoken=" + opaque, "/ws?%61ccess%5Ftoken=REDACTED"},
		{"name in full percent-encoding", "/ws?%74%69%63%6B%65%74=" + opaque, "/ws?%74%69%63%6B%65%74=REDACTED"},
		{"value with an equals sign", "/ws?access_token=a=b==", "/ws?access_token=REDACTED"},
		{"value with a question mark", "/ws?access_token=a?b&c=d", "/ws?access_token=REDACTED&c=d"},
		{"JWT under another name", "/ws?x=" + sampleToken + "&y=1", "/ws?x=REDACTED&y=1"},
		{"JWT without a name", "/ws?" + sampleToken, "/ws?REDACTED"},
		{"JWT as a segment of the path", "/ws/" + sampleToken + "/more?a=b", "/ws/REDACTED/more?a=b"},
		{"JWT at the end of the path", "/ws;t=" + sampleToken, "/ws;t=REDACTED"},
		{"JWT without a signature", "/ws/" + sampleToken[:strings.LastIndex(sampleToken, ".")+1], "/ws/REDACTED"},
		{"JWT with encoded dots", "/ws/" + strings.ReplaceAll(sampleToken, ".", "%2E"), "/ws/REDACTED"},
		{"JWE", "/ws/" + sampleToken + ".AAAA.BBBB", "/ws/REDACTED"},
		{"JWT in a nested URL", "/login?next=" + url.QueryEscape("https://a.example.com/ws?access_token="+sampleToken+"&x=1"), "/login?next=https%3A%2F%2Fa.example.com%2Fws%3Faccess_token%3DREDACTED%26x%3D1"},
		{"JWT in a URL nested twice", "/login?next=" + url.QueryEscape("/a?b="+url.QueryEscape("/ws?t="+sampleToken)), "/login?next=%2Fa%3Fb%3D%252Fws%253Ft%253DREDACTED"},
		{"JWT whose JSON begins with a line break", "/ws/ewogImFsZyI6ICJFUzI1NiIKfQ.ewogInN1YiI6ICJhIgp9.c2ln", "/ws/REDACTED"},
		{"JWT whose JSON begins with a tab", "/ws/ewkiYWxnIjoiRVMyNTYifQ.eyJ9.c2ln", "/ws/REDACTED"},
		{"JWT whose JSON begins with a blank", "/ws/eyAiYWxnIjoiRVMyNTYifQ.eyJ9.c2ln", "/ws/REDACTED"},
		{"absolute URI", "http://a.example.com/ws?access_token=" + opaque, "http://a.example.com/ws?access_token=REDACTED"},

		{"pair", "bearer, " + opaque, "bearer, REDACTED"},
		{"pair without a blank", "bearer," + opaque + ",chat.v1", "bearer,REDACTED,chat.v1"},
		{"pair behind another", "chat.v1, bearer, " + opaque + ", chat.v2", "chat.v1, bearer, REDACTED, chat.v2"},
		{"pair with an empty element", "bearer, , " + opaque, "bearer, , REDACTED"},
		{"pair of a named prefix", "ticket, " + opaque + ", chat", "ticket, REDACTED, chat"},
		{"pair of the prefix itself", "bearer, bearer, chat", "bearer, REDACTED, chat"},
		{"pair with tabs", "bearer\t,\t" + opaque + "\t", "bearer\t,\tREDACTED\t"},
		{"single", "bearer." + opaque, "bearer.REDACTED"},
		{"single among others", "chat.v1, bearer." + opaque + ", x", "chat.v1, bearer.REDACTED, x"},
		{"single of a named prefix", "ticket." + opaque, "ticket.REDACTED"},
		{"Kubernetes", "base64url.bearer.authorization.k8s.io." + encoded + ", v4.channel.k8s.io", "base64url.bearer.authorization.k8s.io.REDACTED, v4.channel.k8s.io"},
		{"another base64url prefix", "base64url.custom." + encoded, "base64url.custom.REDACTED"},
		{"base64url of a token under no prefix", "other." + encoded, "other.REDACTED"},
		{"base64url of a token with a line break", "/x/" + base64.RawURLEncoding.EncodeToString([]byte("ewogImFsZyI6ICJFUzI1NiIKfQ.ewogInN1YiI6ICJhIgp9.c2ln")), "/x/REDACTED"},
		{"token on a line of its own", sampleToken, "REDACTED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := f.redact(c.text)
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if again := f.redact(got); again != got {
				t.Errorf("once more changes it: %s", again)
			}
		})
	}
}

// What is no token stays, byte for byte.
func TestRedactLeavesTheRest(t *testing.T) {
	f := &TokenFilter{Parameters: []string{"ticket"}}
	for _, text := range []string{
		"", "/", "*", "/ws", "/ws?", "/ws?access_token", "/ws?access_token=", "/ws?access_token&a=b", "/ws?a=b&&c=d&", "/ws?a=%zz&b=%",
		"/ws?Access_Token=x", "/ws?access_tokens=x", "/ws?xaccess_token=x", "/ws?my.access_token=x", "/ws?q=access_token",
		"/ws/bearer,x", "/ws/bearer.x", "/a,b.c", "/ticket/a", "/ws?a=b,c.d;e", "/%e4%b8%ad?%20=%00", "/ws#a?b",
		"/eye.jpg", "/eyJ.x", "/eyes/eyebrow.png", "/ewer.txt", "/keyJson.min.js", "/v1.2.3/x.y.z", "/ZXlk",
		"chat.v1", "chat.v1, chat.v2", "bearer", "bearer ", "bearer,", "bearer, ", "bearer.", "Bearer.x", "bearerx, y", "xbearer, y", "graphql-transport-ws", "chat,,v1",
		"a\nb", "\xff?\xfe=\xfd", "REDACTED", "REDACTED, x",
	} {
		if got := f.redact(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestFilter(t *testing.T) {
	f := &TokenFilter{Parameters: []string{"ticket"}}
	if got := f.Filter(zap.String("uri", "/ws?ticket=x")).String; got != "/ws?ticket=REDACTED" {
		t.Errorf("a string: %q", got)
	}
	in := caddyhttp.LoggableStringArray{"chat.v1", "bearer, " + opaque}
	out, ok := f.Filter(zap.Array("protocol", in)).Interface.(caddyhttp.LoggableStringArray)
	if !ok || !slices.Equal(out, []string{"chat.v1", "bearer, REDACTED"}) {
		t.Errorf("an array: %q", out)
	}
	if in[1] != "bearer, "+opaque {
		t.Error("the request's own header was changed")
	}
	// One offer may stand on two lines (RFC 9110 §5.3).
	out, _ = f.Filter(zap.Array("protocol", caddyhttp.LoggableStringArray{"chat, bearer", opaque + ", x"})).Interface.(caddyhttp.LoggableStringArray)
	if !slices.Equal(out, []string{"chat, bearer", "REDACTED, x"}) {
		t.Errorf("a pair on two lines: %q", out)
	}
	for _, field := range []zap.Field{zap.Int("status", 200), zap.Bool("tls", true), zap.Skip(), zap.Error(nil)} {
		if got := f.Filter(field); got != field {
			t.Errorf("%v became %v", field, got)
		}
	}
}

func TestFilterCaddyfile(t *testing.T) {
	for text, want := range map[string][]string{"ws_token": nil, "ws_token ticket": {"ticket"}, "ws_token a b": {"a", "b"}} {
		f := new(TokenFilter)
		if err := f.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); err != nil || !slices.Equal(f.Parameters, want) {
			t.Errorf("%s: %q, %v", text, f.Parameters, err)
		}
	}
	if err := new(TokenFilter).UnmarshalCaddyfile(caddyfile.NewTestDispenser("ws_token {\n\tname ticket\n}")); err == nil {
		t.Error("a block was taken")
	}
}

// FuzzRedact puts a token into any text, in every way that carries one: no
// part of it survives. A text without anything like a token is unchanged.
func FuzzRedact(f *testing.F) {
	f.Add("/ws?a=", "&b=c", []byte("claims"), uint8(0))
	f.Add("/ws?next=https%3A%2F%2Fx%3Fq%3D", "", []byte("\xff\xfe"), uint8(1))
	f.Add("chat.v1", "chat.v2", []byte(""), uint8(5))
	f.Add("/ZXlAAAA", "%2E", []byte("x"), uint8(2))
	f.Add("eyJ", ".eyJ", []byte("abcdef"), uint8(7))
	filter := &TokenFilter{Parameters: []string{"ticket"}}
	f.Fuzz(func(t *testing.T, before, after string, claims []byte, way uint8) {
		if plain := strings.ToLower(before + after); !strings.ContainsAny(plain, "%+") && !containsAny(plain, "access_token", "ticket", "bearer", "ey", "ew", "zx") {
			if got := filter.redact(before + after); got != before+after {
				t.Errorf("%q became %q", before+after, got)
			}
		}
		encode := base64.RawURLEncoding.EncodeToString
		payload, signature := encode([]byte(`{"sub":"`+string(claims)+`"}`)), encode([]byte("signature "+string(claims)))
		token := encode([]byte(`{"alg":"ES256"}`)) + "." + payload + "." + signature
		if strings.Contains(before+after, payload) || strings.Contains(before+after, signature) {
			t.Skip("a part of the token stands elsewhere")
		}
		text := ""
		switch way % 8 {
		case 0:
			text = before + token + after // anywhere
		case 1:
			text = "/ws?access_token=" + token + "&" + after
		case 2:
			text = "/" + before + "?" + after + "&%74icket=" + token
		case 3:
			text = before + ",bearer," + token + "," + after
		case 4:
			text = before + ", bearer." + token + "," + after
		case 5:
			text = "ticket, " + token + ", " + after
		case 6:
			token = encode([]byte(token))
			payload, signature = token, token[len(token)/2:]
			text = "base64url.bearer.authorization.k8s.io." + token + "," + after
		case 7:
			text = "/login?next=" + url.QueryEscape("/"+before+"?t="+token+"&"+after)
		}
		got := filter.redact(text)
		for _, part := range []string{token, payload, signature} {
			if strings.Contains(got, part) {
				t.Errorf("%q\nbecame %q\nwhich has %q", text, got, part)
			}
		}
	})
}

func containsAny(text string, words ...string) bool {
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) })
}
