"""An OpenAI-compatible model provider over TLS: deterministic tokens, at a pace that is asked for.

``python -m libslo.lab.provider --certificate provider.pem`` serves ``POST /v1/chat/completions`` and ``GET /v1/models``.
The prompt seeds the tokens and the jitter of the time to the first one. Asked for model ``lab-status-CODE`` it answers CODE.
With ``--allow-faults`` it throttles, fails, is slow or resets connections on demand (libslo.lab.control).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import socket
import ssl
import struct
import time
from typing import Any

from aiohttp import web
from opentelemetry import propagate
from opentelemetry.trace import SpanKind

from libslo.errors import InputError
from libslo.lab.control import FaultBoard, RequestFaults, add_control
from libslo.lab.model import MAX_TOKENS, Pace, completion_tokens, paced_tokens
from libslo.lab.programs import spoken_errors
from libslo.lab.telemetry import start_tracing
from libslo.lab.web import add_fault_option, serve

__all__ = ["Provider", "completion_tokens", "main"]

_MODEL = "lab-small"
_LINGER_NONE = struct.pack("ii", 1, 0)  # closing then sends RST


class Provider:
    """Handlers. tokens: of an answer when the request does not say. allow_faults: let it be told to misbehave."""

    def __init__(self, pace: Pace, tokens: int, *, allow_faults: bool = False) -> None:
        self._pace = pace
        self._tokens = tokens
        self._allow_faults = allow_faults
        self._faults = FaultBoard("llm")
        self._tracer, self.stop_tracing = start_tracing("libslo.lab.provider")

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_get("/v1/models", self._models)
        if self._allow_faults:
            add_control(application, self._faults)
        return application

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": _MODEL, "object": "model", "owned_by": "lab"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        came_s = time.monotonic()
        try:
            body = await request.json()
            prompt = str(body["messages"][-1]["content"])
            count = max(1, min(MAX_TOKENS, int(body.get("max_tokens", self._tokens))))
        except (ValueError, KeyError, TypeError, IndexError):
            return _error(400, "invalid_request_error")
        model = str(body.get("model", _MODEL))
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "http.route": "/v1/chat/completions"}
        parent = propagate.extract(dict(request.headers))
        with self._tracer.start_as_current_span(
            "provider.chat_completions", context=parent, kind=SpanKind.SERVER, attributes=attributes, record_exception=False
        ) as span:
            faults = self._faults.request()
            refusal = await _refusal(model, faults)
            if refusal is not None:
                span.set_attribute("http.response.status_code", refusal.status)
                return refusal
            pace = self._pace
            for slow in faults.take("provider_slow"):
                pace = pace.slowed(slow["ttft_factor"], slow["itl_factor"])
            resets_after = count // 2 if faults.take("provider_reset") else None
            usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": count, "total_tokens": len(prompt.split()) + count}
            span.set_attribute("http.response.status_code", 200)
            if not body.get("stream"):
                tokens = [token async for token in paced_tokens(prompt, count, pace, came_s)]
                message = {"role": "assistant", "content": "".join(tokens)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                answer = web.json_response({"object": "chat.completion", "model": model, "choices": [choice], "usage": usage})
                if resets_after is not None:
                    _reset(request)
                return answer
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            written = 0
            async for token in paced_tokens(prompt, count, pace, came_s):
                if not written:
                    await response.prepare(request)
                    span.set_attribute("gen_ai.latency.time_to_first_token", time.monotonic() - came_s)
                if written == resets_after:
                    _reset(request)
                    return response
                await response.write(_event(model, [{"index": 0, "delta": {"content": token}, "finish_reason": None}]))
                written += 1
            stop = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
            await response.write(_event(model, stop) + _event(model, [], usage) + b"data: [DONE]\n\n")
            await response.write_eof()
            return response


async def _refusal(model: str, faults: RequestFaults) -> web.Response | None:
    """The error that answers this request, if one does: throttled before failed, as a gateway counts before it passes on."""
    if model.startswith("lab-status-") and model[11:].isdigit():
        status = int(model[11:])
        return _error(status, "rate_limit_exceeded" if status == 429 else "server_error")
    if throttles := faults.take("provider_throttle"):
        await asyncio.sleep(sum(each["delay_ms"] for each in throttles) / 1e3)
        return _error(429, "rate_limit_exceeded", max(each["retry_after_s"] for each in throttles))
    if failures := faults.take("provider_error"):
        return _error(int(failures[0]["status"]), "server_error")
    return None


def _reset(request: web.Request) -> None:
    """End the connection with RST instead of FIN."""
    transport = request.transport
    if transport is not None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        transport.abort()


def _event(model: str, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    chunk = {"object": "chat.completion.chunk", "model": model, "choices": choices, **({"usage": usage} if usage else {})}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _error(status: int, kind: str, retry_after_s: float = 1) -> web.Response:
    headers = {"retry-after": str(math.ceil(retry_after_s))} if status == 429 else {}
    error = {"message": kind.replace("_", " "), "type": kind, "param": None, "code": kind}
    return web.json_response({"error": error}, status=status, headers=headers)


def _server_tls(certificate: str) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        tls.load_cert_chain(certificate)
    except OSError as error:  # an SSLError is one
        hint = "a file in PEM form with the private key and the certificate"
        raise InputError(f"no certificate: {error.strerror or error}", source=certificate, hint=hint) from error
    return tls


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--certificate", required=True, metavar="FILE", help="private key and certificate chain, PEM")
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--itl-ms", type=float, default=8.0)
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer when the request does not say")
    add_fault_option(parser)
    options = parser.parse_args(arguments)
    with spoken_errors("provider"):
        tls = _server_tls(options.certificate)
        provider = Provider(Pace(options.ttft_ms, options.itl_ms), options.tokens, allow_faults=options.allow_faults)
        serve(provider.application(), options.host, options.port, provider.stop_tracing, tls)


if __name__ == "__main__":
    main()
