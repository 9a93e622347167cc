package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The gate verifies the tokens in TestQuickstart; these are the forms that
// give none.
func TestTokenForm(t *testing.T) {
	p, err := newIdentityProvider("http://127.0.0.1:9081")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		form   string
		status int
		body   string
	}{
		"defaults":          {"", http.StatusOK, "eyJ"},
		"seconds":           {"exp=60", http.StatusOK, "eyJ"},
		"duration":          {"exp=1h30m", http.StatusOK, "eyJ"},
		"in the past":       {"exp=-60", http.StatusOK, "eyJ"},
		"unknown lifetime":  {"exp=soon", http.StatusBadRequest, `exp is a number of seconds or a duration, not "soon"`},
		"unknown algorithm": {"alg=none", http.StatusBadRequest, `alg is RS256 or ES256, not "none"`},
		"unknown kind":      {"bad=luck", http.StatusBadRequest, `bad is expired, audience or key, not "luck"`},
	}
	for name, tc := range tests {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			t.Run(name+" by "+method, func(t *testing.T) {
				r := httptest.NewRequest(method, "/token?"+tc.form, nil)
				if method == http.MethodPost {
					r = httptest.NewRequest(method, "/token", strings.NewReader(tc.form))
					r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				}
				w := httptest.NewRecorder()
				p.handler().ServeHTTP(w, r)
				if w.Code != tc.status || !strings.HasPrefix(w.Body.String(), tc.body) {
					t.Errorf("got %d %s, want %d %s", w.Code, w.Body, tc.status, tc.body)
				}
			})
		}
	}
}
