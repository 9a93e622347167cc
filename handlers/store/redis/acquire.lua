-- One handshake's rates and caps, decided in one step by the clock of Redis.
--
-- KEYS  evicted; one a rate; leases and order of each slot
-- ARGV  member, latest (µs) or '', ttl (µs), channel, rates, slots;
--       a rate: interval (µs), burst;
--       a slot: limit, evict (0 or 1), changes, and for each of these a
--       member and its order, or '' for one that is gone
-- gives rate without a token (or -1), its wait (µs), full slot (or -1), order
--       of the member, those evicted

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local at = 0
local function arg()
	at = at + 1
	return ARGV[at]
end
local function text(number) return string.format('%.0f', number) end

local member, latest, ttl, channel = arg(), tonumber(arg()), tonumber(arg()), arg()
local rates, slots = tonumber(arg()), tonumber(arg())
local evicted = KEYS[1]

-- Whoever asked has given up, and may have ended what asked.
if latest and now > latest then
	return redis.error_reply('LATE the question came too late')
end

-- A bucket is kept as the time at which it will be full (GCRA). One that is
-- emptier than empty is of a clock that was set back.
local full = {}
for i = 1, rates do
	local interval, burst = tonumber(arg()), tonumber(arg())
	local known = tonumber(redis.call('GET', KEYS[1 + i]) or '0')
	if known < now or known > now + interval * burst + 1 then
		known = now
	end
	local wait = known - now - interval * (burst - 1)
	if wait > 0 then
		return { i - 1, math.ceil(wait), -1, text(now), {} }
	end
	full[i] = known + interval
end
-- Every bucket has a token: only now one is taken of each.
for i = 1, rates do
	local rest = math.max(1, math.ceil((full[i] - now) / 1000))
	redis.call('SET', KEYS[1 + i], string.format('%.3f', full[i]), 'PX', text(rest))
end

local slot = {}
for i = 1, slots do
	local leases, order = KEYS[rates + 2 * i], KEYS[rates + 2 * i + 1]
	local limit, evict, changes = tonumber(arg()), arg() == '1', tonumber(arg())
	for _ = 1, changes do
		local other, since = arg(), arg()
		if since == '' then
			redis.call('ZREM', leases, other)
			redis.call('ZREM', order, other)
		elseif not redis.call('ZSCORE', evicted, other) then
			redis.call('ZADD', leases, text(now + ttl), other)
			redis.call('ZADD', order, since, other)
			redis.call('PEXPIRE', leases, text(ttl / 1000))
			redis.call('PEXPIRE', order, text(ttl / 1000))
		end
	end
	-- Leases that nobody renewed.
	local dead
	repeat
		dead = redis.call('ZRANGEBYSCORE', leases, '-inf', text(now), 'LIMIT', 0, 1000)
		if #dead > 0 then
			redis.call('ZREM', leases, unpack(dead))
			redis.call('ZREM', order, unpack(dead))
		end
	until #dead == 0
	-- A request that is sent again, after its answer was lost, has its place.
	local held = redis.call('ZSCORE', leases, member)
	if not held and not evict and redis.call('ZCARD', leases) >= limit then
		return { -1, 0, i - 1, text(now), {} }
	end
	slot[i] = { leases = leases, order = order, limit = limit, held = held }
end

local gone = {}
for i = 1, slots do
	while not slot[i].held and redis.call('ZCARD', slot[i].leases) >= slot[i].limit do
		local oldest = redis.call('ZRANGE', slot[i].order, 0, 0)[1] or redis.call('ZRANGE', slot[i].leases, 0, 0)[1]
		for j = 1, slots do
			redis.call('ZREM', slot[j].leases, oldest)
			redis.call('ZREM', slot[j].order, oldest)
		end
		-- Its node must not register it again, also if it misses the message.
		redis.call('ZADD', evicted, text(now + 4 * ttl), oldest)
		gone[#gone + 1] = oldest
	end
end
if #gone > 0 then
	redis.call('ZREMRANGEBYSCORE', evicted, '-inf', text(now))
	redis.call('PEXPIRE', evicted, text(ttl * 4 / 1000))
	-- Who may not publish still evicts: the node learns of it by renewing.
	redis.pcall('PUBLISH', channel, cjson.encode({ evicted = gone }))
end

for i = 1, slots do
	redis.call('ZADD', slot[i].leases, text(now + ttl), member)
	redis.call('ZADD', slot[i].order, text(now), member)
	redis.call('PEXPIRE', slot[i].leases, text(ttl / 1000))
	redis.call('PEXPIRE', slot[i].order, text(ttl / 1000))
end
return { -1, 0, -1, text(now), gone }
