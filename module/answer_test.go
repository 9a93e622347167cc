package module

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/handshake"
)

// Every error has its status, its reason and the fields that go with them.
func TestAnswerTo(t *testing.T) {
	g, _ := newGate(t, object{"tunnel_name": "chat"})
	const bearer = `Bearer realm="chat"`
	for _, c := range []struct {
		name     string
		err      error
		status   int
		reason   string
		header   http.Header
		closable bool // by on_reject close
	}{
		{"malformed handshake", &handshake.Error{Status: 400, Detail: "d"}, 400, "bad_request", nil, false},
		{"method", &handshake.Error{Status: 405, Detail: "d"}, 405, "bad_request", http.Header{"Allow": {"GET"}}, false},
		{"version", &handshake.Error{Status: 426, Detail: "d"}, 426, "bad_version", http.Header{"Sec-WebSocket-Version": {"13"}, "Upgrade": {"websocket"}}, false},
		{"origin", &handshake.Error{Status: 403, Detail: "d"}, 403, "origin", nil, true},
		{"no token", auth.ErrNoToken, 401, "no_token", http.Header{"Www-Authenticate": {bearer}}, true},
		{"several tokens", auth.ErrSeveralTokens, 400, "several_tokens", nil, true},
		{"nothing to answer", auth.ErrLoneSubprotocol, 400, "bad_request", http.Header{hintHeader: {"offer one more subprotocol beside the token: a browser fails without an answer"}}, false},
		{"invalid token", auth.ErrInvalidToken, 401, "invalid_token", http.Header{"Www-Authenticate": {bearer + `, error="invalid_token"`}}, true},
		{"wrapped", fmt.Errorf("checking: %w", auth.ErrInvalidToken), 401, "invalid_token", http.Header{"Www-Authenticate": {bearer + `, error="invalid_token"`}}, true},
		{"no keys", auth.ErrKeysUnavailable, 503, "no_keys", http.Header{"Retry-After": {"5"}}, true},
		{"requirement", errRequirement, 403, "claims", http.Header{"Www-Authenticate": {bearer + `, error="insufficient_scope"`}}, true},
		{"number of a cap", errCapNumber, 403, "claims", http.Header{"Www-Authenticate": {bearer + `, error="insufficient_scope"`}}, true},
		{"rate by address", &limitError{reason: reasonRate, wait: 1500 * time.Millisecond, hint: "h"}, 429, "rate", http.Header{"Retry-After": {"2"}, hintHeader: {"h"}}, false},
		{"rate by user", &limitError{reason: reasonRate, known: true, wait: time.Microsecond, hint: "h"}, 429, "rate", http.Header{"Retry-After": {"1"}, hintHeader: {"h"}}, true},
		{"cap", &limitError{reason: reasonCap, known: true, wait: capRetry, hint: "h"}, 429, "cap", http.Header{"Retry-After": {"5"}, hintHeader: {"h"}}, true},
		{"evicted during the handshake", errEvicted, 429, "cap", http.Header{"Retry-After": {"5"}, hintHeader: {"replaced by a newer connection"}}, true},
		{"HTTP/2", errExtendedConnect, 501, "unsupported", nil, false},
		{"no tunnel", errNoTunnel, 501, "unsupported", nil, false},
		{"no handler", errNoAnswer, 502, "backend", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := g.answerTo(c.err)
			if a.status != c.status || a.reason != c.reason || !sameHeader(a.header, c.header) {
				t.Errorf("got %d %s %v, want %d %s %v", a.status, a.reason, a.header, c.status, c.reason, c.header)
			}
			if a.closable() != c.closable {
				t.Errorf("on_reject close: %t, want %t", a.closable(), c.closable)
			}
			if _, ok := closeCodes[a.status]; c.closable && !ok {
				t.Errorf("status %d has no close code", a.status)
			}
		})
	}
}

func sameHeader(a, b http.Header) bool { return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b) }

// S-195: whoever waits as long as Retry-After says gets in.
func TestRetryAfterIsRoundedUp(t *testing.T) {
	for wait, want := range map[time.Duration]string{
		0: "1", time.Nanosecond: "1", time.Second: "1", time.Second + 1: "2", 90 * time.Second: "90", time.Hour + time.Millisecond: "3601",
	} {
		if got := (&limitError{wait: wait}).answer().header.Get("Retry-After"); got != want {
			t.Errorf("%s: Retry-After %s, want %s", wait, got, want)
		}
	}
}

// S-49: the client can't tell from the answer what is wrong with its token;
// the operator can, from the log.
func TestInvalidTokensAnswerAlike(t *testing.T) {
	g, logs := newGate(t)
	good := mint(t)
	parts := strings.Split(good, ".")
	tokens := map[string]string{
		"bad signature":         parts[0] + "." + parts[1] + "." + strings.Repeat("A", 43),
		"expired":               mint(t, object{"exp": time.Now().Add(-time.Hour).Unix()}),
		"not yet valid":         mint(t, object{"nbf": time.Now().Add(time.Hour).Unix()}),
		"audience":              mint(t, object{"aud": "other"}),
		"unknown issuer":        mint(t, object{"iss": "https://evil.example.com/"}),
		"user claim":            mint(t, object{"sub": nil}),
		"identity claim":        mint(t, object{"sub": "a\u2028b"}),
		"malformed":             "x",
		"algorithm not allowed": "eyJhbGciOiJSUzI1NiJ9." + parts[1] + "." + parts[2],
		"too long":              good + strings.Repeat("A", 8<<10),
	}
	var first string
	for cause, token := range tokens {
		v := newVisit(request(t, opening(token)))
		w := httptest.NewRecorder()
		err := g.ServeHTTP(w, v.r, nextFunc(func(http.ResponseWriter, *http.Request) error {
			t.Errorf("%s: reaches the backend", cause)
			return nil
		}))
		var handler caddyhttp.HandlerError
		if !errors.As(err, &handler) {
			t.Fatalf("%s: %v", cause, err)
		}
		// The id is random, the trace is the place in our code, which must be
		// the same for all.
		said := fmt.Sprint(handler.StatusCode, handler.Err, handler.Trace, w.Header(), w.Body, v.reason())
		if first == "" {
			first = said
		}
		if said != first || handler.StatusCode != 401 {
			t.Errorf("%s: %s\nwant %s", cause, said, first)
		}
		if strings.Contains(said, token) {
			t.Errorf("%s: the answer repeats the token", cause)
		}
	}
	seen := make(map[any]bool)
	for _, entry := range logs.All() {
		seen[entry.ContextMap()["detail"]] = true
		for cause, token := range tokens {
			if text := fmt.Sprint(entry.Message, entry.ContextMap()); cause != "malformed" && strings.Contains(text, strings.Split(token, ".")[1]) {
				t.Errorf("the log repeats the token that is %s: %s", cause, text) // S-116
			}
		}
	}
	for cause := range tokens {
		if cause == "identity claim" {
			cause = "user claim" // what is wrong with it is found out earlier
		}
		if !seen[cause] {
			t.Errorf("the log does not say %q: %v", cause, seen)
		}
	}
}

// reason is {http.ws_gate.reject.reason}.
func (v *visit) reason() string {
	return v.replacer().ReplaceAll("{http.ws_gate.reject.reason}", "")
}

// A refusal ends the connection of a handshake (S-90), keeps that of other
// requests, says why to handle_errors, and writes one line.
func TestRefuse(t *testing.T) {
	for _, c := range []struct {
		name      string
		err       error
		handshake bool
		level     string
		message   string
	}{
		{"handshake", auth.ErrNoToken, true, "info", "handshake refused"},
		{"request", auth.ErrNoToken, false, "info", "request refused"},
		{"to be configured", errNoTunnel, true, "error", "handshake refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, logs := newGate(t, object{"tunnel_name": "chat"})
			v := newVisit(request(t, opening("x")))
			v.handshake = c.handshake
			w := httptest.NewRecorder()
			err := g.refuse(w, v, c.err)
			want := g.answerTo(c.err)
			var handler caddyhttp.HandlerError
			if !errors.As(err, &handler) || handler.StatusCode != want.status || handler.Err.Error() != want.reason {
				t.Errorf("%v, want %d %s", err, want.status, want.reason)
			}
			if (w.Header().Get("Connection") == "close") != c.handshake {
				t.Errorf("Connection: %q", w.Header().Get("Connection"))
			}
			if v.reason() != want.reason {
				t.Errorf("{http.ws_gate.reject.reason} is %q, want %q", v.reason(), want.reason)
			}
			entries := logs.All()
			if len(entries) != 1 || entries[0].Level.String() != c.level || entries[0].Message != c.message ||
				entries[0].ContextMap()["reason"] != want.reason || entries[0].ContextMap()["tunnel"] != "chat" || entries[0].ContextMap()["client_ip"] != "192.0.2.1" {
				t.Errorf("logged %v", entries)
			}
		})
	}
}

// The log names the user only once the token is verified.
func TestRefuseLogsWhoItWas(t *testing.T) {
	g, logs := newGate(t, object{"require": []object{{"claim": "scope", "values": []string{"chat:write"}}}})
	r := request(t, opening(mint(t, object{"scope": "chat:read"})))
	_ = g.ServeHTTP(httptest.NewRecorder(), r, nil)
	_ = g.ServeHTTP(httptest.NewRecorder(), request(t, opening(mint(t, object{"aud": "other"}))), nil)
	entries := logs.All()
	if len(entries) != 2 {
		t.Fatalf("logged %v", entries)
	}
	if known := entries[0].ContextMap(); known["user_id"] != "alice" || known["issuer"] != "https://id.example.com/" || known["reason"] != "claims" {
		t.Errorf("logged %v", known)
	}
	if unknown := entries[1].ContextMap(); unknown["user_id"] != nil || unknown["issuer"] != nil {
		t.Errorf("logged %v of a token that is not verified", unknown)
	}
}

func TestBackendErrors(t *testing.T) {
	plain := errors.New("plain")
	for _, c := range []struct {
		err    error
		status int
		detail string
	}{
		{plain, 500, "plain"},
		{caddyhttp.Error(http.StatusGatewayTimeout, plain), 504, "plain"},
		{fmt.Errorf("outer: %w", caddyhttp.Error(http.StatusBadGateway, plain)), 502, "plain"},
		{caddyhttp.HandlerError{}, 500, caddyhttp.HandlerError{}.Error()},
		{context.Canceled, 500, "context canceled"},
	} {
		if status, detail := statusOf(c.err), backendDetail(c.err); status != c.status || detail != c.detail {
			t.Errorf("%v: %d %q, want %d %q", c.err, status, detail, c.status, c.detail)
		}
	}
}
