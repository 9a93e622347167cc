package module

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/wsgate/caddy-wsgate/handlers/store"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// order is what an operator wants of every node: one of its fields.
type order struct {
	List   *listing          `json:"list,omitempty"`
	Show   string            `json:"show,omitempty"` // a connection
	Close  *closing          `json:"close,omitempty"`
	Revoke *store.Revocation `json:"revoke,omitempty"`
	Send   *message          `json:"send,omitempty"`
}

// listing asks for the first connections of a selection behind an id.
type listing struct {
	selection
	After string `json:"after,omitempty"`
	Limit int    `json:"limit"`
}

// closing ends one connection, or those of a selection.
type closing struct {
	ID string `json:"id,omitempty"`
	selection
	Code uint16 `json:"code"`
	Text string `json:"text"`
}

// result is what came of an order, on one node or on all of them.
type result struct {
	Count       int          `json:"count,omitempty"` // of sockets
	Connections []connection `json:"connections,omitempty"`

	// Why other nodes may have more to say.
	incomplete string
}

// everywhere carries out an order on all nodes.
func everywhere(ctx context.Context, o order) result {
	all := o.carryOut()
	app := running.Load()
	if app == nil {
		return all
	}
	shared, ok := app.store.(store.Shared)
	if !ok {
		return all
	}
	text, err := json.Marshal(o)
	if err != nil {
		all.incomplete = err.Error()
		return all
	}
	answers, err := shared.Gather(ctx, text)
	if err != nil {
		all.incomplete = err.Error()
	}
	for _, answer := range answers {
		var one result
		if err := json.Unmarshal(answer, &one); err != nil {
			all.incomplete = fmt.Sprintf("reading the answer of a node: %v", err)
			continue
		}
		all.Count += one.Count
		all.Connections = append(all.Connections, one.Connections...)
	}
	slices.SortFunc(all.Connections, func(a, b connection) int { return cmp.Compare(a.ID, b.ID) })
	if o.Revoke != nil {
		// Whether or not the operator still waits for the answer.
		if err := shared.Revoke(context.WithoutCancel(ctx), *o.Revoke); err != nil {
			all.incomplete = err.Error()
		}
	}
	return all
}

// obey carries out another node's order.
func obey(text []byte) []byte {
	var o order
	err := json.Unmarshal(text, &o)
	if err == nil {
		err = o.check()
	}
	if err != nil {
		logger().Warn("not understanding another node", zap.Error(err))
		return nil
	}
	answer, err := json.Marshal(o.carryOut())
	if err != nil {
		logger().Warn("answering another node", zap.Error(err))
		return nil
	}
	return answer
}

// check holds another node's order to what the API of this one would let
// through: who can write to the store is not thereby who can do anything.
func (o order) check() error {
	switch {
	case o.List != nil && (o.List.Limit < 1 || o.List.Limit > listMost+1):
		return fmt.Errorf("list: %d is no limit", o.List.Limit)
	case o.Close != nil && o.Close.ID == "" && o.Close.selection == (selection{}):
		return errors.New("close: needs an id, user, issuer or tunnel")
	case o.Close != nil && !mayBeSent(int(o.Close.Code)):
		return fmt.Errorf("close: %d is not a close code that may be sent", o.Close.Code)
	case o.Close != nil && !isCloseReason(o.Close.Text):
		return errors.New("close: more than 123 bytes of reason, or no UTF-8")
	case o.Revoke != nil:
		return revocation{ID: o.Revoke.TokenID, User: o.Revoke.User, SessionID: o.Revoke.SessionID, Issuer: o.Revoke.Issuer}.check(time.Now())
	case o.Send != nil:
		return o.Send.check()
	}
	return nil
}

// carryOut carries out the order on this node.
func (o order) carryOut() (done result) {
	switch {
	case o.List != nil:
		for _, s := range o.List.page(o.List.After, o.List.Limit) {
			done.Connections = append(done.Connections, describe(s))
		}
	case o.Show != "":
		if s := live.Get(o.Show); s != nil {
			done.Connections = []connection{describe(s)}
		}
	case o.Close != nil:
		done.Count = o.Close.carryOut()
	case o.Revoke != nil:
		revocations.Merge(*o.Revoke, time.Now())
		done.Count = closeRevoked()
	case o.Send != nil:
		done.Count = o.Send.carryOut()
	}
	return done
}

// carryOut ends the sockets and tells how many were not ending before. Their
// slots are free when it returns.
func (c closing) carryOut() (closed int) {
	cause := causeAdmin
	cause.Code, cause.Text = c.Code, c.Text
	sockets := []*tunnel.Socket{live.Get(c.ID)}
	if c.ID == "" {
		sockets = c.sockets()
	}
	for _, s := range sockets {
		if s != nil && s.Close(cause) {
			closed++
		}
	}
	return closed
}
