"""What the doctor finds in clocks, times, indexes and locks."""
from __future__ import annotations

import pytest

from celery_memsync.cli import checks
from celery_memsync.cli.checks import Scene
from celery_memsync.models.lock import LockRecord
from celery_memsync.models.worker import WorkerRecord
from celery_memsync.settings import Settings

NOW = 1_000_000.0
DONE = {"status": "SUCCESS", "finished_at": NOW - 60, "worker": "w1"}
LOCK = LockRecord("printer", 1, "host:1", "t1", NOW - 90, 20.0, 0)


def scene(**given):
    return Scene(**{"settings": Settings(), "visibility": 3600.0, "late": True, "workers": [], "newest": {},
                    "processing": {}, "locks": [], "holders": {}, "now": NOW, **given})


@pytest.mark.parametrize("look, text, given", [
    (checks.examine_visibility, "1h06m", {"newest": {"t": {"status": "SUCCESS", "runtime": 4000.0}}}),
    (checks.examine_visibility, "1h06m", {"workers": [WorkerRecord("w", running=({"started_at": NOW - 4000},))]}),
    (checks.examine_visibility, "eta", {"late": False, "newest": {
        "t": {"status": "PENDING", "published_at": NOW, "eta": NOW + 4000}}}),
    (checks.examine_visibility, "6m40s apart", {"workers": [WorkerRecord("w", skew=-100.0), WorkerRecord("v", skew=300.0)]}),
    (checks.examine_queues, "mail (2), b (1)", {"workers": [WorkerRecord("w", queues=("a",))], "newest": {
        "t": {"status": "PENDING", "queue": "b"}, "u": {"status": "PENDING", "queue": "mail"},
        "v": {"status": "PENDING", "queue": "mail"}, "x": {"status": "PENDING", "queue": "a"}}}),
    (checks.examine_queues, "a (1)", {"workers": [WorkerRecord("w", "offline", queues=("a",))], "newest": {
        "t": {"status": "PENDING", "queue": "a"}}}),
    (checks.examine_settings, "worker_ttl", {"settings": Settings(worker_ttl=8.0)}),
    (checks.examine_settings, "default_ttl", {"settings": Settings(default_ttl=10.0)}),
    (checks.examine_indexes, "ended: t1", {"processing": {"t1": DONE}}),
    (checks.examine_indexes, "100 of", {"newest": dict.fromkeys(map(str, range(100)))}),
    (checks.examine_locks, "printer", {"locks": [LOCK], "holders": {"t1": DONE}}),
    (checks.examine_locks, "printer", {"locks": [LOCK], "holders": {"t1": {"status": "STARTED", "worker": "w1"}},
                                       "workers": [WorkerRecord("w1", "lost")]}),
])
def test_what_is_wrong_is_found(look, text, given):
    (finding,) = look(scene(**given))

    assert not finding.fine and finding.advice
    assert text in finding.what


@pytest.mark.parametrize("look, given", [
    (checks.examine_visibility, {"visibility": None, "newest": {"t": {"status": "SUCCESS", "runtime": 4000.0}}}),
    (checks.examine_visibility, {"late": False, "newest": {"t": {"status": "SUCCESS", "runtime": 4000.0}}}),
    (checks.examine_visibility, {"newest": {"t": {"status": "SUCCESS", "runtime": "x"}, "u": None}}),
    (checks.examine_visibility, {"workers": [WorkerRecord("w", skew=-100.0), WorkerRecord("v", "lost", skew=300.0)]}),
    (checks.examine_queues, {"workers": [WorkerRecord("w", queues=("a",))], "newest": {
        "t": {"status": "PENDING", "queue": "a"}, "u": {"status": "STARTED", "queue": "b"}, "v": None, "x": {}}}),
    (checks.examine_settings, {}),
    (checks.examine_indexes, {"processing": {"t1": {**DONE, "finished_at": NOW - 1}, "t2": None}}),
    (checks.examine_locks, {"locks": [LOCK], "holders": {"t1": {"status": "STARTED", "worker": "w1"}},
                            "workers": [WorkerRecord("w1")]}),
])
def test_check_reports_nothing_when_all_is_well(look, given):
    assert list(look(scene(**given))) == []


@pytest.mark.parametrize("skew, found", [(0.5, False), (-3.0, True), (3.0, True), (None, False)])
def test_a_clock_that_is_wrong_is_found(skew, found):
    assert bool(list(checks.examine_clocks([WorkerRecord("w1", skew=skew)]))) is found


@pytest.mark.parametrize("skews, fine", [
    ({}, []), ({"a:1": 0.0, "b:1": -0.4, "c:1": 0.4}, [True]), ({"a:1": 0.0, "b:1": -90.0}, [False])])
def test_clocks_of_nodes_that_differ_by_too_much_are_found(skews, fine):
    assert [one.fine for one in checks.examine_nodes(skews)] == fine


def test_a_name_that_two_live_workers_have_is_found():
    (finding,) = checks.examine_names({"w1": 2, "w2": 1})

    assert not finding.fine and "name: w1" in finding.what


@pytest.mark.parametrize("info, fine", [
    ({}, True), ({"rdb_last_bgsave_status": "err"}, False), ({"aof_last_write_status": "err"}, False)])
def test_a_redis_that_can_not_save_is_found(info, fine):
    assert all(one.fine for one in checks.examine_persistence(info)) is fine


@pytest.mark.parametrize("latency, fine", [(0.0002, True), (0.2, False)])
def test_a_slow_redis_is_found(latency, fine):
    (finding,) = checks.examine_latency(latency)

    assert finding.fine is fine
