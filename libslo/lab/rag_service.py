"""The application of the lab: retrieval, then generation, streamed as NDJSON from ``POST /chat``.

``python -m libslo.lab.rag_service --provider https://provider.lab:8443 --ca ca.pem``
Body: ``{"prompt": ..., "request_id": ..., "model": ..., "profile": ..., "max_tokens": ...}`` (all but the prompt optional).
Each line is ``{"index": i, "token": t}``, the last ``{"done": true, ...}``.
A provider that answers 429 makes the response 429, any other failure behind the service makes it 502.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from aiohttp import web
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from libslo.lab.control import FaultBoard, add_control
from libslo.lab.telemetry import start_tracing
from libslo.lab.web import AddressedResponse, add_fault_option, fresh_connection_session, serve

__all__ = ["RagService", "main"]


class _BackendError(Exception):
    """A backend refused or could not be reached; kind is what goes into error.type."""

    def __init__(self, kind: str, status: int | None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.status = status

    @property
    def client_status(self) -> int:
        return 429 if self.status == 429 else 502


class RagService:
    """Handlers and clients of the service. Ports in numbers, URLs without a path."""

    def __init__(
        self, provider_url: str, embeddings_url: str, vectordb_url: str, tls: ssl.SSLContext, *, allow_faults: bool = False
    ) -> None:
        self._provider_url = provider_url
        self._embeddings_url = embeddings_url
        self._vectordb_url = vectordb_url
        self._tls = tls
        self._allow_faults = allow_faults
        self._faults = FaultBoard("app")
        self._tracer, self.stop_tracing = start_tracing("libslo.lab.rag_service")

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.router.add_post("/chat", self._chat)
        application.router.add_get("/healthz", self._healthz)
        if self._allow_faults:
            add_control(application, self._faults)
        application.cleanup_ctx.append(self._client)
        return application

    async def _client(self, _: web.Application) -> AsyncIterator[None]:
        async with fresh_connection_session(self._tls) as self._session:
            yield

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        came_ns = time.monotonic_ns()
        try:
            body = await request.json()
            prompt = str(body["prompt"])
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": "the body must be a JSON object with a prompt"}, status=400)
        request_id = str(body.get("request_id") or uuid.uuid4())
        attributes = {
            "llm.request_id": request_id,
            "llm.session.profile": str(body.get("profile", "chat")),
            "http.request.method": "POST",
            "http.route": "/chat",
            "url.path": "/chat",
        }
        parent = propagate.extract(dict(request.headers))
        with self._tracer.start_as_current_span(
            "chat.request", context=parent, kind=SpanKind.SERVER, attributes=attributes, record_exception=False
        ) as span:
            response = web.StreamResponse(headers={"content-type": "application/x-ndjson", "x-request-id": request_id})
            token_ns: list[int] = []
            try:
                await self._retrieve(prompt)
                await asyncio.sleep(self._faults.request().total("app_stall", "delay_ms") / 1e3)  # in no span but the request's
                async for token in self._generate(prompt, body):
                    if not token_ns:
                        await response.prepare(request)
                    await response.write(_line({"index": len(token_ns), "token": token}))
                    token_ns.append(time.monotonic_ns())
                if not token_ns:
                    raise _BackendError("empty_completion", None)
                await response.write(_line({"done": True, "request_id": request_id, "tokens": len(token_ns)}))
                await response.write_eof()
                status = 200
            except _BackendError as error:
                status = error.client_status
                span.set_status(Status(StatusCode.ERROR, error.kind))
                span.set_attribute("error.type", error.kind)
                if token_ns:  # the head is on its way: say it in the stream
                    status = 200
                    await response.write(_line({"error": error.kind, "request_id": request_id}))
                    await response.write_eof()
                else:
                    response = web.json_response({"error": error.kind, "request_id": request_id}, status=status)
            except ConnectionResetError:
                status = 499  # the client has gone
                span.set_attribute("error.type", "client_disconnected")
            span.set_attributes({"http.response.status_code": status, **_stream_attributes(came_ns, token_ns)})
            return response

    async def _retrieve(self, prompt: str) -> None:
        with self._tracer.start_as_current_span("chat.retrieval", record_exception=False, set_status_on_exception=False) as span:
            try:
                vector = (await self._call("retrieval.embedding", f"{self._embeddings_url}/embed", {"text": prompt}))["vector"]
                found = await self._call("retrieval.vector_search", f"{self._vectordb_url}/search", {"vector": vector, "k": 4})
                span.set_attribute("llm.retrieval.documents", len(found["ids"]))
            except _BackendError as error:
                span.set_status(Status(StatusCode.ERROR, error.kind))
                raise

    async def _call(self, name: str, url: str, body: Mapping[str, Any]) -> Any:
        attributes = {"http.request.method": "POST", "url.full": url, **_server_attributes(url)}
        with self._tracer.start_as_current_span(
            name, kind=SpanKind.CLIENT, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                async with self._session.post(url, json=body, headers=_propagated()) as response:
                    _note_addresses(span, response)
                    if response.status != 200:
                        raise _BackendError(f"http_{response.status}", response.status)
                    return await response.json()
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                raise self._failed(span, _BackendError(_error_type(error), None)) from error
            except _BackendError as error:
                self._failed(span, error)
                raise

    async def _generate(self, prompt: str, body: Mapping[str, Any]) -> AsyncIterator[str]:
        model = str(body.get("model", "lab-small"))
        url = f"{self._provider_url}/v1/chat/completions"
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "gen_ai.provider.name": "lab",
            "http.request.method": "POST",
            "url.full": url,
            **_server_attributes(url),
        }
        # not made current: a generator must not leave a span current in its caller between two tokens
        span = self._tracer.start_span("chat.generation", kind=SpanKind.CLIENT, attributes=attributes)
        ask = {"model": model, "stream": True, "messages": [{"role": "user", "content": prompt}]}
        if "max_tokens" in body:
            ask["max_tokens"] = int(body["max_tokens"])
        try:
            async with self._session.post(url, json=ask, headers=_propagated(trace.set_span_in_context(span))) as response:
                _note_addresses(span, response)
                if response.status != 200:
                    raise _BackendError(f"http_{response.status}", response.status)
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    chunk = json.loads(line[6:])
                    if usage := chunk.get("usage"):
                        span.set_attribute("gen_ai.usage.input_tokens", usage["prompt_tokens"])
                        span.set_attribute("gen_ai.usage.output_tokens", usage["completion_tokens"])
                    for choice in chunk["choices"]:
                        if token := choice["delta"].get("content"):
                            yield token
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise self._failed(span, _BackendError(_error_type(error), None)) from error
        except _BackendError as error:
            self._failed(span, error)
            raise
        finally:
            span.end()

    @staticmethod
    def _failed(span: trace.Span, error: _BackendError) -> _BackendError:
        span.set_status(Status(StatusCode.ERROR, error.kind))
        span.set_attribute("error.type", error.kind)
        return error


def _stream_attributes(came_ns: int, token_ns: list[int]) -> dict[str, float | int]:
    """ttft_ms: request in to first token out. tokens_per_sec: pace after the first token, so that waits before it do not count twice."""
    attributes: dict[str, float | int] = {"gen_ai.usage.output_tokens": len(token_ns)}
    if token_ns:
        attributes["llm.slo.ttft_ms"] = (token_ns[0] - came_ns) / 1e6
    if len(token_ns) > 1 and token_ns[-1] > token_ns[0]:
        attributes["llm.slo.tokens_per_sec"] = (len(token_ns) - 1) / ((token_ns[-1] - token_ns[0]) / 1e9)
    return attributes


def _server_attributes(url: str) -> dict[str, str | int]:
    scheme, _, rest = url.partition("://")
    host, _, port = rest.partition("/")[0].partition(":")
    return {"server.address": host, "server.port": int(port or (443 if scheme == "https" else 80))}


def _note_addresses(span: trace.Span, response: aiohttp.ClientResponse) -> None:
    if isinstance(response, AddressedResponse):
        span.set_attributes(response.span_attributes())


def _propagated(context: Any = None) -> dict[str, str]:
    headers: dict[str, str] = {}
    propagate.inject(headers, context=context)
    return headers


def _error_type(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns_error"
    return "connect_error" if isinstance(error, aiohttp.ClientConnectorError) else type(error).__name__


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--provider", default="https://provider.lab:8443", metavar="URL")
    parser.add_argument("--embeddings", default="http://embeddings.lab:8080", metavar="URL")
    parser.add_argument("--vectordb", default="http://vectordb.lab:8080", metavar="URL")
    parser.add_argument("--ca", required=True, metavar="FILE", help="certificate authority that signed the provider's certificate")
    add_fault_option(parser)
    options = parser.parse_args(arguments)
    tls = ssl.create_default_context(cafile=options.ca)
    service = RagService(options.provider, options.embeddings, options.vectordb, tls, allow_faults=options.allow_faults)
    serve(service.application(), options.host, options.port, service.stop_tracing)


if __name__ == "__main__":
    main()
