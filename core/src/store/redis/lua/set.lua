-- KEYS entry lease tmp [nonce index]   ARGV fresh ttl suffix
local entry, lease, tmp, nonce, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ttl = tonumber(ARGV[2])
redis.call('DEL', lease)
if nonce and redis.call('EXISTS', tmp) == 1 then
  -- The client left room for the nonce, which only the server knows.
  redis.call('SETRANGE', tmp, 0, fence_of(nonce, ARGV[1], math.max(ttl, 0)))
end
return store(entry, tmp, ttl, nonce, index, ARGV[3])
