-- KEYS entry lease [nonce]   ARGV intent token hold fresh
-- Acquires a lease. Returns {state, fence}: E a valid entry exists, L the lease is granted, F another fill is running, B busy.
local entry, lease, nonce = KEYS[1], KEYS[2], KEYS[3]
local intent, token, hold = ARGV[1], ARGV[2], tonumber(ARGV[3])
local held, known = read_lease(lease, nonce)
local fence = fence_of(nonce, known, ARGV[4], hold)
if intent == 'F' then
  local found
  if nonce then
    found = tolerant('GETRANGE', entry, 0, 7) == fence
  else
    found = redis.call('TYPE', entry).ok == 'string'
  end
  if found then return {'E', fence} end
end
if intent ~= 'W' then
  -- The same token means that the same call is sent again, after a connection broke.
  if held and string.sub(held, 1, 8) == fence and string.sub(held, 10) ~= token then
    return {string.sub(held, 9, 9) == 'F' and 'F' or 'B', fence}
  end
end
redis.call('SET', lease, fence .. (intent == 'W' and 'W' or 'F') .. token, 'PX', hold)
return {'L', fence}
