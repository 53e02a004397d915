-- Counters in a hash; put before entry_write.lua, index_apply.lua and metrics_update.lua.

-- Add a number, as text, to a counter and return whether it was added.  What a user stored there and is no number stays;
-- what is no JSON, or a number that nothing can be added to, is replaced.
local function add_to(metrics, counter, text)
  local result = try("HINCRBY", metrics, counter, text)
  if type(result) == "table" then -- one of the two has a fraction
    result = redis.pcall("HINCRBYFLOAT", metrics, counter, text)
  end
  if type(result) ~= "table" then return true end
  local stored = try("HGET", metrics, counter)
  local is_json, value = pcall(cjson.decode, stored)
  if type(stored) ~= "string" or is_json and type(value) ~= "number" then return false end
  return type(try("HSET", metrics, counter, string.sub(text, 1, 1) == "-" and "0" or text)) ~= "table"
end

