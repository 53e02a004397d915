"""A real Prometheus scrapes a real fleet: every panel and every alert has data, and a lost worker raises an alert."""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter

import pytest
import yaml

from tests.support.fleet import Fleet
from tests.support.paths import ROOT
from tests.support.redis_server import free_port
from tests.support.shell import Shell
from tests.support.waiting import eventually

PROMETHEUS = shutil.which("prometheus")

#: Seconds for which it scrapes, once a second.
SCRAPED = 120.0

FOLDER = ROOT / "docs" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
FOREIGN = json.loads((ROOT / "tests" / "support" / "schemas" / "celery-exporter-panels.json").read_text())

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400),
              pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus here; install it to run these")]


class Prometheus:
    """A server that scrapes addresses by job, with the shipped alerts."""

    def __init__(self, folder, targets):
        self.port = free_port()
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(FOLDER / "alerts.yaml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = open(folder / "prometheus.log", "w")
        self.process = subprocess.Popen(
            [PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{self.port}"], stdout=self.log, stderr=subprocess.STDOUT)

    def read(self, path, **params):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(params)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr):
        return self.read("query", query=expr)["result"]

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    fleet = Fleet(tmp_path_factory.mktemp("scraped"), broker, store, memsync_worker_ttl=2.0, memsync_failure_types=True)
    fleet.worker("-c", "2").start()
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def prometheus(fleet, tmp_path_factory):
    """A Prometheus that has scraped for two minutes, in which tasks ran and a worker was killed."""
    shell = Shell(fleet.env())
    ports = {"celery": free_port(), "celery-exporter": free_port()}
    servers = [shell.start("metrics", "--serve", f"127.0.0.1:{port}", "--names",
                           "celery-exporter" if job == "celery-exporter" else "celery-memsync")
               for job, port in ports.items()]
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), {job: f"127.0.0.1:{port}" for job, port in ports.items()})
    ended = threading.Event()
    sender = threading.Thread(target=send_tasks, args=(fleet, ended))
    try:
        began = time.monotonic()
        sender.start()
        eventually(lambda: scrapes(server, 'celery_memsync_runs_total{task=~".*sleep"}', "celery_worker_up"), timeout=60)
        doomed = fleet.worker("-c", "1", "-Q", "doomed")
        doomed.start()
        fleet.wait(fleet.send("sleep", 60, queue="doomed"), "STARTED")
        os.killpg(doomed.process.pid, signal.SIGKILL)
        time.sleep(max(0.0, SCRAPED - (time.monotonic() - began)))
        yield server
    finally:
        ended.set()
        sender.join()
        server.close()
        for one in servers:
            one.end(signal.SIGINT)


def scrapes(server, *selectors):
    """Whether a server is there and has data of each kind."""
    try:
        return all(map(server.query, selectors))
    except OSError:
        return False


def send_tasks(fleet, ended):
    """Send tasks of each kind until it is enough."""
    while not ended.wait(0.5):
        fleet.send("add", 1, 2)
        fleet.send("fail")
        fleet.send("retry_once")
        fleet.send("sleep", 0.2)


def filled(expr, job):
    """Return a query of a panel with the values of its variables."""
    values = {"$__rate_interval": "30s", "$__range": "2m", "$job": job, "$queue_name": ".*", "$queue": ".*", "$task": ".*",
              "$cluster": "", "$namespace": ""}
    for name, value in values.items():
        expr = expr.replace(name, value)
    return expr


def test_every_panel_of_the_dashboard_has_data(prometheus):
    queries = [(panel["title"], filled(target["expr"], "celery"))
               for panel in DASHBOARD["panels"] for target in panel["targets"]]

    assert [title for title, expr in queries if not prometheus.query(expr)] == []
    assert len(queries) > 20


@pytest.mark.parametrize("number", ["17508", "17509"])
def test_every_panel_of_celery_exporter_has_data(prometheus, number):
    panels = [(panel["panel"], filled(panel["expr"], "celery-exporter")) for panel in FOREIGN[number]]

    answers = {(title, expr): prometheus.query(expr) for title, expr in panels}

    print(f"{number}: " + ", ".join(sorted({title for (title, _), answer in answers.items() if answer})))
    assert [key for key, answer in answers.items() if not answer] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_metric_of_an_alert_has_data(prometheus, rule):
    selectors = re.findall(r"celery_memsync_\w+(?:\{[^}]*\})?", rule["expr"])

    assert selectors
    assert [one for one in selectors if not prometheus.query(one)] == []


def test_all_rules_are_evaluated_without_an_error(prometheus):
    rules = [rule for group in prometheus.read("rules")["groups"] for rule in group["rules"]]

    assert {rule["health"] for rule in rules} == {"ok"}
    assert len(rules) == len(RULES)


def test_alerts_fire_when_a_worker_was_killed(prometheus):
    def firing():
        alerts = prometheus.read("alerts")["alerts"]
        names = {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}
        return names if {"CeleryWorkerLost", "CeleryRunsLost"} <= names else None

    assert eventually(firing, timeout=20)


def test_scrapes_have_never_failed(prometheus):
    assert prometheus.query("min_over_time(up[90s]) == 0") == []
    assert prometheus.query('min_over_time(celery_memsync_redis_up[90s]) == 0') == []


def test_counts_of_prometheus_are_those_of_redis(prometheus, fleet):
    expr = 'sum by (task) (celery_memsync_runs_total{outcome="succeeded"})'

    def compared():
        scraped = {row["metric"]["task"]: float(row["value"][1]) for row in prometheus.query(expr)}
        found = Counter()
        for one in fleet.reader.runtime.store.read_statistics():
            found[one.task] += one.outcomes["succeeded"]
        return scraped if abs(sum(scraped.values()) - sum(found.values())) < 20 and scraped.keys() == found.keys() else None

    assert eventually(compared, timeout=20)
