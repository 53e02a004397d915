"""How benchmarks compare what they measured with peers, floors and goals."""
from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.support.paths import ROOT
from tests.support.waiting import eventually

FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The modules of the benchmarks that measure nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import common
        import goals
        import load
        import page
        import report
    return SimpleNamespace(common=common, goals=goals, load=load, page=page, report=report)


def rounds(*times):
    return [{"time": time} for time in times]


@pytest.fixture
def judged(bench):
    """Judge a goal by the times of peer, peer again, floor and ours, round by round."""
    def judge(most, ours, again=(100, 100, 100), unit=""):
        rows = {"peer": rounds(100, 100, 100), "peer again": rounds(*again),
                "floor": rounds(50, 50, 50), "memsync": rounds(*ours)}
        goal = bench.goals.Goal("work", "peer", "writes", "keys", "time", most, unit)
        tables = {"keys": bench.common.table(rows)}
        return bench.goals.judge(goal, {"writes": {"tables": tables, "quick": False}})
    return judge


# -- ratios

def test_ratio_is_the_median_of_ratios_of_the_same_round(bench):
    table = bench.common.table({"peer": rounds(1, 10, 100), "ours": rounds(3, 20, 100)})

    assert table["ours"]["time"]["ratio"] == 2.0
    assert table["ours"]["time"]["median"] == 20


@pytest.mark.parametrize("count, interval", [(1, (0, 0)), (4, (0, 3)), (11, (2, 8)), (15, (3, 11))])
def test_interval_of_a_median_leaves_out_extremes_of_many_rounds(bench, count, interval):
    assert bench.common.median_interval([float(one) for one in range(count)]) == interval


def test_compare_measures_the_peer_twice(bench):
    table = bench.common.compare({"peer": lambda: {"time": 1.0}, "ours": lambda: {"time": 2.0}}, 2)

    assert list(table) == ["peer", "peer again", "ours"]


def test_compare_takes_a_second_peer_that_is_given(bench):
    variants = {"peer": lambda: {"time": 1.0}, "peer again": lambda: {"time": 3.0}}

    assert bench.common.compare(variants, 2)["peer again"]["time"]["ratio"] == 3.0


# -- goals

def test_goal_is_met_by_a_ratio_below_it(judged):
    result = judged(1.2, (110, 110, 110))

    assert result.met
    assert result.verdict == "met"
    assert (result.ours, result.again, result.floor) == (1.1, 1.0, 0.5)


def test_goal_is_met_by_a_ratio_that_is_equal(judged):
    assert judged(1.1, (110, 110, 110)).verdict == "met"


def test_goal_is_missed_by_a_part_of_itself(judged):
    assert judged(1.0, (112, 112, 112)).verdict == "missed by 12 %"
    assert judged(0.5, (100, 100, 100)).verdict == "missed by 100 %"


def test_goal_is_missed_within_noise_if_the_peer_differs_from_itself_as_much(judged):
    result = judged(1.0, (112, 112, 112), again=(95, 100, 115))

    assert not result.met
    assert result.verdict == "missed by 12 %, within noise"


def test_goal_is_met_within_noise_if_the_peer_differs_from_itself_as_much(judged):
    assert judged(1.15, (112, 112, 112), again=(95, 100, 115)).verdict == "met, within noise"


def test_noise_counts_in_both_directions(judged):
    assert judged(1.0, (112, 112, 112), again=(85, 100, 100)).within_noise
    assert not judged(1.0, (112, 112, 112), again=(95, 100, 100)).within_noise


def test_goal_with_a_unit_compares_numbers_and_not_ratios(judged):
    assert judged(105, (110, 110, 110), unit="bytes").verdict == "missed by 4.8 %"
    assert judged(105, (110, 110, 110), (108,) * 3, "bytes").verdict == "missed by 4.8 %, within noise"


def test_goal_without_a_second_peer_has_no_noise(bench):
    goal = bench.goals.Goal("work", "", "calls", "task", "main", 15, "calls")
    tables = {"task": {"memsync": {"main": {"median": 30.0}}}}

    result = bench.goals.judge(goal, {"calls": {"tables": tables, "quick": False}})

    assert (result.again, result.floor, result.noise) == (None, None, 0.0)
    assert result.verdict == "missed by 100 %"


def test_goal_that_was_not_measured_is_left_out(bench):
    assert bench.goals.judge_all({"writes": {"tables": {}, "quick": False}}) == []


@pytest.mark.parametrize("name", ["report", "goals"])
def test_benchmark_that_is_named_exists(bench, name):
    named = {"report": bench.report.BENCHMARKS,
             "goals": [goal.benchmark for goal in bench.goals.GOALS]}[name]

    assert [one for one in named if not (FOLDER / f"{one}.py").exists()] == []
    assert set(named) <= set(bench.report.BENCHMARKS)


# -- report

@pytest.fixture
def results(bench):
    """What ``writes`` would print if it had found these times."""
    def make(ours, quick=False):
        rows = {"pipeline": 100, "pipeline again": 101, "floor": 50, "memsync": ours}
        figures = ("time, µs", "CPU of the client, µs", "CPU of Redis, µs")
        table = bench.common.table({
            name: [dict.fromkeys(figures, time)] for name, time in rows.items()})
        return {"writes": {"tables": {"New keys": table}, "quick": quick}}
    return make


def test_report_shows_peer_ratio_noise_floor_goal_and_result(bench, results):
    lines = list(bench.page.goals(results(150)))

    row = next(line for line in lines if "writing new keys: time" in line)

    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["writing new keys: time", "redis-py's pipeline", "1.5", "1.01 ± 1 %", "0.5",
                     "1.2", "**missed by 25 %**"]


def test_report_ends_with_what_misses_and_the_worst_first(bench, results):
    lines = list(bench.page.goals(results(150)))

    assert lines[-4:] == ["Missed: 2 of 3.", "",
                          "* writing new keys: CPU of the client: missed by 114 %",
                          "* writing new keys: time: missed by 25 %"]


def test_report_says_that_quick_mode_is_noisy(bench, results):
    assert "noisy" in next(bench.page.goals(results(150, quick=True)))
    assert "noisy" not in "".join(bench.page.goals(results(150)))


def test_report_replaces_what_was_measured_in_a_page_that_people_write(bench):
    page = bench.page
    text = f"# Scaling\n\n{page.MEASURED}\nold\n{page.END}\n\n## More\n"

    once = page.with_measured(text, ["new"])

    assert once == f"# Scaling\n\n{page.MEASURED}\n\nnew\n\n{page.END}\n\n## More\n"
    assert page.with_measured(once, ["new"]) == once


def test_report_refuses_a_page_without_a_place_for_what_was_measured(bench):
    with pytest.raises(ValueError, match="lacks the line"):
        bench.page.with_measured("# Scaling\n", ["new"])


def test_scaling_page_has_a_place_for_what_was_measured(bench):
    text = (ROOT / "docs" / "scaling.md").read_text()

    assert "new" in bench.page.with_measured(text, ["new"]).splitlines()


def test_report_waits_at_an_interrupt_until_a_benchmark_has_stopped_what_it_started(bench, tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "slow.py").write_text(
        "import pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "try:\n    (folder / 'started').touch()\n    time.sleep(60)\n"
        "finally:\n    time.sleep(1)\n    (folder / 'stopped').touch()\n")
    code = (f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import pathlib, report; "
            f"report.ROOT = pathlib.Path({str(tmp_path)!r}); report.run('slow', True)")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True)
    eventually((tmp_path / "started").exists, timeout=30)

    os.killpg(process.pid, signal.SIGINT)

    assert process.wait(30) != 0
    assert (tmp_path / "stopped").exists()


@pytest.mark.slow
def test_processes_of_a_load_end_with_their_block(bench, redis_url):
    writers = bench.load.Writers(redis_url, 3)
    with pytest.raises(KeyboardInterrupt), writers.running():
        writers.set_rate(300.0)
        eventually(lambda: writers.read()[0] > 50, timeout=30)
        children = multiprocessing.active_children()
        raise KeyboardInterrupt

    assert len(children) == 3
    assert not any(child.is_alive() for child in children)


# -- floors

def test_floors_import_nothing_of_the_package():
    code = "import floors, sys; print([m for m in sys.modules if m.startswith('celery_memsync')])"
    found = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True,
                           check=True).stdout

    assert found.strip() == "[]"
    assert "celery_memsync" not in (FOLDER / "floors.py").read_text()
