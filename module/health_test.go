package module

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestHealth(t *testing.T) {
	t.Cleanup(func() { draining.Store(false) })
	handler := (&health{}).handler()
	for _, c := range []struct {
		method, target string
		draining       bool
		status         int
	}{
		{"GET", "/health", false, http.StatusOK},
		{"HEAD", "/health", false, http.StatusOK},
		{"GET", "/health", true, http.StatusServiceUnavailable},
		{"POST", "/health", false, http.StatusMethodNotAllowed},
		{"GET", "/", false, http.StatusNotFound},
		{"GET", "/health/x", false, http.StatusNotFound},
		{"GET", "/metrics", false, http.StatusNotFound}, // not asked for
		{"GET", "/debug/pprof/", false, http.StatusNotFound},
	} {
		draining.Store(c.draining)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(c.method, c.target, nil))
		if w.Code != c.status {
			t.Errorf("%s %s, draining %v: %d, want %d", c.method, c.target, c.draining, w.Code, c.status)
		}
	}
}
