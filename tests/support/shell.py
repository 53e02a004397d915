"""Where a user types `celery memsync ...`."""
from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys

from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_memsync import cli
from tests.support.paths import ROOT
from tests.support.waiting import eventually


class Shell:
    """Where a user types commands.

    Args:
        env: Environment of the app.
    """

    def __init__(self, env):
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), **env}

    def run(self, *args, **env):
        """Run a command in this process; return what came of it, as `run_process` does."""
        app = Celery("proj", set_as_current=False)
        app.conf.update(json.loads(self.env["MEMSYNC_TEST_CONF"]))
        context = CLIContext(app, no_color=False, workdir=None)
        try:
            done = _runner().invoke(cli.memsync, args, obj=context, env=env, prog_name="celery memsync")
        finally:
            _leave(app)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(args, done.exit_code, done.stdout, done.stderr)

    def run_process(self, *args, app="tests.support.proj", **env):
        """Run a command in a process of its own, as a user does; return what came of it."""
        return subprocess.run(
            self._command(app, args), env={**self.env, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60)

    def start(self, *args, **options):
        """Start a command that goes on; its output is unbuffered."""
        return Running(subprocess.Popen(
            self._command("tests.support.proj", args), env=self.env, cwd=ROOT, text=True,
            # Where the tests themselves run in the background Ctrl-C is ignored, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}))

    def _command(self, app, args):
        return [sys.executable, "-m", "celery", "-A", app, "memsync", *args]


def _runner():
    """Return a runner of click that keeps stdout and stderr apart; click 8.1 needs an argument."""
    old = "mix_stderr" in inspect.signature(CliRunner).parameters
    return CliRunner(mix_stderr=False) if old else CliRunner()


def _leave(app):
    """Close what a command has opened, as the end of its process does."""
    memsync = getattr(app, "memsync", None)
    if memsync is not None:
        memsync.shutdown(timeout=0.2)
        memsync.signals.disconnect()
    app.close()


class Running:
    """A command that goes on.

    Args:
        process: With pipes for its output.
    """

    def __init__(self, process):
        self.process = process

    def wait_subscribed(self, client):
        """Wait until it has subscribed; it is the only subscriber of this server."""
        eventually(client.pubsub_numpat, timeout=20, message="it does not subscribe")
        return self

    def end(self, how=None, timeout=20):
        """Return what came of it, once it has ended; by a signal if one is given."""
        if how is not None:
            self.process.send_signal(how)
        try:
            out, err = self.process.communicate(timeout=timeout)
        finally:
            self.process.send_signal(signal.SIGKILL)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)


def plain(done):
    """Return the output of a command that went well and wrote for a pipe."""
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    return done.stdout


def one_line(done):
    """Return the line on stderr of a command that went wrong."""
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line
