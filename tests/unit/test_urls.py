"""URLs that name several servers."""
from __future__ import annotations

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st
from redis.connection import parse_url

from celery_memsync import MemorySyncManager, MemSync
from celery_memsync.settings import Settings
from celery_memsync.urls import lower_scheme, servers_of, with_login_in_front, with_master_name

SECRET = "hunter2-geheim"


@pytest.mark.parametrize("url, addresses, options", [
    ("sentinel://h1:1;sentinel://h2:2/0?master_name=m", [("h1", 1), ("h2", 2)], {"db": 0, "master_name": "m"}),
    ("sentinel://h1;h2/3?master_name=m", [("h1", 26379), ("h2", 26379)], {"db": 3, "master_name": "m"}),
    ("sentinel://h1,h2:2/1", [("h1", 26379), ("h2", 2)], {"db": 1}),
    ("sentinel://u:p%40@h1;sentinel://u:p%40@h2", [("h1", 26379), ("h2", 26379)], {"username": "u", "password": "p@"}),
    ("sentinel://[::1]:5?socket_timeout=1.5", [("::1", 5)], {"socket_timeout": 1.5}),
    ("redis+cluster://h1:7000,h2:7000", [("h1", 7000), ("h2", 7000)], {}),
    ("rediss+cluster://u:p@h1,h2/0", [("h1", 6379), ("h2", 6379)], {"username": "u", "password": "p", "db": 0}),
    ("redis+cluster://h1:1,h1:1", [("h1", 1)], {}),
])
def test_every_server_and_option_of_a_url_is_read(url, addresses, options):
    servers = servers_of(url)

    assert (list(servers.addresses), servers.options) == (addresses, options)


@pytest.mark.parametrize("settings, text", [
    ({"backend": f"sentinel://:{SECRET}@h1"}, "master_name"),
    ({"backend": f"sentinel://:{SECRET}@h1:port/0?master_name=m"}, "sentinel://host"),
    ({"backend": "sentinel://?master_name=m"}, "sentinel://host"),
    ({"backend": f"sentinel://:{SECRET}@h1;redis://h2?master_name=m"}, "sentinel://host"),
    ({"backend": f"redis+cluster://:{SECRET}@h1:1/3"}, "number 0 only"),
    ({"backend": f"redis+cluster://:{SECRET}@h1:port"}, "redis\\+cluster://"),
    ({"backend": "redis+cluster://,"}, "redis\\+cluster://"),
    ({"backend": "redis+cluster://h1", "namespace": "a}b"}, "braces"),
    ({"backend": "redis+cluster://h1", "namespace": "a{}b"}, "braces"),
    ({"backend": "redis+cluster://h1", "namespace": "a{b"}, "braces"),
    ({"backend": "redis+cluster://h1", "lock_replicas": 1}, "memsync_lock_replicas is 1"),
])
def test_a_wrong_url_of_several_servers_is_named_without_its_password(settings, text):
    with pytest.raises(ImproperlyConfigured, match=text) as caught:
        Settings.build(settings)

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("settings", [
    {"backend": "sentinel://h1", "backend_options": {"master_name": "m"}},
    {"backend": "redis+cluster://h1", "namespace": "shop"}, {"backend": "redis+cluster://h1", "namespace": "a{shop}b"},
])
def test_what_fits_together_is_taken(settings):
    assert Settings.build(settings).backend == settings["backend"]


@given(st.text(max_size=60))
def test_a_url_is_read_or_refused_as_a_wrong_setting(text):
    for scheme in ("sentinel", "redis+cluster"):
        try:
            settings = Settings.build({"backend": f"{scheme}://{text}"})
        except ImproperlyConfigured:
            continue

        assert servers_of(settings.backend).addresses


@pytest.mark.parametrize("options", [{"bogus": 1}, {"ssl_certfile": SECRET, "bogus": 1}])
def test_options_that_redis_py_does_not_know_are_wrong_settings(options):
    memsync = MemorySyncManager(url="sentinel://h1?master_name=m", backend_options=options)

    with pytest.raises(ImproperlyConfigured, match="bogus") as caught:
        memsync.get_metrics()

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("conf", [
    {"result_backend": "sentinel://h1:1;sentinel://h2:2/0",
     "result_backend_transport_options": {"master_name": "my master"}},
    {"broker_url": "sentinel://h1:1;sentinel://h2:2/0", "broker_transport_options": {"master_name": "my master"}},
])
def test_the_sentinels_of_an_app_are_taken_with_all_their_addresses_and_the_masters_name(conf):
    app = Celery(broker=conf.get("broker_url", "memory://"), set_as_current=False)
    app.conf.update(conf)

    servers = servers_of(MemSync(app).settings.backend)

    assert servers.addresses == (("h1", 1), ("h2", 2))
    assert servers.options["master_name"] == "my master"


def test_a_masters_name_that_is_there_stays():
    assert with_master_name("sentinel://h?master_name=a", "b") == "sentinel://h?master_name=a"
    assert with_master_name("sentinel://h?db=1", "b&c") == "sentinel://h?db=1&master_name=b%26c"
    assert with_master_name("sentinel://h", None) == "sentinel://h"


@pytest.mark.parametrize("url, moved", [
    ("redis://h/1?password=p", "redis://:p@h/1"),
    ("REDISS://h:1?username=u&db=2&password=p%40", "REDISS://u:p%40@h:1?db=2"),
    ("redis://?password=p", "redis://:p@"),
    ("redis://u@h?PassWord=p", "redis://u:p@h"),
    ("redis://u:first@h?username=x&password=second", "redis://u:first@h"),
    ("redis://h?password=&username=", "redis://h"),
    ("redis://h?p%61ssword=a+b&x=1#rest", "redis://:a%20b@h?x=1"),
    ("redis://h?password=a/b:c@d", "redis://:a%2Fb%3Ac%40d@h"),
    ("redis://[::1?pass\nword=p", "redis://:p@[::1"),
    ("unix:///tmp/a.sock?db=1&password=p", "unix://:p@/tmp/a.sock?db=1"),
    ("sentinel://h1:1;sentinel://h2:2/0?master_name=m&password=p",
     "sentinel://:p@h1:1;sentinel://h2:2/0?master_name=m"),
    ("sentinel://h1;h2,h3/3?password=p&username=u&master_name=m",
     "sentinel://u:p@h1;h2,h3/3?master_name=m"),
    ("sentinel://h1;sentinel://:own@h2;h3?password=p", "sentinel://:own@h1;sentinel://:own@h2;h3"),
    ("redis+cluster://h1:1,h2:2?password=p&username=u", "redis+cluster://u:p@h1:1,h2:2"),
    ("http://h?password=p", "http://:p@h"),
])
def test_login_in_a_query_moves_before_the_first_host(url, moved):
    assert with_login_in_front(url) == moved
    assert with_login_in_front(moved) == moved


@pytest.mark.parametrize("url", [
    "redis://u:p@h/1?db=2#password=p", "unix:///tmp/a.sock", "sentinel://u:p@h1;u:q@h2?master_name=m",
    "", "redis", "embedded://", "embedded:///tmp/a?password=p"])
def test_url_without_a_login_in_its_query_stays_as_it_is(url):
    assert with_login_in_front(url) == url


@given(
    st.sampled_from([
        "redis://", "rediss://", "unix://", "redis://u:p@", "sentinel://", "redis+cluster://",
        "sentinel://h1;"]),
    st.text("h/;,:@?#[]", max_size=6),
    st.lists(st.tuples(
        st.sampled_from(["password", "username", "%70assword", "db", "x"]),
        st.one_of(st.text("a%41+/:@;,?#=", max_size=8), st.text(max_size=4)))),
)
def test_moving_the_login_keeps_what_a_url_means(scheme, hosts, options):
    url = f"{scheme}{hosts}?" + "&".join(f"{name}={value}" for name, value in options)

    moved = with_login_in_front(url)

    assert with_login_in_front(moved) == moved
    assert read(moved) == read(url)


def read(url):
    """Return all parts of a URL, or None if it can't be read."""
    try:
        if url.startswith(("sentinel", "redis+cluster")):
            return servers_of(url)
        return parse_url(lower_scheme(url))
    except ValueError:
        return None


@pytest.mark.parametrize("url, taken", [
    ("redis+socket:///tmp/r.sock?virtual_host=3", "unix:///tmp/r.sock?db=3"),
    ("redis+socket:///tmp/r.sock?virtual_host=/3&socket_timeout=1", "unix:///tmp/r.sock?db=3&socket_timeout=1"),
    ("socket://:pass@/tmp/r.sock", "unix://:pass@/tmp/r.sock"),
    ("redis://localhost/3", "redis://localhost/3"),
    ("redis://localhost?virtual_host=3", "redis://localhost?db=3"),
])
def test_celerys_url_of_a_socket_is_taken(url, taken):
    assert Settings.build({"backend": url}).backend == taken


@pytest.mark.parametrize("url", [
    "redis://host/abc", "redis://host/1/2", "redis://host/-1", "rediss://host/0x1", "sentinel://h1/a?master_name=m",
    "redis+cluster://h1,h2/a", "redis://host/abc?db=1",
])
def test_a_path_that_is_no_number_of_a_database_is_refused(url):
    with pytest.raises(ImproperlyConfigured, match="memsync_backend must be a URL whose path is the number of a database"):
        Settings.build({"backend": url})


@pytest.mark.parametrize("url", ["redis://host", "redis://host/", "redis://host/15", "redis://host/0/", "unix:///a/b.sock"])
def test_a_path_that_is_a_number_of_a_database_or_missing_is_taken(url):
    assert Settings.build({"backend": url}).backend == url


@pytest.mark.parametrize("url", [
    "redis://h?decode_responses=True", "redis://h?socket_timeout=1&protocol=3", "sentinel://h?master_name=m&protocol=3",
    "rediss+cluster://h1,h2?protocol=3", "unix:///r.sock?protocol=2",
])
def test_options_of_a_url_that_can_not_be_chosen_are_refused_by_name(url):
    name = "decode_responses" if "decode" in url else "protocol"

    with pytest.raises(ImproperlyConfigured, match=f"memsync_backend must be a URL without {name}: "):
        Settings.build({"backend": url})


@pytest.mark.parametrize("options", [{"decode_responses": True}, {"protocol": 3, "socket_timeout": 1}])
def test_options_that_can_not_be_chosen_are_refused_by_name(options):
    with pytest.raises(ImproperlyConfigured, match=f"memsync_backend_options .* a dict without {next(iter(options))}: "):
        Settings.build({"backend_options": options})


@pytest.mark.parametrize("url, options", [("redis://h?foo=bar", {}), ("redis://h", {"foo": "bar"}), ("unix:///r?foo=1", {})])
def test_an_option_that_redis_py_does_not_know_is_named_alone(url, options):
    memsync = MemorySyncManager(url=url, backend_options=options)

    with pytest.raises(ImproperlyConfigured, match="does not know the option foo of memsync_backend or"):
        memsync.get_metrics()
