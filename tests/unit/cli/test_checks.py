"""What the doctor finds in clocks, times, indexes and locks."""
from __future__ import annotations

import pytest
from celery import Celery
from kombu.transport.redis import Channel

from celery_memsync import MemSync
from celery_memsync.cli import checks
from celery_memsync.cli.checks import Scene
from celery_memsync.models.lock import LockRecord
from celery_memsync.models.worker import WorkerRecord
from celery_memsync.settings import Settings

NOW = 1_000_000.0
DONE = {"status": "SUCCESS", "finished_at": NOW - 60, "worker": "w1"}
LOCK = LockRecord("printer", 1, "host:1", "t1", NOW - 90, 20.0, 0)


HELD = {"count": 2, "renewed_at": NOW - 5, "interval": 20.0, "visibility_timeout": 60.0}


def scene(**given):
    return Scene(**{"settings": Settings(), "visibility": 3600.0, "late": True, "workers": [], "newest": {},
                    "processing": {}, "locks": [], "holders": {}, "now": NOW, **given})


@pytest.mark.parametrize("look, text, given", [
    (checks.examine_visibility, "1h06m", {"newest": {"t": {"status": "SUCCESS", "runtime": 4000.0}}}),
    (checks.examine_visibility, "1h06m", {"workers": [WorkerRecord("w", running=({"started_at": NOW - 4000},))]}),
    (checks.examine_visibility, "eta", {"late": False, "newest": {
        "t": {"status": "PENDING", "published_at": NOW, "eta": NOW + 4000}}}),
    (checks.examine_visibility, "6m40s apart", {"workers": [WorkerRecord("w", skew=-100.0), WorkerRecord("v", skew=300.0)]}),
    (checks.examine_visibility, "1h06m", {"newest": {"t": {"status": "SUCCESS", "runtime": 4000.0}}, "workers": [
        WorkerRecord("w", held_messages=HELD), WorkerRecord("v")]}),
    (checks.examine_visibility, "6m40s apart", {"workers": [
        WorkerRecord("w", skew=-100.0, held_messages=HELD), WorkerRecord("v", skew=300.0, held_messages=HELD)]}),
    (checks.examine_renewal, "not renewed in time by w", {"visibility": 60.0, "sweep": 1.0, "workers": [
        WorkerRecord("w", last_beat=NOW, held_messages={**HELD, "renewed_at": NOW - 55}), WorkerRecord("v")]}),
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
    (checks.examine_visibility, {"newest": {"t": {"status": "SUCCESS", "runtime": 4000.0}},
                                 "workers": [WorkerRecord("w", held_messages=HELD), WorkerRecord("v", "lost")]}),
    (checks.examine_renewal, {"visibility": 60.0, "sweep": 100.0, "workers": [WorkerRecord("w")]}),
    (checks.examine_renewal, {"visibility": 1800.0, "workers": [WorkerRecord("w", held_messages=HELD)]}),
    (checks.examine_queues, {"workers": [WorkerRecord("w", queues=("a",))], "newest": {
        "t": {"status": "PENDING", "queue": "a"}, "u": {"status": "STARTED", "queue": "b"}, "v": None, "x": {}}}),
    (checks.examine_settings, {}),
    (checks.examine_indexes, {"processing": {"t1": {**DONE, "finished_at": NOW - 1}, "t2": None}}),
    (checks.examine_locks, {"locks": [LOCK], "holders": {"t1": {"status": "STARTED", "worker": "w1"}},
                            "workers": [WorkerRecord("w1")]}),
])
def test_check_reports_nothing_when_all_is_well(look, given):
    assert list(look(scene(**given))) == []


@pytest.mark.parametrize("visibility, sweep, shown, advice", [
    (3600.0, 100.0, "after 1h00m and a sweep of up to 1m40s", ["may be a minute", "shorten the sweep"]),
    (3600.0, 5.0, "after 1h00m", ["may be a minute"]), (60.0, 100.0, "after 1m00s", ["shorten the sweep"]),
    (60.0, 5.0, "a sweep of up to 5.0s", [])])
def test_when_messages_of_a_dead_worker_come_back_is_shown(visibility, sweep, shown, advice):
    workers = [WorkerRecord("w", last_beat=NOW, held_messages=HELD)]

    (finding,) = checks.examine_renewal(scene(visibility=visibility, sweep=sweep, workers=workers))

    assert finding.fine and shown in finding.what
    assert [part.endswith(end) or end in part for part, end in zip(finding.advice.split("; "), advice or [""])] == \
        [True] * max(1, len(advice))


@pytest.mark.parametrize("url, options, expected", [
    ("redis://", {}, (3600.0, 100.0)), ("amqp://", {}, (None, None)), ("memory://", {}, (None, None)),
    ("redis://", {"visibility_timeout": 60, "unacked_restore_interval": 5, "unacked_restore_throttle": 2}, (60.0, 10.0)),
    ("redis://", {"unacked_restore_interval": -1, "unacked_restore_throttle": 0}, (3600.0, 10.0))])
def test_times_of_the_broker_are_those_of_its_transport(redis_url, url, options, expected):
    app = Celery("proj", broker=redis_url if url == "redis://" else url, set_as_current=False)
    app.conf.broker_transport_options = options

    with app, MemSync(app, backend=redis_url) as memsync:
        found = checks.read_scene(app, memsync, [])

    assert (found.visibility, found.sweep) == expected if hasattr(Channel, "unacked_restore_interval") else \
        found.sweep == (expected[1] and 100.0)


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
