"""The lab's services in the test's own process, on 127.0.0.1: no namespace, no root."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import trustme
from aiohttp import web

from libslo.lab.control import CONTROL_PATH

__all__ = ["certified", "put_fault", "running"]


def certified() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS contexts of a server called localhost and of clients that trust it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@asynccontextmanager
async def running(application: web.Application, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve an application on a free port; its URL."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        port = runner.addresses[0][1]
        yield f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def put_fault(session: aiohttp.ClientSession, url: str, fault: str, lease_s: float = 30, **parameters: Any) -> None:
    """Put a fault on, its id its name, its seed 1."""
    body = {"id": fault, "fault": fault, "parameters": parameters, "lease_s": lease_s, "seed": 1}
    async with session.post(url + CONTROL_PATH, json=body) as response:
        assert response.status == 200, await response.text()
