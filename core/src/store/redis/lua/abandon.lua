-- KEYS lease   ARGV token uncacheable_for
local held = redis.call('GET', KEYS[1])
if not held or string.sub(held, 10) ~= ARGV[1] then return 0 end
local ms = tonumber(ARGV[2])
if ms > 0 then
  redis.call('SET', KEYS[1], string.sub(held, 1, 8) .. 'U' .. ARGV[1], 'PX', ms)
else
  redis.call('DEL', KEYS[1])
end
return 1
