package module

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/auth"
	"github.com/wsgate/caddy-wsgate/handlers/handshake"
)

// visit is one request on its way through the checks, and what they find out.
type visit struct {
	r         *http.Request
	handshake bool
	offer     []string // of subprotocols, as it came
	presented auth.Presented
	token     *auth.Token
	id        string        // of the connection to be; only handshakes have one
	rates     []countedRate // that the store is still to be asked for
	place     *place        // under the caps; nil without any

	askedStore time.Time // first, of this request
}

func newVisit(r *http.Request) *visit {
	v := &visit{r: r, handshake: handshake.Is(r), offer: slices.Clone(r.Header["Sec-Websocket-Protocol"])}
	if v.handshake {
		v.id = newConnectionID(time.Now())
	}
	return v
}

// leave gives back what the visit holds, unless a socket holds it now.
func (v *visit) leave() {
	if v.place != nil {
		v.place.leave()
	}
}

// clientIP is the client's address as Caddy knows it: proxies in front are
// believed only where the server trusts them.
func (v *visit) clientIP() string {
	ip, _ := caddyhttp.GetVar(v.r.Context(), caddyhttp.ClientIPVarKey).(string)
	return ip
}

func (v *visit) replacer() *caddy.Replacer {
	repl, _ := v.r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	return repl
}

// setPlaceholders makes the identity known to the handlers that follow. The
// values are data: nothing expands them again.
func (v *visit) setPlaceholders() {
	repl := v.replacer()
	if repl == nil {
		return
	}
	// Caddy's access log takes its user_id from this one.
	repl.Set("http.auth.user.id", v.token.User)
	repl.Set("http.ws_gate.connection_id", v.id)
	claims := v.token.Claims
	repl.Map(func(key string) (any, bool) {
		path, ok := strings.CutPrefix(key, "http.auth.user.")
		if !ok {
			return nil, false
		}
		value, ok := claims.Scalar(path)
		return value, ok
	})
}

// idEncoding keeps the order of what it encodes.
var idEncoding = base32.HexEncoding.WithPadding(base32.NoPadding)

// newConnectionID is unique among all nodes, and later ones sort behind
// earlier ones: 48 bits of milliseconds, 72 random bits.
func newConnectionID(now time.Time) string {
	var b [15]byte
	_, _ = rand.Read(b[6:]) // never fails, see its documentation
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(b[:6], ms[2:])
	return strings.ToLower(idEncoding.EncodeToString(b[:]))
}
