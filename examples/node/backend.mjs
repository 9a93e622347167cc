// A chat room on npm's ws. It knows nothing of tokens: whoever gets here has
// been let in, and X-User-Id says who it is.
import { WebSocketServer } from 'ws'

const server = new WebSocketServer({ host: '127.0.0.1', port: 3000 })

server.on('listening', () => console.log('chat on port 3000'))
server.on('connection', (socket, request) => {
  const user = request.headers['x-user-id']
  socket.on('error', console.error)
  socket.on('message', (data, isBinary) => {
    for (const member of server.clients) member.send(isBinary ? data : `${user}: ${data}`)
  })
  socket.send(`welcome, ${user}`)
})
