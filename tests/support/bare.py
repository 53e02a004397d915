"""An app that knows nothing of this package; only the configuration may."""
from __future__ import annotations

import json
import os

from celery import Celery

app = Celery("bare")
app.conf.update(json.loads(os.environ["MEMSYNC_TEST_CONF"]))
