"""Shows the metrics to Prometheus by HTTP."""
from __future__ import annotations

import io
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from .collector import MemsyncCollector

logger = logging.getLogger(__name__)

#: Most connections at once; for a further one the oldest is closed, so that clients that send nothing keep out no scrape.
MAX_CONNECTIONS = 32

#: Most seconds that a client may send nothing, or take to receive a page.
CLIENT_TIMEOUT = 10.0

#: Seconds after which a server that is closed has ended at the latest.
POLL_INTERVAL = 0.1

#: What is served.
PATHS = ("/metrics", "/metrics/")


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
        from prometheus_client import CollectorRegistry, make_wsgi_app

        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        self._server = _Server(host, port)
        self._server.set_app(_only_metrics(make_wsgi_app(registry)))
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_INTERVAL,), name="memsync-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more; scrapes that are under way may fail."""
        self._server.shutdown()
        self._server.server_close()
        self._server.close_connections()
        self._thread.join()


def _only_metrics(metrics: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Return an application that serves the metrics at their path, also to HEAD, and nothing at another one."""
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] not in PATHS:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"The metrics are at /metrics.\n"]
        is_head = environ["REQUEST_METHOD"] == "HEAD"
        # A collector that describes nothing can't be restricted to names: of name[] all would be left out.
        page = metrics({**environ, "QUERY_STRING": "", **({"REQUEST_METHOD": "GET"} if is_head else {})}, start_response)
        return [b""] if is_head else page

    return application


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: scrapes come every few seconds."""

    def get_stderr(self) -> TextIO:
        """Return where wsgiref writes the traceback of a client that left in the middle."""
        return io.StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = rows[0][0], rows[0][4]
        self._mutex = threading.Lock()
        #: Connections, oldest first.
        self._connections: dict[socket.socket, None] = {}
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind the address; http.server would look its name up in DNS, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, instead of the oldest one if there are too many."""
        with self._mutex:
            surplus = [*self._connections][:1] if len(self._connections) >= MAX_CONNECTIONS else []
            for one in surplus:
                del self._connections[one]
            self._connections[request] = None
        _end(surplus)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that was served."""
        with self._mutex:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Close all connections."""
        with self._mutex:
            connections = [*self._connections]
        _end(connections)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error of a connection, which is the client's; socketserver would print a traceback."""
        logger.debug("Could not serve the metrics to %s", client_address, exc_info=True)


def _end(connections: Iterable[socket.socket]) -> None:
    """End connections; their threads, which wait for their clients, close them."""
    for one in connections:
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:  # it was closed meanwhile
            pass


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
