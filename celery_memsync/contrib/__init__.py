"""Bridges to other libraries; each module needs its library, and nothing else imports these modules.

* :mod:`.asgi` and :mod:`.django`: the progress of a task for web pages, by :mod:`.answers`.
* :mod:`.pytest_plugin`: fixtures for tests of tasks, which pytest finds by itself; :mod:`.testing` is what they do.
* :mod:`.tqdm`: a progress bar that reports the progress of the running task.
"""
