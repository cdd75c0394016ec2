-- KEYS nonce entry...   ARGV old [all]
-- Unlinks the entries that are not valid under the present nonce, and counts those that were valid under the old one, or
-- all of them.
-- An entry committed since, under a new nonce, stays.
local present = redis.call('MGET', KEYS[1])[1]
local count, gone = 0, {}
for i = 2, #KEYS do
  -- What is not even a string is not valid either.
  local fence = tolerant('GETRANGE', KEYS[i], 0, 7)
  if fence ~= '' and fence ~= present then
    if ARGV[2] or fence == ARGV[1] then count = count + 1 end
    gone[#gone + 1] = KEYS[i]
  end
end
if #gone > 0 then redis.call('UNLINK', unpack(gone)) end
return count
