// Package python follows this example's README.
package python

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"os"
	"os/exec"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/wsgate/caddy-wsgate/examples/internal/exampletest"
)

const chat = "ws://localhost:8080/chat"

func TestExample(t *testing.T) {
	e := exampletest.New(t, 3000, 8080)
	e.Env("PATH=/usr/bin:" + os.Getenv("PATH")) // Debian's own python3 first: its packages are only there
	if exec.Command("/usr/bin/python3", "-c", "import websockets").Run() != nil {
		exampletest.Missing(t, "/usr/bin/python3 with websockets (Debian: apt-get install python3-websockets)")
	}
	e.Follow()
	e.Logged()
	alice, bob := e.Run("python3 mint.py alice"), e.Run("python3 mint.py bob")

	// Two users in one room. A header of one's own never gets there.
	header := exampletest.Bearer(alice)
	header["X-User-Id"], header["x_user_id"] = []string{"bob"}, []string{"bob"}
	a := e.Open(chat, header)
	e.Hears(a, "welcome, alice")
	b := e.Open(chat, exampletest.Bearer(bob))
	e.Hears(b, "welcome, bob")
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
	e.Refused("a token where none is looked for", http.StatusUnauthorized, chat, nil, "bearer", alice)
	e.BackendDown(chat, exampletest.Bearer(alice))
}
