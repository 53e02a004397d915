"""Any setting is accepted, or refused by an error that shows no secret."""
from __future__ import annotations

from dataclasses import fields

import pytest
from celery.exceptions import ImproperlyConfigured
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_memsync import MemorySyncManager
from celery_memsync.settings import SCHEMES, Settings

SECRET = "hunter2"

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10 ** 300, 10 ** 5000) | st.floats() | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner),
    max_leaves=5)

URLS = st.builds(
    "{}{}{}{}".format, st.sampled_from([*SCHEMES, "http", "", "REDIS", "redis+socket"]),
    st.sampled_from(["://", ":", "//", ""]),
    st.builds("{}:{}@{}".format, st.text(max_size=5), st.just(SECRET), st.text(max_size=10)),
    st.text(max_size=10) | st.builds("?{}={}".format, st.sampled_from(["db", "socket_timeout", "x"]), st.text(max_size=5)))

often = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@often
@given(name=st.sampled_from([one.name for one in fields(Settings) if one.name != "backend"]), value=ANYTHING)
def test_a_setting_is_taken_or_refused_by_its_name(name, value):
    try:
        manager = MemorySyncManager(url="redis://127.0.0.1:1/0", **{name: value})
    except ImproperlyConfigured as exc:
        assert f"memsync_{name}" in str(exc) or name == "heartbeat_interval" and "memsync_worker_ttl" in str(exc)
        assert len(str(exc)) < 500
    else:
        manager.shutdown(timeout=0)


@often
@given(name=st.text(), value=ANYTHING)
def test_a_setting_that_there_is_not_is_refused(name, value):
    try:
        Settings.build({f"memsync_{name}": value})
    except ImproperlyConfigured:
        return
    assert name in {one.name for one in fields(Settings)}


@often
@given(url=URLS | st.text())
def test_a_url_is_taken_or_refused_without_its_password(url):
    try:
        manager = MemorySyncManager(url=url)
    except ImproperlyConfigured as exc:
        assert SECRET not in str(exc)
    else:
        manager.shutdown(timeout=0)


@pytest.mark.parametrize("given_", [{1: 2}, {None: 1}, {("memsync_a",): 1}])
def test_a_name_that_is_no_text_is_refused(given_):
    with pytest.raises(ImproperlyConfigured):
        Settings.build(given_)
