package auth

import (
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// endpoint is a scripted JWKS server that counts its GETs.
type endpoint struct {
	*httptest.Server
	gets   atomic.Int32
	mu     sync.Mutex
	answer http.HandlerFunc
}

func newEndpoint(t *testing.T, answer http.HandlerFunc) *endpoint {
	e := &endpoint{answer: answer}
	e.Server = httptest.NewServer(e)
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.gets.Add(1)
	e.mu.Lock()
	answer := e.answer
	e.mu.Unlock()
	answer(w, r)
}

func (e *endpoint) set(answer http.HandlerFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = answer
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// started is a running source, which is stopped with the test, and a channel
// that tells of its fetches.
func started(t *testing.T, c SourceConfig) (*Source, <-chan FetchEvent) {
	t.Helper()
	events := make(chan FetchEvent, 100)
	c.Observe = func(event FetchEvent) { events <- event }
	s, err := NewSource(c)
	must(err)
	s.Start()
	t.Cleanup(s.Stop)
	return s, events
}

func TestFetchRequest(t *testing.T) {
	requests := make(chan *http.Request, 10)
	e := newEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		says(everyKey())(w, r)
	})
	f := newFetcher(time.Second, nil)
	for range 2 {
		if _, _, err := f.keySet(t.Context(), e.URL+"/jwks?key=1", time.Minute); err != nil {
			t.Fatal(err)
		}
		r := <-requests
		if r.Method != http.MethodGet || r.URL.RawQuery != "key=1" || !strings.Contains(r.Header.Get("Accept"), "application/jwk-set+json") {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		if len(r.Cookies()) > 0 {
			t.Error("a cookie came back")
		}
	}
}

// S-55, S-56, S-58: what an endpoint may do to a single fetch.
func TestFetchHostile(t *testing.T) {
	canary := newEndpoint(t, says(everyKey()))
	for _, row := range []struct {
		name   string
		answer http.HandlerFunc
		want   string // a part of the error
	}{
		{"204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, "status 204"},
		{"500 with keys", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500); says(everyKey())(w, r) }, "status 500"},
		{"203 with keys", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(203); says(everyKey())(w, r) }, "status 203"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, canary.URL, http.StatusFound) }, "status 302"},
		{"permanent redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, canary.URL, http.StatusPermanentRedirect)
		}, "status 308"},
		{"redirect to a file", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, "status 302"},
		{"endless body", func(w http.ResponseWriter, _ *http.Request) {
			_, err := io.WriteString(w, `{"keys":[{"k":"`)
			for err == nil {
				_, err = io.WriteString(w, strings.Repeat("A", 1<<16))
			}
		}, "longer than 1 MiB"},
		{"gzip bomb", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			for range 64 {
				if _, err := z.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
			_ = z.Close()
		}, "longer than 1 MiB"},
		{"bad gzip", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			says(everyKey())(w, r)
		}, "reading the answer"},
		{"endless header", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 100 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("a", 1000))
			}
		}, "header"},
		{"truncated", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"keys":[`)
		}, "unexpected EOF"},
		{"silence", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "deadline"},
		{"header, then silence", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, "deadline"},
		{"a byte at a time", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Millisecond)
			}
		}, "deadline"},
		{"not HTTP", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			must(err)
			_, _ = io.WriteString(conn, strings.Repeat("x", 3000)+"\r\n\r\n")
			_ = conn.Close()
		}, "malformed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := newEndpoint(t, row.answer)
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Millisecond)
			if row.want != "deadline" {
				ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
			}
			defer cancel()
			_, _, err := newFetcher(10*time.Second, nil).keySet(ctx, e.URL+"/?key=marker", time.Minute)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, want %q", err, row.want)
			}
			if err != nil && (strings.Contains(err.Error(), "marker") || len(err.Error()) > 500) {
				t.Errorf("too much in an error: %v", err)
			}
			if row.want == "deadline" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
		})
	}
	if canary.gets.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

// S-58: after a good answer, no bad one changes the keys, and a good one that
// follows does.
func TestSourceOverHTTP(t *testing.T) {
	e := newEndpoint(t, says(jwks(jwkOf(p256Key1(), "k1"))))
	s, events := started(t, SourceConfig{JWKS: e.URL + "/jwks", Cooldown: time.Nanosecond})
	v := verifierOf(t, s)
	wantDetail(t, v, tokenOf("k1"), "")
	if event := <-events; event.Err != nil || event.Keys != 1 {
		t.Fatalf("%+v", event)
	}
	for _, answer := range []http.HandlerFunc{
		says("<html>welcome</html>"), says(""), says(`{"keys":[`), says(string(utf16Of(everyKey()))), says(`{"keys":[]}`),
		func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500); says(everyKey())(w, r) },
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
	} {
		e.set(answer)
		wantDetail(t, v, tokenOf("new"), "unknown kid") // asks for a fetch
		if event := <-events; event.Err == nil || event.Keys != 1 {
			t.Fatalf("%+v", event)
		}
		wantDetail(t, v, tokenOf("k1"), "")
	}
	e.set(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain") // many issuers do
		says(jwks(jwkOf(p256Key1(), "new")))(w, r)
	})
	wantDetail(t, v, tokenOf("new"), "")
	wantDetail(t, v, tokenOf("k1"), "unknown kid")
}

// S-66 over the network.
func TestSourceColdHerdOverHTTP(t *testing.T) {
	release := make(chan struct{})
	e := newEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		<-release
		says(jwks(jwkOf(p256Key1(), "k")))(w, r)
	})
	s, _ := started(t, SourceConfig{JWKS: e.URL})
	v := verifierOf(t, s)
	token := tokenOf("k")
	var herd sync.WaitGroup
	for i := range 1000 {
		herd.Go(func() { wantDetail(t, v, token, "") })
		if i == 500 {
			close(release)
		}
	}
	herd.Wait()
	if n := e.gets.Load(); n != 1 {
		t.Errorf("%d GETs", n)
	}
}

// S-68: certificates that prove nothing.
func TestFetchTLS(t *testing.T) {
	certificate := func(host string, until time.Time) tls.Certificate {
		private := p256Key1()
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host},
			NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until,
			DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true,
		}
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses, template.DNSNames = []net.IP{ip}, nil
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public().(*ecdsa.PublicKey), private)
		must(err)
		leaf, err := x509.ParseCertificate(der)
		must(err)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	for _, row := range []struct {
		name    string
		cert    tls.Certificate
		trusted bool
		version uint16
		want    string
	}{
		{"good", certificate("127.0.0.1", tomorrow), true, 0, ""},
		{"self-signed", certificate("127.0.0.1", tomorrow), false, 0, "certificate"},
		{"expired", certificate("127.0.0.1", time.Now().Add(-time.Hour)), true, 0, "expired"},
		{"wrong host", certificate("id.example.com", tomorrow), true, 0, "certificate"},
		{"TLS 1.1", certificate("127.0.0.1", tomorrow), true, tls.VersionTLS11, "version"},
		{"TLS 1.0", certificate("127.0.0.1", tomorrow), true, tls.VersionTLS10, "version"},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := &endpoint{answer: says(everyKey())}
			e.Server = httptest.NewUnstartedServer(e)
			e.Config.ErrorLog = log.New(io.Discard, "", 0)
			e.TLS = &tls.Config{Certificates: []tls.Certificate{row.cert}, MinVersion: row.version, MaxVersion: row.version} //nolint:gosec // what a bad server does
			e.StartTLS()
			t.Cleanup(e.Close)
			roots := x509.NewCertPool()
			if row.trusted {
				roots.AddCert(row.cert.Leaf)
			}
			_, _, err := newFetcher(time.Second, roots).keySet(t.Context(), e.URL, time.Minute)
			if (err == nil) != (row.want == "") || (err != nil && !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%v, want %q", err, row.want)
			}
			if row.want != "" && e.gets.Load() != 0 {
				t.Error("a request was sent all the same")
			}
		})
	}
}

// tls_ca by its file.
func TestSourceCAFile(t *testing.T) {
	e := &endpoint{answer: says(jwks(jwkOf(p256Key1(), "k")))}
	e.Server = httptest.NewTLSServer(e)
	t.Cleanup(e.Close)
	path := filepath.Join(t.TempDir(), "ca.pem")
	if _, err := NewSource(SourceConfig{JWKS: e.URL, CAFile: path}); err == nil {
		t.Error("a missing file accepted")
	}
	must(os.WriteFile(path, []byte("no certificate"), 0o600))
	if _, err := NewSource(SourceConfig{JWKS: e.URL, CAFile: path}); err == nil {
		t.Error("a file without certificate accepted")
	}
	must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate().Raw}), 0o600))
	s, _ := started(t, SourceConfig{JWKS: e.URL, CAFile: path})
	wantDetail(t, verifierOf(t, s), tokenOf("k"), "")
}

// S-69: the address counts, not the name that led to it.
func TestFetchDialsNoLinkLocal(t *testing.T) {
	for address, want := range map[string]error{
		"169.254.169.254:80": errLinkLocal, "[::ffff:169.254.169.254]:80": errLinkLocal, "[fe80::1%eth0]:443": errLinkLocal,
		"[64:ff9b::a9fe:a9fe]:443": errLinkLocal, "[ff02::1]:1": errLinkLocal, "nonsense": errLinkLocal,
		"192.0.2.1:443": nil, "127.0.0.1:443": nil, "[2001:db8::1]:443": nil,
	} {
		if err := refuseLinkLocal("tcp", address, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for address, want := range map[string]error{
		"127.0.0.1:80": nil, "127.9.9.9:80": nil, "[::1]:80": nil, "[::ffff:127.0.0.1]:80": nil,
		"192.0.2.1:80": errNotLocal, "169.254.169.254:80": errNotLocal, "[fe80::1]:80": errNotLocal, "0.0.0.0:80": errNotLocal,
	} {
		if err := requireLoopback("tcp", address, nil); !errors.Is(err, want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	f := newFetcher(time.Second, nil)
	if _, _, err := f.get(t.Context(), "https://169.254.169.254/", ""); !errors.Is(err, errLinkLocal) {
		t.Error(err)
	}
	if _, _, err := f.get(t.Context(), "http://192.0.2.1/", ""); !errors.Is(err, errNotLocal) {
		t.Error(err)
	}
}

func TestDiscovery(t *testing.T) {
	canary := newEndpoint(t, says(everyKey()))
	e := newEndpoint(t, nil)
	serve := func(issuer, jwksURI any) {
		e.set(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/realms/a/.well-known/openid-configuration":
				says(toJSON(object{"issuer": issuer, "jwks_uri": jwksURI, "other": []any{1}}))(w, r)
			case "/keys":
				says(jwks(jwkOf(p256Key1(), "k")))(w, r)
			default:
				http.NotFound(w, r)
			}
		})
	}
	for _, row := range []struct {
		name      string
		asked     string
		issuer    any
		jwksURI   any
		wantError string
	}{
		{"good", "/realms/a", e.URL + "/realms/a", e.URL + "/keys", ""},
		{"with a slash", "/realms/a/", e.URL + "/realms/a/", e.URL + "/keys", ""},
		{"slash that differs", "/realms/a/", e.URL + "/realms/a", e.URL + "/keys", "another issuer"},
		{"another issuer", "/realms/a", "https://evil.example", e.URL + "/keys", "another issuer"},
		{"issuer array", "/realms/a", []any{e.URL + "/realms/a"}, e.URL + "/keys", "another issuer"},
		{"no issuer", "/realms/a", nil, e.URL + "/keys", "another issuer"},
		{"not found", "/realms/b", e.URL + "/realms/b", e.URL + "/keys", "status 404"},
		{"no jwks_uri", "/realms/a", e.URL + "/realms/a", nil, "OpenID"},
		{"jwks_uri is a file", "/realms/a", e.URL + "/realms/a", "file:///etc/keys", "jwks_uri"},
		{"jwks_uri is link-local", "/realms/a", e.URL + "/realms/a", "https://169.254.169.254/", "jwks_uri"},
		{"jwks_uri over http", "/realms/a", e.URL + "/realms/a", "http://id.example.com/marker", "jwks_uri"},
	} {
		t.Run(row.name, func(t *testing.T) {
			serve(row.issuer, row.jwksURI)
			read := newOrigin(SourceConfig{Discovery: e.URL + row.asked, Refresh: time.Minute, Timeout: time.Second}, nil)
			text, _, err := read(t.Context())
			if row.wantError == "" {
				if set, err := parseKeySet(text); err != nil || len(set.keys) != 1 {
					t.Error(err)
				}
			}
			if (err == nil) != (row.wantError == "") || (err != nil && !strings.Contains(err.Error(), row.wantError)) {
				t.Errorf("%v, want %q", err, row.wantError)
			}
			if err != nil && strings.Contains(err.Error(), "marker") {
				t.Errorf("the error repeats the answer: %v", err)
			}
		})
	}
	// An https issuer whose keys would come over plain http, even from here.
	secure := httptest.NewUnstartedServer(nil)
	secure.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		says(toJSON(object{"issuer": secure.URL, "jwks_uri": canary.URL}))(w, r)
	})
	secure.StartTLS()
	t.Cleanup(secure.Close)
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	read := newOrigin(SourceConfig{Discovery: secure.URL, Timeout: time.Second}, roots)
	if _, _, err := read(t.Context()); !errors.Is(err, errDowngraded) || canary.gets.Load() != 0 {
		t.Errorf("%v, %d GETs", err, canary.gets.Load())
	}
}

// S-71: hostile words on freshness.
func TestMaxAge(t *testing.T) {
	const standard = 10 * time.Minute
	for line, want := range map[string]time.Duration{
		"":                              standard,
		"no-store":                      standard,
		"max-age=3600":                  time.Hour,
		"public, Max-Age=3600, a=b":     time.Hour,
		`max-age="3600"`:                time.Hour,
		"max-age=0":                     time.Minute,
		"max-age=1":                     time.Minute,
		"max-age=315360000":             24 * time.Hour,
		"max-age=99999999999999999999":  24 * time.Hour,
		"max-age=9223372036854775807":   24 * time.Hour,
		"max-age=-1":                    standard,
		"max-age=x":                     standard,
		"max-age":                       standard,
		"s-maxage=60":                   standard,
		"no-cache, max-age=7200":        2 * time.Hour,
		"max-age=7200, max-age=1000000": 2 * time.Hour,
	} {
		if got := maxAge(http.Header{"Cache-Control": {line}, "Expires": {"0"}}, standard); got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
}
