"""Connections whose phases are timed: name look-up, TCP connect, TLS handshake. Needs aiohttp.

aiohttp reports when a connection begins and stands; the look-up is ours; where TCP ends and TLS begins shows when the handshake asks
its context for a TLS object.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from libslo.errors import InputError, os_reason

__all__ = ["Phases", "failure", "timed_session", "tls_context"]

_LOOK_UP_THREADS = 64  # with the event loop's few, slow look-ups would queue up in this process


@dataclass(slots=True)
class Phases:
    """When the phases of one request's connection began and ended, in ns of the monotonic clock; 0 for what did not happen."""

    look_up_ns: int = 0
    looked_up_ns: int = 0
    connect_ns: int = 0
    tls_ns: int = 0
    connected_ns: int = 0

    def as_ms(self) -> dict[str, float]:
        """The phases that ended, as keys of the contract load-result."""
        found: dict[str, float] = {}
        if self.looked_up_ns:
            found["dns_ms"] = (self.looked_up_ns - self.look_up_ns) / 1e6
        tcp_begin_ns = max(self.connect_ns, self.looked_up_ns)
        if tcp_end_ns := self.tls_ns or self.connected_ns:
            found["connect_ms"] = (tcp_end_ns - tcp_begin_ns) / 1e6
        if self.tls_ns and self.connected_ns:
            found["tls_ms"] = (self.connected_ns - self.tls_ns) / 1e6
        return found


_connecting: ContextVar[Phases | None] = ContextVar("connecting", default=None)


class _TimedContext(ssl.SSLContext):
    def wrap_bio(self, *arguments: Any, **more: Any) -> ssl.SSLObject:  # where asyncio begins a handshake
        phases = _connecting.get()
        if phases is not None:
            phases.tls_ns = time.monotonic_ns()
        return super().wrap_bio(*arguments, **more)


class _TimedResolver(AbstractResolver):
    """getaddrinfo in threads: for every connection, or once for all (those that come meanwhile wait for the one under way)."""

    def __init__(self, each: bool) -> None:
        self._each = each
        self._inner = aiohttp.ThreadedResolver()
        self._known: dict[tuple[str, int], asyncio.Task[list[ResolveResult]]] = {}

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        phases = _connecting.get() or Phases()
        known = self._known.get((host, port))
        if known is not None and known.done() and not known.cancelled() and known.exception() is None:
            return known.result()
        phases.look_up_ns = time.monotonic_ns()
        if self._each:
            found = await self._inner.resolve(host, port, family)
        else:
            if known is None or known.done():  # one that failed is tried again
                known = self._known[host, port] = asyncio.create_task(self._inner.resolve(host, port, family))
            found = await asyncio.shield(known)
        phases.looked_up_ns = time.monotonic_ns()
        return found

    async def close(self) -> None:
        await self._inner.close()


def tls_context(ca: str | None) -> ssl.SSLContext:
    """A context that checks certificates against the system's authorities, or those of a PEM file; InputError when it is none."""
    context = _TimedContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise InputError("no certificates in PEM form", source=ca, hint="--ca takes the certificate of the authority") from error
    except OSError as error:
        raise InputError(os_reason(error), source=ca, hint="check the path and its permissions") from error
    return context


def timed_session(*, ca: str | None, keep_alive: bool, look_up_each: bool) -> aiohttp.ClientSession:
    """A client for one target (call inside the event loop); a request's Phases go into its trace_request_ctx."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_LOOK_UP_THREADS, thread_name_prefix="look-up"))
    connector = aiohttp.TCPConnector(
        resolver=_TimedResolver(look_up_each),
        use_dns_cache=False,  # with aiohttp's, nobody knows how long a request waited for another's look-up
        force_close=not keep_alive,
        limit=0,
        ssl=tls_context(ca),
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),  # the driver has its own: aiohttp rounds those above 5 s up to whole seconds
        trace_configs=[_trace_config()],
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _trace_config() -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig()

    async def begin(_: aiohttp.ClientSession, about: SimpleNamespace, __: Any) -> None:
        about.trace_request_ctx.connect_ns = time.monotonic_ns()
        _connecting.set(about.trace_request_ctx)

    async def end(_: aiohttp.ClientSession, about: SimpleNamespace, __: Any) -> None:
        about.trace_request_ctx.connected_ns = time.monotonic_ns()

    config.on_connection_create_start.append(begin)
    config.on_connection_create_end.append(end)
    return config


def failure(error: Exception) -> tuple[str, str]:
    """The kind of an error of the client, as the contract load-result names it, and the same in words."""
    kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
        (TimeoutError, "timeout"),
        (aiohttp.ClientSSLError, "tls"),
        (aiohttp.ClientConnectorDNSError, "dns"),
        (aiohttp.ClientConnectorError, "connect"),
        (aiohttp.ClientPayloadError, "stream_error"),
        (aiohttp.ClientResponseError, "bad_response"),
        ((aiohttp.ClientConnectionError, OSError), "reset"),
    )
    kind = next((name for family, name in kinds if isinstance(error, family)), "bad_response")
    words = " ".join(str(error).split()) or type(error).__name__
    return kind, words[:200]
