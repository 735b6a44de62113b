"""What Redis does for a live log in one step, in Lua. What the keys hold: inference/live_log.py.

KEYS[1] is the head, a hash; its events are in the stream KEYS[1] .. ":events". Both have the
generation's id in braces, so that a Redis Cluster keeps them together.
"""

_EVENTS = """
local head, events = KEYS[1], KEYS[1] .. ':events'
"""

_ADD = """
local function add(from)
  for i = from, #ARGV, 5 do
    redis.call('XADD', events, ARGV[i] .. '-1', 'o', ARGV[i + 1], 't', ARGV[i + 2],
               'i', ARGV[i + 3], 'f', ARGV[i + 4])
  end
end
local function stays(milliseconds)
  redis.call('PEXPIRE', head, milliseconds)
  redis.call('PEXPIRE', events, milliseconds)
end
"""

_RUN = """
-- Which start of the server this is: after a restart the last second of writes may be gone.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
"""

# fence, epoch, seq, expiry in ms, channel | seq, offset, text, ids, finish
# → ok or stop (somebody asked the run to stop), or why nothing was written
APPEND = f"""{_EVENTS}{_ADD}
local now = redis.call('HMGET', head, 'fence', 'epoch', 'seq', 'stop')
if not now[1] then return 'missing' end
local fence, epoch, seq = tonumber(now[1]), tonumber(now[2]), tonumber(now[3])
if fence > tonumber(ARGV[1]) then return 'fenced' end
if fence < tonumber(ARGV[1]) and epoch >= tonumber(ARGV[2]) then return 'foreign' end
if fence < tonumber(ARGV[1]) or epoch ~= tonumber(ARGV[2]) then return 'stale' end
if seq + 1 ~= tonumber(ARGV[3]) then return 'stale' end
add(6)
redis.call('HSET', head, 'seq', ARGV[3])
stays(ARGV[4])
redis.call('PUBLISH', ARGV[5], '')
return now[4] and 'stop' or 'ok'
"""

# fence, epoch, saved, expiry in ms → [ok, events after saved], or [why it cannot be known]
ADOPT = f"""{_EVENTS}{_RUN}
local now = redis.call('HMGET', head, 'fence', 'epoch', 'seq', 'run', 'base')
if not now[1] then return {{'missing'}} end
if tonumber(now[1]) > tonumber(ARGV[1]) then return {{'fenced'}} end
redis.call('HSET', head, 'fence', ARGV[1])
if now[4] ~= run or tonumber(now[2]) ~= tonumber(ARGV[2])
    or tonumber(now[3]) < tonumber(ARGV[3]) or tonumber(now[5]) > tonumber(ARGV[3]) then
  return {{'stale'}}
end
return {{'ok', redis.call('XRANGE', events, '(' .. ARGV[3] .. '-1', '+')}}
"""

# fence, epoch, base, seq, expiry in ms, channel | seq, offset, text, ids, finish | …
# → ok, or fenced: there is a later writer
SEED = f"""{_EVENTS}{_ADD}{_RUN}
local fence = redis.call('HGET', head, 'fence')
if fence and tonumber(fence) > tonumber(ARGV[1]) then return 'fenced' end
redis.call('DEL', events)
redis.call('HSET', head, 'fence', ARGV[1], 'epoch', ARGV[2], 'base', ARGV[3], 'seq', ARGV[4],
           'run', run)
add(7)
stays(ARGV[5])
redis.call('PUBLISH', ARGV[6], '')
return 'ok'
"""

# epoch, after, limit → [epoch, base, events], or nothing if there is no such log
READ = f"""{_EVENTS}
local now = redis.call('HMGET', head, 'epoch', 'base')
if not now[1] then return false end
local after = now[1] == ARGV[1] and ARGV[2] or '0'
local found = redis.call('XRANGE', events, '(' .. after .. '-1', '+', 'COUNT', ARGV[3])
return {{now[1], now[2], found}}
"""

# The person asked the run to stop: its writer hears of it with its next append.
STOP = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'stop', '1') end
"""

# channel: everything is in the database
CLOSE = f"""{_EVENTS}
redis.call('DEL', head, events)
redis.call('PUBLISH', ARGV[1], '')
"""
