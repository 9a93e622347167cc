// Says one thing in the chat:  TOKEN=… node client.mjs 'hello'
import WebSocket from 'ws' // not in a browser, which has its own

const token = process.env.TOKEN
const text = process.argv[2] ?? 'hello'

const socket = new WebSocket('ws://localhost:8080/chat', token ? ['bearer', token] : [])
// A program can send a header instead:
// new WebSocket('ws://localhost:8080/chat', { headers: { Authorization: `Bearer ${token}` } })

socket.onopen = () => socket.send(text)
socket.onmessage = ({ data }) => {
  console.log(data)
  if (data.endsWith(`: ${text}`)) socket.close(1000)
}
socket.onerror = ({ message }) => console.log('error:', message)
socket.onclose = ({ code, reason }) => {
  console.log('closed:', code, reason)
  process.exitCode = code === 1000 ? 0 : 1
}
