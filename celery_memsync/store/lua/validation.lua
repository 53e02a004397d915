-- Time, and validation of what is stored; put before every script.
--
-- Other clients can write anything under our keys.  What does not have our format counts as
-- absent and is removed, so that it stops no script.
local now = redis.call("TIME")
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
-- In ms: the longest ttl, lease or timeout that settings allow; how far ahead of Redis's clock a time is that is none of ours,
-- where that does harm.
local LONGEST, AHEAD = 1e13, 86400000

-- Return a number as text, of which %s would leave digits out; a call has the same few again and again, mostly 0.
local wholes = { [0] = "0" }
local function whole(number)
  local text = wholes[number]
  if not text then
    text = string.format("%.0f", number)
    wholes[number] = text
  end
  return text
end

-- Return whether a text may be the id of a task or worker, as `check_id` in keys.py has it.
local function is_id(text)
  return #text > 0 and #text <= 512
    and not string.find(text, "[%c/*?%[%]\\]") and not string.find(text, "\194[\128-\159]")
    and not string.find(text, "\226\128[\168\169]")
end

-- Return whether a result says that a key holds a value of another type; that is deleted then.
local function was_foreign(result, key)
  if not (result.err and string.find(result.err, "WRONGTYPE", 1, true)) then return false end
  redis.call("DEL", key)
  return true
end

-- Run a command on a key of ours and return its result, an error as well.  A value of another type is deleted first.
local function try(command, key, ...)
  local result = redis.pcall(command, key, ...)
  if type(result) == "table" and was_foreign(result, key) then return redis.pcall(command, key, ...) end
  return result
end

-- Do the same, but let an error end the script.
local function call(command, key, ...)
  local result = redis.pcall(command, key, ...)
  if type(result) == "table" and (was_foreign(result, key) or result.err) then return redis.call(command, key, ...) end
  return result
end

-- Publish what is stored by now and return whether that was allowed.  A right to channels that was taken away takes back nothing.
local function publish(channel, text)
  return type(redis.pcall("PUBLISH", channel, text)) ~= "table"
end

-- Let a key expire not before so many ms from now.
local function outlives(key, ms)
  if redis.call("PTTL", key) < tonumber(ms) then redis.call("PEXPIRE", key, whole(ms)) end
end

