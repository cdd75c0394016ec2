-- KEYS entry lease [nonce index]   ARGV fence token ttl suffix record
-- Answers 0 if the lease is not the current one, and also when there is no room; the old entry is gone then all the same,
-- because what it held has been replaced. A `ttl` of 0 is for a record that is over already.
local entry, lease, nonce, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ttl, suffix, record = tonumber(ARGV[3]), ARGV[4], ARGV[5]
if not holds(lease, nonce, ARGV[1], ARGV[2]) then return 0 end
local stored
-- The first to write: a server without room refuses only that.
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
enlist(ttl, nonce, index, suffix, ARGV[2])
return 1
