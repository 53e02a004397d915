-- Let entries of workers count from now on whose times are still to come, because Redis's clock was set back.
--
-- KEYS[1]   workers  hash of entries, a field per worker and thing
-- ARGV[1..] field    of each entry
--
-- Returns    0
-- Publishes  nothing
for _, field in ipairs(ARGV) do cut_time(KEYS[1], field) end
return 0
