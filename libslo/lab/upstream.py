"""Calls of the RAG service to what is behind it: one span each, the trace context handed on, failures named by their kind."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from libslo.lab.web import AddressedResponse, fresh_connection_session

__all__ = ["CallPhases", "Upstream", "UpstreamError", "mark_failed", "server_attributes"]


class UpstreamError(Exception):
    """A service behind this one refused or could not be reached; kind is what goes into error.type, status its HTTP status."""

    def __init__(self, kind: str, status: int | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.status = status

    @property
    def client_status(self) -> int:
        """The HTTP status that our own client gets."""
        return 429 if self.status == 429 else 502


@dataclass
class CallPhases:
    """Where one call's time went, in ms; None: did not happen or did not end.

    dns_ms: name look-up. network_ms: connecting, TLS included. exchange_ms: request out to answer read, on the open connection.
    """

    dns_ms: float | None = None
    network_ms: float | None = None
    exchange_ms: float | None = None
    _dns_mono_s: float = 0.0
    _create_mono_s: float = 0.0
    _open_mono_s: float = 0.0

    def ended(self) -> None:
        """The answer has been read."""
        if self._open_mono_s:
            self.exchange_ms = (time.monotonic() - self._open_mono_s) * 1e3


def _phase_hooks() -> aiohttp.TraceConfig:
    """Hooks that fill in the CallPhases which a call was given."""
    config = aiohttp.TraceConfig()

    async def dns_start(_: Any, context: Any, __: Any) -> None:
        if phases := context.trace_request_ctx:
            phases._dns_mono_s = time.monotonic()

    async def dns_end(_: Any, context: Any, __: Any) -> None:
        if phases := context.trace_request_ctx:
            phases.dns_ms = (time.monotonic() - phases._dns_mono_s) * 1e3

    async def create_start(_: Any, context: Any, __: Any) -> None:
        if phases := context.trace_request_ctx:
            phases._create_mono_s = time.monotonic()

    async def create_end(_: Any, context: Any, __: Any) -> None:
        if phases := context.trace_request_ctx:
            phases._open_mono_s = time.monotonic()
            phases.network_ms = (phases._open_mono_s - phases._create_mono_s) * 1e3 - (phases.dns_ms or 0.0)  # create: look-up included

    config.on_dns_resolvehost_start.append(dns_start)
    config.on_dns_resolvehost_end.append(dns_end)
    config.on_connection_create_start.append(create_start)
    config.on_connection_create_end.append(create_end)
    return config


class Upstream:
    """The client side. timeout_s: of one whole call. The session lives as long as the application (cleanup_ctx)."""

    def __init__(self, tracer: Any, tls: ssl.SSLContext | None, timeout_s: float) -> None:
        self.tracer = tracer
        self._tls = tls
        self._timeout_s = timeout_s

    async def session(self, _: web.Application) -> AsyncIterator[None]:
        """For application.cleanup_ctx."""
        async with fresh_connection_session(self._tls, self._timeout_s, [_phase_hooks()]) as self._session:
            yield

    async def call(self, name: str, url: str, body: Mapping[str, Any], phases: CallPhases) -> Any:
        """POST a JSON object and read the answer, in a client span of that name. Raises UpstreamError."""
        with self.tracer.start_as_current_span(
            name, kind=SpanKind.CLIENT, attributes=server_attributes(url), record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                async with self._session.post(url, json=body, headers=_propagated(), trace_request_ctx=phases) as response:
                    _note_answer(span, response)
                    answer = await response.json()
                    phases.ended()
                    return answer
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                raise mark_failed(span, UpstreamError(_error_type(error))) from error
            except UpstreamError as error:
                mark_failed(span, error)
                raise

    async def lines(self, span: trace.Span, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """POST a JSON object and read the answer line by line; `span` is the call's and notes both ends. Raises UpstreamError."""
        handed_on = {**headers, **_propagated(trace.set_span_in_context(span))}
        try:
            async with self._session.post(url, json=body, headers=handed_on, allow_redirects=False) as response:
                _note_answer(span, response)
                async for line in response.content:
                    yield line
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise UpstreamError(_error_type(error)) from error


def mark_failed(span: trace.Span, error: UpstreamError) -> UpstreamError:
    """Make the span say how its call failed; the error, to be raised."""
    span.set_status(Status(StatusCode.ERROR, error.kind))
    span.set_attribute("error.type", error.kind)
    return error


def server_attributes(url: str) -> dict[str, str | int]:
    """What a client span says about where it goes."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"http.request.method": "POST", "url.full": url, "server.address": parts.hostname or "", "server.port": port}


def _note_answer(span: trace.Span, response: aiohttp.ClientResponse) -> None:
    if isinstance(response, AddressedResponse):
        span.set_attributes(response.span_attributes())
    if response.status != 200:
        raise UpstreamError(f"http_{response.status}", response.status)


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
