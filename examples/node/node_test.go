// Package node follows this example's README.
package node

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/wsgate/caddy-wsgate/examples/internal/exampletest"
)

const chat = "ws://localhost:8080/chat"

func TestExample(t *testing.T) {
	exampletest.NeedNode(t)
	e := exampletest.New(t, 3000, 8080)
	e.Follow()
	e.Logged()
	alice, bob := e.Run("node mint.mjs alice"), e.Run("node mint.mjs bob")

	// Two users in one room, by both of the ways that the client shows. A
	// header of one's own never gets there.
	header := exampletest.Bearer(alice)
	header["X-User-Id"], header["x_user_id"] = []string{"bob"}, []string{"bob"}
	a := e.Open(chat, header)
	e.Hears(a, "welcome, alice")
	b := e.Open(chat, nil, "bearer", bob)
	e.Hears(b, "welcome, bob")
	if b.Subprotocol() != "bearer" { // a browser fails without an answer
		t.Errorf("subprotocol %q", b.Subprotocol())
	}
	e.Says(a, "hello")
	e.Hears(a, "alice: hello")
	e.Hears(b, "alice: hello")
	picture := make([]byte, 100_000)
	_, _ = rand.Read(picture)
	if err := b.WriteMessage(websocket.BinaryMessage, picture); err != nil {
		t.Fatal(err)
	}
	if kind, got, err := a.ReadMessage(); err != nil || kind != websocket.BinaryMessage || !bytes.Equal(got, picture) {
		t.Errorf("%d bytes arrived as %d of kind %d, %v", len(picture), len(got), kind, err)
	}

	e.RefusesStrangers(chat, alice)

	// What the README says of a browser's console.
	got := e.Browser("http://localhost:8080", fmt.Sprintf(`new Promise((resolve) => {
		const socket = new WebSocket('%s', ['bearer', '%s'])
		socket.onmessage = ({ data }) => { if (data !== 'welcome, alice') resolve(data) }
		socket.onopen = () => socket.send('hello')
		socket.onclose = ({ code }) => resolve(String(code))
	})`, e.URL(chat), alice))
	if got != "alice: hello" {
		t.Errorf("the page got %q", got)
	}
	e.BackendDown(chat, nil, "bearer", alice)
}
