-- Scans the whole database for the keys of a group, in one call. The eviction of a group is compared with it.
local cursor, count = '0', 0
repeat
  local reply = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)
  cursor = reply[1]
  if #reply[2] > 0 then count = count + redis.call('UNLINK', unpack(reply[2])) end
until cursor == '0'
return count
