// An MQTT broker, aedes, over WebSocket. It knows nothing of tokens: whoever
// gets here has been let in, and X-User-Id says who it is. Everyone has the
// topics under users/<id>/.
import { Aedes } from 'aedes'
import { createWebSocketStream, WebSocketServer } from 'ws'

const own = (client, topic) => topic.startsWith(`users/${client.req.headers['x-user-id']}/`)

const broker = await Aedes.createBroker({
  authorizePublish: (client, { topic }, done) => done(own(client, topic) ? null : new Error('not your topic')),
  authorizeSubscribe: (client, subscription, done) => done(null, own(client, subscription.topic) ? subscription : null),
})
const server = new WebSocketServer({ host: '127.0.0.1', port: 3000 })

server.on('connection', (socket, request) => broker.handle(createWebSocketStream(socket), request))
server.on('listening', () => console.log('MQTT on port 3000'))
