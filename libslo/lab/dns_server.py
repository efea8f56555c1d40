"""Answer DNS queries of the lab over UDP and TCP: A records given on the command line, everything else NXDOMAIN.

``python -m libslo.lab.dns_server --listen 10.77.0.53 --record rag.lab=10.77.0.20``
A name that exists and is asked for another type gets an empty NOERROR. Prints ``ready`` when it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import cast

from libslo.errors import InputError
from libslo.lab.programs import cannot_listen, spoken_errors

__all__ = ["answer", "main"]

_TTL_S = 5
_WARM_UP = b"\0\0\1\0\0\1\0\0\0\0\0\0\2ns\3lab\0\0\1\0\1"  # ns.lab A


def answer(query_wire: bytes, zone: Mapping[str, str]) -> bytes | None:
    """The response to one query; None when the bytes are no DNS message. zone: lower-case name without final dot → IPv4."""
    import dns.exception
    import dns.flags
    import dns.message
    import dns.opcode
    import dns.rcode
    import dns.rdatatype
    import dns.rrset

    try:
        query = dns.message.from_wire(query_wire)
    except (dns.exception.DNSException, ValueError):
        return None
    if query.flags & dns.flags.QR:
        return None  # an answer is never answered
    response = dns.message.make_response(query)
    response.flags |= dns.flags.AA
    if query.opcode() != dns.opcode.QUERY:
        response.set_rcode(dns.rcode.NOTIMP)
    elif len(query.question) != 1:
        response.set_rcode(dns.rcode.FORMERR)
    else:
        question = query.question[0]
        address = zone.get(question.name.to_text(omit_final_dot=True).lower())
        if address is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(question.name, _TTL_S, "IN", "A", address))
    return response.to_wire()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, zone: Mapping[str, str]) -> None:
        self._zone = zone
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # by contract; by inheritance only from Python 3.12

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = answer(data, self._zone)
        if response is not None and self._transport is not None:
            self._transport.sendto(response, addr)


async def _serve(listen: str, port: int, zone: Mapping[str, str]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                response = answer(await reader.readexactly(length), zone)
                if response is None:
                    break
                writer.write(len(response).to_bytes(2, "big") + response)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the peer has what it wanted
        finally:
            writer.close()

    answer(_WARM_UP, zone)  # the first query must not pay for imports
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(zone), local_addr=(listen, port))
        server = await asyncio.start_server(talk, listen, port)
    except OSError as error:
        raise cannot_listen(listen, port, error) from error
    print("ready", flush=True)
    await stop.wait()
    server.close()
    transport.close()


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--listen", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=53)
    parser.add_argument("--record", action="append", default=[], metavar="NAME=ADDRESS", help="one A record; may be repeated")
    options = parser.parse_args(arguments)
    with spoken_errors("dns_server"):
        asyncio.run(_serve(options.listen, options.port, dict(map(_record, options.record))))


def _record(text: str) -> tuple[str, str]:
    """(lower-case name without its final dot, IPv4 address) of NAME=ADDRESS."""
    name, _, address = text.lower().partition("=")
    try:
        return name.rstrip("."), str(IPv4Address(address))
    except ValueError as error:
        raise InputError(f"no A record: {text!r}", source="--record", hint="NAME=ADDRESS such as rag.lab=10.77.0.20") from error


if __name__ == "__main__":
    main()
