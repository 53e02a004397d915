-- Store entries, count their versions, set their ttl and tell of them.
--
-- KEYS[1..n]  owner    hash of each entry, one for each write
-- KEYS[n+1]   index    stream of task ids in order of first write; left out on a cluster
-- ARGV[1]     n        number of writes
-- ARGV[2]     worker   who writes
-- ARGV[3]     writer   token of the writing process
-- ARGV[4]     horizon  ms that an id stays in the index
-- ARGV[5..]            11 for each write:
--   field    field in the hash
--   channel  the entry's key; its changes are told there
--   member   id for the index if this write makes the hash; "" for none
--   seen     version that the writer saw; "*": whatever is there; "run": run and rank decide
--   run      the run that tells, sortable; "": the one that is there; "-": none
--   rank     how far along in its run, sortable; "9..." absorbs what comes after
--   fence    of the lock under which it is written; "0" for none
--   time     Redis's time of the write, ms
--   ttl_ms
--   serial   number of the write in its process
--   body     not looked into; "" deletes
--
-- Returns     {seconds, microseconds, answer...}, for each write one of
--             version  stored
--             {"again", version}  was stored before under this serial
--             {"new", version}  stored, and no index was given
--             {"kept", version}  what is there is further along
--             {"conflict", version, text}  seen is not what is there
--             {"fenced", version}  a newer fence has written
--             {"error", message}  Redis refused
-- Publishes   field, header and body on each entry's channel
local n, worker, writer, horizon = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local index = KEYS[n + 1]
local now = redis.call("TIME")
local oldest = string.format("%.0f", now[1] * 1000 - horizon)
local now_ms = now[1] * 1000 + now[2] / 1000
local indexed = false

-- Keep what an earlier run told, or a late word of it; not what never ran (rank below "2").
local function keep_former(owner, field, run, rank, text)
  local former = "/" .. field .. "@" .. run
  local kept = redis.call("HGET", owner, former)
  if rank < "2" or kept and (string.match(kept, "^%d+ %S+ (%S+)") or "") >= rank then return end
  if not kept and redis.call("HLEN", owner) >= 64 then return end
  redis.call("HSET", owner, former, text)
end

local function write(owner, field, channel, member, seen, run, rank, fence, time, ttl_ms, serial, body)
  local text = redis.pcall("HGET", owner, field)
  if type(text) == "table" then return { "error", text.err } end
  local version, srun, srank, sfence, writes, over = 0, "-", "-", "0", "", false
  if text then
    local v, r, k, f, t, ttl, w = string.match(text, "^(%d+) (%S+) (%S+) (%d+) (%d+) (%d+) (%S+) ")
    if not v then return { "error", "what is stored is no entry" } end
    version, sfence, writes = tonumber(v), f, w
    over = t + ttl <= now_ms
    if not over then srun, srank = r, k end
  end
  local before = string.match(writes, writer .. "%.(%d+)")
  if before and tonumber(before) >= tonumber(serial) then return { "again", version } end
  if tonumber(fence) > 0 and tonumber(fence) < tonumber(sfence) then return { "fenced", version } end
  if run == "" then run = srun end

  local others = {}
  for id in string.gmatch(writes, "[^,]+") do
    if #others < 2 and string.match(id, "^%w+") ~= writer then others[#others + 1] = "," .. id end
  end
  local header = string.format(" %s %s %d %s %s %s.%s%s %s\n", run, rank,
    math.max(tonumber(fence), tonumber(sfence)), time, ttl_ms, writer, serial, table.concat(others), worker)
  local function store(v, fresh)
    redis.call("HSET", owner, field, v .. header .. body)
    if fresh or redis.call("PTTL", owner) < tonumber(ttl_ms) then redis.call("PEXPIRE", owner, ttl_ms) end
  end

  if seen == "run" and text and not over then
    local absorbed = string.sub(srank, 1, 1) == "9"
    local follows = not absorbed
      and (string.sub(rank, 1, 1) == "9" or run > srun or run == srun and rank > srank)
    if not follows then
      if run == srun and rank == srank and not absorbed then store(version) end -- told again: it lives on
      if run ~= srun and run ~= "-" then keep_former(owner, field, run, rank, "1" .. header .. body) end
      return { "kept", version }
    end
    if run ~= srun and srun ~= "-" then keep_former(owner, field, srun, srank, text) end
  elseif seen ~= "run" and seen ~= "*" and tonumber(seen) ~= version then
    return { "conflict", version, text }
  end

  local new = not text and member ~= "" and redis.call("EXISTS", owner) == 0
  store(version + 1, new)
  redis.call("PUBLISH", channel, field .. "\n" .. (version + 1) .. header .. body)
  if not new then return version + 1 end
  if not index then return { "new", version + 1 } end
  redis.pcall("XADD", index, "MINID", "~", oldest, "*", "id", member)
  indexed = true
  return version + 1
end

local answers = { tonumber(now[1]), tonumber(now[2]) }
for i = 1, n do
  answers[i + 2] = write(KEYS[i], unpack(ARGV, 11 * i - 6, 11 * i + 4))
end
if indexed then redis.call("PEXPIRE", index, horizon) end
return answers
