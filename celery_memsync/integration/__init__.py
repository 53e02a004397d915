"""Everything that Celery calls: signals, the worker's bootstep, decorators around task bodies.

`task_signals.py` turns signals into stages of runs (`runs.py`); `bootstep.py` starts the heartbeat in a
worker; `lock_decorators.py` takes locks around task bodies; `update_state.py` records what tasks report by Celery's own
`update_state`.  Nothing in here may fail a task, or make one wait
for Redis, except the locks, which say so.  Start reading at `task_signals.py`.
"""
