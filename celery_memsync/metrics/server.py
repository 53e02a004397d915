"""Shows the metrics to Prometheus by HTTP."""
from __future__ import annotations

from typing import Any

from .collector import MemsyncCollector


class MetricsServer:
    """Serves ``/metrics`` in threads of its own, with status 200 also while Redis is away.

    Args:
        host, port: Where to listen; port 0: any that is free.

    Attributes:
        port: Where it listens.

    Raises:
        ImportError: Without prometheus_client.
        OSError: If that is taken.
    """

    def __init__(self, collector: MemsyncCollector, host: str, port: int) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        self._server, self._thread = start_http_server(port, host, registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def text_of(collector: MemsyncCollector) -> str:
    """Return the metrics as Prometheus reads them.

    Raises:
        ImportError: Without prometheus_client.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry).decode()


def json_of(collector: MemsyncCollector) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics by name: lists of ``labels`` and ``value``, or of ``count``, ``sum`` and ``buckets``."""
    from .collector import buckets_of

    found: dict[str, list[dict[str, Any]]] = {}
    for family in collector.families():
        found[family.name + "_total" * (family.kind == "counter")] = [
            {"labels": dict(zip(family.labels, labels)),
             **({"value": value} if isinstance(value, (int, float)) else
                {"count": value.count, "sum": value.sum, "buckets": dict(buckets_of(value))})}
            for labels, value in family.samples]
    return found
