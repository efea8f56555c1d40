"""Sign webhooks with HMAC-SHA256, in both forms that receivers check, and check them as a receiver would.

Standard Webhooks 1.0.0 (https://www.standardwebhooks.com): ``webhook-signature: v1,<base64>`` over ``id.timestamp.body``, one for
each secret, so that a key can be replaced without a gap. Older receivers: ``x-webhook-signature: sha256=<hex>`` over the body
alone, with the first secret; that form has no time in it, so whoever copies a request can send it again. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence

from libslo.errors import InputError

__all__ = ["TOLERANCE_S", "parse_secrets", "sign", "verify", "verify_body"]

TOLERANCE_S = 300  # how far a signature's time may lie from the receiver's; what the official libraries allow
_PREFIX = "whsec_"


def parse_secrets(text: str, source: str) -> tuple[bytes, ...]:
    """The secrets of a text, separated by white space, the current one first: ``whsec_<base64>``, or any other word as it is.

    InputError for none and for broken base64; it names `source` and the number of the word, never what is in it.
    """
    found = []
    for number, word in enumerate(text.split(), 1):
        secret = _decoded(word.removeprefix(_PREFIX)) if word.startswith(_PREFIX) else word.encode()
        if not secret:
            raise InputError(f"secret {number} is not base64 after {_PREFIX}", source=source, hint="copy it again, whole")
        found.append(secret)
    if not found:
        raise InputError("no secret in it", source=source, hint="one secret a line, the current one first")
    return tuple(found)


def sign(secrets: Sequence[bytes], webhook_id: str, unix_s: int, body: bytes) -> dict[str, str]:
    """The headers that a delivery of `body` carries at that time."""
    signatures = " ".join(f"v1,{base64.b64encode(_standard(secret, webhook_id, str(unix_s), body)).decode()}" for secret in secrets)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(unix_s),
        "webhook-signature": signatures,
        "x-webhook-signature": "sha256=" + _digest(secrets[0], body).hex(),
    }


def verify(secrets: Sequence[bytes], headers: Mapping[str, str], body: bytes, now_unix_s: float, tolerance_s: float = TOLERANCE_S) -> str:
    """The id of a delivery that was signed with one of the secrets not long ago; InputError names the header that is wrong.

    Whoever wants no delivery twice remembers the ids of the last `tolerance_s`.
    """
    found = {name.lower(): value for name, value in headers.items()}
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if not found.get(name):
            raise InputError("the header is missing", source=name)
    text = found["webhook-timestamp"]
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InputError("not a time in seconds since the epoch", source="webhook-timestamp")
    if abs(now_unix_s - int(text)) > tolerance_s:
        raise InputError(f"more than {tolerance_s:g} s from now", source="webhook-timestamp", hint="compare the clocks")
    expected = [_standard(secret, found["webhook-id"], text, body) for secret in secrets]
    if not any(hmac.compare_digest(one, other) for one in expected for other in _given(found["webhook-signature"])):
        raise InputError("no signature of any of these secrets", source="webhook-signature")
    return found["webhook-id"]


def verify_body(secrets: Sequence[bytes], header: str, body: bytes) -> bool:
    """Whether an ``x-webhook-signature`` is that of the body under one of the secrets."""
    given = header.strip().encode()
    return any(hmac.compare_digest(b"sha256=" + _digest(secret, body).hex().encode(), given) for secret in secrets)


def _decoded(text: str) -> bytes:
    """What base64 with or without its padding holds; nothing when it is none."""
    text = text.rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return b""


def _digest(secret: bytes, data: bytes) -> bytes:
    return hmac.new(secret, data, hashlib.sha256).digest()


def _standard(secret: bytes, webhook_id: str, timestamp: str, body: bytes) -> bytes:
    return _digest(secret, f"{webhook_id}.{timestamp}.".encode() + body)


def _given(header: str) -> list[bytes]:
    found = []
    for word in header.split():
        version, _, text = word.partition(",")
        if version == "v1":
            found.append(_decoded(text))
    return found
