-- Shared by every script. Large bodies never pass through Lua: it would copy each of them several times on the server's
-- only thread. Scripts see names, nonces and tokens, and move a body by renaming the key it was uploaded to. A small body
-- costs less to copy than to upload.

-- Extends a key that would expire too soon, by twice what was asked and a minute: every PEXPIRE of a nonce makes
-- local caches forget the whole group, so it has to stay rare however many entries are written.
local function keep(key, ms)
  local left = redis.call('PTTL', key)
  if left >= 0 and left < ms then redis.call('PEXPIRE', key, 2 * ms + 60000) end
end

-- A lease, and the nonce of the group if there is one.
local function both(lease, nonce)
  local values = nonce and redis.call('MGET', lease, nonce) or redis.call('MGET', lease)
  return values[1], values[2]
end

-- The group's nonce: this `fence` that was read, or `fresh` if the group has none. Entries without a group have no nonce:
-- eight zeros.
local function fence_of(nonce, fence, fresh, ms)
  if not nonce then return string.rep('\0', 8) end
  if fence and #fence == 8 then
    keep(nonce, ms)
    return fence
  end
  redis.call('SET', nonce, fresh, 'PX', 2 * ms + 60000)
  return fresh
end

-- Whether a lease is the current one: not run out, not replaced, not revoked with its key or its group.
local function holds(lease, nonce, fence, token)
  local held, present = both(lease, nonce)
  if not held or string.sub(held, 1, 8) ~= fence or string.sub(held, 10) ~= token then return false end
  if string.sub(held, 9, 9) == 'U' then return false end
  return not nonce or present == fence
end

-- What another program wrote under our names, of another type, must fail nothing: it holds no value, and is replaced.

-- Calls a command for which a key of another type is no failure, but an answer. Other errors are the caller's: its line is
-- what names a command that the user may not run.
local function tolerant(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and not string.find(reply.err, 'WRONGTYPE', 1, true) then
    error(reply.err, 2)
  end
  return reply
end

-- Whether a key is of this type. One of another type is removed.
local function drop_unless(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('UNLINK', key) end
  return found == kind
end

-- Removes an entry, and answers 1 if it was there.
local function remove(entry, index, suffix)
  local was_there = redis.call('TYPE', entry).ok == 'string'
  redis.call('UNLINK', entry)
  if index then tolerant('ZREM', index, suffix) end
  return was_there and 1 or 0
end

-- Puts an entry that was just written on its group's list. A `ttl` below zero means no expiry. One in eight, by the last
-- byte of its random `token`, strikes off what is over.
local function enlist(ttl, nonce, index, suffix, token)
  if not index then return end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local left = ttl > 0 and redis.call('PTTL', index)
  local score = ttl > 0 and now + ttl or '+inf'
  if type(tolerant('ZADD', index, score, suffix)) == 'table' then
    -- It is no sorted set.
    redis.call('UNLINK', index)
    redis.call('ZADD', index, score, suffix)
    left = left and -2
  end
  if string.byte(token, -1) % 8 == 0 then
    local over = redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. now, 'LIMIT', 0, 128)
    if #over > 0 then redis.call('ZREM', index, unpack(over)) end
  end
  if left then
    -- It answers -2 for what was not there, and -1 for no end.
    if left == -2 or (left >= 0 and left < ttl) then redis.call('PEXPIRE', index, 2 * ttl + 60000) end
    keep(nonce, ttl)
  else
    redis.call('PERSIST', index)
    redis.call('PERSIST', nonce)
  end
end
