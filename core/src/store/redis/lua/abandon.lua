-- KEYS lease   ARGV token uncacheable_for
-- Releases a lease. A positive `uncacheable_for` leaves a mark for that many milliseconds. Returns 1 if the lease was there.
local held = redis.call('MGET', KEYS[1])[1]
-- The mark of an uncacheable response carries the token of its lease, but is no lease.
if not held or string.sub(held, 10) ~= ARGV[1] or string.sub(held, 9, 9) == 'U' then return 0 end
local ms = tonumber(ARGV[2])
if ms > 0 then
  redis.call('SET', KEYS[1], string.sub(held, 1, 8) .. 'U' .. ARGV[1], 'PX', ms)
else
  redis.call('DEL', KEYS[1])
end
return 1
