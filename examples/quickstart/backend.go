package main

import (
	"net/http"
	"strings"

	"github.com/gorilla/websocket"
)

// hello is the backend's first message: what it knows about who is there. The
// gate verified the token and took it away, so the headers are all there is.
type hello struct {
	Type        string            `json:"type"`
	Identity    map[string]string `json:"identity"`
	Connection  string            `json:"connection,omitempty"` // its id in the gate's log and admin API
	Subprotocol string            `json:"subprotocol,omitempty"`
	SawToken    bool              `json:"saw_token"`
}

// upgrader answers handshakes. It need not look at Origin: the gate did.
var upgrader = websocket.Upgrader{
	Subprotocols:      []string{"demo.v1"},
	EnableCompression: true,
	CheckOrigin:       func(*http.Request) bool { return true },
}

// maxMessage is the largest message that the backend takes, in bytes.
const maxMessage = 1 << 20

func backendHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", serveEcho)
	mux.HandleFunc("/ws/close", serveEcho) // the gate's other door
	return mux
}

// serveEcho says hello and then sends every message back. A request without
// WebSocket, such as a client falls back to, gets the hello alone.
func serveEcho(w http.ResponseWriter, r *http.Request) {
	if !websocket.IsWebSocketUpgrade(r) {
		r.Header.Del("X-Connection-Id") // only sockets have one: this is the bare placeholder
		writeJSON(w, greet(r, ""))
		return
	}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer conn.Close()
	conn.SetReadLimit(maxMessage)
	if err := conn.WriteJSON(greet(r, conn.Subprotocol())); err != nil {
		return
	}
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if err := conn.WriteMessage(kind, message); err != nil {
			return
		}
	}
}

func greet(r *http.Request, subprotocol string) hello {
	identity := map[string]string{}
	for name, lines := range r.Header {
		if strings.HasPrefix(name, "X-User-") {
			identity[name] = strings.Join(lines, ", ")
		}
	}
	return hello{"hello", identity, r.Header.Get("X-Connection-Id"), subprotocol, sawToken(r)}
}

// sawToken tells whether anything of a token came through, which it must not.
func sawToken(r *http.Request) bool {
	return r.Header.Get("Authorization") != "" ||
		r.Header.Get("Cookie") != "" ||
		r.URL.Query().Has("access_token") ||
		strings.Contains(r.Header.Get("Sec-Websocket-Protocol"), "bearer")
}
