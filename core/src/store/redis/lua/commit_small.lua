-- KEYS entry lease [nonce index]   ARGV fence token ttl suffix record
-- Writes a small value. Returns 0 if the lease is not the current one. Also returns 0 if there is no memory. The old entry is
-- removed then, because its value is outdated. A `ttl` of 0 only removes the old entry.
local entry, lease, nonce, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ttl, suffix, record = tonumber(ARGV[3]), ARGV[4], ARGV[5]
if not holds(lease, nonce, ARGV[1], ARGV[2]) then return 0 end
local stored
-- This is the first write, because a server without memory refuses only that.
if ttl > 0 then
  stored = redis.pcall('SET', entry, record, 'PX', ttl)
elseif ttl < 0 then
  stored = redis.pcall('SET', entry, record)
end
redis.call('DEL', lease)
if not stored or stored.err then
  remove(entry, index, suffix)
  return ttl == 0 and 1 or 0
end
add_to_index(ttl, nonce, index, suffix, ARGV[2])
return 1
