-- KEYS entry lease tmp [nonce index]   ARGV fence token ttl suffix
local entry, lease, tmp, nonce, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
if not holds(lease, nonce, ARGV[1], ARGV[2]) then
  redis.call('UNLINK', tmp)
  return 0
end
redis.call('DEL', lease)
return store(entry, tmp, tonumber(ARGV[3]), nonce, index, ARGV[4])
