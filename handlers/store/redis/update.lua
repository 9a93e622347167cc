-- Registers and renews leases, and takes away those that are over.
--
-- KEYS  evicted; leases and order, for each lease
-- ARGV  ttl (µs); for each lease its member and order, or '' for one that is
--       gone
-- gives members that were evicted, and are not registered again

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ttl = tonumber(ARGV[1])
local expiry = string.format('%.0f', now + ttl)
local lost = {}
local function update(leases, order, member, since)
	if since == '' then
		redis.call('ZREM', leases, member)
		redis.call('ZREM', order, member)
	elseif redis.call('ZADD', leases, expiry, member) == 1 and redis.call('ZSCORE', KEYS[1], member) then
		redis.call('ZREM', leases, member)
		lost[#lost + 1] = member
	else
		redis.call('ZADD', order, 'NX', since, member)
		redis.call('PEXPIRE', leases, string.format('%.0f', ttl / 1000))
		redis.call('PEXPIRE', order, string.format('%.0f', ttl / 1000))
	end
end
for i = 1, (#KEYS - 1) / 2 do
	local ok, err = pcall(update, KEYS[2 * i], KEYS[2 * i + 1], ARGV[2 * i], ARGV[2 * i + 1])
	-- Of a key that somebody else wrote, no other key has to suffer.
	if not ok and not string.find(err, 'WRONGTYPE', 1, true) then
		return redis.error_reply(err)
	end
end
return lost
