"""Turn a DNS answer in an IP packet into SERVFAIL. Pure: bytes in, bytes out."""

from __future__ import annotations

__all__ = ["internet_checksum", "servfail"]

_SERVFAIL = 2  # RFC 1035, 4.1.1
_UDP = 17
_UDP_BYTES = 8
_DNS_BYTES = 12


def servfail(packet: bytes) -> bytes | None:
    """The same packet with rcode 2 and a right UDP checksum; None when it is no DNS answer over UDP.

    packet: from its IP header on, IPv4 or IPv6 without extension headers, as a server that is the packet's source sends it.
    """
    version = packet[0] >> 4 if len(packet) > 20 else 0
    if version == 4:
        start, protocol, addresses = (packet[0] & 15) * 4, packet[9], packet[12:20]
    elif version == 6:
        start, protocol, addresses = 40, packet[6], packet[8:40]
    else:
        return None
    datagram = bytearray(packet[start:])
    if protocol != _UDP or len(datagram) < _UDP_BYTES + _DNS_BYTES or not datagram[_UDP_BYTES + 2] & 0x80:
        return None  # a query, or too short for a header
    datagram[_UDP_BYTES + 3] = datagram[_UDP_BYTES + 3] & 0xF0 | _SERVFAIL
    datagram[6:8] = b"\0\0"
    pseudo = addresses + (
        bytes([0, _UDP]) + len(datagram).to_bytes(2, "big") if version == 4 else len(datagram).to_bytes(4, "big") + b"\0\0\0\x11"
    )
    datagram[6:8] = (internet_checksum(pseudo + datagram) or 0xFFFF).to_bytes(2, "big")  # 0 would mean that there is none
    return packet[:start] + bytes(datagram)


def internet_checksum(data: bytes) -> int:
    """RFC 1071: the complement of the sum of all 16-bit words with the carries added back."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(padded[index : index + 2], "big") for index in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
