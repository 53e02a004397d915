-- Go on with losses for another lease, or be done with them, unless others have taken them on or their workers are back.
--
-- KEYS[1]  lost   see heartbeat_write.lua
-- ARGV[1]  lease  ms; "0": nothing is left to do about them
-- ARGV[2..]  rest  names of losses, each followed by the score that the lease before gave it
--
-- Returns   {"ok", score...}, for each loss its new score, "" if it is not ours any more
-- Publishes nothing
local lost, lease = KEYS[1], ARGV[1]
local score = whole(now_ms + lease)
local answers = { "ok" }
for i = 2, #ARGV, 2 do
  local ours = call("ZSCORE", lost, ARGV[i]) == ARGV[i + 1]
  if ours and lease == "0" then
    redis.call("ZREM", lost, ARGV[i])
  elseif ours then
    redis.call("ZADD", lost, score, ARGV[i])
  end
  answers[#answers + 1] = ours and score or ""
end
return answers
