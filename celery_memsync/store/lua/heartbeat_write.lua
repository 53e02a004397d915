-- Store the heartbeat of a worker, or its goodbye; claim lost workers for it; remove those that are long gone.
--
-- KEYS[1]  workers     hash of entries, a field per worker and thing
-- KEYS[2]  heartbeats  sorted set: "<token> <worker id>" of each process that is a worker, by when it is lost unless
--                      another heartbeat comes (ms); negative: it was lost then, or has said goodbye
-- KEYS[3]  lost        sorted set: "<token> <ms> <worker id>" of those lost at that time whose tasks are not settled yet, by
--                      when the claim of the worker that settles them ends (ms); negative: nor may it be published that
--                      the worker is lost
-- KEYS[4]  formats     sorted set: members as of heartbeats, by the newest format that each knows
-- KEYS[5]  totals      hash: how many workers were "lost"
-- ARGV[1]   id
-- ARGV[2]   token     of the process
-- ARGV[3]   channel   on which it is published
-- ARGV[4]   leaving   "1": a goodbye, not a heartbeat
-- ARGV[5]   ttl_ms    how long anything of a worker without heartbeats is kept
-- ARGV[6]   timeout   ms without a heartbeat after which this worker is lost, and its claims on others end
-- ARGV[7]   since     Redis's time since when its heartbeats have come without a gap, ms, from the answer before
-- ARGV[8]   until     when there would be a gap, ms
-- ARGV[9]   pulse     the rank of its entry: by which readers know whether it is alive, without the body
-- ARGV[10]  body      JSON, not looked into
-- ARGV[11]  left      its score in heartbeats, from the answer before; "0": this is its first heartbeat
-- ARGV[12]  run_id    Redis's run id, from the answer before; "": not known
-- ARGV[13]  format    the newest that it knows
--
-- Returns    {word, version, seconds, microseconds, since, number of workers, score, run id, whether it went back in time,
--            lowest format, member of lost, its score, member, score...}: those that it has claimed; word: "ok", "online" (it was not
--            there), or "back" (it was lost); run id: "" if this user may not read it; 1 if Redis may lack what it had
--            at the heartbeat before, which leaves since at now
-- Publishes  field, header and body on the channel, unless it is a goodbye and another live process has the name
local workers, heartbeats, lost, formats, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, token, channel, leaving, ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local timeout, since, until_ms, pulse, body = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local left, known_run_id = tonumber(ARGV[11]), ARGV[12]
local name, field = token .. " " .. id, id .. "/heartbeat"
-- ms: above any time; the longest that a worker may be without heartbeats, whatever its settings are.
local LIMIT, longest = "1000000000000000", math.max(AHEAD, 2 * ttl_ms, 2 * timeout)

-- Return token and worker id of a member of heartbeats, or nil if no script of ours has made it.
local function worker_of(member)
  local its_token, its_id = string.match(member, "^(%w+) (.+)$")
  if its_id and is_id(its_id) then return its_token, its_id end
end

-- Return whether a text is a member of lost.
local function is_lost_worker(member)
  local at, its_id = string.match(member, "^%w+ (%d+) (.+)$")
  return at and #at < 16 and is_id(its_id)
end

-- Remove members whose scores are no times.
local function trim_scores(key)
  call("ZREMRANGEBYSCORE", key, 0, 0)
  redis.call("ZREMRANGEBYSCORE", key, LIMIT, "+inf")
  redis.call("ZREMRANGEBYSCORE", key, "-inf", "-" .. LIMIT)
end

-- Return whether another live process has the same name: the goodbye of this one does not hide it.
local function has_namesake()
  for _, other in ipairs(call("ZRANGEBYSCORE", heartbeats, "(" .. whole(now_ms), "+inf")) do
    local its_token, its_id = worker_of(other)
    if its_id == id and its_token ~= token then return true end
  end
end

for _, gone in ipairs(call("ZRANGEBYSCORE", heartbeats, whole(ttl_ms - now_ms), "(0", "LIMIT", 0, 100)) do
  local its_token, its_id = worker_of(gone)
  if its_id then
    local _, _, _, _, _, _, _, writer = parse(call("HGET", workers, its_id .. "/heartbeat") or "")
    if writer == its_token then
      redis.call("HDEL", workers, its_id .. "/heartbeat", its_id .. "/status", its_id .. "/capacity")
    end
  end
  redis.call("ZREM", heartbeats, gone)
  call("ZREM", formats, gone)
end

-- A worker without any heartbeat, of which other entries are written by hand, is not in heartbeats: look at a few of all.
for _, other in ipairs(call("HRANDFIELD", workers, 4)) do
  local _, _, _, _, written, ttl = parse(redis.call("HGET", workers, other))
  if not written or written + ttl <= now_ms then redis.call("HDEL", workers, other) end
end

local known, _, _, _, its_time, _, its_lag = parse(redis.call("HGET", workers, field) or "")
local version = tonumber(known or 0) + 1
-- Where the clock was set back it is taken to be stored when the one before was, so that readers see which is later.
local lag = math.max(0, (its_time or 0) + (its_lag or 0) - now_ms)
local text = header(version, "-", pulse, "0", now_ms, ttl_ms, lag, token, id) .. "\n" .. body
if leaving ~= "1" or not has_namesake() then
  redis.call("HSET", workers, field, text)
  publish(channel, ":" .. field .. "\n" .. text)
end

local due = tonumber(call("ZSCORE", heartbeats, name) or 0)
local word = due > 0 and "ok" or due < 0 and "back" or "online"
if due < 0 then redis.call("ZREM", lost, token .. " " .. whole(-due) .. " " .. id) end
local score = whole(leaving == "1" and -now_ms or now_ms + timeout)
redis.call("ZADD", heartbeats, score, name)

-- Redis was started from an older snapshot, is a replica that lagged, or was emptied: then it lacks the heartbeat before.
-- Another run of Redis may lack less than that.
local info = redis.pcall("INFO", "server")
local run_id = type(info) == "string" and string.match(info, "run_id:(%w+)") or ""
local went_back = left > 0 and (math.abs(due) < left or run_id ~= known_run_id and run_id ~= "" and known_run_id ~= "")

-- Times that are further ahead than they can be were noted before the clock was set back: they begin anew now.
local function begin_anew(key, sign, length, rows)
  for i = 1, #rows, 2 do
    local until_then = now_ms + length
    if math.abs(tonumber(rows[i + 1])) > until_then then redis.call("ZADD", key, sign .. whole(until_then), rows[i]) end
  end
end

-- The heartbeat of a worker, too: it is lost so long after it as was said then.
local function begin_heartbeats_anew()
  local rows = call("ZRANGEBYSCORE", heartbeats, "(" .. whole(now_ms + timeout), "+inf", "WITHSCORES", "LIMIT", 0, 100)
  for i = 1, #rows, 2 do
    local _, its_id = worker_of(rows[i])
    local its_field = (its_id or "") .. "/heartbeat"
    local _, _, _, _, beaten = parse(redis.call("HGET", workers, its_field) or "")
    local length = beaten and math.max(0, math.min(longest, rows[i + 1] - beaten)) or timeout
    begin_anew(heartbeats, "", length, { rows[i], rows[i + 1] })
    cut_time(workers, its_field)
  end
end

begin_heartbeats_anew()
local ahead = "(" .. whole(now_ms + 2 * timeout)
begin_anew(lost, "", 2 * timeout, call("ZRANGEBYSCORE", lost, ahead, "+inf", "WITHSCORES", "LIMIT", 0, 100))
ahead = "(-" .. whole(now_ms + 2 * timeout)
begin_anew(lost, "-", 2 * timeout, call("ZRANGEBYSCORE", lost, "-inf", ahead, "WITHSCORES", "LIMIT", 0, 100))

-- Only now: a script whose first write removes something may write on although Redis is full.
trim_scores(heartbeats)
trim_scores(lost)

-- A worker whose own heartbeats did not come for a while, because Redis was away, can not know whose are missing.
if now_ms > tonumber(until_ms) or tonumber(since) > now_ms or went_back then since = whole(now_ms) end
local claimed = {}
local function claim(one, sign)
  if not is_lost_worker(one) then return redis.call("ZREM", lost, one) end
  local score = sign .. whole(now_ms + timeout)
  redis.call("ZADD", lost, score, one)
  claimed[#claimed + 1] = one
  claimed[#claimed + 1] = score
end
if leaving ~= "1" and now_ms - since >= tonumber(timeout) then
  local overdue = redis.call("ZRANGEBYSCORE", heartbeats, "(0", whole(now_ms), "WITHSCORES", "LIMIT", 0, 100)
  for i = 1, #overdue, 2 do
    local at, its_token, its_id = whole(tonumber(overdue[i + 1])), worker_of(overdue[i])
    if its_id then
      redis.call("ZADD", heartbeats, "-" .. at, overdue[i])
      try("HINCRBY", totals, "lost", 1)
      claim(its_token .. " " .. at .. " " .. its_id, "-")
    else
      redis.call("ZREM", heartbeats, overdue[i])
    end
  end
  for _, one in ipairs(redis.call("ZRANGEBYSCORE", lost, "(0", whole(now_ms), "LIMIT", 0, 100)) do claim(one, "") end
  for _, one in ipairs(redis.call("ZRANGEBYSCORE", lost, whole(-now_ms), "(0", "LIMIT", 0, 100)) do claim(one, "-") end
end

-- Return the lowest format that a live worker knows; remove those that have ended.
local function lowest_format()
  for _ = 1, 100 do
    local first = call("ZRANGE", formats, 0, 0, "WITHSCORES")
    if not first[1] or tonumber(redis.call("ZSCORE", heartbeats, first[1]) or 0) > 0 then return first[2] or ARGV[13] end
    redis.call("ZREM", formats, first[1])
  end
  return ARGV[13]
end

call("ZADD", formats, ARGV[13], name)
local lowest = lowest_format()
for _, key in ipairs(KEYS) do redis.call("PEXPIRE", key, ttl_ms) end
return {
  word, version, tonumber(now[1]), tonumber(now[2]), since, redis.call("ZCOUNT", heartbeats, "(0", "+inf"), score, run_id,
  went_back and 1 or 0, lowest, unpack(claimed) }
