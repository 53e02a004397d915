"""`celery memsync metrics`: what is monitored, for Prometheus and for scripts."""
from __future__ import annotations

import os
import threading

import click
from celery.bin.base import CeleryOption
from celery.platforms import EX_CANTCREAT

from ..metrics.collector import NAMES, MemsyncCollector
from ..metrics.server import MetricsServer, json_of, text_of
from .command import command
from .output import fail, json_option, memory_of, print_json, print_line

#: What to do without prometheus_client.
MISSING = "prometheus_client is not installed: pip install 'celery-memsync[metrics]'; --json does without"


class Address(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Where to listen: ``HOST:PORT``, or ``:PORT`` for all addresses of the host."""

    name = "HOST:PORT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Return host and port."""
        host, colon, port = value.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            self.fail("it is no HOST:PORT, such as 127.0.0.1:9808", param, ctx)
        return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)  # noqa: S104 # it is asked for


@command(
    examples=["metrics", "metrics --json", "metrics --serve 127.0.0.1:9808", "metrics --serve :9808 --per-worker"],
    exit_codes={EX_CANTCREAT: "the address is taken", os.EX_CONFIG: "a setting is wrong, or prometheus_client is missing"})
@click.option("--serve", cls=CeleryOption, type=Address(), help_group="Output",
              help="Serve /metrics there until Ctrl-C; the metrics are read at each scrape.")
@click.option("--names", cls=CeleryOption, type=click.Choice(list(NAMES)), default="celery-memsync", show_default=True,
              help_group="Output", help="Names of the metrics.")
@click.option("--per-worker", cls=CeleryOption, is_flag=True, help_group="Output", help="Show metrics of each worker, too.")
@json_option
@click.pass_context
def metrics(
    ctx: click.Context, serve: tuple[str, int] | None, names: str, per_worker: bool, as_json: bool,
) -> None:
    """Show runs, times, queues and workers for Prometheus."""
    if serve and as_json:
        raise click.UsageError("--serve and --json exclude each other")
    with memory_of(ctx) as memsync:
        collector = MemsyncCollector(memsync, names, per_worker)
        try:
            if serve:
                _serve(ctx, collector, *serve)
            memsync.runtime.store.connect()
            if as_json:
                print_json(ctx, json_of(collector))
            else:
                for line in text_of(collector).splitlines():
                    print_line(ctx, line)
        except ImportError:
            fail(MISSING, os.EX_CONFIG)


def _serve(ctx: click.Context, collector: MemsyncCollector, host: str, port: int) -> None:
    try:
        server = MetricsServer(collector, host, port)
    except OSError as exc:
        fail(f"could not listen at {host}:{port}: {exc.strerror or type(exc).__name__}", EX_CANTCREAT)
    try:
        print_line(ctx, f"Serving http://{host}:{server.port}/metrics")
        threading.Event().wait()
    finally:
        server.close()
