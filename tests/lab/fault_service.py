"""A small service with a fault control, written from its description alone: ``python fault_service.py ADDRESS PORT [--certificate FILE]``.

``GET /work`` counts as a request that a fault changes; every other path but the control's is 404.
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KNOWN = {"provider_error", "provider_throttle", "retrieval_slowdown", "app_stall"}


class Control(BaseHTTPRequestHandler):
    """The control and one path that works."""

    active: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    served: dict[str, int] = {}  # noqa: RUF012
    lock = threading.Lock()
    allowed = True

    def do_POST(self) -> None:
        """A lease, new or renewed."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed or self.path != "/-/faults":
            self._answer(404, {})
        elif body["fault"] not in KNOWN or set(body) != {"id", "fault", "parameters", "lease_s", "seed"}:
            self._answer(422, {"error": f"unknown fault {body['fault']}"})
        else:
            with self.lock:
                self.active[body["id"]] = {**body, "end_s": time.monotonic() + body["lease_s"]}
            self._answer(200, {"active": self._active()})

    def do_DELETE(self) -> None:
        """The end of a lease, also of none."""
        with self.lock:
            self.active.pop(self.path.rpartition("/")[2], None)
        self._answer(200, {"active": self._active()})

    def do_GET(self) -> None:
        """The state, or work."""
        if self.path == "/work":
            for one in self._active():
                self.served[one["fault"]] = self.served.get(one["fault"], 0) + 1
            self._answer(200, {"active": [one["fault"] for one in self._active()]})
        elif self.allowed and self.path == "/-/faults":
            self._answer(200, {"active": self._active(), "served": self.served})
        else:
            self._answer(404, {})

    def _active(self) -> list[dict[str, Any]]:
        with self.lock:
            now_s = time.monotonic()
            for ident in [ident for ident, one in self.active.items() if one["end_s"] < now_s]:
                del self.active[ident]
            return [
                {"id": ident, "fault": one["fault"], "parameters": one["parameters"], "lease_left_s": one["end_s"] - now_s}
                for ident, one in self.active.items()
            ]

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


if __name__ == "__main__":
    Control.allowed = "--no-control" not in sys.argv
    with ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Control) as server:
        if sys.argv[3:4] == ["--certificate"]:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(sys.argv[4])
            server.socket = context.wrap_socket(server.socket, server_side=True)
        print(server.server_address[1], flush=True)
        server.serve_forever()
