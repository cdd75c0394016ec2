-- Shared by every script. Bodies never pass through Lua: it would copy each of them several times on the server's
-- only thread. Scripts see names, nonces and tokens, and move a body by renaming the key it was uploaded to.

-- Extends a key that would expire too soon, by twice what was asked and a minute: every PEXPIRE of a nonce makes
-- local caches forget the whole group, so it has to stay rare however many entries are written.
local function keep(key, ms)
  local left = redis.call('PTTL', key)
  if left >= 0 and left < ms then redis.call('PEXPIRE', key, 2 * ms + 60000) end
end

-- The group's nonce, made from `fresh` if the group has none. Entries without a group have no nonce: eight zeros.
local function fence_of(nonce, fresh, ms)
  if not nonce then return string.rep('\0', 8) end
  local fence = redis.call('GET', nonce)
  if fence and #fence == 8 then
    keep(nonce, ms)
    return fence
  end
  redis.call('SET', nonce, fresh, 'PX', 2 * ms + 60000)
  return fresh
end

-- Whether a lease is the current one: not run out, not replaced, not revoked with its key or its group.
local function holds(lease, nonce, fence, token)
  local held = redis.call('GET', lease)
  if not held or string.sub(held, 1, 8) ~= fence or string.sub(held, 10) ~= token then return false end
  if string.sub(held, 9, 9) == 'U' then return false end
  return not nonce or redis.call('GET', nonce) == fence
end

local function remove(entry, index, suffix)
  local removed = redis.call('UNLINK', entry)
  if index then redis.call('ZREM', index, suffix) end
  return removed
end

-- Moves an uploaded body into place. A `ttl` below zero means no expiry. Answers 0 when the upload did not make it
-- (no memory, say); the old entry is gone all the same, because what it held has been replaced.
local function store(entry, tmp, ttl, nonce, index, suffix)
  if ttl == 0 or redis.call('EXISTS', tmp) == 0 then
    remove(entry, index, suffix)
    return ttl == 0 and 1 or 0
  end
  -- The expiry is set before the rename, so that the entry itself changes once.
  if ttl > 0 then redis.call('PEXPIRE', tmp, ttl) else redis.call('PERSIST', tmp) end
  redis.call('RENAME', tmp, entry)
  if not index then return 1 end

  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local over = redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. now, 'LIMIT', 0, 16)
  if #over > 0 then redis.call('ZREM', index, unpack(over)) end
  if ttl > 0 then
    local is_new = redis.call('EXISTS', index) == 0
    redis.call('ZADD', index, now + ttl, suffix)
    if is_new then redis.call('PEXPIRE', index, 2 * ttl + 60000) else keep(index, ttl) end
    keep(nonce, ttl)
  else
    redis.call('ZADD', index, '+inf', suffix)
    redis.call('PERSIST', index)
    redis.call('PERSIST', nonce)
  end
  return 1
end
