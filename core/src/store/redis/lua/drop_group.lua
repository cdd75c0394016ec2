-- KEYS nonce index detached unfinished
-- Invalidates a group: no entry and no lease carries its next nonce. Renames the index to `detached`. Returns the former nonce,
-- and all detached indexes of entries to unlink, each with the nonce of its entries: this one, and those of evictions that were
-- interrupted.
local nonce, index, detached, unfinished = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local old = current(redis.call('MGET', nonce)[1]) or ''
redis.call('UNLINK', nonce)
drop_unless(unfinished, 'hash')
if drop_unless(index, 'zset') then
  redis.call('RENAME', index, detached)
  redis.call('HSET', unfinished, detached, old)
  -- The index lasts as long as its entries, and so must the hash.
  local ms = redis.call('PTTL', detached)
  if ms < 0 then
    redis.call('PERSIST', unfinished)
  elseif redis.call('HLEN', unfinished) == 1 then
    redis.call('PEXPIRE', unfinished, ms)
  else
    keep(unfinished, ms)
  end
end
return {old, redis.call('HGETALL', unfinished)}
