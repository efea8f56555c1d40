"""The retrieval backend: text embedding and vector search with a small real computation and a set service time.

``python -m libslo.lab.retrieval`` serves ``POST /embed {"text"}`` and ``POST /search {"vector", "k"}``.
With ``--allow-faults`` it is slow on demand (libslo.lab.control).
"""

from __future__ import annotations

import argparse
import asyncio
import time
import zlib
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from aiohttp import web
from opentelemetry import propagate
from opentelemetry.trace import SpanKind

from libslo.lab.control import FaultBoard, add_control
from libslo.lab.programs import spoken_errors
from libslo.lab.telemetry import start_tracing
from libslo.lab.web import add_fault_option, serve

__all__ = ["Retrieval", "main"]

_DIMENSIONS = 64
_DOCUMENTS = 4096
_SEED = 7


class Retrieval:
    """Handlers. service_ms: time from request in to answer out, of each endpoint. allow_faults: let it be told to misbehave."""

    def __init__(self, service_ms: float, *, allow_faults: bool = False) -> None:
        self._service_s = service_ms / 1e3
        self._allow_faults = allow_faults
        self._faults = FaultBoard("retrieval")
        matrix = np.random.default_rng(_SEED).standard_normal((_DOCUMENTS, _DIMENSIONS), dtype=np.float32)
        self._documents = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        self._tracer, self.stop_tracing = start_tracing("libslo.lab.retrieval")

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.router.add_post("/embed", self._embed)
        application.router.add_post("/search", self._search)
        if self._allow_faults:
            add_control(application, self._faults)
        return application

    async def _embed(self, request: web.Request) -> web.Response:
        came_s = time.monotonic()
        with self._span(request, "embed"):
            try:
                text = str((await request.json())["text"])
            except (ValueError, KeyError, TypeError):
                return web.json_response({"error": "the body must be an object with a text"}, status=400)
            vector = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(_DIMENSIONS, dtype=np.float32)
            await self._rest(came_s)
            return web.json_response({"vector": [round(float(value), 4) for value in vector]})

    async def _search(self, request: web.Request) -> web.Response:
        came_s = time.monotonic()
        with self._span(request, "search"):
            try:
                body = await request.json()
                vector = np.asarray(body["vector"], dtype=np.float32)
                count = max(1, min(100, int(body.get("k", 4))))
                scores = self._documents @ vector
            except (ValueError, KeyError, TypeError):
                return web.json_response({"error": f"the body must be an object with a vector of {_DIMENSIONS}"}, status=400)
            best = np.argsort(-scores, kind="stable")[:count]
            await self._rest(came_s)
            return web.json_response({"ids": best.tolist(), "scores": [round(float(scores[i]), 4) for i in best]})

    def _span(self, request: web.Request, name: str) -> AbstractContextManager[Any]:
        parent = propagate.extract(dict(request.headers))
        span: AbstractContextManager[Any] = self._tracer.start_as_current_span(
            name, context=parent, kind=SpanKind.SERVER, attributes={"http.route": request.path}
        )
        return span

    async def _rest(self, came_s: float) -> None:
        slower_s = self._faults.request().total("retrieval_slowdown", "delay_ms") / 1e3
        await asyncio.sleep(max(0.0, came_s + self._service_s + slower_s - time.monotonic()))


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--service-ms", type=float, default=35.0, help="service time of each endpoint")
    add_fault_option(parser)
    options = parser.parse_args(arguments)
    retrieval = Retrieval(options.service_ms, allow_faults=options.allow_faults)
    with spoken_errors("retrieval"):
        serve(retrieval.application(), options.host, options.port, retrieval.stop_tracing)


if __name__ == "__main__":
    main()
