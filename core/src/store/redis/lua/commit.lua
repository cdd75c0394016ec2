-- KEYS entry lease tmp [nonce index]   ARGV fence token ttl suffix
-- Answers 0 if the lease is not the current one, and also when the upload did not make it (no memory, say); the old entry
-- is gone then all the same, because what it held has been replaced.
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
-- The expiry is set before the rename, so that the entry itself changes once.
if ttl > 0 then
  redis.call('PEXPIRE', tmp, ttl)
else
  redis.call('PERSIST', tmp)
end
redis.call('RENAME', tmp, entry)
enlist(ttl, nonce, index, suffix, ARGV[2])
return 1
