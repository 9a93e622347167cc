// A GraphQL server on graphql-ws. It knows nothing of tokens: whoever gets here
// has been let in, and X-User-Id says who it is.
import { buildSchema } from 'graphql'
import { useServer } from 'graphql-ws/use/ws'
import { WebSocketServer } from 'ws'

const schema = buildSchema(`
  type Query { me: String! }
  type Subscription { countdown(from: Int!): String! }
`)
const roots = {
  query: { me: (args, { user }) => user },
  subscription: {
    async *countdown({ from }, { user }) {
      for (let n = from; n > 0; n--) yield { countdown: `${n} for ${user}` }
    },
  },
}
const context = ({ extra }) => ({ user: extra.request.headers['x-user-id'] })

const server = new WebSocketServer({ host: '127.0.0.1', port: 3000, path: '/graphql' })
useServer({ schema, roots, context }, server)
server.on('listening', () => console.log('GraphQL on port 3000'))
