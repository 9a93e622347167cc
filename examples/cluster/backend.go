package main

import (
	"net/http"

	"github.com/gorilla/websocket"
)

// upgrader answers handshakes. It need not look at Origin: the gate did.
var upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}

// serveEcho is the backend: it greets whoever the gate says is there, and then
// sends every message back. It knows nothing of tokens, gates or Redis.
func serveEcho(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer conn.Close()
	conn.SetReadLimit(1 << 20)
	if conn.WriteMessage(websocket.TextMessage, []byte("hello "+r.Header.Get("X-User-Id"))) != nil {
		return
	}
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if conn.WriteMessage(kind, message) != nil {
			return
		}
	}
}
