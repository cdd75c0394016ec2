-- KEYS nonce index doomed
-- From here on the group holds nothing: no entry and no lease carries the next nonce. Answers the nonce that was.
local old = redis.call('GET', KEYS[1]) or ''
redis.call('DEL', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 0 then return {old, 0} end
redis.call('RENAME', KEYS[2], KEYS[3])
-- Should nobody come back for it, then the list of what is left to unlink does not stay for ever.
redis.call('PEXPIRE', KEYS[3], 3600000)
return {old, 1}
