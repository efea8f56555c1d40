"""A server whose every byte a test decides, in a thread of its own: HTTP/1.1 by hand, one request a connection unless told otherwise."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

Writer = asyncio.StreamWriter
Handler = Callable[["Asked", Writer], Awaitable[None]]
NDJSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n"
SSE = NDJSON.replace(b"application/x-ndjson", b"text/event-stream")


@dataclass
class Asked:
    """What came: the request line, headers in lower case, the body as JSON (None without one)."""

    line: str
    headers: dict[str, str]
    body: Any


@dataclass
class LoadServer:
    """Listens on a free port of loopback from entry to exit. asked: every request so far; connections: how many were made."""

    handler: Handler
    tls: ssl.SSLContext | None = None
    keep_alive: bool = False
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def __enter__(self) -> LoadServer:
        self._loop = asyncio.new_event_loop()
        up = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(up,), daemon=True)
        self._thread.start()
        assert up.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def _serve(self, up: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self.tls))
        self.port = server.sockets[0].getsockname()[1]
        up.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(head[0], headers, orjson.loads(body) if body else None)
                self.asked.append(asked)
                await self.handler(asked, writer)
                if not self.keep_alive:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def say(writer: Writer, *pieces: bytes) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()


def line(**value: Any) -> bytes:
    return orjson.dumps(value) + b"\n"


def token(text: str, index: int = 0) -> bytes:
    return orjson.dumps({"index": index, "token": text}) + b"\n"


async def stream_ok(asked: Asked, writer: Writer) -> None:
    """Three tokens 10 ms apart."""
    await say(writer, NDJSON)
    for index in range(3):
        await say(writer, token("x ", index))
        await asyncio.sleep(0.01)
    await say(writer, line(done=True, tokens=3))


def one_at_a_time(seconds: float) -> Handler:
    """One token a request, after `seconds` in which no other is served."""
    lock = asyncio.Lock()

    async def handler(_: Asked, writer: Writer) -> None:
        async with lock:
            await asyncio.sleep(seconds)
            await say(writer, NDJSON, token("x"), line(done=True))

    return handler


def only(*pieces: bytes, hang: bool = False, reset: bool = False) -> Handler:
    """Says these bytes to everybody, then closes the connection, hangs, or resets it."""

    async def handler(_: Asked, writer: Writer) -> None:
        await say(writer, *pieces)
        if hang:
            await asyncio.sleep(60)
        if reset:
            writer.transport.abort()

    return handler
