-- Entries and pages of entries; put before the scripts that write them.
local now = redis.call("TIME")
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)

local function parse(text)
  return string.match(text, "^(%d+) (%S+) (%S+) (%d+) (%d+) (%d+) (%-?%d+) (%S+) ")
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

-- Write a page; it lives as long as the longest of its entries, of which one is known.
local function join(owner, entries, known, ttl_ms)
  for i, entry in ipairs(entries) do
    if entry == "" then
      entries[i] = "\n"
    elseif i ~= known then
      local _, _, _, _, time, ttl = parse(string.gsub(entry, "^%d@", "", 1))
      if time then ttl_ms = math.max(ttl_ms, time + ttl - now_ms) end
    end
  end
  redis.call("SET", owner, table.concat(entries, "\n"), "PX", whole(math.max(1, ttl_ms)))
end
