-- KEYS entry lease [nonce]
-- Makes an entry stale as of now and removes its lease. The mark overwrites the entry's first bytes, which move to its end, so that
-- the value isn't copied. An entry that is stale already keeps its mark.
local entry, lease, nonce = KEYS[1], KEYS[2], KEYS[3]
redis.call('DEL', lease)
if redis.call('TYPE', entry).ok ~= 'string' then return 0 end
local at = nonce and 8 or 0
local head = redis.call('GETRANGE', entry, 0, at + 18)
if nonce and not is_known(redis.call('MGET', nonce)[1], string.sub(head, 1, 8)) then return 0 end
local first = string.sub(head, at + 1)
if string.sub(first, 1, 2) == '\167K' then return 1 end
redis.call('SETRANGE', entry, at, '\167K' .. string.char(#first) .. string.format('%016.0f', epoch_after(0)))
redis.call('APPEND', entry, first)
return 1
