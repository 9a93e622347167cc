package module

import (
	"bufio"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/wsgate/caddy-wsgate/handlers/handshake"
)

// closeLinger is how long a refused client may take to answer the close frame.
const closeLinger = time.Second

// maxLateMessages is how many messages it may have sent before it saw that.
const maxLateMessages = 64

// closeCodes are what a status becomes with on_reject close, and the words
// that go with it: RFC 6455 §7.4.1 and the registry of IANA.
var closeCodes = map[int]struct {
	code int
	text string
}{
	http.StatusBadRequest:         {websocket.CloseProtocolError, "bad request"},
	http.StatusUnauthorized:       {3000, "unauthorized"},
	http.StatusForbidden:          {3003, "forbidden"},
	http.StatusTooManyRequests:    {websocket.CloseTryAgainLater, "try again later"},
	http.StatusServiceUnavailable: {websocket.CloseTryAgainLater, "try again later"},
}

// refuseByClose accepts the upgrade only to say in a close frame why not: the
// one thing about a failed handshake that a browser shows to a page. Nothing
// reaches the backend.
func (g *Gate) refuseByClose(w http.ResponseWriter, v *visit, a answer) error {
	header := w.Header().Clone()
	header.Del("Connection")
	for name := range header {
		if strings.HasPrefix(name, "Sec-Web") {
			header.Del(name) // the upgrader writes these itself
		}
	}
	upgrader := websocket.Upgrader{
		HandshakeTimeout: closeLinger,
		ReadBufferSize:   512,
		WriteBufferSize:  512,
		CheckOrigin:      func(*http.Request) bool { return true }, // judged already
		Error:            func(http.ResponseWriter, *http.Request, int, error) {},
	}
	if chosen := g.answerable(v); chosen != "" {
		// Not by Upgrader.Subprotocols, which looks for it in a request that
		// may have lost its offer with the token.
		header.Set("Sec-Websocket-Protocol", chosen)
	}
	conn, err := upgrader.Upgrade(hijacker{w}, v.r, header)
	if err != nil {
		return nil //nolint:nilerr // the client is gone, or sent too much: it is refused either way
	}
	defer conn.Close()
	c := closeCodes[a.status]
	deadline := time.Now().Add(closeLinger)
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(c.code, c.text), deadline)
	awaitClose(conn, deadline)
	return nil
}

// awaitClose reads until the client has answered the close frame: a browser
// tells its page only when the connection has ended, so nobody waits longer
// than that. Closing with bytes unread would reset the connection and could
// take the close frame with it.
func awaitClose(conn *websocket.Conn, deadline time.Time) {
	_ = conn.SetReadDeadline(deadline)
	conn.SetReadLimit(maxEarly)
	conn.SetCloseHandler(func(int, string) error { return nil }) // ours is out already
	for range maxLateMessages {
		if _, _, err := conn.NextReader(); err != nil {
			return
		}
	}
}

// answerable is a subprotocol that the client offered and that is no token: a
// browser fails a socket whose offer gets no answer, and shows no code.
func (g *Gate) answerable(v *visit) string {
	rest, pair := g.besideToken(v)
	if len(rest) > 0 {
		return rest[0]
	}
	return pair
}

// besideToken are the subprotocols that the client offered and that carry no
// token, and the prefix of a pair, if there is one.
func (g *Gate) besideToken(v *visit) (rest []string, pair string) {
	offer := &http.Request{URL: new(url.URL), Header: http.Header{"Sec-Websocket-Protocol": v.offer}}
	presented, _ := g.carriers.Find(offer)
	g.carriers.Strip(offer)
	return handshake.Offered(offer), presented.PairPrefix
}

// hijacker is for the upgrader, which asks the writer itself and not those
// it wraps.
type hijacker struct{ http.ResponseWriter }

// Hijack implements http.Hijacker.
func (w hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return hijackInnermost(w.ResponseWriter)
}
