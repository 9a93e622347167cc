package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// socket is a client's end of a WebSocket.
type socket struct {
	user string
	gate *gate
	conn *websocket.Conn

	messages chan string
	ended    chan struct{} // closed with err set
	err      error
}

// refusal is the answer to a handshake that was not let in.
type refusal struct {
	status     int
	retryAfter string
}

func (r refusal) Error() string {
	text := fmt.Sprintf("%d %s", r.status, http.StatusText(r.status))
	if r.retryAfter != "" {
		text += ", Retry-After: " + r.retryAfter
	}
	return text
}

// open makes a handshake with a new token of the user, and waits for the
// backend's greeting.
func (c *cluster) open(g *gate, path, user string) (*socket, error) {
	token, err := c.idp.token(user)
	if err != nil {
		return nil, err
	}
	dialer := websocket.Dialer{HandshakeTimeout: patience}
	conn, answer, err := dialer.Dial("ws://"+g.addr+path, http.Header{"Authorization": {"Bearer " + token}})
	if answer != nil && answer.Body != nil {
		answer.Body.Close()
	}
	if errors.Is(err, websocket.ErrBadHandshake) {
		return nil, refusal{answer.StatusCode, answer.Header.Get("Retry-After")}
	}
	if err != nil {
		return nil, err
	}
	s := &socket{user: user, gate: g, conn: conn, messages: make(chan string, 64), ended: make(chan struct{})}
	go s.read()
	c.live = append(c.live, s)
	return s, s.hears("hello " + user)
}

// read collects what comes, until the socket ends.
func (s *socket) read() {
	defer close(s.ended)
	for {
		_, message, err := s.conn.ReadMessage()
		if err != nil {
			s.err = err
			return
		}
		s.messages <- string(message)
	}
}

// hears waits for the next message, which must be this one.
func (s *socket) hears(want string) error {
	select {
	case got := <-s.messages:
		if got != want {
			return fmt.Errorf("%s at %s got the message %q, not %q", s.user, s.gate.name, got, want)
		}
		return nil
	case <-s.ended:
		return fmt.Errorf("%s's socket at %s has ended: %w", s.user, s.gate.name, s.err)
	case <-time.After(patience):
		return fmt.Errorf("%s at %s got no message", s.user, s.gate.name)
	}
}

// echoes says something and waits until it comes back.
func (s *socket) echoes(text string) error {
	if err := s.conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		return fmt.Errorf("%s's socket at %s takes nothing: %w", s.user, s.gate.name, err)
	}
	return s.hears(text)
}

// closed waits for the gate to close it, with this code, and returns the
// reason that it gave.
func (s *socket) closed(code int) (string, error) {
	select {
	case <-s.ended:
	case <-time.After(patience):
		return "", fmt.Errorf("%s's socket at %s was not closed", s.user, s.gate.name)
	}
	var frame *websocket.CloseError
	if !errors.As(s.err, &frame) || frame.Code != code {
		return "", fmt.Errorf("%s's socket at %s ended with %w, not with %d", s.user, s.gate.name, s.err, code)
	}
	return frame.Text, nil
}

// close says goodbye, as a client does that is done.
func (s *socket) close() {
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = s.conn.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second)) // or it is gone already
	select {
	case <-s.ended:
	case <-time.After(time.Second):
	}
	s.conn.Close()
}

// connection is what a list says of a socket, or the part that is shown here.
type connection struct{ Node, User, Tunnel string }

// list asks a gate for the live sockets of a user, on all nodes.
func (g *gate) list(user string) ([]connection, error) {
	var answer struct {
		Connections []connection
		Incomplete  string
	}
	err := g.ask(http.MethodGet, "connections?user="+user, "", &answer)
	if err == nil && answer.Incomplete != "" {
		err = errors.New(answer.Incomplete)
	}
	return answer.Connections, err
}

// ask calls the gate's admin API.
func (g *gate) ask(method, path, body string, answer any) error {
	request, err := http.NewRequest(method, "http://"+g.admin+"/ws_gate/"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{Timeout: patience}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(text))
	}
	if answer == nil || len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, answer)
}
