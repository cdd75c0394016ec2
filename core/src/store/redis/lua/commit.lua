-- KEYS entry lease tmp [nonce index]   ARGV fence token ttl suffix
-- Moves an uploaded value into place. Returns 0 if the lease is not the current one. Also returns 0 if the upload failed,
-- without memory for example. The old entry is removed then, because its value is outdated.
local entry, lease, tmp, nonce, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ttl, suffix = tonumber(ARGV[3]), ARGV[4]
if not holds(lease, nonce, ARGV[1], ARGV[2]) then
  redis.call('UNLINK', tmp)
  return 0
end
redis.call('DEL', lease)
if redis.call('EXISTS', tmp) == 0 then
  remove(entry, index, suffix)
  return 0
end
-- The expiry is set before the rename, so that the entry changes only once.
if ttl > 0 then
  redis.call('PEXPIRE', tmp, ttl)
else
  redis.call('PERSIST', tmp)
end
redis.call('RENAME', tmp, entry)
add_to_index(ttl, nonce, index, suffix, ARGV[2])
return 1
