-- The header of an entry, read and written; put before every script.
--
-- An entry is a header line and a body, which no script looks into.  The header has nine words, the last of which may
-- hold blanks: version, run, rank, fence, time (ms), ttl (ms), lag (ms from that time until Redis took the entry),
-- last writes, worker.

-- Return the eight words of a header before the worker, as texts, or nil if that is no entry.
-- Numbers have at most as many digits as a Lua number can hold exactly; behind the highest version they begin anew, for an
-- entry with more digits would be none.  How far a time is ahead of Redis's clock says nothing: the clock may have been set
-- back, as often as you like.  A later write takes over the order of such an entry.
local function parse(text)
  local version, run, rank, fence, time, ttl, lag, writes =
    string.match(text, "^(%d+) (%S+) (%S+) (%d+) (%d+) (%d+) (%-?%d+) (%S+) ")
  if not version or #version > 14 or #time > 15 or #ttl > 14 or #lag > 15 or #fence > 16
      or #fence == 16 and fence > "9007199254740991" then return nil end
  local stored_ms = time + lag
  if stored_ms < 0 or stored_ms >= 1e15 then return nil end
  if version == "99999999999999" then version = "0" end
  return version, run, rank, fence, time, ttl, lag, writes
end

-- Return a header.  The fence is a text, for it is compared as one; other numbers may be texts or numbers.  A number for
-- time or ttl has at most 14 digits, which .. writes exactly: it is faster where they are texts, as they are mostly.
local function header(version, run, rank, fence, time, ttl_ms, lag, writes, worker)
  return whole(version) .. " " .. run .. " " .. rank .. " " .. fence .. " " .. time .. " " .. ttl_ms .. " "
    .. whole(lag) .. " " .. writes .. " " .. worker
end

