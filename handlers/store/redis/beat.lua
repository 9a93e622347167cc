-- A node tells that it lives, and hears what else there is to know.
--
-- KEYS  nodes, revocations, ends, version
-- ARGV  node, ttl (µs)
-- gives the clock of Redis (µs), the version of the revocations, '1' if the
--       node was not known to live

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function text(number) return string.format('%.0f', number) end

-- First what needs memory: a script that has written is not refused it.
local new = redis.call('ZADD', KEYS[1], text(now + tonumber(ARGV[2])), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now))
-- Some of the revocations that have ended make room.
for _, subject in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', text(now), 'LIMIT', 0, 100)) do
	redis.call('HDEL', KEYS[2], subject)
	redis.call('ZREM', KEYS[3], subject)
end
return { text(now), redis.call('GET', KEYS[4]) or '', text(new) }
