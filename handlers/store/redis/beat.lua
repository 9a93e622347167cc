-- A node tells that it lives, and hears what else there is to know.
--
-- KEYS  nodes, version of the revocations
-- ARGV  node, ttl (µs)
-- gives the clock of Redis (µs), the version

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
return { string.format('%.0f', now), redis.call('GET', KEYS[2]) or '' }
