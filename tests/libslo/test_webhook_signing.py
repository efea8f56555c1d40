"""Webhook signatures: checked by the library that others use, both ways, with several keys, and never by luck."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from libslo.errors import InputError
from libslo.export.webhook_signing import TOLERANCE_S, parse_secrets, sign, verify, verify_body

# The example of the Standard Webhooks specification.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105
ID, TIME, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
PADDED = "whsec_" + base64.b64encode(b"x" * 25).decode()
KEYS = parse_secrets(SECRET, "test")
OTHER = parse_secrets("another-secret", "test")


def test_the_example_of_the_specification() -> None:
    """Id, time, body and secret of the specification give its signature; the other header is the plain HMAC of the body."""
    headers = sign(KEYS, ID, TIME, BODY)
    assert headers == {
        "webhook-id": ID,
        "webhook-timestamp": str(TIME),
        "webhook-signature": SIGNATURE,
        "x-webhook-signature": "sha256=" + hmac.new(base64.b64decode(SECRET[6:]), BODY, hashlib.sha256).hexdigest(),
    }
    assert verify(KEYS, headers, BODY, TIME) == ID


@pytest.mark.parametrize("secret", [SECRET, PADDED, PADDED.rstrip("="), "plain-text-secret"])
def test_the_library_of_the_others_takes_ours(secret: str) -> None:
    """standardwebhooks verifies what we sign, with padded and unpadded base64 and with a plain word, and refuses another body."""
    keys, now = parse_secrets(secret, "test"), int(time.time())
    theirs = Webhook(secret if secret.startswith("whsec_") else secret.encode())
    headers = sign(keys, ID, now, BODY)
    assert theirs.verify(BODY, headers) == {"test": 2432232314}
    with pytest.raises(WebhookVerificationError):
        theirs.verify(BODY + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        theirs.verify(BODY, sign(OTHER, ID, now, BODY))


def test_we_take_theirs() -> None:
    """What standardwebhooks signs we verify, and refuse under another secret."""
    now = int(time.time())
    signature = Webhook(SECRET).sign(ID, datetime.fromtimestamp(now, UTC), BODY.decode())
    headers = {"webhook-id": ID, "webhook-timestamp": str(now), "webhook-signature": signature}
    assert verify(KEYS, headers, BODY, now) == ID
    with pytest.raises(InputError, match="no signature"):
        verify(OTHER, headers, BODY, now)


def test_a_key_is_replaced_without_a_gap() -> None:
    """Signed with two secrets, receivers that know either take it, theirs and ours; the old header carries the first one."""
    both, now = parse_secrets(f"another-secret\n  {SECRET}\n", "test"), int(time.time())
    headers = sign(both, ID, now, BODY)
    assert len(headers["webhook-signature"].split()) == 2
    for keys, theirs in ((KEYS, Webhook(SECRET)), (OTHER, Webhook(b"another-secret"))):
        assert verify(keys, headers, BODY, now) == ID
        assert theirs.verify(BODY, headers) == {"test": 2432232314}
    assert verify_body(OTHER, headers["x-webhook-signature"], BODY) and not verify_body(KEYS, headers["x-webhook-signature"], BODY)
    assert verify(both, sign(KEYS, ID, now, BODY), BODY, now) == ID, "a receiver with both keys takes the old one, too"


@pytest.mark.parametrize("offset_s", [-TOLERANCE_S, TOLERANCE_S])
def test_what_is_too_old_or_too_new_is_refused(offset_s: int) -> None:
    """At the tolerance a signature still counts, a second beyond it does not, as with standardwebhooks."""
    headers = sign(KEYS, ID, TIME, BODY)
    assert verify(KEYS, headers, BODY, TIME + offset_s) == ID
    with pytest.raises(InputError, match="more than 300 s") as caught:
        verify(KEYS, headers, BODY, TIME + offset_s + (1 if offset_s > 0 else -1))
    assert caught.value.source == "webhook-timestamp"
    assert verify(KEYS, headers, BODY, TIME + 1000, tolerance_s=1000) == ID
    stale = int(time.time()) - offset_s * 2
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY, sign(KEYS, ID, stale, BODY))


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ({"webhook-id": "msg_other"}, "webhook-signature"),
        ({"webhook-id": ""}, "webhook-id"),
        ({"webhook-timestamp": str(TIME + 1)}, "webhook-signature"),
        ({"webhook-timestamp": "soon"}, "webhook-timestamp"),
        ({"webhook-timestamp": "-5"}, "webhook-timestamp"),
        ({"webhook-timestamp": "٣"}, "webhook-timestamp"),
        ({"webhook-timestamp": "9" * 5000}, "webhook-timestamp"),
        ({"webhook-signature": ""}, "webhook-signature"),
        ({"webhook-signature": "v1,"}, "webhook-signature"),
        ({"webhook-signature": "v1,not base64"}, "webhook-signature"),
        ({"webhook-signature": "v1,ü"}, "webhook-signature"),
        ({"webhook-signature": SIGNATURE.replace("v1", "v2")}, "webhook-signature"),
        ({"webhook-signature": SIGNATURE[3:]}, "webhook-signature"),
        ({"webhook-signature": SIGNATURE[:-2] + "A="}, "webhook-signature"),
    ],
)
def test_a_changed_header_is_refused(change: dict[str, str], source: str) -> None:
    """Each header counts; the error names the one that is wrong."""
    with pytest.raises(InputError) as caught:
        verify(KEYS, sign(KEYS, ID, TIME, BODY) | change, BODY, TIME)
    assert caught.value.source == source


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    """No header may be left out; their case does not matter; one good signature among others is enough."""
    headers = {each.title(): value for each, value in sign(KEYS, ID, TIME, BODY).items()}
    headers["Webhook-Signature"] = f"v2,x garbage v1a,y {headers['Webhook-Signature']}"
    assert verify(KEYS, headers, BODY, TIME) == ID
    del headers[name.title()]
    with pytest.raises(InputError, match="missing") as caught:
        verify(KEYS, headers, BODY, TIME)
    assert caught.value.source == name


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms go through hmac.compare_digest: with one that refuses everything nothing passes."""
    asked: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: asked.append((one, other)) or False)
    headers = sign(KEYS, ID, TIME, BODY)
    with pytest.raises(InputError):
        verify(KEYS, headers, BODY, TIME)
    assert not verify_body(KEYS, headers["x-webhook-signature"], BODY)
    assert len(asked) == 2 and all(one == other for one, other in asked)


@pytest.mark.parametrize("header", ["", "sha256=", "sha256=00", "sha1=ab", "sha256=ü"])
def test_a_wrong_plain_signature_is_refused(header: str) -> None:
    """Whatever is not the HMAC of the body is no signature, and no error either."""
    assert not verify_body(KEYS, header, BODY)


@pytest.mark.parametrize(
    ("text", "fact"), [("", "no secret"), (" \n ", "no secret"), ("a whsec_", "secret 2"), ("whsec_hünter2", "secret 1")]
)
def test_a_bad_secret_is_named_and_not_shown(text: str, fact: str) -> None:
    """None at all and broken base64 are refused with the place, never with what is in it."""
    with pytest.raises(InputError, match=fact) as caught:
        parse_secrets(text, "/etc/secret")
    assert caught.value.source == "/etc/secret" and "nter2" not in f"{caught.value}{caught.value.hint}"


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=70), st.integers(0, 10**11))
def test_what_is_signed_is_verified(body: bytes, secret: bytes, now: int) -> None:
    """Any body under any secret at any time; not with a byte more."""
    headers = sign([secret], "msg_1", now, body)
    assert verify([secret], headers, body, now) == "msg_1" and verify_body([secret], headers["x-webhook-signature"], body)
    with pytest.raises(InputError):
        verify([secret], headers, body + b"x", now)
