// Package graphql follows this example's README.
package graphql

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/wsgate/caddy-wsgate/examples/internal/exampletest"
)

const (
	graphql  = "ws://localhost:8080/graphql"
	post     = "http://localhost:8080/graphql"
	protocol = "graphql-transport-ws"
)

func TestExample(t *testing.T) {
	exampletest.NeedNode(t)
	e := exampletest.New(t, 3000, 8080)
	e.Follow()
	e.Logged()
	alice := e.Run("node mint.mjs alice")

	// The identity is in the operation's result, over the bare protocol; a
	// header of one's own never gets there.
	header := exampletest.Bearer(alice)
	header["X-User-Id"], header["x_user_id"] = []string{"bob"}, []string{"bob"}
	c := e.Open(graphql, header, protocol)
	if c.Subprotocol() != protocol {
		t.Errorf("subprotocol %q", c.Subprotocol())
	}
	e.Says(c, `{"type":"connection_init"}`)
	e.Hears(c, `{"type":"connection_ack"}`)
	e.Says(c, `{"id":"1","type":"subscribe","payload":{"query":"subscription { countdown(from: 1) }"}}`)
	e.Hears(c, `{"id":"1","type":"next","payload":{"data":{"countdown":"1 for alice"}}}`)
	e.Hears(c, `{"id":"1","type":"complete"}`)

	e.RefusesStrangers(graphql, alice, protocol)
	e.Refused("no subprotocol beside the token", http.StatusBadRequest, graphql, nil, "bearer."+alice)

	// Queries by POST: the gate lets Alice pass, and this backend, which has no
	// such thing, asks for an upgrade.
	if status, _, _ := e.Request(http.MethodPost, post, "{}", nil); status != http.StatusUnauthorized {
		t.Errorf("POST without a token: %d", status)
	}
	if status, _, _ := e.Request(http.MethodPost, post, "{}", exampletest.Bearer(alice)); status != http.StatusUpgradeRequired {
		t.Errorf("POST: %d", status)
	}

	// The other ways of a token that the README names.
	e.AlsoGate(8081, "from_query access_token", "from_header Authorization")
	const ask = `
		import { createClient } from 'graphql-ws'
		import WebSocket from 'ws'
		const token = process.env.TOKEN
		class WithHeader extends WebSocket {
			constructor(url, protocol) { super(url, protocol, { headers: { Authorization: 'Bearer ' + token } }) }
		}
		const client = createClient({ retryAttempts: 0, %s })
		for await (const { data } of client.iterate({ query: '{ me }' })) console.log(data.me)
		await client.dispose()`
	for way, options := range map[string]string{
		"header": `webSocketImpl: WithHeader, url: 'ws://localhost:8081/graphql'`,
		"query":  `webSocketImpl: WebSocket, url: async () => 'ws://localhost:8081/graphql?access_token=' + token`,
	} {
		if got := e.Script(fmt.Sprintf(ask, options), "TOKEN="+alice); got != "alice" {
			t.Errorf("%s: got %q", way, got)
		}
	}

	// A browser has the class of client.mjs around its own WebSocket.
	client := e.Read("client.mjs")
	class := client[strings.Index(client, "class "):strings.Index(client, "const client")]
	got := e.Browser("http://localhost:8080", e.Read("node_modules/graphql-ws/umd/graphql-ws.min.js")+fmt.Sprintf(`
		;(async () => {
			const token = '%s'
			%s
			const client = graphqlWs.createClient({ url: '%s', webSocketImpl: GatedWebSocket, retryAttempts: 0 })
			for await (const { data } of client.iterate({ query: '{ me }' })) return data.me
		})()`, alice, class, e.URL(graphql)))
	if got != "alice" {
		t.Errorf("the page got %q", got)
	}
	e.BackendDown(graphql, nil, protocol, "bearer."+alice)
}
