"""What is read from an app's configuration, and what is noticed in it."""
from __future__ import annotations

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from redis import CredentialProvider

from celery_memsync import MemSync
from celery_memsync.integration.task_attributes import check_tasks


class Provider(CredentialProvider):
    """Gives the password of no user."""

    def get_credentials(self):
        return ("geheim",)


def add(x, y):
    return x + y


def app_of(namespace="CELERY", **settings):
    app = Celery("proj", set_as_current=False)
    app.config_from_object(type("Source", (), settings), namespace=namespace)
    return app


@pytest.fixture
def make_memsync():
    """Makes what belongs to an app; its signals are left alone at the end."""
    made = []

    def make(app):
        made.append(MemSync(app))
        return made[-1]

    yield make
    for memsync in made:
        memsync.shutdown(0.5)
        memsync.signals.disconnect()


def test_a_setting_without_the_prefix_of_the_others_is_noticed(make_memsync):
    memsync = make_memsync(app_of(CELERY_BROKER_URL="redis://localhost/0", MEMSYNC_BACKEND="redis://localhost/1"))

    with pytest.raises(ImproperlyConfigured, match="MEMSYNC_BACKEND is not read.*call it CELERY_MEMSYNC_BACKEND"):
        memsync.check()


@pytest.mark.parametrize("make", [
    lambda: app_of(None, MEMSYNC_BACKEND="redis://localhost/1"),
    lambda: Celery("proj", set_as_current=False, changes={"MEMSYNC_BACKEND": "redis://localhost/1"})])
def test_a_setting_in_capitals_is_noticed(make_memsync, make):
    memsync = make_memsync(make())

    with pytest.raises(ImproperlyConfigured, match="MEMSYNC_BACKEND is not read.*call it memsync_backend"):
        memsync.check()


def test_a_name_without_the_prefix_may_be_there_beside_the_setting(make_memsync):
    memsync = make_memsync(app_of(
        CELERY_MEMSYNC_BACKEND="redis://localhost/1", MEMSYNC_BACKEND="redis://localhost/1", MEMSYNC_OF_OURS=1))

    assert memsync.settings.backend == "redis://localhost/1"


def test_the_source_of_a_borrowed_backend_is_known(make_memsync):
    memsync = make_memsync(app_of(CELERY_BROKER_URL="redis://localhost/3"))

    assert (memsync.settings.backend, memsync.backend_source) == ("redis://localhost/3", "broker_url")


def test_an_error_in_a_borrowed_backend_names_the_setting_that_it_comes_from(make_memsync):
    memsync = make_memsync(app_of(CELERY_RESULT_BACKEND="redis://localhost/3?protocol=3"))

    with pytest.raises(ImproperlyConfigured, match="without protocol: .*so result_backend is taken"):
        memsync.check()


@pytest.mark.parametrize("settings, options", [
    ({"redis_backend_use_ssl": {"ssl_cert_reqs": "CERT_NONE"}}, {"ssl_cert_reqs": "CERT_NONE", "ssl": True}),
    ({"redis_username": "me", "redis_password": "geheim"}, {"username": "me", "password": "geheim"}),
    ({"redis_backend_use_ssl": True}, {}),
    ({"broker_use_ssl": {"ssl_cert_reqs": "none"}}, {}),
])
def test_settings_of_the_result_backend_count_where_it_is_taken(make_memsync, settings, options):
    app = Celery("proj", backend="redis://localhost/3", set_as_current=False)
    app.conf.update(settings)

    assert make_memsync(app).settings.backend_options == options


def test_settings_of_the_result_backend_do_not_count_for_a_backend_of_its_own(make_memsync):
    app = Celery("proj", backend="redis://localhost/3", set_as_current=False)
    app.conf.update(memsync_backend="redis://localhost/4", redis_password="geheim")

    assert make_memsync(app).settings.backend_options == {}


@pytest.mark.parametrize("url", [
    "redis://u:p@localhost/3", f"redis://localhost/3?credential_provider={__name__}.Provider"])
def test_a_provider_of_credentials_may_be_named_by_its_path(make_memsync, url):
    app = Celery("proj", set_as_current=False)
    app.conf.memsync_backend = url
    if "provider" not in url:
        app.conf.memsync_backend_options = {"credential_provider": f"{__name__}:Provider"}

    options = make_memsync(app).runtime.store._client.connection_pool.connection_kwargs

    assert isinstance(options["credential_provider"], Provider) and not options["password"]


@pytest.mark.parametrize("attributes, message", [
    ({"memsync_recovr": "requeue"}, "the task proj.add: .* attribute memsync_recovr; did you mean memsync_recover"),
    ({"memsync_timeout": 3}, "the task proj.add: .* memsync_timeout; known are: memsync_max_recoveries, memsync_recover"),
    ({"memsync_recover": "requeu"}, "memsync_recover of the task proj.add is 'requeu'; it must be 'mark' or 'requeue'"),
    ({"memsync_recover": ["requeue"]}, "memsync_recover of the task proj.add is of type list"),
    ({"memsync_max_recoveries": -1}, "memsync_max_recoveries of the task proj.add is -1; .* a whole number, 0 or more"),
    ({"memsync_max_recoveries": "2"}, "memsync_max_recoveries of the task proj.add is '2'"),
    ({"memsync_stall_after": -1}, "memsync_stall_after of the task proj.add is -1; .* seconds, 0 or more, or None"),
    ({"memsync_stall_after": "soon"}, "memsync_stall_after of the task proj.add is 'soon'"),
    ({"memsync_stall_timeout": 5}, "the task proj.add: .* memsync_stall_timeout; did you mean memsync_stall_after?"),
])
def test_wrong_attributes_of_a_task_are_named(attributes, message):
    app = Celery("proj", set_as_current=False)
    app.task(name="proj.add", shared=False, **attributes)(add)

    with pytest.raises(ImproperlyConfigured, match=message):
        check_tasks(app.tasks)


@pytest.mark.parametrize("attributes", [
    {}, {"memsync_recover": None}, {"memsync_recover": "requeue", "memsync_max_recoveries": 0},
    {"memsync_max_recoveries": None}])
def test_attributes_of_a_task_that_have_a_meaning_are_taken(attributes):
    app = Celery("proj", set_as_current=False)
    app.task(name="proj.add", shared=False, **attributes)(add)

    check_tasks(app.tasks)
