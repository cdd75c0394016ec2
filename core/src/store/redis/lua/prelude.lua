-- Shared by every script. Large values never pass through Lua, which would copy each of them several times on the server's
-- only thread. Scripts see names, nonces and tokens, and move a value by renaming the key that it was uploaded to. A small
-- value costs less to copy than to upload.

-- Extends the expiry of a key that has less than `ms` left, to twice `ms` and a minute. The margin keeps this rare: every
-- PEXPIRE of a nonce invalidates the whole group in local tiers.
local function keep(key, ms)
  local left = redis.call('PTTL', key)
  if left >= 0 and left < ms then redis.call('PEXPIRE', key, 2 * ms + 60000) end
end

-- Reads a lease, and the nonces of the group if there is one.
local function read_lease(lease, nonce)
  local values = nonce and redis.call('MGET', lease, nonce) or redis.call('MGET', lease)
  return values[1], values[2]
end

-- Returns the group's nonce from the value of its key, or nil if there is none. Behind it are the former nonces, each with the
-- epoch of the soft eviction that replaced it (16 digits): their entries are stale.
local function current(nonces)
  if nonces and #nonces >= 8 and (#nonces - 8) % 24 == 0 then return string.sub(nonces, 1, 8) end
end

-- Returns true if entries with this nonce are fresh or stale.
local function is_known(nonces, fence)
  local fresh = current(nonces)
  if not fresh or fresh == fence then return fresh ~= nil end
  for at = 9, #nonces, 24 do
    if string.sub(nonces, at, at + 7) == fence then return true end
  end
  return false
end

-- Returns the group's nonce: the one that was read, or `fresh` if the group has none. Entries without a group have eight zeros
-- instead of a nonce.
local function fence_of(nonce, nonces, fresh, ms)
  if not nonce then return string.rep('\0', 8) end
  local fence = current(nonces)
  if fence then
    keep(nonce, ms)
    return fence
  end
  redis.call('SET', nonce, fresh, 'PX', 2 * ms + 60000)
  return fresh
end

-- Returns true if a lease is the current one: not expired, not replaced, not revoked with its key or its group.
local function holds(lease, nonce, fence, token)
  local held, present = read_lease(lease, nonce)
  if not held or string.sub(held, 1, 8) ~= fence or string.sub(held, 10) ~= token then return false end
  if string.sub(held, 9, 9) == 'U' then return false end
  return not nonce or current(present) == fence
end

-- Another program may have written a key of another type under our names. It holds no value, and is replaced. It must not make
-- a script fail.

-- Calls a command, and returns the error for a key of another type as its reply. Other errors are raised at the caller's line,
-- which identifies a command that the user may not run.
local function tolerant(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and not string.find(reply.err, 'WRONGTYPE', 1, true) then
    error(reply.err, 2)
  end
  return reply
end

-- Returns true if a key is of this type. Removes a key of another type.
local function drop_unless(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('UNLINK', key) end
  return found == kind
end

-- Removes an entry. Returns 1 if it was there.
local function remove(entry, index, suffix)
  local was_there = redis.call('TYPE', entry).ok == 'string'
  redis.call('UNLINK', entry)
  if index then tolerant('ZREM', index, suffix) end
  return was_there and 1 or 0
end

-- Adds a written entry to the index of its group. A `ttl` below zero means no expiry. One call in eight, by the last byte of the
-- random `token`, also removes expired entries from the index.
local function add_to_index(ttl, nonce, index, suffix, token)
  if not index then return end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local left = ttl > 0 and redis.call('PTTL', index)
  local score = ttl > 0 and now + ttl or '+inf'
  if type(tolerant('ZADD', index, score, suffix)) == 'table' then
    -- The index is no sorted set.
    redis.call('UNLINK', index)
    redis.call('ZADD', index, score, suffix)
    left = left and -2
  end
  if string.byte(token, -1) % 8 == 0 then
    local over = redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. now, 'LIMIT', 0, 128)
    if #over > 0 then redis.call('ZREM', index, unpack(over)) end
  end
  if left then
    -- PTTL returns -2 for an absent key, and -1 for no expiry.
    if left == -2 or (left >= 0 and left < ttl) then redis.call('PEXPIRE', index, 2 * ttl + 60000) end
    keep(nonce, ttl)
  else
    redis.call('PERSIST', index)
    redis.call('PERSIST', nonce)
  end
end

-- Returns an epoch of the tag clock, in digits: the server's time in microseconds, and more than `old`.
local function epoch_after(old)
  local time = redis.call('TIME')
  return string.format('%.0f', math.max(old + 1, time[1] * 1000000 + time[2]))
end
