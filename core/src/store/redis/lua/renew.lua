-- KEYS lease [nonce]   ARGV fence token hold
-- Extends a lease to `hold` milliseconds. Returns 0 if it is not the current one.
local hold = tonumber(ARGV[3])
if not holds(KEYS[1], KEYS[2], ARGV[1], ARGV[2]) then return 0 end
if KEYS[2] then keep(KEYS[2], hold) end
return redis.call('PEXPIRE', KEYS[1], hold)
