// Opens by polling, upgrades to WebSocket, says hello:  TOKEN=… node client.mjs
import { io } from 'socket.io-client'

const token = process.env.TOKEN

const socket = io('http://localhost:8080', {
  query: token ? { access_token: token } : {}, // in the URL of each request, polling and WebSocket
  withCredentials: true, // keeps the sticky cookie; a browser does so for its own origin without this
})

socket.io.on('open', () => {
  const { engine } = socket.io
  console.log('open by', engine.transport.name)
  engine.on('upgrade', (transport) => {
    socket.emit('say', 'hello', (answer, port) => {
      console.log(`${answer}, from port ${port}, by ${transport.name}`)
      socket.close()
    })
  })
})
socket.on('welcome', (user, port) => console.log(`welcome, ${user}, from port ${port}`))
socket.on('connect_error', (error) => {
  console.log('refused:', error.description)
  process.exitCode = 1
  socket.close()
})
