"""The smallest rights that a user of Redis needs."""
from __future__ import annotations

import re
import shlex

import pytest
import redis as redis_py

from celery_memsync import MemorySyncManager, StoreError
from celery_memsync.store.acl import CHANNELS, COMMANDS, KEYS, rules
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer, server_binary
from tests.support.samples import NAMESPACE, use_everything
from tests.support.topologies import system_server


@pytest.fixture(scope="module", params=["tested", "of the system"])
def guarded(request, tmp_path_factory):
    """A redis-server whose users are made by the tests."""
    binary = system_server() if request.param == "of the system" else server_binary()
    if binary is None:
        pytest.skip("there is no redis-server of the system")
    server = RedisServer(tmp_path_factory.mktemp("guarded"), binary=binary).start()
    yield server
    server.stop()


@pytest.fixture
def grant(guarded):
    """Gives the user rights, and no others; returns the URL of that user."""
    def grant(*rules):
        client = guarded.client()
        client.execute_command("ACL", "DELUSER", "app")
        client.execute_command(
            "ACL", "SETUSER", "app", "on", ">secret", "resetkeys", "resetchannels", "-@all", *rules)
        client.execute_command("ACL", "LOG", "RESET")
        client.flushall()
        return guarded.url.replace("redis://", "redis://app:secret@")
    return grant


def refusals(server):
    """Return what Redis refused, except that redis-py reports its version."""
    refused = [str(row["object"]) for row in server.client().acl_log()]
    return [what for what in refused if what not in ("client", "client|setinfo")]


def test_documented_rights_are_enough_for_everything(guarded, grant):
    url = grant(*rules(NAMESPACE))
    with MemorySyncManager("w1", url, batch_interval=60.0) as memsync, MemorySyncManager("w2", url) as other:

        use_everything(memsync, other)

        assert memsync.runtime.store.check_rights() == ([], [])
    assert refusals(guarded) == []


@pytest.mark.parametrize("right", COMMANDS)
def test_a_command_that_is_not_allowed_is_named(grant, right):
    url = grant(*(rule for rule in rules(NAMESPACE) if rule != f"+{right}"))
    with MemorySyncManager("w1", url) as memsync:

        assert memsync.runtime.store.check_rights() == ([right], [])


@pytest.mark.parametrize("missing, right", [(f"~{NAMESPACE}/*", KEYS), ("&*", CHANNELS)])
def test_keys_and_channels_that_are_not_allowed_are_named(grant, missing, right):
    url = grant(*(rule for rule in rules(NAMESPACE) if rule != missing))
    with MemorySyncManager("w1", url) as memsync:

        assert memsync.runtime.store.check_rights() == ([right], [])


def test_looking_for_rights_leaves_nothing_behind(guarded, grant):
    with MemorySyncManager("w1", grant(*rules(NAMESPACE))) as memsync:
        memsync.runtime.store.check_rights()

    assert guarded.client().keys("*") == []


def test_another_namespace_is_out_of_reach(grant):
    url = grant(*rules(NAMESPACE))
    with MemorySyncManager("w1", url, namespace="other") as memsync:

        with pytest.raises(StoreError, match="security.md"):
            memsync.read("a")


def test_no_documented_right_is_unused():
    scripts = "".join(path.read_text() for path in (ROOT / "celery_memsync" / "store" / "lua").glob("*.lua"))
    python = "".join(path.read_text() for name in ("store/*.py", "reading/listener.py")
                     for path in (ROOT / "celery_memsync").glob(name))

    commands = {name.lower() for name in re.findall(r'"([A-Z]+)"', scripts + python)}
    commands |= set(re.findall(r"(?:pipeline|client|redis)\.(\w+)\(", python)) | {"evalsha"}

    assert {one for one in COMMANDS if not set(one.replace("|", " ").split()) & commands and
            one.replace("|", "_") not in commands} == set()


def test_security_page_shows_all_rights():
    page = (ROOT / "docs" / "howto" / "security.md").read_text()

    command = re.search(r"^\$ (redis-cli ACL SETUSER .*?)^```$", page, re.M | re.S).group(1)
    assert re.findall(r"(?<!')\|(?!')", re.sub(r"'[^']*'", "", command)) == []
    assert shlex.split(command.replace("\\\n", " "))[3:] == ["app", "on", ">secret", *rules(NAMESPACE)]


def test_wrong_password_is_reported_without_the_password(guarded, grant):
    url = grant(*rules(NAMESPACE)).replace("secret", "geheim")

    with pytest.raises(StoreError, match="user or password") as caught:
        MemorySyncManager("w1", url).read("a")

    assert isinstance(caught.value.__cause__, redis_py.AuthenticationError)
    assert "geheim" not in str(caught.value)
