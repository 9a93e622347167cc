package module

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/handshake"
)

// on_reject close: the upgrade is accepted, with a subprotocol that is no
// token, and one close frame says why.
func TestRefuseByClose(t *testing.T) {
	for _, c := range []struct {
		name    string
		err     error
		offered string
		code    int // 0: refused over HTTP
		chosen  string
	}{
		{"no token", auth.ErrNoToken, "", 3000, ""},
		{"invalid token", auth.ErrInvalidToken, "chat.v1, bearer.abc", 3000, "chat.v1"},
		{"the pair only", auth.ErrInvalidToken, "bearer, abc", 3000, "bearer"},
		{"several tokens", auth.ErrSeveralTokens, "bearer.abc, chat.v1, bearer.def", 1002, "chat.v1"},
		{"origin", &handshake.Error{Status: 403}, "chat.v1", 3003, "chat.v1"},
		{"requirement", errRequirement, "", 3003, ""},
		{"cap", errEvicted, "", 1013, ""},
		{"rate by user", &limitError{reason: reasonRate, known: true}, "", 1013, ""},
		{"no keys", auth.ErrKeysUnavailable, "", 1013, ""},
		{"store away", errStore, "", 1013, ""},
		{"two pairs", auth.ErrSeveralTokens, "bearer, abc, bearer, def", 1002, "bearer"},
		{"rate by address", &limitError{reason: reasonRate}, "", 0, ""},
		{"malformed", &handshake.Error{Status: 400}, "", 0, ""},
		{"version", &handshake.Error{Status: 426}, "", 0, ""},
		{"no tunnel", errNoTunnel, "", 0, ""},
	} {
		for name, wrap := range writers {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				g, _ := newGate(t, object{"on_reject": "close"})
				s := serveFunc(t, wrap, func(w http.ResponseWriter, v *visit) error {
					return g.refuse(w, v, c.err)
				}, nil, "Sec-WebSocket-Protocol: "+c.offered)
				if c.code == 0 {
					if s.StatusCode != g.answerTo(c.err).status {
						t.Errorf("status %d", s.StatusCode)
					}
					return
				}
				wantClose(t, s, c.code, c.chosen)
			})
		}
	}
}

// wantClose reads a 101 with this subprotocol, and then one close frame.
func wantClose(t *testing.T, s served, code int, subprotocol string) {
	t.Helper()
	if s.StatusCode != http.StatusSwitchingProtocols || s.Header.Get("Sec-Websocket-Protocol") != subprotocol {
		t.Fatalf("%d with %q, want 101 with %q", s.StatusCode, s.Header.Get("Sec-Websocket-Protocol"), subprotocol)
	}
	frame, err := io.ReadAll(s.br)
	if err != nil || len(frame) < 4 || frame[0] != 0x88 || int(frame[1]) != len(frame)-2 || int(frame[2])<<8|int(frame[3]) != code || bytes.Contains(frame, []byte("abc")) {
		t.Errorf("%q, %v; want one close frame with %d", frame, err, code)
	}
}

// The offer is answered from what the client sent, also when the token has
// been taken out of it by then.
func TestRefuseByCloseBehindTheToken(t *testing.T) {
	g, _ := newGate(t, object{"on_reject": "close", "from_subprotocol": []string{"bearer"}, "require": []object{{"claim": "scope", "values": []string{"x"}}}})
	for offered, chosen := range map[string]string{
		"bearer, " + mint(t):            "bearer",
		"bearer, " + mint(t) + ", chat": "chat",
		"chat, bearer." + mint(t):       "chat",
	} {
		s := serveFunc(t, writers["bare"], func(w http.ResponseWriter, v *visit) error {
			return g.ServeHTTP(w, v.r, nil)
		}, nil, "Sec-WebSocket-Protocol: "+offered)
		wantClose(t, s, 3003, chosen)
	}
}
