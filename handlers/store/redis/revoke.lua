-- Keeps what was revoked or lifted; of two words on one subject the later one
-- counts.
--
-- KEYS  revocations, ends, version
-- ARGV  channel; for each: subject, value, when it was said (µs), when it ends
--       (µs) or '+inf'
-- gives how much of it was news

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local changed = {}
for i = 2, #ARGV, 4 do
	local subject, value, said, ends = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
	local known = redis.call('HGET', KEYS[1], subject)
	local before = known and tonumber(string.match(known, '^%d+')) or -1
	if before < said then
		redis.call('HSET', KEYS[1], subject, value)
		redis.call('ZADD', KEYS[2], ends, subject)
		changed[#changed + 1] = { subject = subject, value = value }
	end
end
if #changed > 0 then
	local version = string.format('%.0f', now) .. '-' .. changed[1].value
	local before = redis.call('GET', KEYS[3]) or ''
	redis.call('SET', KEYS[3], version)
	-- Who may not publish still revokes: the nodes compare the version.
	redis.pcall('PUBLISH', ARGV[1], cjson.encode({ changed = changed, before = before, version = version }))
end
return #changed
