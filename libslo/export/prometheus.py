"""Serve an agent's metrics for Prometheus, and its health for Kubernetes: /metrics, /healthz, /readyz.

Needs prometheus-client (extra `metrics`). No global registry: what is served is made from one snapshot a scrape.
"""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from socketserver import TCPServer
from typing import Any

from libslo.errors import CannotError, InputError, os_reason
from libslo.export.agent_metrics import Metric, metrics_of
from libslo.export.agent_state import AgentSnapshot
from libslo.otlp import parse_address

__all__ = ["MetricsServer", "SnapshotCollector", "require_prometheus_client"]

_MOST_AT_ONCE = 8  # connections; further ones are closed unanswered
_TIMEOUT_S = 10
_PLAIN = "text/plain; charset=utf-8"

Health = Callable[[], str]  # "" is well, anything else the reason why not


def require_prometheus_client() -> None:
    """CannotError when it is not installed."""
    import importlib.util

    if importlib.util.find_spec("prometheus_client") is None:
        raise CannotError("prometheus-client is not installed", source="--metrics-listen",
                          hint="pip install 'llm-slo-ebpf-toolkit[metrics]'")  # fmt: skip


class SnapshotCollector:
    """What prometheus_client calls a collector: `collect` gives the metric families of the snapshot that `current` returns."""

    def __init__(self, current: Callable[[], AgentSnapshot]) -> None:
        self._current = current

    def collect(self) -> Iterator[Any]:
        """Metric families of one snapshot."""
        return map(_family, metrics_of(self._current()))


def _family(metric: Metric) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for series in metric.series:
            borders = [*(f"{bound:.12g}" for bound in series.bounds_ms), "+Inf"]
            buckets = list(zip(borders, accumulate(series.counts.tolist()), strict=True))
            histogram.add_metric([_text(series.labels.get(name, "")) for name in metric.labels], buckets, series.sum_ms)
        return histogram
    family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(metric.name, metric.help, labels=metric.labels)
    for values, number in metric.samples:
        family.add_metric([_text(value) for value in values], number)
    return family


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()  # names from the file system may hold what UTF-8 cannot


class MetricsServer:
    """An HTTP server in its own thread.

    current: the state now. alive, ready: "" or the reason for 503. Raises CannotError when the address cannot be listened on.
    """

    def __init__(self, address: str, current: Callable[[], AgentSnapshot], alive: Health, ready: Health) -> None:
        require_prometheus_client()
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder

        try:
            host, port = parse_address(address)
        except InputError as error:
            raise InputError(error.fact, source="--metrics-listen", hint="for example 127.0.0.1:9464") from error
        registry = CollectorRegistry()
        collector: Any = SnapshotCollector(current)
        registry.register(collector)

        class Handler(BaseHTTPRequestHandler):
            timeout = _TIMEOUT_S  # and HTTP/1.0: a connection that is kept open would keep its slot

            def do_GET(self) -> None:
                match self.path.split("?")[0]:
                    case "/metrics":
                        encode, kind = choose_encoder(self.headers.get("Accept") or "")
                        self._answer(200, kind, encode(registry))
                    case "/healthz":
                        self._health(alive())
                    case "/readyz":
                        self._health(ready())
                    case _:
                        self._answer(404, _PLAIN, b"there are /metrics, /healthz and /readyz\n")

            def do_HEAD(self) -> None:
                self.do_GET()

            def _health(self, reason: str) -> None:
                self._answer(503 if reason else 200, _PLAIN, f"{reason or 'ok'}\n".encode())

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                packed = status == 200 and "gzip" in (self.headers.get("Accept-Encoding") or "")
                body = gzip.compress(body, 1) if packed else body
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                if packed:
                    self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _listen(host, port, Handler, address)
        self.port = int(self._server.server_address[1])
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True, name="metrics")
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def _listen(host: str, port: int, handler: type[BaseHTTPRequestHandler], address: str) -> ThreadingHTTPServer:
    slots = threading.BoundedSemaphore(_MOST_AT_ONCE)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def server_bind(self) -> None:
            # Not HTTPServer's: that one looks the host's name up, which an agent that measures name look-ups must not do.
            TCPServer.server_bind(self)
            self.server_name, self.server_port = host, int(self.server_address[1])

        def process_request(self, request: Any, client_address: Any) -> None:
            if slots.acquire(blocking=False):
                super().process_request(request, client_address)
            else:
                self.shutdown_request(request)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                slots.release()

        def handle_error(self, *_: Any) -> None:
            pass  # a client that went away in the middle of an answer is no news

    try:
        return Server((host, port), handler)
    except OSError as error:
        raise CannotError(
            f"cannot listen on {address}: {os_reason(error)}",
            source="--metrics-listen",
            hint="name another port, or end what listens there; port 0 takes a free one",
        ) from error
