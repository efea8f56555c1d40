"""A real OTLP/HTTP endpoint on loopback that answers as it is told."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

Answer = tuple[int, dict[str, str], bytes]
OK: Answer = (200, {}, b"{}")


class Endpoint:
    """Answers each request with the next of `answers` (the last for ever).

    None closes the connection, a number of seconds hangs, a list of pieces drips them, 50 ms apart.
    """

    def __init__(self, *answers: Answer | float | list[bytes] | None) -> None:
        self.requests: list[tuple[float, str, dict[str, str], dict[str, Any]]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                number = len(endpoint.requests)
                endpoint.requests.append((time.monotonic(), self.path, dict(self.headers), orjson.loads(gzip.decompress(body))))
                answer = answers[min(number, len(answers) - 1)]
                if answer is None:
                    self.connection.close()
                    self.close_connection = True
                    return
                if isinstance(answer, int | float):
                    endpoint.release.wait(answer)
                    self.close_connection = True
                    return
                if isinstance(answer, list):
                    for piece in answer:
                        self.wfile.write(piece)
                        endpoint.release.wait(0.05)
                    self.close_connection = True
                    return
                status, headers, content = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass

        self.release = threading.Event()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def records(self) -> list[dict[str, Any]]:
        return [record for *_, body in self.requests for record in body["resourceLogs"][0]["scopeLogs"][0]["logRecords"]]

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def endpoints() -> Iterator[Callable[..., Endpoint]]:
    """A maker of endpoints; all are closed in the end."""
    made: list[Endpoint] = []

    def make(*answers: Any) -> Endpoint:
        made.append(Endpoint(*answers))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()
