-- Pages of entries; put before the scripts that write them, behind validation.lua.

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

-- Write a page; it lives as long as the longest of its entries, of which one is known.  What is no entry is left out.
local function join(owner, entries, slots, known, ttl_ms)
  local kept = {}
  for i, entry in ipairs(entries) do
    if i == known then
      kept[i] = entry
    else
      local mark, rest = string.match(entry, "^(%d@)(.*)$")
      local _, time, ttl
      if (mark ~= nil) == (i > slots) then _, _, _, _, time, ttl = parse(rest or entry) end
      if time then ttl_ms = math.max(ttl_ms, time + ttl - now_ms) end
      if time or i <= slots then kept[#kept + 1] = time and entry or "\n" end
    end
  end
  redis.call("SET", owner, table.concat(kept, "\n"), "PX", whole(math.min(LONGEST, math.max(1, ttl_ms))))
end

