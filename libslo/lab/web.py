"""What the lab's HTTP services have in common: a server that says when it is ready, and clients that hide nothing."""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp import web

from libslo.errors import InputError, SloError
from libslo.lab.programs import cannot_listen

__all__ = ["AddressedResponse", "add_fault_option", "fresh_connection_session", "read_json", "said_error", "serve"]

_RESOLVER_THREADS = 64


class AddressedResponse(aiohttp.ClientResponse):
    """A response that remembers both ends of its connection, which is gone once the body has been read."""

    local_address: tuple[str, int] | None = None
    peer_address: tuple[str, int] | None = None

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Note the addresses, then read the head of the response."""
        transport = connection.transport
        if transport is not None:
            self.local_address = transport.get_extra_info("sockname")[:2]
            self.peer_address = transport.get_extra_info("peername")[:2]
        return await super().start(connection)

    def span_attributes(self) -> dict[str, str | int]:
        """The addresses under their OpenTelemetry names."""
        attributes: dict[str, str | int] = {"http.response.status_code": self.status}
        for end, address in (("peer", self.peer_address), ("local", self.local_address)):
            if address:
                attributes[f"network.{end}.address"], attributes[f"network.{end}.port"] = address
        return attributes


def fresh_connection_session(
    tls: ssl.SSLContext | None = None, timeout_s: float = 30, trace_configs: Sequence[aiohttp.TraceConfig] = ()
) -> aiohttp.ClientSession:
    """A client that looks up the name and connects anew for every call: the condition in which DNS and connect times hurt.

    timeout_s: of one whole call.

    Look-ups are getaddrinfo in threads; the event loop's default executor gets enough of them (call inside the loop),
    otherwise slow look-ups would queue up in the process and the delay would no longer be that of DNS.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolver"))
    connector = aiohttp.TCPConnector(
        resolver=aiohttp.ThreadedResolver(), use_dns_cache=False, force_close=True, limit=0, ssl=tls if tls else True
    )
    return aiohttp.ClientSession(
        connector=connector,
        response_class=AddressedResponse,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        trust_env=False,
        trace_configs=list(trace_configs),
    )


async def read_json(request: web.Request) -> Any:
    """The body of a request as JSON; InputError when it is not that (an unknown charset, nesting without end)."""
    try:
        return await request.json()
    except (ValueError, LookupError, RecursionError) as error:
        raise InputError("the body is not JSON") from error


def said_error(error: SloError) -> str:
    """An error in one line, for a JSON answer."""
    return f"{error.fact} (try: {error.hint})" if error.hint else error.fact


def add_fault_option(parser: argparse.ArgumentParser) -> None:
    """--allow-faults, the same in every service of the lab."""
    parser.add_argument("--allow-faults", action="store_true", help="answer /-/faults: whoever reaches this port can make it misbehave")


def serve(
    application: web.Application,
    host: str,
    port: int,
    stop_tracing: Callable[[], None],
    tls: ssl.SSLContext | None = None,
    drain_s: float = 1,
) -> None:
    """Serve until SIGTERM or SIGINT, print ``ready`` when listening, flush the spans in the end.

    drain_s: how long requests under way may take to finish once it has been told to stop; new ones are refused.
    Raises CannotError when the address cannot be listened on.
    """

    def ready(*_: object) -> None:
        sys.stderr.write(f"listening on http{'s' if tls else ''}://{host}:{port}\n")
        print("ready", flush=True)

    async def flush(_: web.Application) -> None:
        await asyncio.to_thread(stop_tracing)

    application.on_cleanup.append(flush)
    try:
        web.run_app(application, host=host, port=port, ssl_context=tls, access_log=None, print=ready, shutdown_timeout=drain_s)
    except OSError as error:
        raise cannot_listen(host, port, error) from error
