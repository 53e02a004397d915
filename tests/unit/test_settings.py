"""Settings: which are accepted, and the errors of the others."""
from __future__ import annotations

import pytest
from celery.exceptions import ImproperlyConfigured

from celery_memsync import MemorySyncManager
from celery_memsync.settings import Settings
from celery_memsync.urls import scheme_of

#: Parts of names whose values `celery report` hides.
HIDDEN = ("API", "TOKEN", "KEY", "SECRET", "PASS", "SIGNATURE", "DATABASE")

BAD_SETTINGS = [
    ({"backend": "http://localhost"}, "memsync_backend"),
    ({"backend": "localhost:6379"}, "redis://"),
    ({"backend": ""}, "URL"),
    ({"backend": 6379}, "6379"),
    ({"backend_options": ["ssl"]}, "memsync_backend_options"),
    ({"backend_options": {1: 2}}, "by name"),
    ({"backend_options": {"socket_timeout": -1}}, "socket_timeout is a number of seconds above 0"),
    ({"backend_options": {"socket_connect_timeout": "2"}}, "socket_connect_timeout is a number of seconds above 0"),
    ({"backend": "redis://localhost?socket_timeout=nan"}, "socket_timeout is a number of seconds above 0"),
    ({"backend": "redis://localhost?retry=3"}, "a URL without retry"),
    ({"backend": "sentinel://localhost/0?master_name=m&sentinel_kwargs=x"}, "a URL without sentinel_kwargs"),
    ({"probe_file": "/tmp/%x"}, "%n, %h and %d"),
    ({"backend_options": None}, "memsync_backend_options"),
    ({"namespace": ""}, "empty"),
    ({"namespace": "a//b"}, "empty part"),
    ({"namespace": "/a"}, "memsync_namespace"),
    ({"namespace": "a/"}, "memsync_namespace"),
    ({"namespace": "a*"}, "glob"),
    ({"namespace": "a\nb"}, "control"),
    ({"namespace": None}, "memsync_namespace"),
    ({"namespace": b"a"}, "bytes"),
    ({"worker_id": "a/b"}, "'/'"),
    ({"worker_id": ""}, "empty"),
    ({"worker_id": "w*"}, "glob"),
    ({"worker_id": 7}, "not int"),
    ({"worker_id": "w" * 513}, "513 bytes"),
    ({"default_ttl": 0}, "above 0"),
    ({"default_ttl": -1}, "-1"),
    ({"default_ttl": None}, "memsync_default_ttl"),
    ({"default_ttl": "3600"}, "'3600'"),
    ({"default_ttl": float("nan")}, "nan"),
    ({"default_ttl": float("inf")}, "inf"),
    ({"default_ttl": True}, "True"),
    ({"cache_size": -1}, "0 or more"),
    ({"cache_size": 1.5}, "whole number"),
    ({"cache_max_age": -0.1}, "0 or more"),
    ({"batch_interval": -0.1}, "0 or more"),
    ({"batch_interval": "fast"}, "seconds"),
    ({"batch_interval": None}, "memsync_batch_interval"),
    ({"batch_size": 0}, "above 0"),
    ({"batch_size": 2.0}, "whole number"),
    ({"batch_size": True}, "True"),
    ({"max_pending": 0}, "memsync_max_pending"),
    ({"max_pending": "100"}, "'100'"),
    ({"max_value_size": 0}, "memsync_max_value_size"),
    ({"max_value_size": -1}, "-1"),
    ({"heartbeat_interval": 0}, "memsync_heartbeat_interval"),
    ({"heartbeat_interval": [5]}, "list"),
    ({"worker_ttl": 0}, "memsync_worker_ttl"),
    ({"worker_ttl": 5.0}, "longer than memsync_heartbeat_interval"),
    ({"heartbeat_interval": 30}, "longer than memsync_heartbeat_interval (30)"),
    ({"lock_ttl": -30}, "memsync_lock_ttl"),
    ({"task_args": "yes"}, "True or False"),
    ({"strict": "no"}, "True, False or None"),
    ({"conflict_resolver": "newest"}, "last_write_wins"),
    ({"conflict_resolver": "no.such.module.resolver"}, "imported"),
    ({"conflict_resolver": "os.sep"}, "callable"),
    ({"conflict_resolver": 5}, "memsync_conflict_resolver"),
    ({"conflict_resolver": None}, "NoneType"),
    ({"conflict_resolver": {"tasks/*": "newest"}}, "newest"),
    ({"conflict_resolver": {5: "max_value"}}, "pattern"),
    ({"conflict_resolver": {"": "max_value"}}, "pattern"),
]

MISSPELT = [
    ("defaultttl", "memsync_default_ttl"),
    ("batch_intervall", "memsync_batch_interval"),
    ("memsync_name_space", "memsync_namespace"),
    ("heartbeat", "memsync_heartbeat_interval"),
    ("memsync_backend_url", "memsync_backend"),
    ("worker", "memsync_worker_"),
]

GOOD_SETTINGS = [
    {"backend": "redis://localhost"}, {"backend": "rediss://localhost:6380/2"},
    {"backend": "unix:///tmp/redis.sock"}, {"backend": "embedded://"}, {"backend": "embedded:///tmp/data"},
    {"namespace": "a/b"}, {"namespace": "{memsync}"}, {"worker_id": "w 1@host"}, {"default_ttl": 1}, {"cache_size": 0},
    {"cache_max_age": 0}, {"batch_interval": 0}, {"batch_size": 1}, {"max_pending": 1}, {"task_args": True},
    {"strict": False}, {"strict": None},
    {"conflict_resolver": "max_value"}, {"conflict_resolver": "celery_memsync.conflicts:merge_arrays"},
    {"conflict_resolver": "celery_memsync.conflicts.merge_arrays"}, {"conflict_resolver": print},
    {"conflict_resolver": {"tasks/*": "max_value", "*": print}}, {"conflict_resolver": {}},
]


@pytest.mark.parametrize("settings, text", BAD_SETTINGS)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings, text):
    given = {"url": "redis://localhost", **settings}
    given["url"] = given.pop("backend", given["url"])

    with pytest.raises(ImproperlyConfigured) as caught:
        MemorySyncManager(**given)

    assert text in str(caught.value)
    assert f"memsync_{next(iter(settings))}" in str(caught.value) or "longer than" in text


@pytest.mark.parametrize("name, meant", MISSPELT)
def test_a_misspelt_setting_gets_did_you_mean(name, meant):
    with pytest.raises(ImproperlyConfigured) as caught:
        MemorySyncManager(url="redis://localhost", **{name: 1})

    assert f"did you mean {meant}" in str(caught.value)


def test_a_setting_like_no_other_gets_the_list():
    with pytest.raises(ImproperlyConfigured, match="known are: .*memsync_batch_size"):
        MemorySyncManager(url="redis://localhost", qqq=1)


def test_error_of_a_missing_url_shows_an_example():
    with pytest.raises(ImproperlyConfigured, match="redis://localhost:6379/0"):
        MemorySyncManager()


@pytest.mark.parametrize("given", GOOD_SETTINGS, ids=repr)
def test_what_has_a_meaning_is_taken(given):
    settings = Settings.build(given)

    assert {name: getattr(settings, name) for name in given} == given


def test_names_are_taken_with_the_prefix_and_without():
    settings = Settings.build({"memsync_batch_size": 7, "batch_interval": 0})

    assert (settings.batch_size, settings.batch_interval) == (7, 0)


def test_settings_do_not_change():
    settings = Settings()

    with pytest.raises(AttributeError):
        settings.batch_size = 7


@pytest.mark.parametrize("url, scheme", [
    ("redis://localhost", "redis"), ("REDISS://localhost", "rediss"), ("localhost", ""), ("", ""), ("://", ""),
])
def test_the_scheme_of_a_url_is_what_stands_before_the_slashes(url, scheme):
    assert scheme_of(url) == scheme


def test_signing_key_is_the_only_setting_that_celery_report_hides():
    names = [f"memsync_{name}" for name in Settings().__dict__]

    hidden = [name for name in names if any(part in name.upper() for part in HIDDEN)]

    assert hidden == ["memsync_signing_key"]
