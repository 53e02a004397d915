-- The tasks of groups and workflows; put before entry_write.lua and index_apply.lua.
--
-- Each has a sorted set.  The score of a member of a group says how far it is: 0 it waits, 1 it was begun, and from 2 on it
-- has ended, later if higher: 2 cancelled and 3 failed without having run, else the first digit of its rank.  An end is
-- never taken back, so a member is counted once, however often and in whatever order its stages come.  Beside the members
-- there are notes, which begin with a slash: "/<id>" with a score of -1 of what else belongs to it, "//total" with 1000
-- and the number of members, and "//since" with when it was sent, in ms, below 0.
--
-- An argument of entry_write.lua is the key of a set, then a line for each member, or for a note and its score.

-- Scores by the first letter of a rank; of others it is that digit.  AGAIN is a member that waits for another try.
local AGAIN = 0.5
local SCORES = { ["0"] = 0, ["1"] = 0, ["+"] = 0, ["2"] = 1, ["3"] = AGAIN, ["4"] = AGAIN, [","] = 2, ["-"] = 2, ["."] = 3 }
local ENDED = 2

-- Scores by key and member, under "" how many ms the set is to stay; the keys of the sets in which a task is a member.
local member_sets, sets_of = {}, {}

local function set_score(key, member, score)
  local scores = member_sets[key] or {}
  local before = scores[member]
  if not before or before < score or before < ENDED then scores[member] = score end
  member_sets[key] = scores
end

local function read_members(first)
  for at = first, #ARGV do
    local key, lines = string.match(ARGV[at], "^([^\n]*)\n(.*)$")
    for line in string.gmatch(lines, "[^\n]+") do
      local note, score = string.match(line, "^(/.*) (%S+)$")
      if note then
        set_score(key, note, tonumber(score))
      else
        sets_of[line] = sets_of[line] or {}
        table.insert(sets_of[line], key)
      end
    end
  end
end

-- Note how far a member of a group is.
local function note_member(task, rank, left)
  local digit = string.sub(rank, 1, 1)
  for _, key in ipairs(sets_of[task] or {}) do
    set_score(key, task, SCORES[digit] or tonumber(digit) or 0)
    member_sets[key][""] = math.max(member_sets[key][""] or 0, left)
  end
end

-- Let a member that was begun wait, unless it has ended.
local function set_back(key, member)
  local stored = try("ZSCORE", key, member)
  if type(stored) ~= "table" and (tonumber(stored or 0) or 0) < ENDED then try("ZADD", key, 0, member) end
end

local function update_members(index_ttl)
  for key, scores in pairs(member_sets) do
    local row, left = {}, math.max(index_ttl, scores[""] or 0)
    for member, score in pairs(scores) do
      if score == AGAIN then
        set_back(key, member)
      elseif member ~= "" then
        row[#row + 1] = whole(score)
        row[#row + 1] = member
      end
    end
    for first = 1, #row, 1000 do try("ZADD", key, "GT", unpack(row, first, math.min(first + 999, #row))) end
    -- For some longer, so that this is not to be done at each call.
    if redis.call("PTTL", key) < left then redis.call("PEXPIRE", key, whole(left * 1.25)) end
  end
end

