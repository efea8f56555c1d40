"""What the lab's HTTP services have in common: a server that says when it is ready, and clients that hide nothing."""

from __future__ import annotations

import argparse
import asyncio
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp import web

__all__ = ["AddressedResponse", "add_fault_option", "fresh_connection_session", "serve"]

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


def fresh_connection_session(tls: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """A client that looks up the name and connects anew for every call: the condition in which DNS and connect times hurt.

    Look-ups are getaddrinfo in threads; the event loop's default executor gets enough of them (call inside the loop),
    otherwise slow look-ups would queue up in the process and the delay would no longer be that of DNS.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolver"))
    connector = aiohttp.TCPConnector(
        resolver=aiohttp.ThreadedResolver(), use_dns_cache=False, force_close=True, limit=0, ssl=tls if tls else True
    )
    return aiohttp.ClientSession(
        connector=connector, response_class=AddressedResponse, timeout=aiohttp.ClientTimeout(total=30), trust_env=False
    )


def add_fault_option(parser: argparse.ArgumentParser) -> None:
    """--allow-faults, the same in every service of the lab."""
    parser.add_argument("--allow-faults", action="store_true", help="answer /-/faults: whoever reaches this port can make it misbehave")


def serve(application: web.Application, host: str, port: int, stop_tracing: Callable[[], None], tls: ssl.SSLContext | None = None) -> None:
    """Serve until SIGTERM or SIGINT, print ``ready`` when listening, flush the spans in the end."""

    def ready(*_: object) -> None:
        print("ready", flush=True)

    async def flush(_: web.Application) -> None:
        await asyncio.to_thread(stop_tracing)

    application.on_cleanup.append(flush)
    web.run_app(application, host=host, port=port, ssl_context=tls, access_log=None, print=ready, shutdown_timeout=1)
