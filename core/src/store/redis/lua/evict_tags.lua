-- KEYS clock table   ARGV max kind mark...
-- Notes an eviction by tag in the table, `kind` being H or S for a hard or a soft one, and advances the clock. Returns the clock, or
-- nothing if there is none: then no tagged entry is valid. A table of more than `max` marks is replaced by an empty one with a higher
-- floor. A server without room for the note forgets the clock instead.
local clock, kind = redis.call('MGET', KEYS[1])[1], ARGV[2] == 'S' and 's' or ''
if not clock then
  redis.call('UNLINK', KEYS[2])
  return false
end
local nonce, old = string.sub(clock, 1, 8), tonumber(string.sub(clock, 9)) or 0
local epoch, fields = epoch_after(old), {}
if not drop_unless(KEYS[2], 'hash') or redis.call('HMGET', KEYS[2], 'n')[1] ~= nonce then
  redis.call('UNLINK', KEYS[2])
  fields = {'n', nonce, 'f', string.format('%.0f', old)}
elseif redis.call('HLEN', KEYS[2]) + #ARGV > tonumber(ARGV[1]) + 4 then
  redis.call('UNLINK', KEYS[2])
  fields = {'n', nonce, 'f', epoch}
end
for i = 3, #ARGV do
  fields[#fields + 1] = kind .. ARGV[i]
  fields[#fields + 1] = epoch
end
local noted = redis.pcall('HSET', KEYS[2], unpack(fields))
if type(noted) == 'table' and noted.err then
  redis.call('UNLINK', KEYS[1], KEYS[2])
  return false
end
clock = nonce .. epoch
redis.call('SET', KEYS[1], clock, 'KEEPTTL')
local ms = redis.call('PTTL', KEYS[1])
if ms >= 0 then
  redis.call('PEXPIRE', KEYS[2], ms)
else
  redis.call('PERSIST', KEYS[2])
end
return clock
