"""What is imported by those who use no framework."""
from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

FRAMEWORKS = {"starlette", "sse_starlette", "uvicorn", "anyio", "fastapi", "django.http", "celery_memsync.contrib"}


@pytest.mark.parametrize("statement, names", [
    ("import celery_memsync", {*FRAMEWORKS, "asyncio", "celery_memsync.aio"}),
    ("from celery_memsync import MemSync; import celery_memsync.cli", {*FRAMEWORKS, "celery_memsync.aio"}),
    ("import celery_memsync.contrib.answers", FRAMEWORKS - {"celery_memsync.contrib"} | {"celery_memsync.aio"}),
    ("import celery_memsync.contrib.live_tasks", FRAMEWORKS - {"celery_memsync.contrib"}),
])
def test_frameworks_are_imported_by_their_own_modules_only(statement, names):
    code = f"import sys; {statement}; print(*sorted({names!r} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("\n", "")
