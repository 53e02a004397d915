-- Counters in a hash; put before entry_write.lua, index_apply.lua and metrics_update.lua.

-- Return whether an error is about the numbers, and not about the server: the value, or the result, is none.
local function is_of_numbers(result)
  -- "hash value is not ...", "value is not ...", "increment would ..."
  return string.find(result.err, "^ERR [hvi]") ~= nil
end

-- Add a number, as text, to a counter and return whether it was added; nil and the error if the server refuses.  What a
-- user stored there and is no number stays; what is no JSON, or a number that nothing can be added to, is replaced.
local function add_to(metrics, counter, text)
  local result = try(string.find(text, ".", 1, true) and "HINCRBYFLOAT" or "HINCRBY", metrics, counter, text)
  if type(result) == "table" and is_of_numbers(result) then -- one of the two has a fraction
    result = redis.pcall("HINCRBYFLOAT", metrics, counter, text)
  end
  if type(result) ~= "table" then return true end
  if not is_of_numbers(result) then return nil, result end
  local stored = try("HGET", metrics, counter)
  local is_json, value = pcall(cjson.decode, stored)
  if type(stored) ~= "string" or is_json and type(value) ~= "number" then return false end
  result = try("HSET", metrics, counter, string.sub(text, 1, 1) == "-" and "0" or text)
  if type(result) == "table" then return nil, result end
  return true
end

