-- KEYS entry lease [nonce index]   ARGV suffix
-- Removes an entry and its lease. Returns 1 if a valid entry was there. An entry of a group that was evicted, also softly, doesn't
-- count.
local entry, lease, nonce, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
redis.call('DEL', lease)
if not nonce then return remove(entry) end
local fence = current(redis.call('MGET', nonce)[1])
local valid = fence and tolerant('GETRANGE', entry, 0, 7) == fence
remove(entry, index, ARGV[1])
return valid and 1 or 0
