"""What is shipped for Prometheus, Grafana and Kubernetes: it fits what is shown, and the schemas of those who read it."""
from __future__ import annotations

import json
import re
import shutil
import subprocess

import jsonschema
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from celery_memsync.metrics import MemsyncCollector, exporter_names
from celery_memsync.metrics.families import families_of, own_families
from celery_memsync.metrics.reading import Reading
from celery_memsync.metrics.server import text_of
from celery_memsync.store.statistics import Totals
from tests.support.paths import ROOT

FOLDER = ROOT / "docs" / "monitoring"
SCHEMAS = ROOT / "tests" / "support" / "schemas"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
NOTHING = Reading(0.0, 0.0, {}, [], [], Totals(0, 0, [], 0, {}), {})


def names_shown(families):
    """Return the names of the samples of metrics."""
    ends = {"gauge": [""], "counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {family.name + end for family in families for end in ends[family.kind]}


OURS = names_shown([*families_of(NOTHING, per_worker=True), *own_families(True, 0.0)])


def names_in(text):
    return set(re.findall(r"\bcelery_\w+", text))


def test_every_panel_reads_metrics_that_there_are():
    names = {name for panel in DASHBOARD["panels"] for target in panel["targets"] for name in names_in(target["expr"])}

    assert names <= OURS
    assert len(names) > 12


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    cells = [(x, y) for panel in panels for place in [panel["gridPos"]]
             for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert all(panel["title"] and panel["targets"] for panel in panels)


def test_variables_of_the_dashboard_are_used_and_read_labels_that_there_are():
    text = json.dumps(DASHBOARD["panels"])

    for one in DASHBOARD["templating"]["list"]:
        assert f"${one['name']}" in text or f"${{{one['name']}}}" in text
        assert names_in(one.get("definition", "")) <= OURS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_reads_metrics_that_there_are(rule):
    assert names_in(rule["expr"]) <= OURS
    assert rule["annotations"]["summary"] and rule["labels"]["severity"]


def test_alerts_pass_promtool():
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here; install prometheus to run this")

    done = subprocess.run(["promtool", "check", "rules", str(FOLDER / "alerts.yaml")], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name, schema", [("keda", "keda-scaledobject"), ("hpa", "hpa")])
def test_manifest_matches_the_schema_of_its_kind(name, schema):
    manifest = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())

    jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{schema}.json").read_text())).validate(manifest)
    assert names_in(json.dumps(manifest)) <= OURS


def test_keda_finds_its_value_in_a_scrape(memsync):
    memsync.force_sync()
    (trigger,) = yaml.safe_load((FOLDER / "keda.yaml").read_text())["spec"]["triggers"]
    name, labels = re.fullmatch(r"(\w+)\{(.*)\}", trigger["metadata"]["valueLocation"]).groups()
    wanted = dict(re.findall(r'(\w+)="([^"]*)"', labels))

    samples = [sample for family in text_string_to_metric_families(text_of(MemsyncCollector(memsync)))
               for sample in family.samples if sample.name == name and wanted.items() <= sample.labels.items()]

    assert [sample.value for sample in samples] == [0]


@pytest.mark.parametrize("number", ["17508", "17509"])
def test_panels_of_celery_exporter_read_metrics_that_there_are(number):
    panels = json.loads((SCHEMAS / "celery-exporter-panels.json").read_text())[number]

    names = {name for panel in panels for name in names_in(panel["expr"])}

    assert names <= names_shown(exporter_names.families_of(NOTHING))
    assert len(panels) > 25


def test_page_names_every_metric():
    page = (ROOT / "docs" / "howto" / "metrics.md").read_text()
    families = [*families_of(NOTHING, per_worker=True), *own_families(True, 0.0)]

    names = {family.name.removeprefix("celery_memsync_") + "_total" * (family.kind == "counter") for family in families}

    assert {name for name in names if f"`{name}`" not in page} == set()
