package exampletest

import (
	"context"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// dial tries a handshake as a program does. The status is 0 without an answer.
func (e *Example) dial(url string, header http.Header, subprotocols []string) (c *websocket.Conn, status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dialer := websocket.Dialer{Subprotocols: subprotocols, EnableCompression: true}
	c, resp, err := dialer.DialContext(ctx, e.URL(url), header)
	if resp == nil {
		return c, 0, err
	}
	defer resp.Body.Close()
	return c, resp.StatusCode, err
}

// Open opens a socket that the test's end closes.
func (e *Example) Open(url string, header http.Header, subprotocols ...string) *websocket.Conn {
	e.t.Helper()
	c, status, err := e.dial(url, header, subprotocols)
	if err != nil {
		e.t.Fatalf("opening %s: %v, %d", e.URL(url), err, status)
	}
	e.t.Cleanup(func() { c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(patience))
	return c
}

// Refused tries a handshake that must be answered with the status.
func (e *Example) Refused(what string, status int, url string, header http.Header, subprotocols ...string) {
	e.t.Helper()
	c, got, err := e.dial(url, header, subprotocols)
	if err == nil {
		c.Close()
	}
	if got != status {
		e.t.Errorf("%s at %s: answered %d, %v; want %d", what, e.URL(url), got, err, status)
	}
}

// RefusesStrangers tries to get in with everything but a good token from a
// page of the gate's own origin.
func (e *Example) RefusesStrangers(url, good string, subprotocols ...string) {
	e.t.Helper()
	e.Refused("no token", http.StatusUnauthorized, url, nil, subprotocols...)
	e.Refused("a forged identity", http.StatusUnauthorized, url, http.Header{"X-User-Id": {"alice"}}, subprotocols...)
	forged := good[:strings.LastIndexByte(good, '.')+1] + strings.Repeat("A", 43)
	e.Refused("a forged token", http.StatusUnauthorized, url, Bearer(forged), subprotocols...)
	foreign := Bearer(good)
	foreign.Set("Origin", "https://evil.example")
	e.Refused("a foreign page", http.StatusForbidden, url, foreign, subprotocols...)
}

// Bearer is the header that carries a token.
func Bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

// Says sends a text message.
func (e *Example) Says(c *websocket.Conn, text string) {
	e.t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		e.t.Fatal(err)
	}
}

// Hears reads one text message, which must be the given one.
func (e *Example) Hears(c *websocket.Conn, want string) {
	e.t.Helper()
	if kind, got, err := c.ReadMessage(); err != nil || kind != websocket.TextMessage || string(got) != want {
		e.t.Fatalf("got %q of kind %d, %v; want %q", got, kind, err, want)
	}
}

// Request makes a plain HTTP request.
func (e *Example) Request(method, url, body string, header http.Header) (status int, answer http.Header, text string) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, e.URL(url), strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(content)
}
