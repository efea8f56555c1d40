"""A kubelet and an API server on loopback that answer what a test tells them to; pods as Kubernetes writes them."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

UID = "0a1b2c3d-1111-2222-3333-444455556666"
CONTAINER = "0123456789abcdef" * 4


def pod(
    name: str = "chat-7d4b9c-x2x9z",
    uid: str = UID,
    *,
    containers: dict[str, str] | None = None,
    env: list[dict[str, Any]] | None = None,
    owner: tuple[str, str] | None = ("ReplicaSet", "chat-7d4b9c"),
    version: str = "1",
    **metadata: Any,
) -> dict[str, Any]:
    """A pod. containers: name -> container id, all with the same environment."""
    ids = {"app": CONTAINER} if containers is None else containers
    made: dict[str, Any] = {
        "metadata": {
            "name": name, "namespace": "prod", "uid": uid, "resourceVersion": version, "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"pod-template-hash": "7d4b9c"}, **metadata,
        },
        "spec": {"nodeName": "node-a", "containers": [{"name": each, "env": env or []} for each in ids]},
        "status": {"podIP": "10.0.0.7", "containerStatuses": [{"name": each, "containerID": f"containerd://{ids[each]}"} for each in ids]},
    }  # fmt: skip
    if owner:
        made["metadata"]["ownerReferences"] = [{"kind": owner[0], "name": owner[1], "controller": True}]
    return made


def pod_list(*pods: dict[str, Any], version: str = "10", more: str = "") -> dict[str, Any]:
    """A PodList. more: the token of its next page."""
    metadata = {"resourceVersion": version, **({"continue": more} if more else {})}
    return {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": list(pods)}


class Answer(BaseHTTPRequestHandler):
    """One question; a test's function answers it with the methods below."""

    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.streaming = False
        with self.server.lock:
            self.server.asked.append((parts.path, self.query, self.headers.get("Authorization", "")))
        try:
            self.server.answer(self)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def send(self, value: object, code: int = 200, *, claim: int = 0, to: str = "") -> None:
        """A whole answer: bytes as they are, else JSON. claim: bytes promised beyond those that come. to: a redirection."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) + claim))
        if to:
            self.send_header("Location", to)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = bool(claim)

    def stream(self, *events: object, end: bool = True) -> None:
        """Watch events, one a line in chunked coding; end=False leaves the stream open."""
        if not self.streaming:
            self.streaming = True
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        for event in events:
            line = (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        if end:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


class FakeServer(ThreadingHTTPServer):
    """Answers with a function of the test, and keeps what it was asked: (path, query, Authorization)."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[[Answer], None], tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str], str]] = []
        self.lock = threading.Lock()
        self.over = threading.Event()  # for answers that hang
        super().__init__(("127.0.0.1", port), Answer)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that go away are part of the tests

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
        self._thread.join()
