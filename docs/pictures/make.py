"""Draw the pictures of the documents, and refresh samples of output, from a real run: a Redis, two workers, real commands.

Run ``make pictures``.  It needs redis-server on the PATH, the port 6379, and the extra ``dev`` (rich, pyte).  What the
commands print goes into ``README.md`` and ``docs/reference/commands.md``, and in full into ``build/transcript.txt``.
"""
from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from rich.style import Style
from rich.text import Text

PICTURES = Path(__file__).resolve().parent
ROOT = PICTURES.parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.terminal import Terminal  # noqa: E402

#: Seconds until each worker has sent its third heartbeat, which knows the load of its process.
SETTLED = 12.0

APP = '''
import time

from celery import Celery
from celery_memsync import MemSync

app = Celery("proj", broker="redis://localhost:6379/0", backend="redis://localhost:6379/2")
app.conf.memsync_backend = "redis://localhost:6379/1"
app.conf.worker_disable_prefetch = True
memsync = MemSync(app)


@app.task
def convert(pages):
    reader = memsync.agent("reader")
    for page in memsync.track(range(pages), message="converting"):
        time.sleep(0.1)
        reader.sync(pages=page + 1)
    return pages


@app.task
@memsync.locked("printer", wait=600)
def print_invoice(pages):
    for page in memsync.track(range(pages), message="printing"):
        time.sleep(0.1)


@app.task(bind=True, max_retries=3)
def charge(self, order):
    raise self.retry(countdown=120, exc=TimeoutError("the bank did not answer"))
'''

#: What is sent, one after the other: task, pages, id, options.  The first three seconds are for the first report.
SENT = (
    ("charge", 7, "order-7", {}),
    ("convert", 20, "report-1", {}),
    ("convert", 1500, "report-2", {}),
    ("print_invoice", 1200, "invoice-17", {}),
    ("print_invoice", 1200, "invoice-18", {}),
    ("convert", 900, "report-3", {}),
    ("convert", 80, "report-4", {}),
    ("convert", 80, "report-5", {}),
)

#: What the picture of `why` asks.
WHY = ("report-2", "invoice-18", "order-7", "report-4")

#: What goes into the transcript, while all of that runs.
COMMANDS = (
    "status", "tasks", "tasks --name *.convert --sort runtime --limit 1", "task report-2", "agents report-2",
    "workers", "workers w1", "locks", "queue --limit 3", "assignments", "counters", "search prices/*",
    "set prices/chf 0.93", "get prices/chf", "delete prices/chf --yes", "follow report-1",
    "watch tasks/report-2/progress --limit 2 --timeout 5", "why report-2", "why invoice-18", "why order-7",
    "unlock printer --yes", "export -", "doctor",
)

#: Runs commands one after the other in one process, because each start takes a second.
RUN = """
import sys
from celery.bin.celery import celery
for command in sys.argv[1:]:
    print(f"$ celery -A proj memsync {command}", flush=True)
    celery.main(["-A", "proj", "memsync", *command.split()], prog_name="celery", standalone_mode=False)
    print(flush=True)
"""

#: What stands before a command.
PROMPT = "$ celery -A proj memsync "

#: A command in a page, with what it prints.
SAMPLE = re.compile(r"^\$ celery -A proj memsync (.*)\n(?:(?!\$ |```).*\n)*", re.MULTILINE)

#: Width of a sample, and the entries that are shown of an export.
COLUMNS, EXPORTED = 100, re.compile("tasks/report-1/state|prices/eur")

#: Fonts that terminals have: an SVG in a page can load none.
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def main() -> None:
    """Draw all pictures."""
    with tempfile.TemporaryDirectory(prefix="memsync-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "proj.py").write_text(APP)
        env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
        stack.enter_context(started(shutil.which("redis-server") or "redis-server", "--save", "", cwd=folder))
        for node in ("w1@vm", "w2@vm"):
            stack.enter_context(started(*celery("worker", "-c", "2", "-n", node), cwd=folder, env=env))
        shell = SimpleNamespace(env=env, _command=lambda _, args: celery("memsync", *args))
        send(folder, env)
        time.sleep(SETTLED)
        subprocess.run([sys.executable, str(PICTURES / "architecture.py")], check=True)
        draw_top(shell)
        draw_why(folder, env)
        refresh_samples(folder, env)


def celery(*args: str) -> list[str]:
    """Return a command of Celery for the app."""
    return [sys.executable, "-m", "celery", "-A", "proj", *args]


@contextlib.contextmanager
def started(*command, **options):
    """Run a process as long as a block runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        time.sleep(0.5)
        if process.poll() is not None:
            raise SystemExit(f"{command[0]} ended at once; is the port 6379 free?")
        yield process
    finally:
        process.send_signal(signal.SIGQUIT if "celery" in command else signal.SIGTERM)
        process.wait(30)


def send(folder: Path, env: dict[str, str]) -> None:
    """Send the tasks when both workers are there, and write some values."""
    code = f"""
import time, proj
while len(proj.memsync.get_active_workers()) < 2:
    time.sleep(0.1)
proj.memsync.write("prices/eur", 1.08)
proj.memsync.write("prices/usd", 1.17)
for name, pages, task_id, options in {SENT!r}:
    getattr(proj, name).apply_async([pages], task_id=task_id, **options)
    time.sleep(3 if task_id == "report-1" else 0.5)
"""
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True)


def draw_top(shell: SimpleNamespace) -> None:
    """Draw `celery memsync top`, as a terminal shows it."""
    terminal = Terminal(shell, "top", size=(110, 24), PYTHONPATH=shell.env["PYTHONPATH"])
    try:
        terminal.shows("invoice-18", "quit", timeout=60)
        time.sleep(2)
        lines = [line_of(terminal.screen, number) for number in range(terminal.screen.lines)]
    finally:
        terminal.close()
    draw("top", "celery -A proj memsync top", lines, 110)


def line_of(screen, number: int) -> Text:
    """Return a line of a terminal with its colours."""
    text, line = Text(), [screen.buffer[number][column] for column in range(screen.columns)]
    for (colour, bold, reverse), chars in groupby(line, lambda char: (char.fg, char.bold, char.reverse)):
        name = None if colour == "default" else f"#{colour}" if re.fullmatch("[0-9a-f]{6}", colour) else colour
        text.append("".join(char.data for char in chars), Style(color=name, bold=bold, reverse=reverse))
    return text


def draw_why(folder: Path, env: dict[str, str]) -> None:
    """Draw what `celery memsync why` says of several tasks."""
    shown = printed([f"why {task_id}" for task_id in WHY], folder, env).splitlines()
    lines = [Text(line, "bold" if line.startswith("$") else "") for line in shown[:-1]]
    draw("why", "celery -A proj memsync why", lines, 100)


def draw(name: str, title: str, lines: list[Text], columns: int) -> None:
    """Write a picture of a terminal."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, highlight=False)
    svg = console.export_svg(title=title, unique_id=f"memsync-{name}")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    svg = svg.replace("font-family: Fira Code, monospace", f"font-family: {FONTS}")
    (PICTURES / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", svg, flags=re.M))


def printed(commands: Sequence[str], folder: Path, env: dict[str, str]) -> str:
    """Return `celery memsync` commands and what they print."""
    done = subprocess.run([sys.executable, "-c", RUN, *commands], cwd=folder, env=env, capture_output=True, text=True)
    return done.stdout + done.stderr


def refresh_samples(folder: Path, env: dict[str, str]) -> None:
    """Write down what each command prints, and put it into the pages."""
    transcript = printed(COMMANDS, folder, env)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "transcript.txt").write_text(transcript)
    outputs = dict(zip(COMMANDS, (part.partition("\n")[2].rstrip() for part in transcript.split(PROMPT)[1:])))
    for page in (ROOT / "README.md", ROOT / "docs" / "reference" / "commands.md"):
        page.write_text(re.sub(SAMPLE, lambda found: sample(found[1], found[0], outputs), page.read_text()))


def sample(command: str, before: str, outputs: dict[str, str]) -> str:
    """Return a command and what it prints, cut to what fits; what stood there before, if it was not run."""
    output = outputs.get(" ".join(shlex.split(command)))
    if output is None:
        return before
    lines = [line if len(line) < COLUMNS else f"{line[:COLUMNS - 4]}..." for line in output.splitlines()]
    if command.startswith("export"):
        lines = [line for line in lines if EXPORTED.search(line)] + ["..."]
    return "\n".join([PROMPT + command, *lines, ""])


if __name__ == "__main__":
    main()
