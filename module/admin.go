package module

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

func init() {
	caddy.RegisterModule(new(Admin))
}

// Admin is the gate's part of Caddy's admin API, under /ws_gate/ on the admin
// endpoint and with its access control. It lists and ends live sockets,
// revokes tokens, and sends messages to clients.
//
//	GET    /ws_gate/connections?user=&issuer=&tunnel=&limit=&after=
//	GET    /ws_gate/connections/{id}
//	DELETE /ws_gate/connections/{id}?code=&reason=
//	DELETE /ws_gate/connections?user=&issuer=&tunnel=&code=&reason=
//	GET    /ws_gate/revocations
//	POST   /ws_gate/revocations   {"jti"|"user"|"sid": …, "issuer": …, "until": …}
//	DELETE /ws_gate/revocations?jti=&user=&sid=&issuer=
//	POST   /ws_gate/messages      {"user"|"tunnel"|"all": …, "text"|"binary": …}
type Admin struct{}

// CaddyModule returns the Caddy module information.
func (*Admin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.ws_gate",
		New: func() caddy.Module { return new(Admin) },
	}
}

// Routes implements caddy.AdminRouter.
func (a *Admin) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: "/ws_gate/", Handler: caddy.AdminHandlerFunc(serveAdmin)}}
}

// How many sockets a list has.
const (
	listDefault = 100
	listMost    = 1000
)

// maxAdminBody bounds what is read of a request.
const maxAdminBody = 4 << 20

func serveAdmin(w http.ResponseWriter, r *http.Request) error {
	path := strings.TrimPrefix(r.URL.Path, "/ws_gate/")
	id, one := strings.CutPrefix(path, "connections/")
	switch {
	case one && id != "" && r.Method == http.MethodGet:
		return showConnection(w, r, id)
	case one && id != "" && r.Method == http.MethodDelete:
		return closeConnection(w, r, id)
	case one && id != "":
		return notAllowed(w, http.MethodGet, http.MethodDelete)
	}
	methods, ok := adminRoutes[path]
	if !ok {
		return adminError(http.StatusNotFound, errors.New("no such endpoint"))
	}
	serve, ok := methods[r.Method]
	if !ok {
		allowed := make([]string, 0, len(methods))
		for method := range methods {
			allowed = append(allowed, method)
		}
		slices.Sort(allowed)
		return notAllowed(w, allowed...)
	}
	return serve(w, r)
}

// adminRoutes are the endpoints by path and method.
var adminRoutes = map[string]map[string]caddy.AdminHandlerFunc{
	"connections": {http.MethodGet: listConnections, http.MethodDelete: closeConnections},
	"revocations": {http.MethodGet: listRevocations, http.MethodPost: addRevocation, http.MethodDelete: liftRevocation},
	"messages":    {http.MethodPost: sendMessage},
}

// connection is a live socket as the API shows it.
type connection struct {
	ID          string     `json:"id"`
	Node        string     `json:"node"`
	Tunnel      string     `json:"tunnel"`
	User        string     `json:"user"`
	Issuer      string     `json:"issuer"`
	ClientIP    string     `json:"client_ip"`
	Upstream    string     `json:"upstream"`
	Subprotocol string     `json:"subprotocol"`
	OpenedAt    time.Time  `json:"opened_at"`
	ExpiresAt   *time.Time `json:"expires_at,omitempty"`
	LastSeen    time.Time  `json:"last_seen"`
	Bytes       traffic    `json:"bytes"`
	Messages    traffic    `json:"messages"`
}

// traffic is a count by direction; in is from the client.
type traffic struct {
	In  uint64 `json:"in"`
	Out uint64 `json:"out"`
}

// node is this process among others: the host it runs on and its number there.
var node = func() string {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return host + ":" + strconv.Itoa(os.Getpid())
}()

func describe(s *tunnel.Socket) connection {
	in, out := s.Traffic()
	c := connection{
		ID: s.ID, Node: node, Tunnel: s.Tunnel, User: s.User, Issuer: s.Issuer, ClientIP: s.ClientIP,
		Upstream: s.Upstream, Subprotocol: s.Subprotocol,
		OpenedAt: s.Opened().UTC(), LastSeen: s.LastSeen().UTC(),
		Bytes: traffic{in.Bytes, out.Bytes}, Messages: traffic{in.Messages, out.Messages},
	}
	if !s.Expires.IsZero() {
		expires := s.Expires.UTC()
		c.ExpiresAt = &expires
	}
	return c
}

// selection is which sockets a call is about; empty fields match all.
type selection struct {
	User   string `json:"user,omitempty"`
	Issuer string `json:"issuer,omitempty"`
	Tunnel string `json:"tunnel,omitempty"`
}

func (sel selection) matches(s *tunnel.Socket) bool {
	return (sel.User == "" || sel.User == s.User) &&
		(sel.Issuer == "" || sel.Issuer == s.Issuer) &&
		(sel.Tunnel == "" || sel.Tunnel == s.Tunnel)
}

// sockets are the live sockets of the selection, which do not end yet.
func (sel selection) sockets() (found []*tunnel.Socket) {
	for s := range live.All() {
		if sel.matches(s) && !s.Ending() {
			found = append(found, s)
		}
	}
	return found
}

// page is the first n of the selection behind after, ordered by id. No more
// than twice as many are sorted at once, however many there are.
func (sel selection) page(after string, n int) (first []*tunnel.Socket) {
	trim := func() {
		slices.SortFunc(first, func(a, b *tunnel.Socket) int { return strings.Compare(a.ID, b.ID) })
		first = first[:min(n, len(first))]
	}
	for s := range live.All() {
		if s.ID <= after || !sel.matches(s) || s.Ending() {
			continue
		}
		if first = append(first, s); len(first) == 2*n {
			trim()
		}
	}
	trim()
	return first
}

func listConnections(w http.ResponseWriter, r *http.Request) error {
	query, err := parameters(r, "user", "issuer", "tunnel", "limit", "after")
	if err != nil {
		return err
	}
	limit := listDefault
	if text, ok := query["limit"]; ok {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > listMost {
			return adminError(http.StatusBadRequest, fmt.Errorf("limit: %q is not a number from 1 to %d", text, listMost))
		}
	}
	all := everywhere(r.Context(), order{List: &listing{
		selection: selection{query["user"], query["issuer"], query["tunnel"]}, After: query["after"], Limit: limit + 1,
	}})
	answer := struct {
		Connections []connection `json:"connections"`
		Next        string       `json:"next,omitempty"`
		Incomplete  string       `json:"incomplete,omitempty"`
	}{Connections: []connection{}, Incomplete: all.incomplete}
	answer.Connections = append(answer.Connections, all.Connections[:min(limit, len(all.Connections))]...)
	if len(all.Connections) > limit {
		answer.Next = all.Connections[limit-1].ID
	}
	return writeJSON(w, answer)
}

func showConnection(w http.ResponseWriter, r *http.Request, id string) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	all := everywhere(r.Context(), order{Show: id})
	if len(all.Connections) == 0 {
		return noConnection(all)
	}
	return writeJSON(w, all.Connections[0])
}

// noConnection answers for an id that no node has.
func noConnection(all result) error {
	text := "no live connection has this id"
	if all.incomplete != "" {
		text += "; " + all.incomplete
	}
	return adminError(http.StatusNotFound, errors.New(text))
}

func closeConnection(w http.ResponseWriter, r *http.Request, id string) error {
	query, err := parameters(r, "code", "reason")
	if err != nil {
		return err
	}
	cause, err := adminCause(query)
	if err != nil {
		return err
	}
	all := everywhere(r.Context(), order{Close: &closing{ID: id, Code: cause.Code, Text: cause.Text}})
	if all.Count == 0 {
		return noConnection(all)
	}
	return all.write(w, "closed")
}

func closeConnections(w http.ResponseWriter, r *http.Request) error {
	query, err := parameters(r, "user", "issuer", "tunnel", "code", "reason")
	if err != nil {
		return err
	}
	sel := selection{query["user"], query["issuer"], query["tunnel"]}
	if sel == (selection{}) {
		return adminError(http.StatusBadRequest, errors.New("needs user, issuer or tunnel"))
	}
	cause, err := adminCause(query)
	if err != nil {
		return err
	}
	return everywhere(r.Context(), order{Close: &closing{selection: sel, Code: cause.Code, Text: cause.Text}}).write(w, "closed")
}

// causeAdmin ends a socket for a caller of the API who says no more.
var causeAdmin = tunnel.Cause{By: tunnel.ByGate, Reason: "admin", Code: tunnel.CodePolicy, Text: "closed by the administrator"}

// adminCause is why sockets end that a caller of the API ends.
func adminCause(query map[string]string) (tunnel.Cause, error) {
	cause := causeAdmin
	if text, ok := query["code"]; ok {
		code, err := strconv.Atoi(text)
		if err != nil || !mayBeSent(code) {
			return cause, adminError(http.StatusBadRequest, fmt.Errorf("code: %q is not a close code that may be sent", text))
		}
		cause.Code = uint16(code)
	}
	if text, ok := query["reason"]; ok {
		if !isCloseReason(text) {
			return cause, adminError(http.StatusBadRequest, errors.New("reason: more than 123 bytes, or no UTF-8"))
		}
		cause.Text = text
	}
	return cause, nil
}

// mayBeSent reports whether a close frame may hold the code. RFC 6455 §7.4.1:
// some say something about what was not sent.
func mayBeSent(code int) bool {
	return code >= 1000 && code <= 4999 && code != 1005 && code != 1006 && code != 1015
}

// isCloseReason reports whether the text fits into a close frame.
func isCloseReason(text string) bool { return len(text) <= 123 && utf8.ValidString(text) }

// parameters reads the query: each name at most once, and none but these.
func parameters(r *http.Request, names ...string) (map[string]string, error) {
	values := make(map[string]string)
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, adminError(http.StatusBadRequest, errors.New("the query is malformed"))
	}
	for name, given := range query {
		if !slices.Contains(names, name) {
			return nil, adminError(http.StatusBadRequest, fmt.Errorf("unknown parameter %q", name))
		}
		if len(given) != 1 || given[0] == "" && name != "reason" {
			return nil, adminError(http.StatusBadRequest, fmt.Errorf("parameter %q needs one value", name))
		}
		values[name] = given[0]
	}
	return values, nil
}

// readJSON reads a body into value, and nothing that value has no place for.
func readJSON(w http.ResponseWriter, r *http.Request, value any) error {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(value); err != nil {
		return adminError(http.StatusBadRequest, fmt.Errorf("reading the body: %w", err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return adminError(http.StatusBadRequest, errors.New("the body has more than one value"))
	}
	return nil
}

func writeJSON(w http.ResponseWriter, value any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(value)
}

// write answers with the number of sockets, under a name.
func (r result) write(w http.ResponseWriter, name string) error {
	answer := map[string]any{name: r.Count}
	if r.incomplete != "" {
		answer["incomplete"] = r.incomplete
	}
	return writeJSON(w, answer)
}

// adminError is an error in the shape of Caddy's API.
func adminError(status int, err error) error {
	return caddy.APIError{HTTPStatus: status, Err: err}
}

func notAllowed(w http.ResponseWriter, methods ...string) error {
	w.Header().Set("Allow", strings.Join(methods, ", "))
	return adminError(http.StatusMethodNotAllowed, errors.New("method not allowed"))
}

// Interface guards.
var _ caddy.AdminRouter = (*Admin)(nil)
