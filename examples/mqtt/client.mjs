// Puts a message into an inbox and takes it out:  TOKEN=… node client.mjs alice 'hello'
import mqtt from 'mqtt'
import WebSocket from 'ws' // not in a browser, which has its own

const token = process.env.TOKEN
const [user, text = 'hello'] = process.argv.slice(2)

try {
  const client = await mqtt.connectAsync('ws://localhost:8080/mqtt', {
    // MQTT.js offers the subprotocol mqtt. This puts the token beside it, at
    // every reconnect, in Node and in browsers.
    createWebsocket: (url, protocols) => new WebSocket(url, token ? [...protocols, `bearer.${token}`] : protocols),
  }, false)

  client.on('message', (topic, payload) => {
    console.log(`${topic}: ${payload}`)
    client.end()
  })
  client.on('error', (error) => console.log('error:', error.message))
  console.log('connected')
  await client.subscribeAsync(`users/${user}/inbox`)
  await client.publishAsync(`users/${user}/inbox`, text)
} catch (error) {
  console.log('error:', error.message)
  process.exit(1)
}
