// A query and a subscription:  TOKEN=… node client.mjs
import { createClient } from 'graphql-ws'
import WebSocket from 'ws' // not in a browser, which has its own

const token = process.env.TOKEN

// graphql-ws offers the subprotocol graphql-transport-ws; this puts the token
// beside it, at every reconnect, in Node and in browsers.
class GatedWebSocket extends WebSocket {
  constructor(url, protocol) {
    super(url, token ? [protocol, `bearer.${token}`] : protocol)
  }
}
const client = createClient({
  url: 'ws://localhost:8080/graphql',
  webSocketImpl: GatedWebSocket,
  retryAttempts: 0,
})

try {
  for (const query of ['query { me }', 'subscription { countdown(from: 3) }']) {
    for await (const result of client.iterate({ query })) console.log(JSON.stringify(result.data))
  }
} catch (error) {
  console.log('error:', error.message)
  process.exitCode = 1
}
await client.dispose()
