-- KEYS nonce entry...   ARGV old [all]
-- Unlinks the entries that are neither fresh nor stale under the present nonces. Returns the number of those that were valid under
-- the old one, or of all. An entry committed later, under a new nonce, stays.
local present = redis.call('MGET', KEYS[1])[1]
local count, gone = 0, {}
for i = 2, #KEYS do
  -- A key of another type is not valid either.
  local fence = tolerant('GETRANGE', KEYS[i], 0, 7)
  if fence ~= '' and not is_known(present, fence) then
    if ARGV[2] or fence == ARGV[1] then count = count + 1 end
    gone[#gone + 1] = KEYS[i]
  end
end
if #gone > 0 then redis.call('UNLINK', unpack(gone)) end
return count
