"""An OpenAI-compatible model provider over TLS: deterministic tokens, at a pace that is asked for.

``python -m libslo.lab.provider --certificate provider.pem`` serves ``POST /v1/chat/completions`` and ``GET /v1/models``.
The prompt seeds the tokens and the jitter of the time to the first one. Asked for model ``lab-status-CODE`` it answers CODE.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import ssl
import time
import zlib
from typing import Any

from aiohttp import web
from opentelemetry import propagate
from opentelemetry.trace import SpanKind

from libslo.lab.telemetry import start_tracing
from libslo.lab.web import serve

__all__ = ["Provider", "completion_tokens", "main"]

_WORDS = ("the", "kernel", "saw", "a", "slow", "name", "before", "each", "call", "while", "queue", "and", "model", "idle")
_JITTER_RATIO = 0.1
_MODEL = "lab-small"


def completion_tokens(prompt: str, count: int) -> list[str]:
    """The answer to a prompt: the same for the same prompt, in any process."""
    generator = random.Random(zlib.crc32(prompt.encode()))
    return [generator.choice(_WORDS) + " " for _ in range(count)]


class Provider:
    """Handlers. ttft_ms: median time to first token, ± 10 % seeded by the prompt. itl_ms: between tokens."""

    def __init__(self, ttft_ms: float, itl_ms: float, tokens: int) -> None:
        self._ttft_ms = ttft_ms
        self._itl_ms = itl_ms
        self._tokens = tokens
        self._tracer, self.stop_tracing = start_tracing("libslo.lab.provider")

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_get("/v1/models", self._models)
        return application

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": _MODEL, "object": "model", "owned_by": "lab"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        came_s = time.monotonic()
        try:
            body = await request.json()
            prompt = str(body["messages"][-1]["content"])
            count = max(1, min(4096, int(body.get("max_tokens", self._tokens))))
        except (ValueError, KeyError, TypeError, IndexError):
            return _error(400, "invalid_request_error")
        model = str(body.get("model", _MODEL))
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "http.route": "/v1/chat/completions"}
        parent = propagate.extract(dict(request.headers))
        with self._tracer.start_as_current_span(
            "provider.chat_completions", context=parent, kind=SpanKind.SERVER, attributes=attributes, record_exception=False
        ) as span:
            if model.startswith("lab-status-") and model[11:].isdigit():
                status = int(model[11:])
                span.set_attribute("http.response.status_code", status)
                return _error(status, "rate_limit_exceeded" if status == 429 else "server_error")
            jitter = random.Random(zlib.crc32(prompt.encode())).uniform(1 - _JITTER_RATIO, 1 + _JITTER_RATIO)
            await _sleep_until(came_s + self._ttft_ms * jitter / 1e3)
            tokens = completion_tokens(prompt, count)
            usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": count, "total_tokens": len(prompt.split()) + count}
            span.set_attribute("http.response.status_code", 200)
            if not body.get("stream"):
                await asyncio.sleep(self._itl_ms * (count - 1) / 1e3)
                message = {"role": "assistant", "content": "".join(tokens)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                return web.json_response({"object": "chat.completion", "model": model, "choices": [choice], "usage": usage})
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            first_s = time.monotonic()
            span.set_attribute("gen_ai.latency.time_to_first_token", first_s - came_s)
            for index, token in enumerate(tokens):
                await _sleep_until(first_s + index * self._itl_ms / 1e3)
                await response.write(_event(model, [{"index": 0, "delta": {"content": token}, "finish_reason": None}]))
            stop = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
            await response.write(_event(model, stop) + _event(model, [], usage) + b"data: [DONE]\n\n")
            await response.write_eof()
            return response


async def _sleep_until(when_s: float) -> None:
    await asyncio.sleep(max(0.0, when_s - time.monotonic()))


def _event(model: str, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    chunk = {"object": "chat.completion.chunk", "model": model, "choices": choices, **({"usage": usage} if usage else {})}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _error(status: int, kind: str) -> web.Response:
    headers = {"retry-after": "1"} if status == 429 else {}
    return web.json_response({"error": {"type": kind, "message": kind}}, status=status, headers=headers)


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--certificate", required=True, metavar="FILE", help="private key and certificate chain, PEM")
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--itl-ms", type=float, default=8.0)
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer when the request does not say")
    options = parser.parse_args(arguments)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(options.certificate)
    provider = Provider(options.ttft_ms, options.itl_ms, options.tokens)
    serve(provider.application(), options.host, options.port, provider.stop_tracing, tls)


if __name__ == "__main__":
    main()
