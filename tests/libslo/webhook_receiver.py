"""A real receiver of webhooks on loopback that answers as it is told and keeps what it got, and an incident to tell it of."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from builders import T0


def incident(**more: Any) -> dict[str, Any]:
    return {
        "incident_id": "inc-1",
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "cluster": "prod",
        "namespace": "llm",
        "service": "rag",
        "predicted_fault_domain": "network_dns",
        "confidence": 0.974,
        "evidence": [
            {"signal": "dns_latency_ms", "value": 319.7, "source": "ebpf"},
            {"signal": "dns_latency_ms.baseline", "value": 2.1, "source": "ebpf"},
            {"signal": "connect_errors_total", "value": 4, "source": "ebpf"},
        ],
        "slo_impact": {"sli": "ttft_ms", "burn_rate": 20.5, "window_minutes": 60},
        "fault_hypotheses": [{"domain": "network_dns", "posterior": 0.974, "evidence": ["dns_latency_ms"]}],
        "request_ids": ["req-1"],
        "trace_ids": ["0af7"],
        **more,
    }


EPISODE = {"incident_id": "inc-1", "state": "closed", "closed_by": "recovery", "closed_unix_nano": T0 + 9_000_000_000}


@dataclass(frozen=True)
class Got:
    """One request."""

    mono_s: float
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def value(self) -> dict[str, Any]:
        return dict(orjson.loads(self.body))


class WebhookReceiver:
    """Answers each request with the next of `answers` (the last for ever).

    A status; (status, headers, body); a float hangs so many seconds; None closes; bytes are written as they are; a list of bytes
    drips, a piece every 50 ms.
    """

    def __init__(self, *answers: Any, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.got: list[Got] = []
        self.release = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                number = len(receiver.got)
                receiver.got.append(Got(time.monotonic(), self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                answer = answers[min(number, len(answers) - 1)]
                if isinstance(answer, int):
                    answer = (answer, {}, b"")
                if isinstance(answer, tuple):
                    status, headers, content = answer
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                    return
                self.close_connection = True
                if isinstance(answer, float):
                    receiver.release.wait(answer)
                for piece in [answer] if isinstance(answer, bytes) else answer if isinstance(answer, list) else []:
                    self.wfile.write(piece)
                    if receiver.release.wait(0.05 if isinstance(answer, list) else 0):
                        return

            do_GET = do_POST  # noqa: N815 - the name that http.server looks for

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self.server = Server((host, 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"http{'s' if tls else ''}://{host}:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def wait_for(self, count: int, seconds: float = 30) -> None:
        """Until so many requests have come."""
        deadline = time.monotonic() + seconds
        while len(self.got) < count:
            assert time.monotonic() < deadline, f"{len(self.got)} of {count} requests came"
            time.sleep(0.005)

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def receivers() -> Iterator[Callable[..., WebhookReceiver]]:
    """A maker of receivers; all are closed in the end."""
    made: list[WebhookReceiver] = []

    def make(*answers: Any, **options: Any) -> WebhookReceiver:
        made.append(WebhookReceiver(*answers, **options))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()
