"""A server whose answers take a known time, for `make bench-load`: GET gives 200 after a wait drawn from a lognormal.

``python tests/bench_waits.py`` prints the port it listens on. Waits have a median of 20 ms and a sigma of 0.5, whatever the load.
"""

from __future__ import annotations

import asyncio
import random

MEDIAN_S, SIGMA = 0.020, 0.5
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"


class _Waits(asyncio.Protocol):
    def __init__(self, generator: random.Random) -> None:
        self._generator = generator

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if b"\r\n\r\n" in data:
            wait_s = MEDIAN_S * self._generator.lognormvariate(0, SIGMA)
            asyncio.get_running_loop().call_later(wait_s, self._answer)

    def _answer(self) -> None:
        if isinstance(self._transport, asyncio.WriteTransport) and not self._transport.is_closing():
            self._transport.write(_ANSWER)


async def main() -> None:
    """Serve until killed."""
    generator = random.Random(1)
    server = await asyncio.get_running_loop().create_server(lambda: _Waits(generator), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
