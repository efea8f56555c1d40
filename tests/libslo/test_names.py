"""Names of DNS questions, decoded from their labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.kernel.names import NAME_BYTES, decode_name


def labels(*parts: bytes) -> bytes:
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


@pytest.mark.parametrize(
    ("wire", "name"),
    [
        (labels(b"kubernetes", b"default", b"svc", b"cluster", b"local"), "kubernetes.default.svc.cluster.local"),
        (b"\0", "."),
        (labels(b"a.b", b"c\\d"), "a\\.b.c\\\\d"),
        (labels(b"\xff\x07x y"), "\\255\\007x\\032y"),
        (labels(b"a" * 63, b"b" * 63)[:100], "a" * 63 + "." + "b" * 35 + "…"),
        (b"\x03abc", "abc…"),
        (b"\x03abc\xc0\x0c", "abc.…"),
        (b"", "…"),
    ],
)
def test_labels_become_a_name(wire: bytes, name: str) -> None:
    """Labels are joined with dots, what is no plain text is escaped, and what was cut off says so."""
    assert decode_name(wire) == name


@given(st.binary(max_size=NAME_BYTES))
def test_any_bytes_give_printable_text(wire: bytes) -> None:
    """Whatever a packet holds, the name is one line of plain characters."""
    name = decode_name(wire)
    assert all(0x21 <= ord(character) <= 0x7E or character == "…" for character in name)
