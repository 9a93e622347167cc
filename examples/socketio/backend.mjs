// A socket.io server. It knows nothing of tokens: whoever gets here has been
// let in, and X-User-Id says who it is.  node backend.mjs 3001
import { createServer } from 'node:http'
import { Server } from 'socket.io'

const port = Number(process.argv[2])
const server = createServer()
const io = new Server(server)

io.on('connection', (socket) => {
  const user = socket.handshake.headers['x-user-id']
  socket.emit('welcome', user, port)
  socket.on('say', (text, answer) => answer(`${user}: ${text}`, port))
})
server.listen(port, '127.0.0.1', () => console.log('socket.io on port', port))
