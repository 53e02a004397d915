"""Celery's own tests of canvas, from the source of the installed version, with this package connected.

They pass as without it, and after each test the state of every result that was made, here or in the worker, agrees with
the result backend, but for the differences that the documents name.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import celery
import pytest

from tests.support.celery_worker import Worker
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer

SUITE = "t/integration/test_canvas.py"

#: Where the source is kept: the tests of one version of Celery.
CACHE = ROOT / "build" / f"celery-{celery.__version__}"

#: Tests that receive a signal of the worker in their own process, where there is none.
WITH_WORKER_IN_PROCESS = (
    "test_stamping_mechanism::test_task_received_has_access_to_stamps", "test_stamping_mechanism::test_linking_stamped_sig",
    "test_stamping_mechanism::test_err_linking_stamped_sig")

#: Seconds for the download, and for all tests.
DOWNLOAD_TIMEOUT, TIMEOUT = 120, 2400

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(TIMEOUT + DOWNLOAD_TIMEOUT + 120)]


def download(folder):
    """Put the tests of the installed Celery into a folder; return why that can't be done, or None."""
    folder.mkdir(parents=True)
    options = ["--quiet", "--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    try:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, f"celery=={celery.__version__}", "-d", folder],
            check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT)
    except subprocess.CalledProcessError as exc:
        return exc.stderr.strip().splitlines()[-1:]
    except subprocess.TimeoutExpired:
        return "pip took too long"
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        members = [one for one in source.getmembers() if one.name.split("/")[1:2] == ["t"]]
        source.extractall(folder, members, filter="data")
    (root,) = folder.glob("celery-*/")
    root.rename(CACHE)
    return None


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with the tests of the installed Celery."""
    if pytest.version_tuple < (9,):
        pytest.skip("Celery's tests need the fixture subtests, which pytest has since 9")
    if not (CACHE / SUITE).exists():
        CACHE.parent.mkdir(exist_ok=True)
        why = download(tmp_path_factory.mktemp("source") / "celery")
        if why is not None:
            pytest.skip(f"the source of Celery {celery.__version__} can't be had: {why}")
    if not (CACHE / SUITE).exists():
        pytest.skip(f"the source of Celery {celery.__version__} has no {SUITE}")
    return CACHE


class Suite:
    """Runs tests of Celery's with a worker, a broker and a shared state of its own.

    Args:
        source: The folder with the tests.
    """

    def __init__(self, source, folder):
        self.source = source
        self.folder = folder
        self.broker, self.store = RedisServer(folder / "broker"), RedisServer(folder / "store")
        self.notes = folder / "notes.jsonl"

    def __enter__(self):
        broker, store = self.broker.start(), self.store.start()
        conf = {
            "broker_url": broker.url, "result_backend": broker.url, "result_extended": True,
            "task_create_missing_queues": False, "broker_connection_retry_on_startup": True, "memsync_backend": store.url,
            "memsync_namespace": "canvas"}
        self.env = {
            "MEMSYNC_TEST_CONF": json.dumps(conf), "MEMSYNC_TEST_NOTES": str(self.notes), "TEST_BROKER": broker.url,
            "TEST_BACKEND": broker.url, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(broker.port),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.source)])}
        args = ["-c", "4", "--without-gossip", "--without-mingle"]
        self.worker = Worker(
            "tests.support.canvas_app", self.folder / "worker.log", *args, env=self.env, cwd=self.source).start()
        return self

    def __exit__(self, *exc_info):
        self.worker.stop(9)
        self.broker.stop()
        self.store.stop()

    def run(self, tests):
        """Run tests; return their rows, as `tests.support.canvas_agreement` notes them, and what pytest has printed."""
        self.notes.write_text("")
        options = [
            "-q", "-c", os.devnull, "-o", "python_classes=test_*", "--rootdir", self.source, "-p", "no:cacheprovider",
            "-p", "celery.contrib.pytest", "-p", "tests.support.canvas_agreement", "--timeout", "300",
            *(part for name in WITH_WORKER_IN_PROCESS for part in ("--deselect", f"{SUITE}::{name}"))]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests], cwd=self.source, env={**os.environ, **self.env},
            capture_output=True, text=True, timeout=TIMEOUT)
        return [json.loads(line) for line in self.notes.read_text().splitlines()], done.stdout

    def run_patiently(self, tests):
        """Run tests, and those that fail once more: Celery itself repeats those that it calls flaky up to five times."""
        rows, output = self.run(tests)
        failed = {row["test"] for row in rows if row["outcome"] == "failed"}
        if failed:
            again, output = self.run(sorted(failed))
            rows = [row for row in rows if row["test"] not in failed] + again
        return rows, output


def test_tests_of_celery_pass_and_their_results_agree(source, tmp_path):
    classes = re.findall(r"^class (test_\w+)", (source / SUITE).read_text(), re.M)
    large = {"test_chain", "test_chord"}  # they mostly wait
    parts = [*([name] for name in classes if name in large), [name for name in classes if name not in large]]

    with contextlib.ExitStack() as stack:
        suites = [stack.enter_context(Suite(source, tmp_path / str(number))) for number in range(len(parts))]
        with ThreadPoolExecutor(len(parts)) as threads:
            done = list(threads.map(
                lambda suite, names: suite.run_patiently([f"{SUITE}::{name}" for name in names]), suites, parts))
    rows = [row for found, _ in done for row in found]

    print(len(rows), "tests; known differences:", sorted({name for row in rows for name in row["known"]}))
    assert len(rows) > 100, [output[-2000:] for _, output in done]
    assert {row["test"]: row["wrong"] for row in rows if row["wrong"]} == {}
    assert [row["test"] for row in rows if row["outcome"] == "failed"] == [], [output[-4000:] for _, output in done]
