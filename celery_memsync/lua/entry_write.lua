-- Store entries, count their versions, set their ttl and tell of them.
--
-- An entry is a header line and a body.  It is kept in a field of a hash, or
-- in a slot of a page: a string of entries, one after the other.  After its
-- last slot a page keeps what earlier runs told, marked "<slot>@".
--
-- KEYS[1..n]  owner    hash or page of each entry, one for each write
-- KEYS[n+1]   index    stream of task ids in order of first write; left out on a cluster
-- ARGV[1]     n        number of writes
-- ARGV[2]     worker   who writes
-- ARGV[3]     writer   token of the writing process
-- ARGV[4]     horizon  ms that an id stays in the index
-- ARGV[5]     slots    most slots of a page
-- ARGV[6]     formers  most entries of earlier runs that a page keeps
-- ARGV[7..]            12 for each write:
--   slot     slot in the page; "0": field in the hash
--   field    its name
--   channel  the entry's key; its changes are told there
--   member   id for the index if this write makes the page; "" for none
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
-- Publishes   slot or field, header and body on each entry's channel
local n, worker, writer, horizon = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local slots, formers = tonumber(ARGV[5]), tonumber(ARGV[6])
local index = KEYS[n + 1]
local now = redis.call("TIME")
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local indexed = false

local function parse(text)
  return string.match(text, "^(%d+) (%S+) (%S+) (%d+) (%d+) (%d+) (%S+) ")
end

-- Return the entries of a page, "" for empty slots; every entry is two lines.
local function split(page)
  local entries, from = {}, 1
  while from <= #page do
    local middle = string.find(page, "\n", from, true) or #page
    local last = string.find(page, "\n", middle + 1, true) or #page + 1
    local text = string.sub(page, from, last - 1)
    entries[#entries + 1] = text == "\n" and "" or text
    from = last + 1
  end
  return entries
end

-- Write a page; it lives as long as the longest of its entries.
local function join(owner, entries)
  local ttl_ms = 1
  for i = 1, math.max(#entries, slots) do
    local _, _, _, _, time, ttl = parse(string.gsub(entries[i] or "", "^%d@", "", 1))
    if time then ttl_ms = math.max(ttl_ms, time + ttl - now_ms) end
    if (entries[i] or "") == "" then entries[i] = "\n" end
  end
  redis.call("SET", owner, table.concat(entries, "\n"), "PX", string.format("%.0f", ttl_ms))
end

-- Keep what an earlier run told, or a late word of it; not what never ran (rank below "2").
local function keep_former(entries, slot, run, rank, text)
  if rank < "2" or not entries then return false end
  local mark = slot .. "@"
  for i = slots + 1, #entries do
    local _, srun, srank = parse(string.sub(entries[i], #mark + 1))
    if string.sub(entries[i], 1, #mark) == mark and srun == run then
      if srank < rank then entries[i] = mark .. text end
      return srank < rank
    end
  end
  for i = #entries + 1, slots do entries[i] = "" end
  entries[#entries + 1] = mark .. text
  if #entries > slots + formers then table.remove(entries, slots + 1) end
  return true
end

local function drop_former(entries, slot, run)
  for i = #(entries or {}), slots + 1, -1 do
    local _, srun = parse(string.gsub(entries[i], "^%d@", "", 1))
    if string.sub(entries[i], 1, #slot + 1) == slot .. "@" and srun == run then table.remove(entries, i) end
  end
end

local function write(owner, slot, field, channel, member, seen, run, rank, fence, time, ttl_ms, serial, body)
  local entries, text, page
  if slot == "0" then
    text = redis.pcall("HGET", owner, field)
  else
    page = redis.pcall("GET", owner)
    text = page
  end
  if type(text) == "table" then return { "error", text.err } end
  if slot ~= "0" then
    entries = split(page or "")
    text = entries[tonumber(slot)]
  end
  local version, srun, srank, sfence, writes, over = 0, "-", "-", "0", "", false
  if text and text ~= "" then
    local v, r, k, f, t, ttl, w = parse(text)
    if not v then return { "error", "what is stored is no entry" } end
    version, sfence, writes = tonumber(v), f, w
    over = t + ttl <= now_ms
    if not over then srun, srank = r, k end
  else
    text = nil
  end
  local before = string.match(writes, writer .. "%.(%d+)")
  if before and tonumber(before) >= tonumber(serial) then return { "again", version } end
  if tonumber(fence) > 0 and tonumber(fence) < tonumber(sfence) then return { "fenced", version } end
  if run == "" then run = srun end

  local others = {}
  for id in string.gmatch(writes, "[^,]+") do
    if #others < 2 and string.match(id, "^%w+") ~= writer then others[#others + 1] = "," .. id end
  end
  local rest = string.format(" %s %s %d %s %s %s.%s%s %s\n", run, rank, math.max(tonumber(fence), tonumber(sfence)),
    time, ttl_ms, writer, serial, table.concat(others), worker) .. body
  local function store(v)
    if entries then
      entries[tonumber(slot)] = v .. rest
      for i = 1, tonumber(slot) do entries[i] = entries[i] or "" end
      return join(owner, entries)
    end
    redis.call("HSET", owner, field, v .. rest)
    if redis.call("PTTL", owner) < tonumber(ttl_ms) then redis.call("PEXPIRE", owner, ttl_ms) end
  end

  if seen == "run" and text and not over then
    local absorbed = string.sub(srank, 1, 1) == "9"
    local follows = not absorbed
      and (string.sub(rank, 1, 1) == "9" or run > srun or run == srun and rank > srank)
    if not follows then
      if run == srun and rank == srank and not absorbed then store(version) end -- told again: it lives on
      if run ~= srun and run ~= "-" and keep_former(entries, slot, run, rank, "1" .. rest) then join(owner, entries) end
      return { "kept", version }
    end
    if run ~= srun and srun ~= "-" then
      drop_former(entries, slot, run)
      keep_former(entries, slot, srun, srank, text)
    end
  elseif seen ~= "run" and seen ~= "*" and tonumber(seen) ~= version then
    return { "conflict", version, text }
  end

  store(version + 1)
  redis.call("PUBLISH", channel, (entries and slot or field) .. "\n" .. (version + 1) .. rest)
  if page ~= false or member == "" then return version + 1 end
  if not index then return { "new", version + 1 } end
  redis.pcall("XADD", index, "MINID", "~", string.format("%.0f", now_ms - horizon), "*", "id", member)
  indexed = true
  return version + 1
end

local answers = { tonumber(now[1]), tonumber(now[2]) }
for i = 1, n do
  answers[i + 2] = write(KEYS[i], unpack(ARGV, 12 * i - 5, 12 * i + 6))
end
if indexed then redis.call("PEXPIRE", index, horizon) end
return answers
