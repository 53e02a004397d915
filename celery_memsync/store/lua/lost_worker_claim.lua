-- Renew claims on lost workers for another lease, or close them, unless others have claimed them or the workers are back.
--
-- KEYS[1]  lost   see heartbeat_write.lua
-- ARGV[1]  lease  ms; "0": nothing is left to do about them
-- ARGV[2..]  for each lost worker: its member of lost, and the score that it had by the lease before
--
-- Returns   {"ok", score...}, of each lost worker its new score, "" if the claim is not ours any more
-- Publishes  nothing
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
