-- Publish entries once more that this user might not publish when they were stored.
--
-- KEYS[1..n]  key      hash or record of each entry
-- ARGV[1]     prefix   put before a path to make its channel
-- ARGV[2..]   2 for each entry
--   where    slot in the record, or ":" and the field in the hash
--   path     the entry's; it is published there
--
-- Returns     how many are done with: published, or gone; the next one may not be published yet
-- Publishes   as entry_write.lua
local function text_of(key, where)
  local slot = tonumber(where)
  if not slot then return try("HGET", key, string.sub(where, 2)) end
  local record = try("GET", key)
  local entries = split(type(record) == "string" and record or "")
  return entries[slot], slot < 3 and entries[3 - slot]
end

for i, key in ipairs(KEYS) do
  local where, path = ARGV[2 * i], ARGV[2 * i + 1]
  local text, other = text_of(key, where)
  if type(text) == "string" and parse(text) then
    local known = other and parse(other) and "\n" .. other or ""
    if not publish(ARGV[1] .. path, where .. "\n" .. text .. known) then return i - 1 end
  end
end
return #KEYS
