package handshake

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		id   Identity
		want string
	}{
		{"good", Identity{{"X-User-Id", "sub"}, {"x-user-roles", "realm_access.roles"}, {"Remote-User", "sub"}, {"Authorization", "sub"}}, ""},
		{"underscore", Identity{{"X_User_Id", "sub"}}, "'_' and '.' are not allowed, use '-'"},
		{"dot", Identity{{"X.User", "sub"}}, "'_' and '.' are not allowed, use '-'"},
		{"empty", Identity{{"", "sub"}}, "not a header name"},
		{"blank", Identity{{"X User", "sub"}}, "not a header name"},
		{"colon", Identity{{"X-User:", "sub"}}, "not a header name"},
		{"line break", Identity{{"X-User\r\nX-Admin", "sub"}}, "not a header name"},
		{"not ASCII", Identity{{"X-\u00dcser", "sub"}}, "not a header name"},
		{"no claim", Identity{{"X-User", ""}}, "no claim"},
		{"Host", Identity{{"host", "sub"}}, "the request needs this header itself"},
		{"key", Identity{{"Sec-WebSocket-Key", "sub"}}, "the request needs this header itself"},
		{"length", Identity{{"Content-Length", "sub"}}, "the request needs this header itself"},
		{"spelt otherwise", Identity{{"Transfer--Encoding", "sub"}}, "the request needs this header itself"},
		{"cookie", Identity{{"Cookie", "sub"}}, "the request needs this header itself"},
		{"twice", Identity{{"X-User", "sub"}, {"x-user", "name"}}, `the same as "X-User"`},
		{"twice for a backend", Identity{{"X-User-Id", "sub"}, {"X-User--Id", "name"}}, `the same as "X-User-Id"`},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.id.Validate()
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
			} else if err == nil || !strings.HasSuffix(err.Error(), ": "+tc.want) {
				t.Errorf("got %v, want … %s", err, tc.want)
			}
		})
	}
	for _, name := range []string{"Connection", "Upgrade", "TE", "Trailer", "Keep-Alive", "Proxy-Connection", "Origin", "Expect", "X-Forwarded-For"} {
		if (Identity{{name, "sub"}}).Validate() == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func TestStrip(t *testing.T) {
	spoofed := []string{
		"X-User-Id", "x-user-id", "X-USER-ID", // S-102
		"X_User_Id", "X-User_Id", "X.User.Id", "x_user-id", "X__User-Id", "X-User.-_Id", "x!user~id", // S-103
	}
	others := []string{"X-User", "X-User-Id2", "X-User-Identity", "XUserId", "My-X-User-Id", "-X-User-Id", "X-User-Id-", "Cookie"}
	h := http.Header{}
	for _, key := range slices.Concat(spoofed, others) {
		h[key] = []string{"admin", ""}
	}
	Identity{{"X-User-Id", "sub"}}.Strip(h)
	got := slices.Sorted(maps.Keys(h))
	slices.Sort(others)
	if !slices.Equal(got, others) {
		t.Errorf("left %q, want %q", got, others)
	}
}

func TestStripDoesNotAllocate(t *testing.T) {
	h := wire(t, opening("User-Agent: x", "X-Request-Id: 1", "Accept-Language: en", "Cookie: a=b")...).Header
	if n := testing.AllocsPerRun(100, func() { identity.Strip(h) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSet(t *testing.T) {
	id := Identity{{"x-user-id", "sub"}, {"X-User-Name", "name"}}
	claims := func(sub string) func(string) (string, bool, error) {
		return func(claim string) (string, bool, error) { return sub, claim == "sub", nil }
	}
	t.Run("S-102", func(t *testing.T) {
		h := http.Header{"X-User-Id": {"admin", "root"}}
		if err := id.Set(h, claims("alice")); err != nil || !slices.Equal(h["X-User-Id"], []string{"alice"}) {
			t.Errorf("%v, %v", h, err)
		}
	})
	t.Run("S-104: absent claim", func(t *testing.T) {
		h := http.Header{"X-User-Name": {"admin"}}
		if err := id.Set(h, claims("alice")); err != nil || has(h, "X-User-Name") {
			t.Errorf("%v, %v", h, err)
		}
	})
	t.Run("error of the claim", func(t *testing.T) {
		cause := errors.New("array with a comma")
		err := id.Set(http.Header{}, func(string) (string, bool, error) { return "", true, cause })
		if !errors.Is(err, cause) {
			t.Error(err)
		}
	})
	for _, text := range []string{"", "a b", "Zo\u00eb", "{env.HOME}", "a,b"} {
		t.Run(fmt.Sprintf("text %q", text), func(t *testing.T) {
			h := http.Header{}
			if err := id.Set(h, claims(text)); err != nil || h.Get("X-User-Id") != text {
				t.Errorf("%v, %v", h, err)
			}
		})
	}
	for _, text := range []string{
		"a\r\nX-Admin: 1", "a\nb", "a\rb", "a\x00", "a\x0bb", "a\tb", "a\x7f", "a\u0085b", "a\u2028b", "a\u2029b",
		" a", "a ", "\u00a0a", "a\u3000", " ", "a\xff",
	} {
		t.Run(fmt.Sprintf("S-108: text %q", text), func(t *testing.T) {
			err := id.Set(http.Header{}, claims(text))
			if !errors.Is(err, ErrClaimText) {
				t.Errorf("got %v, want ErrClaimText", err)
			}
			if want := `setting identity header "x-user-id": claim does not fit into a header`; err != nil && err.Error() != want {
				t.Errorf("got %q: the claim has no place in it", err)
			}
		})
	}
}

// Announced or not, an identity header does not come in by the trailers. What
// is read back is what a transport would send on.
func TestWrapTrailers(t *testing.T) {
	tests := []struct {
		name, announced, trailers string
		want                      http.Header
	}{
		{"announced", "X-User-Id, X-Sum", "X-User-Id: admin\r\nX-Sum: 1\r\n", http.Header{"X-Sum": {"1"}}},
		{"not announced", "X-Sum", "X-Sum: 1\r\nx-user-id: admin\r\n", http.Header{"X-Sum": {"1"}}},
		{"spelt otherwise", "X_User.Id", "X_User.Id: admin\r\nX__User-Id: admin\r\n", http.Header{}},
		{"nothing announced", "", "X-User-Id: admin\r\n", http.Header{}},
		{"announced and absent", "X-User-Id", "", http.Header{}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			head := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
			if tc.announced != "" {
				head += "Trailer: " + tc.announced + "\r\n"
			}
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + "\r\n5\r\nhello\r\n0\r\n" + tc.trailers + "\r\n")))
			if err != nil {
				t.Fatal(err)
			}
			identity.WrapTrailers(r)
			for key := range r.Trailer {
				if fold(key) == "x-user-id" {
					t.Errorf("%s is still announced", key)
				}
			}
			out := &http.Request{Method: r.Method, URL: r.URL, Host: "b", Header: r.Header, Body: r.Body, ContentLength: -1, Trailer: r.Trailer}
			if r.Trailer == nil {
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					t.Fatal(err)
				}
				out.Body, out.Trailer = io.NopCloser(strings.NewReader("hello")), r.Trailer
			}
			var wire bytes.Buffer
			if err := out.Write(&wire); err != nil {
				t.Fatal(err)
			}
			back, err := http.ReadRequest(bufio.NewReader(&wire))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(back.Body)
			if err != nil || string(body) != "hello" {
				t.Errorf("body %q, %v", body, err)
			}
			if len(back.Trailer) != len(tc.want) || len(tc.want) > 0 && fmt.Sprint(back.Trailer) != fmt.Sprint(tc.want) {
				t.Errorf("got %v, want %v", back.Trailer, tc.want)
			}
		})
	}
}

func TestWrapTrailersLeavesOtherBodies(t *testing.T) {
	r := wire(t, "GET / HTTP/1.1", "Host: a")
	identity.WrapTrailers(r)
	if r.Body != http.NoBody {
		t.Errorf("body of type %T", r.Body)
	}
	r = wire(t, "POST / HTTP/1.1", "Host: a", "Content-Length: 1")
	before := r.Body
	identity.WrapTrailers(r)
	if r.Body != before {
		t.Errorf("body of type %T", r.Body)
	}
}

func BenchmarkStrip(b *testing.B) {
	h := wire(b, opening("User-Agent: x", "X-Request-Id: 1", "Accept-Language: en", "Cookie: a=b")...).Header
	b.ReportAllocs()
	for b.Loop() {
		identity.Strip(h)
	}
}

func BenchmarkHandshake(b *testing.B) {
	lines := opening("User-Agent: x", "Origin: https://a.example.org", "Accept-Language: en", "Cookie: a=b")
	o := OriginPolicy{Origins: mustParse(b, "https://example.com", "https://*.example.org")}
	r := wire(b, lines...)
	b.ReportAllocs()
	for b.Loop() {
		if !Is(r) || Check(r) != nil || CheckOrigin(r, o, "https", "example.com", false) != nil {
			b.Fatal("refused")
		}
		Clean(r)
		identity.Strip(r.Header)
		_ = identity.Set(r.Header, claim)
	}
}
