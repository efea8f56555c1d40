"""Names of DNS questions, when they were asked for: taken out of the kernel's table and decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from libslo.kernel.events import DNS_KEY_DTYPE, KINDS
from libslo.kernel.libbpf import map_lookup_and_delete

__all__ = ["NAME_BYTES", "add_names", "decode_name"]

NAME_BYTES = 128  # DNS_NAME_LEN, bpf/include/slo_dns.h


def decode_name(labels: bytes) -> str:
    """A name from its labels as in a message (RFC 1035 section 3.1), without the last dot; one that was cut off ends in "…".

    Bytes that are no plain text, and dots within a label, are escaped as in zone files (RFC 4343 section 2.1).
    """
    parts: list[str] = []
    offset = 0
    while offset < len(labels):
        length = labels[offset]
        if length == 0:
            return ".".join(parts) or "."
        label = labels[offset + 1 : offset + 1 + length]
        if length > 63 or len(label) < length:
            parts.append("".join(map(_character, label)) if length <= 63 else "")
            break
        parts.append("".join(map(_character, label)))
        offset += 1 + length
    return ".".join(parts) + "…"


def _character(byte: int) -> str:
    if byte in b".\\":
        return f"\\{chr(byte)}"
    return chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03d}"


def add_names(names_fd: int, events: NDArray[Any], made: list[dict[str, Any]]) -> None:
    """Put ``dns.question.name`` into those of `made`, the probe events of `events`, whose name is in the table; it is taken out.

    names_fd: the map dns_names. events: dtype EVENT_DTYPE, shape (n,); their `value` is the socket's cookie.
    """
    index = np.flatnonzero(events["kind"] == KINDS["dns_latency_ms"])
    keys = np.zeros(index.size, DNS_KEY_DTYPE)
    for field, source in (("cookie", "value"), ("server", "daddr"), ("txid", "txid"), ("protocol", "protocol")):
        keys[field] = events[source][index]
    for position, key in zip(index.tolist(), keys, strict=True):
        labels = map_lookup_and_delete(names_fd, key.tobytes(), NAME_BYTES)
        if labels:
            made[position]["attributes"]["dns.question.name"] = decode_name(labels)
