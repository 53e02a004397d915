-- The order of the runs of a task, which a run key names; put before entry_write.lua.
--
-- A run key is "<chain>.<step>" of what was published, and "<chain>.<step>.<run>" of what a worker has received of it, see
-- models/order.py.  It is stored behind two numbers, "<number>.<number>:<run key>": that of its chain among the chains of
-- the task, and that of the delivery among those of the step, 0 of what was published.  A run is given its numbers when it
-- is written first, above all those that are known: no clock has a part in it.

-- The largest number, which all have that come after it.  No task comes to it, but another program may write it.
local LAST = 99999999

-- Return the numbers of chain and delivery, chain and step of a stored run, or nil if that is none.  Numbers that no script
-- has given would be above all that follow.
local function numbers_of(stored)
  local chain_at, delivery_at, chain, step = string.match(stored, "^(%d+)%.(%d+):([%w_-]+)%.(%d+)%.?[%w_-]*$")
  if not chain_at or #chain_at > 8 or #delivery_at > 8 or #step > 6 then return nil end
  return tonumber(chain_at), tonumber(delivery_at), chain, tonumber(step)
end

-- Return a run key as it is stored.
local function numbered(run_key, known)
  local chain, step, received = string.match(run_key, "^([%w_-]+)%.(%d+)%.?([%w_-]*)$")
  if not chain then return run_key end
  local chains, own, deliveries = 0, nil, 0
  for _, stored in ipairs(known) do
    local chain_at, delivery_at, its_chain, its_step = numbers_of(stored)
    if chain_at and string.sub(stored, -#run_key - 1) == ":" .. run_key then return stored end
    if chain_at then chains = math.max(chains, chain_at) end
    if its_chain == chain then
      own = chain_at
      if its_step == tonumber(step) then deliveries = math.max(deliveries, delivery_at) end
    end
  end
  local chain_at, delivery_at = own or math.min(LAST, chains + 1), received == "" and 0 or math.min(LAST, deliveries + 1)
  return string.format("%.0f.%.0f:%s", chain_at, delivery_at, run_key)
end

-- Return whether a run is later than one that is stored: by chain, step, delivery.  Only those with the largest number may
-- have the same; of these the one that is written is later.
local function is_later(run, stored)
  if run == stored or run == "-" then return false end
  local chain_at, delivery_at, chain, step = numbers_of(run)
  local its_chain_at, its_delivery_at, its_chain, its_step = numbers_of(stored)
  if not its_chain_at then return true end
  if not chain_at then return false end
  if chain ~= its_chain then return chain_at >= its_chain_at end
  if step ~= its_step then return step > its_step end
  return delivery_at >= its_delivery_at
end

-- Return whether the numbers of a run are not known from the present one.
local function has_own_number(run, present)
  local chain_at, delivery_at, chain = numbers_of(run)
  local _, _, its_chain = numbers_of(present)
  return chain_at and (chain ~= its_chain or delivery_at > 0)
end

