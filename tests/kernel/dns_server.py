"""A name server for tests: the first label says what to do, so answers come back in an order the test knows.

d<MS> answers after MS milliseconds, nx and sf say NXDOMAIN and SERVFAIL, drop never answers,
lose<N> ignores the first N queries with that name. UDP and TCP on port 53 of all addresses.
"""

from __future__ import annotations

import asyncio
import socket
import sys

SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it

seen: dict[bytes, int] = {}


def answer(query: bytes) -> tuple[float, bytes] | None:
    """(delay in seconds, message), or None for silence."""
    length = query[12]
    order = query[13 : 13 + length].decode()
    rcode, delay_s = 0, 0.0
    if order == "drop":
        return None
    if order.startswith("lose"):
        seen[query[12:]] = seen.get(query[12:], 0) + 1
        if seen[query[12:]] <= int(order[4:]):
            return None
    elif order.startswith("d"):
        delay_s = int(order[1:]) / 1000
    rcode = {"nx": 3, "sf": 2}.get(order, 0)
    return delay_s, query[:2] + (0x8180 | rcode).to_bytes(2, "big") + query[4:]


class Udp(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: object) -> None:
        reply = answer(data)
        if reply:
            asyncio.get_running_loop().call_later(reply[0], self.transport.sendto, reply[1], address)  # type: ignore[attr-defined]


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            size = int.from_bytes(await reader.readexactly(2), "big")
            reply = answer(await reader.readexactly(size))
            if reply:
                await asyncio.sleep(reply[0])
                writer.write(len(reply[1]).to_bytes(2, "big") + reply[1])
    except asyncio.IncompleteReadError:
        writer.close()


async def main() -> None:
    loop = asyncio.get_running_loop()
    # One socket an address: the answer must leave from the address that was asked.
    for host in ("127.0.0.1", "127.0.0.2", "::1"):
        transport, _ = await loop.create_datagram_endpoint(Udp, (host, 53))
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)  # a busy machine loses no query
        await asyncio.start_server(tcp, host, 53)
    print("listening", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


asyncio.run(main())
