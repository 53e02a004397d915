"""What is shared, and its format in Redis: entries, runs of tasks, progress, locks, workers.

`entry.py` holds the header that each entry has; the other modules hold the bodies.  `order.py` says which stage
and which run follows which; the scripts in `store/lua` decide by the same rule.  What is read here comes from
Redis, where other programs write: it is checked, and anything else reads as nothing.
"""
