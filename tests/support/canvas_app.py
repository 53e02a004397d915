"""The app of the worker for Celery's own tests of canvas; its configuration comes in the environment."""
from __future__ import annotations

import json
import os
import sys
import types

from celery import Celery

from celery_memsync import MemSync

#: Where Celery's tests have their tasks.
TASKS = "t.integration.tasks"

# Tasks of other tests need it.
sys.modules.setdefault("pydantic", types.SimpleNamespace(BaseModel=type("BaseModel", (), {})))

app = Celery("celery.tests", include=[TASKS, "celery.contrib.testing.tasks"])
app.conf.update(json.loads(os.environ["MEMSYNC_TEST_CONF"]))
memsync = MemSync(app)
app.loader.import_task_module(TASKS)
app.register_task(sys.modules[TASKS].ClassBasedAutoRetryTask)
