-- KEYS clock table   ARGV fresh ms
-- Returns the tag clock: nonce (8), then the epoch in digits. Creates one with the nonce `fresh` if there is none. The clock and
-- the table then last at least `ms`; below zero means no expiry.
local clock, ms = redis.call('MGET', KEYS[1])[1], tonumber(ARGV[2])
if not clock then
  clock = ARGV[1] .. epoch_after(0)
  redis.call('SET', KEYS[1], clock)
  if ms >= 0 then redis.call('PEXPIRE', KEYS[1], 2 * ms + 60000) end
  return clock
end
for _, key in ipairs(KEYS) do
  if ms >= 0 then
    keep(key, ms)
  else
    redis.call('PERSIST', key)
  end
end
return clock
