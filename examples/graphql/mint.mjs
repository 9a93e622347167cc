// Signs a token, in place of an identity provider:  node mint.mjs alice [claim=value…]
// The first call makes a secret; it stays in .env, where the gate finds it too.
import { createHmac, randomBytes } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'

if (!existsSync('.env')) {
  writeFileSync('.env', `JWT_SECRET=${randomBytes(32).toString('base64')}\n`, { mode: 0o600 })
}
const secret = Buffer.from(readFileSync('.env', 'utf8').trim().slice('JWT_SECRET='.length), 'base64')

const [sub = 'alice', ...more] = process.argv.slice(2)
const now = Math.floor(Date.now() / 1000)
const claims = { sub, aud: 'demo', iat: now, exp: now + 3600, ...Object.fromEntries(more.map((claim) => claim.split('='))) }

const encode = (object) => Buffer.from(JSON.stringify(object)).toString('base64url')
const signed = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(claims)}`
console.log(`${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`)
