package module

import (
	"errors"
	"net/http"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// message is what an operator sends into live sockets: to a user, a tunnel or
// all, a text or binary data.
type message struct {
	User   string  `json:"user,omitempty"`
	Issuer string  `json:"issuer,omitempty"` // of the user
	Tunnel string  `json:"tunnel,omitempty"`
	All    bool    `json:"all,omitempty"`
	Text   *string `json:"text,omitempty"`
	Binary *[]byte `json:"binary,omitempty"` // base64
}

func (m message) check() error {
	to := 0
	for _, given := range []bool{m.User != "", m.Tunnel != "", m.All} {
		if given {
			to++
		}
	}
	switch {
	case to != 1:
		return errors.New("needs one of user, tunnel and all")
	case m.Issuer != "" && m.User == "":
		return errors.New("issuer: goes with a user")
	case (m.Text == nil) == (m.Binary == nil):
		return errors.New("needs one of text and binary")
	}
	return nil
}

func sendMessage(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	var m message
	if err := readJSON(w, r, &m); err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return adminError(http.StatusBadRequest, err)
	}
	return everywhere(r.Context(), order{Send: &m}).write(w, "sent")
}

// carryOut sends the message and tells to how many.
func (m message) carryOut() (sent int) {
	var frame []byte
	if m.Text != nil {
		frame = tunnel.TextMessage(*m.Text)
	} else if m.Binary != nil {
		frame = tunnel.BinaryMessage(*m.Binary)
	}
	for _, s := range (selection{m.User, m.Issuer, m.Tunnel}).sockets() {
		if frame != nil && s.Send(frame) {
			sent++
		}
	}
	return sent
}
