// Package mqtt follows this example's README.
package mqtt

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/wsgate/caddy-wsgate/examples/internal/exampletest"
)

const broker = "ws://localhost:8080/mqtt"

// roundTrip publishes every byte that there is at QoS 1 and looks at what the
// subscription brings, by MQTT.js in Node.js and in a browser.
const roundTrip = `
	const sent = Uint8Array.from({ length: 70000 }, (_, i) => i)
	const client = await mqtt.connectAsync(url, options, false)
	const received = new Promise((resolve) => client.on('message', (topic, payload) => resolve(payload)))
	await client.subscribeAsync('users/alice/files', { qos: 1 })
	await client.publishAsync('users/alice/files', mqtt.Buffer ? mqtt.Buffer.from(sent) : Buffer.from(sent), { qos: 1 })
	const got = await received
	await client.endAsync()
	const result = got.length === sent.length && sent.every((byte, i) => byte === got[i]) ? 'the same' : 'another'`

func TestExample(t *testing.T) {
	exampletest.NeedNode(t)
	e := exampletest.New(t, 3000, 8080)
	e.Follow()
	e.Logged()
	alice := e.Run("node mint.mjs alice")

	// A header of one's own never gets there, nor the token's subprotocol back.
	header := http.Header{"X-User-Id": {"bob"}, "x_user_id": {"bob"}}
	if c := e.Open(broker, header, "mqtt", "bearer."+alice); c.Subprotocol() != "mqtt" {
		t.Errorf("subprotocol %q", c.Subprotocol())
	}
	e.RefusesStrangers(broker, alice, "mqtt")
	e.Refused("no subprotocol beside the token", http.StatusBadRequest, broker, nil, "bearer."+alice)

	// Every way of a token that the README names for MQTT.js, with binary
	// payloads.
	e.AlsoGate(8081, "from_query access_token", "from_header Authorization", "from_subprotocol bearer")
	for way, options := range map[string]string{
		"subprotocol": `createWebsocket: (url, protocols) => new WebSocket(url, [...protocols, 'bearer.' + token])`,
		"query":       `transformWsUrl: (url) => url + '?access_token=' + token`,
		"header":      `wsOptions: { headers: { Authorization: 'Bearer ' + token } }`,
	} {
		got := e.Script(fmt.Sprintf(`
			import mqtt from 'mqtt'
			import WebSocket from 'ws'
			const token = process.env.TOKEN, url = 'ws://localhost:8081/mqtt', options = { %s }
			%s
			console.log(result)`, options, roundTrip), "TOKEN="+alice)
		if got != "the same" {
			t.Errorf("%s: got %q", way, got)
		}
		if strings.HasPrefix(options, "ws") {
			continue // a browser cannot
		}
		got = e.Browser("http://localhost:8081", e.Read("node_modules/mqtt/dist/mqtt.min.js")+fmt.Sprintf(`
			;(async () => {
				const token = '%s', url = '%s', options = { %s }
				const Buffer = { from: (bytes) => bytes }
				%s
				return result
			})()`, alice, e.URL("ws://localhost:8081/mqtt"), options, roundTrip))
		if got != "the same" {
			t.Errorf("%s in a browser: got %q", way, got)
		}
	}
	e.BackendDown(broker, nil, "mqtt", "bearer."+alice)
}
