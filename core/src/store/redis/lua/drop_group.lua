-- KEYS nonce index doomed left
-- From here on the group holds nothing: no entry and no lease carries the next nonce. Answers the nonce that was, and the
-- lists of entries that are to be unlinked, each with the nonce that they were written under: the group's own, as `doomed`,
-- and those that evictions left which did not come to their end.
local nonce, index, doomed, left = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local old = redis.call('MGET', nonce)[1] or ''
redis.call('UNLINK', nonce)
drop_unless(left, 'hash')
if drop_unless(index, 'zset') then
  redis.call('RENAME', index, doomed)
  redis.call('HSET', left, doomed, old)
  -- The list lasts as long as what it lists, and so does the note of it.
  local ms = redis.call('PTTL', doomed)
  if ms < 0 then
    redis.call('PERSIST', left)
  elseif redis.call('HLEN', left) == 1 then
    redis.call('PEXPIRE', left, ms)
  else
    keep(left, ms)
  end
end
return {old, redis.call('HGETALL', left)}
