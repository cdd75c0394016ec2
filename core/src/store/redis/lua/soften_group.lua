-- KEYS nonce   ARGV fresh max
-- Makes every entry of a group stale as of now: no entry and no lease carries its next nonce `fresh`, behind which at most `max`
-- former ones remain. A server without room forgets the nonce instead, and then the entries are gone.
local nonces = redis.call('MGET', KEYS[1])[1]
local former = current(nonces)
if not former then
  redis.call('UNLINK', KEYS[1])
  return 0
end
local since, older = string.format('%016.0f', epoch_after(0)), string.sub(nonces, 9, 8 + 24 * (tonumber(ARGV[2]) - 1))
local stored = redis.pcall('SET', KEYS[1], ARGV[1] .. former .. since .. older, 'KEEPTTL')
if stored.err then redis.call('UNLINK', KEYS[1]) end
return 1
