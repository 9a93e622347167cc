package auth

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

var allCarriers = Carriers{
	Headers:      []string{"Authorization", "x-token"},
	Query:        []string{"access_token", "tok en"},
	Cookies:      []string{"session"},
	Subprotocols: []string{"bearer", "base64url.bearer.authorization.k8s.io."},
}

// requestOf makes a request as net/http's server would: query, then header
// lines "Name: value".
func requestOf(query string, lines ...string) *http.Request {
	target := "/chat"
	if query != "" {
		target += "?" + query
	}
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	return r
}

func TestCarriersFind(t *testing.T) {
	encoded := "base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte("a.b.c"))
	for _, row := range []struct {
		name  string
		query string
		lines []string
		want  Presented
		err   error
	}{
		{name: "nothing", err: ErrNoToken},
		{name: "header", lines: []string{"Authorization: Bearer T"}, want: Presented{Token: "T", Source: "header"}},
		// S-121
		{name: "bearer in any case", lines: []string{"Authorization: bEaReR T"}, want: Presented{Token: "T", Source: "header"}},
		{name: "two blanks", lines: []string{"Authorization: Bearer  T"}, want: Presented{Token: "T", Source: "header"}},
		{name: "bare scheme", lines: []string{"Authorization: Bearer"}, want: Presented{Source: "header"}},
		{name: "tab", lines: []string{"Authorization: Bearer\tT"}, want: Presented{Token: "\tT", Source: "header"}},
		{name: "junk behind", lines: []string{"Authorization: Bearer a b"}, want: Presented{Token: "a b", Source: "header"}},
		{name: "Basic", lines: []string{"Authorization: Basic dTpw"}, err: ErrNoToken},
		{name: "Token scheme", lines: []string{"Authorization: Token T"}, err: ErrNoToken},
		{name: "longer scheme", lines: []string{"Authorization: BearerX T"}, err: ErrNoToken},
		{name: "Basic and Bearer", lines: []string{"Authorization: Basic dTpw", "Authorization: Bearer T"}, want: Presented{Token: "T", Source: "header"}},
		{name: "two Bearer lines", lines: []string{"Authorization: Bearer T", "Authorization: Bearer T"}, err: ErrSeveralTokens},
		{name: "other header", lines: []string{"X-Token: T"}, want: Presented{Token: "T", Source: "header"}},
		{name: "other header with scheme", lines: []string{"X-Token: Bearer T"}, want: Presented{Token: "T", Source: "header"}},
		{name: "other header, empty", lines: []string{"X-Token: "}, want: Presented{Source: "header"}},
		{name: "other header twice", lines: []string{"X-Token: T", "X-Token: "}, err: ErrSeveralTokens},

		{name: "query", query: "a=1&access_token=T&b", want: Presented{Token: "T", Source: "query"}},
		{name: "query encoded name", query: "access%5Ftoken=T", want: Presented{Token: "T", Source: "query"}},
		{name: "query name with plus", query: "tok+en=T", want: Presented{Token: "T", Source: "query"}},
		{name: "query name with %20", query: "tok%20en=T", want: Presented{Token: "T", Source: "query"}},
		{name: "query encoded value", query: "access_token=a%2Eb", want: Presented{Token: "a.b", Source: "query"}},
		{name: "query bad escape in value", query: "access_token=%zz", want: Presented{Token: "%zz", Source: "query"}},
		{name: "query bad escape in name", query: "access_token%zz=T", err: ErrNoToken},
		{name: "query empty", query: "access_token=", want: Presented{Source: "query"}},
		{name: "query bare", query: "access_token", want: Presented{Source: "query"}},
		{name: "query other case", query: "Access_Token=T", err: ErrNoToken},
		{name: "query twice", query: "access_token=T&access%5ftoken=T", err: ErrSeveralTokens},
		{name: "query twice, once empty", query: "access_token=T&access_token=", err: ErrSeveralTokens},
		{name: "query twice, both empty", query: "access_token&access_token", err: ErrSeveralTokens},
		{name: "semicolon separates nothing", query: "a=1;access_token=T", err: ErrNoToken},

		{name: "cookie", lines: []string{"Cookie: a=1; session=T"}, want: Presented{Token: "T", Source: "cookie", Ambient: true}},
		{name: "cookie quoted", lines: []string{`Cookie: session="T"; b=2`}, want: Presented{Token: "T", Source: "cookie", Ambient: true}},
		{name: "cookie on its second line", lines: []string{"Cookie: a=1", "Cookie: session=T"}, want: Presented{Token: "T", Source: "cookie", Ambient: true}},
		{name: "cookie twice", lines: []string{"Cookie: session=T; session=T"}, err: ErrSeveralTokens},
		{name: "cookie twice on lines", lines: []string{"Cookie: session=T", "Cookie: session=U"}, err: ErrSeveralTokens},
		{name: "cookie other case", lines: []string{"Cookie: Session=T"}, err: ErrNoToken},
		{name: "cookie empty", lines: []string{"Cookie: session="}, want: Presented{Source: "cookie", Ambient: true}},
		{name: "cookie without equals sign", lines: []string{"Cookie: session"}, want: Presented{Source: "cookie", Ambient: true}},
		{name: "cookie lone quote", lines: []string{`Cookie: session="`}, want: Presented{Token: `"`, Source: "cookie", Ambient: true}},

		// S-123
		{name: "pair", lines: []string{"Sec-WebSocket-Protocol: bearer, T, chat.v1"}, want: Presented{Token: "T", Source: "subprotocol", PairPrefix: "bearer"}},
		{name: "pair alone", lines: []string{"Sec-WebSocket-Protocol: bearer, T"}, want: Presented{Token: "T", Source: "subprotocol", PairPrefix: "bearer"}},
		{name: "pair over lines", lines: []string{"Sec-WebSocket-Protocol: chat, bearer", "Sec-WebSocket-Protocol: ,T"}, want: Presented{Token: "T", Source: "subprotocol", PairPrefix: "bearer"}},
		{name: "pair without its token", lines: []string{"Sec-WebSocket-Protocol: chat, bearer"}, want: Presented{Source: "subprotocol", PairPrefix: "bearer"}},
		{name: "pair takes whatever follows", lines: []string{"Sec-WebSocket-Protocol: bearer, bearer.T"}, want: Presented{Token: "bearer.T", Source: "subprotocol", PairPrefix: "bearer"}},
		{name: "single", lines: []string{"Sec-WebSocket-Protocol: bearer.T, chat.v1"}, want: Presented{Token: "T", Source: "subprotocol"}},
		{name: "single last", lines: []string{"Sec-WebSocket-Protocol: chat.v1,,bearer.T"}, want: Presented{Token: "T", Source: "subprotocol"}},
		{name: "single, empty", lines: []string{"Sec-WebSocket-Protocol: bearer., chat.v1"}, want: Presented{Source: "subprotocol"}},
		{name: "single alone", lines: []string{"Sec-WebSocket-Protocol: bearer.T"}, err: ErrLoneSubprotocol},
		{name: "single alone beside a header", lines: []string{"Sec-WebSocket-Protocol: bearer.T", "Authorization: Bearer T"}, err: ErrLoneSubprotocol},
		{name: "other case", lines: []string{"Sec-WebSocket-Protocol: Bearer, T"}, err: ErrNoToken},
		{name: "longer word", lines: []string{"Sec-WebSocket-Protocol: bearerT, x"}, err: ErrNoToken},
		{name: "pair and single", lines: []string{"Sec-WebSocket-Protocol: bearer, T, bearer.T"}, want: Presented{PairPrefix: "bearer"}, err: ErrSeveralTokens},
		{name: "single twice", lines: []string{"Sec-WebSocket-Protocol: bearer.T, bearer.T, chat"}, err: ErrSeveralTokens},
		// S-126
		{name: "encoded", lines: []string{"Sec-WebSocket-Protocol: " + encoded + ", chat"}, want: Presented{Token: "a.b.c", Source: "subprotocol"}},
		{name: "encoded alone", lines: []string{"Sec-WebSocket-Protocol: " + encoded}, err: ErrLoneSubprotocol},
		{name: "encoded, padding", lines: []string{"Sec-WebSocket-Protocol: " + encoded + "=, chat"}, want: Presented{Source: "subprotocol"}},
		{name: "encoded, not encoded at all", lines: []string{"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.a.b.c, chat"}, want: Presented{Source: "subprotocol"}},
		{name: "encoded, empty", lines: []string{"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io., chat"}, want: Presented{Source: "subprotocol"}},
		{name: "encoded and pair, the same", lines: []string{"Sec-WebSocket-Protocol: bearer, a.b.c, " + encoded}, want: Presented{Token: "a.b.c", Source: "subprotocol", PairPrefix: "bearer"}},

		// S-119
		{name: "header and query differ", query: "access_token=B", lines: []string{"Authorization: Bearer A"}, err: ErrSeveralTokens},
		{name: "header and query agree", query: "access_token=T", lines: []string{"Authorization: Bearer T"}, want: Presented{Token: "T", Source: "header"}},
		{name: "garbage header and cookie", lines: []string{"Authorization: Bearer x", "Cookie: session=T"}, err: ErrSeveralTokens},
		{name: "cookie and query agree", query: "access_token=T", lines: []string{"Cookie: session=T"}, want: Presented{Token: "T", Source: "query"}},
		{name: "one of two is empty", query: "access_token=", lines: []string{"Cookie: session=T"}, err: ErrSeveralTokens},
		{name: "both are empty", query: "access_token=", lines: []string{"Cookie: session="}, err: ErrSeveralTokens},
		{name: "header and pair agree", lines: []string{"Authorization: Bearer T", "Sec-WebSocket-Protocol: bearer, T"}, want: Presented{Token: "T", Source: "header", PairPrefix: "bearer"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := requestOf(row.query, row.lines...)
			before := r.Header.Clone()
			got, err := allCarriers.Find(r)
			if !errors.Is(err, row.err) || got != row.want {
				t.Errorf("Find: %+v, %v; want %+v, %v", got, err, row.want, row.err)
			}
			if !equalHeader(before, r.Header) {
				t.Error("Find changed the request")
			}
			// Whatever was found is gone after Strip.
			allCarriers.Strip(r)
			if _, err := allCarriers.Find(r); !errors.Is(err, ErrNoToken) {
				t.Errorf("Find after Strip: %v", err)
			}
		})
	}
}

func equalHeader(a, b http.Header) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if !slices.Equal(a[name], b[name]) {
			return false
		}
	}
	return true
}

func TestCarriersStrip(t *testing.T) {
	for _, row := range []struct {
		name        string
		query       string
		lines       []string
		wantQuery   string
		wantHeaders http.Header
	}{
		// S-114
		{name: "query", query: "a=1&access_token=T&b=%2F+x&a=2&c", wantQuery: "a=1&b=%2F+x&a=2&c"},
		{name: "query first", query: "access_token=T&b=1", wantQuery: "b=1"},
		{name: "query last", query: "b=1&access_token", wantQuery: "b=1"},
		{name: "query alone", query: "access_token=T", wantQuery: ""},
		{name: "query encoded", query: "x=%zz;&access%5ftoken=T&&=&y", wantQuery: "x=%zz;&&=&y"},
		{name: "query twice", query: "access_token=T&a&access_token=U", wantQuery: "a"},
		{name: "no carrier in the query", query: "a=%7e&&b=;", wantQuery: "a=%7e&&b=;"},
		// S-118
		{name: "cookies", lines: []string{`Cookie: a=1; session=T; b="x y"`, "Cookie: c=3;session=U"},
			wantHeaders: http.Header{"Cookie": {`a=1; b="x y"`, "c=3"}}},
		{name: "cookie first", lines: []string{"Cookie: session=T; a=1;b=2 "}, wantHeaders: http.Header{"Cookie": {"a=1;b=2 "}}},
		{name: "cookie alone on a line", lines: []string{"Cookie: session=T", "Cookie: a"}, wantHeaders: http.Header{"Cookie": {"a"}}},
		{name: "cookie alone", lines: []string{"Cookie: session=T"}, wantHeaders: http.Header{}},
		{name: "other cookies", lines: []string{"Cookie: ;a=1;; sessions=2 ;"}, wantHeaders: http.Header{"Cookie": {";a=1;; sessions=2 ;"}}},
		{name: "headers", lines: []string{"Authorization: Bearer T", "Authorization: Basic dTpw", "X-Token: T", "X-Tokens: T"},
			wantHeaders: http.Header{"Authorization": {"Basic dTpw"}, "X-Tokens": {"T"}}},
		{name: "Authorization alone", lines: []string{"Authorization: Bearer"}, wantHeaders: http.Header{}},
		{name: "pair", lines: []string{"Sec-WebSocket-Protocol: chat.v1,bearer, T", "Sec-WebSocket-Protocol: chat.v2"},
			wantHeaders: http.Header{"Sec-Websocket-Protocol": {"chat.v1, chat.v2"}}},
		{name: "single", lines: []string{"Sec-WebSocket-Protocol: bearer.T"}, wantHeaders: http.Header{}},
		{name: "no token in the offer", lines: []string{"Sec-WebSocket-Protocol: a ,,b", "Sec-WebSocket-Protocol: c"},
			wantHeaders: http.Header{"Sec-Websocket-Protocol": {"a ,,b", "c"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := requestOf(row.query, row.lines...)
			allCarriers.Strip(r)
			if r.URL.RawQuery != row.wantQuery {
				t.Errorf("query %q, want %q", r.URL.RawQuery, row.wantQuery)
			}
			want := "/chat"
			if row.wantQuery != "" {
				want += "?" + row.wantQuery
			}
			if r.RequestURI != want || r.URL.RequestURI() != want {
				t.Errorf("request URI %q and %q, want %q", r.RequestURI, r.URL.RequestURI(), want)
			}
			if row.wantHeaders != nil && !equalHeader(r.Header, row.wantHeaders) {
				t.Errorf("headers %v, want %v", r.Header, row.wantHeaders)
			}
		})
	}
}

func TestCarriersValidate(t *testing.T) {
	if err := allCarriers.Validate(); err != nil {
		t.Error(err)
	}
	standard := DefaultCarriers()
	if err := standard.Validate(); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]Carriers{
		"empty header":         {Headers: []string{""}},
		"header with blank":    {Headers: []string{"X Token"}},
		"header with colon":    {Headers: []string{"X-Token:"}},
		"Cookie as header":     {Headers: []string{"cookie"}},
		"Upgrade":              {Headers: []string{"upgrade"}},
		"subprotocol header":   {Headers: []string{"Sec-WebSocket-Protocol"}},
		"header twice":         {Headers: []string{"x-token", "X-Token"}},
		"empty query":          {Query: []string{""}},
		"query twice":          {Query: []string{"a", "b", "a"}},
		"empty cookie":         {Cookies: []string{""}},
		"cookie with =":        {Cookies: []string{"a=b"}},
		"cookie with ;":        {Cookies: []string{"a;b"}},
		"empty subprotocol":    {Subprotocols: []string{""}},
		"subprotocol list":     {Subprotocols: []string{"bearer,x"}},
		"subprotocol of quote": {Subprotocols: []string{`"bearer"`}},
	} {
		if c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// What Strip leaves of a query is what was there, less whole parameters that
// decode to a configured name.
func FuzzCarriersQuery(f *testing.F) {
	for _, seed := range []string{"", "a=1&access_token=T&b=%2F+x&a=2&c", "access%5Ftoken&&=&;", "tok+en=%", "access_token", "&access_token=&"} {
		f.Add(seed)
	}
	c := Carriers{Query: allCarriers.Query}
	f.Fuzz(func(t *testing.T, query string) {
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/", RawQuery: query}, RequestURI: "/?" + query, Header: http.Header{}}
		_, errBefore := c.Find(r)
		c.Strip(r)
		var kept []string
		carriers := 0
		for pair := range strings.SplitSeq(query, "&") {
			name, _, _ := strings.Cut(pair, "=")
			decoded, err := url.QueryUnescape(name)
			if err == nil && slices.Contains(c.Query, decoded) {
				carriers++
				continue
			}
			kept = append(kept, pair)
		}
		if want := strings.Join(kept, "&"); r.URL.RawQuery != want {
			t.Errorf("query %q, want %q", r.URL.RawQuery, want)
		}
		if carriers > 0 && strings.TrimPrefix(r.RequestURI, "/") != strings.TrimSuffix("?"+r.URL.RawQuery, "?") && r.URL.RawQuery != "" {
			t.Errorf("request URI %q beside %q", r.RequestURI, r.URL.RawQuery)
		}
		if (carriers == 0) != errors.Is(errBefore, ErrNoToken) {
			t.Errorf("%d carriers, Find: %v", carriers, errBefore)
		}
		// net/url, which backends written in Go use, finds none either.
		if values, _ := url.ParseQuery(r.URL.RawQuery); values.Has("access_token") {
			t.Errorf("net/url finds a token in %q", r.URL.RawQuery)
		}
	})
}

// net/http reads the same cookies before and after, less those configured.
func FuzzCarriersCookie(f *testing.F) {
	for _, seed := range []string{"", "a=1; session=T; b=\"x y\"", "session=T", " session =T;;", "session", "a=\"; session=T;\"", "session=1;session=2"} {
		f.Add(seed, "c=3")
	}
	c := Carriers{Cookies: allCarriers.Cookies}
	f.Fuzz(func(t *testing.T, first, second string) {
		if strings.ContainsAny(first+second, "\r\n") {
			return // cannot be in a header
		}
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}, Header: http.Header{"Cookie": {first, second}}}
		var want []string
		for _, cookie := range r.Cookies() {
			if cookie.Name != "session" {
				want = append(want, cookie.String())
			}
		}
		_, errBefore := c.Find(r)
		c.Strip(r)
		var got []string
		for _, cookie := range r.Cookies() {
			got = append(got, cookie.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("cookies %q, want %q", got, want)
		}
		if errors.Is(errBefore, ErrNoToken) && !slices.Equal(r.Header["Cookie"], []string{first, second}) {
			t.Errorf("lines without a carrier changed to %q", r.Header["Cookie"])
		}
		if _, err := c.Find(r); !errors.Is(err, ErrNoToken) {
			t.Errorf("Find after Strip: %v", err)
		}
	})
}

// The offer that is left is a part of the one that was there, in its order.
func FuzzCarriersSubprotocol(f *testing.F) {
	for _, seed := range []string{"", "bearer, T, chat", "chat,bearer", "bearer.T", "a,,bearer.", "base64url.bearer.authorization.k8s.io.YS5iLmM, x", "bearer,bearer,bearer"} {
		f.Add(seed, "chat.v2")
	}
	c := Carriers{Subprotocols: allCarriers.Subprotocols}
	f.Fuzz(func(t *testing.T, first, second string) {
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/"}, Header: http.Header{subprotocolHeader: {first, second}}}
		before := entriesOf(first, second)
		presented, err := c.Find(r)
		c.Strip(r)
		after := entriesOf(r.Header[subprotocolHeader]...)
		rest := before
		for _, entry := range after {
			i := slices.Index(rest, entry)
			if i < 0 {
				t.Fatalf("offer %q became %q", before, after)
			}
			rest = rest[i+1:]
			if entry == "bearer" || strings.HasPrefix(entry, "bearer.") {
				t.Errorf("%q is left in %q", entry, after)
			}
		}
		switch {
		case errors.Is(err, ErrNoToken) && !slices.Equal(r.Header[subprotocolHeader], []string{first, second}):
			t.Errorf("an offer without a carrier changed to %q", r.Header[subprotocolHeader])
		case errors.Is(err, ErrLoneSubprotocol) && len(after) > 0:
			t.Errorf("lone, but %q is left", after)
		case err == nil && presented.PairPrefix == "" && len(after) == 0:
			t.Errorf("nothing is left to answer %q", before)
		}
	})
}

func entriesOf(lines ...string) []string {
	var entries []string
	for entry := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		if entry = strings.Trim(entry, blanks); entry != "" {
			entries = append(entries, entry)
		}
	}
	return entries
}
