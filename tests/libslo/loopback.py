"""A real HTTP server on loopback that answers as it is told and keeps what it got: a receiver of webhooks, an OTLP endpoint."""

from __future__ import annotations

import gzip
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

Answer = int | tuple[int, dict[str, str], bytes] | float | bytes | list[bytes] | None
OK: Answer = (200, {}, b"{}")


@dataclass(frozen=True)
class Got:
    """One request."""

    mono_s: float
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def value(self) -> dict[str, Any]:
        packed = self.headers.get("content-encoding") == "gzip"
        return dict(orjson.loads(gzip.decompress(self.body) if packed else self.body))


class LoopbackServer:
    """Answers each request with the next of `answers` (the last for ever).

    A status; (status, headers, body); a float hangs so many seconds; None closes; bytes are written as they are; a list of bytes
    drips, a piece every 50 ms.
    """

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.got: list[Got] = []
        self.release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                number = len(server.got)
                server.got.append(Got(time.monotonic(), self.path, {k.lower(): v for k, v in self.headers.items()}, body))
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
                    server.release.wait(answer)
                for piece in [answer] if isinstance(answer, bytes) else answer if isinstance(answer, list) else []:
                    self.wfile.write(piece)
                    if server.release.wait(0.05 if isinstance(answer, list) else 0):
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

    def log_records(self) -> list[dict[str, Any]]:
        """All records of the OTLP logs that came."""
        return [record for got in self.got for record in got.value["resourceLogs"][0]["scopeLogs"][0]["logRecords"]]

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
def servers() -> Iterator[Callable[..., LoopbackServer]]:
    """A maker of servers; all are closed in the end."""
    made: list[LoopbackServer] = []

    def make(*answers: Answer, **options: Any) -> LoopbackServer:
        made.append(LoopbackServer(*answers, **options))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()
