-- KEYS unfinished detached
-- Removes the detached index of entries that have been unlinked.
redis.call('UNLINK', KEYS[2])
return redis.call('HDEL', KEYS[1], KEYS[2])
