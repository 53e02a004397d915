-- Records: strings of entries, one after the other; put before entry_write.lua and entry_publish.lua.
--
-- A task has one record, with a slot for each entry that it may have.  A user's own key has a record with the first slot
-- only.  After its last slot a task record keeps entries of earlier runs, each marked "<slot>@".

-- Return the entries of a record, "" for empty slots; every entry is two lines.
local function split(record)
  local entries, from = {}, 1
  while from <= #record do
    local middle = string.find(record, "\n", from, true) or #record
    local last = string.find(record, "\n", middle + 1, true) or #record + 1
    local text = string.sub(record, from, last - 1)
    entries[#entries + 1] = text == "\n" and "" or text
    from = last + 1
  end
  return entries
end

-- Write a record.  It lives as long as the longest of its entries, of which one is known to be an entry; what is none is
-- left out.
local function join(key, entries, slots, known, ttl_ms)
  local kept = {}
  for i, entry in ipairs(entries) do
    if i == known then
      kept[i] = entry
    else
      local mark, rest = string.match(entry, "^(%d@)(.*)$")
      local _, time, ttl
      if (mark ~= nil) == (i > slots) then _, _, _, _, time, ttl = parse(rest or entry) end
      if time then ttl_ms = math.max(ttl_ms, math.min(time + ttl - now_ms, ttl)) end
      if time or i <= slots then kept[#kept + 1] = time and entry or "\n" end
    end
  end
  redis.call("SET", key, table.concat(kept, "\n"), "PX", whole(math.min(LONGEST, math.max(1, ttl_ms))))
end

