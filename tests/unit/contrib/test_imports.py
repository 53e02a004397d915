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


@pytest.mark.parametrize("module, missing", [("asgi", "sse_starlette"), ("asgi", "starlette"), ("tqdm", "tqdm")])
def test_module_without_its_extra_says_how_to_install_it(module, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import celery_memsync.contrib.{module}"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)

    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ") and missing in last
    assert last.endswith(f"; install the extra: pip install 'celery-memsync[{module}]'")
