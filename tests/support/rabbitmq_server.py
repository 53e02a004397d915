"""A RabbitMQ of the tests' own."""
from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
from pathlib import Path

from kombu import Connection

from tests.support.redis_server import free_port
from tests.support.waiting import eventually

#: The command of Debian's package goes through `su`; this one runs as who calls it.
SERVER = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or shutil.which("rabbitmq-server")

#: Seconds that an Erlang node may take to come up on a loaded machine.
START_TIMEOUT = 90


class RabbitServer:
    """A RabbitMQ node of the tests' own, with a name server of its own.

    Args:
        folder: Where its files go.
        conf: What an app has to be configured with to use it as it is meant to be used.
    """

    def __init__(self, folder, **conf):
        self.folder = Path(folder)
        self.conf = conf
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self.process = None
        self.names = None
        self.env = {
            **os.environ,
            "HOME": str(self.folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_NODENAME": f"memsync-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
        }

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.names is None:
            # Else the node starts one itself, as a daemon that stays.
            self.names = subprocess.Popen(["epmd"], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with open(self.folder / "out.log", "ab") as out:
            self.process = subprocess.Popen(
                [SERVER], env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
        eventually(self.answers, START_TIMEOUT, "rabbitmq-server does not answer")
        return self

    def answers(self):
        try:
            with Connection(self.url, connect_timeout=2) as connection:
                connection.ensure_connection(max_retries=1)
                return True
        except Exception:
            return False

    def of_type(self, queue_type):
        """Return this node for apps whose queues are of a type: "classic" or "quorum"."""
        node = copy.copy(self)
        node.conf = {**self.conf, "task_default_queue_type": queue_type}
        return node

    def ctl(self, *command):
        """Have the node do something, as `rabbitmqctl` does it."""
        control = Path(SERVER).with_name("rabbitmqctl")
        subprocess.run([control, *command], env=self.env, check=True, stdout=subprocess.DEVNULL, timeout=60)

    def stop(self, how=signal.SIGKILL):
        if self.process is not None:
            # The server is a script around the Erlang node.
            os.killpg(self.process.pid, how)
            self.process.wait(30)
            self.process = None

    def close(self):
        self.stop()
        if self.names is not None:
            self.names.kill()
            self.names.wait()
