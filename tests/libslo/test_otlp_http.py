"""The one sender of all OTLP outputs: reasons, the end of a run, headers, Retry-After; tests/libslo/test_otlp_logs.py has the rest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from loopback import OK, servers

from libslo.errors import InputError
from libslo.export.otlp_http import OtlpSender, headers_from_environment, retry_after_s, signal_url


@pytest.fixture
def endpoint() -> Iterator[Any]:
    with servers() as make:
        yield make


def encode(payloads: Sequence[Any]) -> dict[str, Any]:
    return {"items": list(payloads)}


def sender(url: str, **options: Any) -> OtlpSender:
    return OtlpSender(url, encode, "rejected", **{"first_wait_s": 0.02, "timeout_s": 2, "linger_s": 0.02, **options})


def items(count: int, key: str = "dns_latency_ms") -> list[tuple[str, int]]:
    return [(key, number) for number in range(count)]


@pytest.mark.parametrize(
    ("answers", "reasons", "lost"),
    [
        ([(400, {}, b"")], {"http_400": 5}, {"export_rejected": 5}),
        ([(500, {}, b"")], {"http_500": 5}, {"export_given_up": 5}),
        ([(302, {"Location": "/v1/logs"}, b"")], {"http_302": 5}, {"export_given_up": 5}),
        ([(429, {}, b"")], {"http_429": 5}, {"export_given_up": 5}),
        ([(503, {}, b"")], {"http_503": 5}, {"export_given_up": 5}),
        ([None], {"connection": 5}, {"export_given_up": 5}),
        ([30.0], {"timeout": 5}, {"export_given_up": 5}),
        ([(200, {}, b'{"partialSuccess":{"rejected":"2"}}')], {"rejected": 2}, {"export_rejected": 2}),
    ],
)
def test_what_was_lost_is_counted_by_reason_and_by_what_it_was(endpoint: Any, answers: Any, reasons: Any, lost: Any) -> None:
    """Each way to lose a batch has its reason, and the losses of each signal are known."""
    server = endpoint(*answers)
    sending = sender(server.url, attempts=2, timeout_s=0.3)
    sending.submit(items(5))
    stats = sending.close()
    assert stats.all_reasons() == reasons
    assert stats.lost == {("dns_latency_ms", reason): count for reason, count in lost.items()}
    assert stats.delivered == 5 - sum(reasons.values())


def test_a_redirect_is_not_followed(endpoint: Any) -> None:
    """Where an answer points to is not asked."""
    target = endpoint(OK)
    server = endpoint((307, {"Location": f"{target.url}/v1/logs"}, b""))
    sending = sender(server.url)
    sending.submit(items(1))
    assert sending.close().all_reasons() == {"http_307": 1}
    assert (len(server.got), len(target.got)) == (1, 0)


def test_a_full_queue_refuses_exactly_what_does_not_fit(endpoint: Any) -> None:
    """While one batch hangs, the queue takes its capacity and counts each further item, by signal."""
    server = endpoint(1.0, OK)
    sending = sender(server.url, capacity=10, batch=5)
    sending.submit(items(5))
    server.wait_for(1)
    sending.submit(items(7))
    sending.submit([*items(3), *items(4, "connect_latency_ms"), *items(2)])
    stats = sending.close()
    assert stats.refused == 6
    assert stats.lost == Counter({("connect_latency_ms", "export_queue_full"): 4, ("dns_latency_ms", "export_queue_full"): 2})
    assert stats.delivered == 15


def test_submit_never_waits(endpoint: Any) -> None:
    """With an endpoint that hangs, a hundred thousand items are taken or refused in well under the time of one request."""
    server = endpoint(30.0)
    sending = sender(server.url, capacity=1000, timeout_s=10)
    sending.submit(items(1))
    began = time.monotonic()
    for _ in range(100):
        sending.submit(items(1000))
    assert time.monotonic() - began < 2
    stats = sending.close(0.1)
    assert stats.refused + stats.given_up == 100_001


def test_the_end_waits_for_no_dead_endpoint(endpoint: Any) -> None:
    """close returns within its grace when the endpoint hangs, drips, is down, or asks to come back in an hour; the account adds up."""
    drip = [b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", *[b" "] * 4000]
    for answer in (30.0, 0.7, drip, (503, {"Retry-After": "3600"}, b""), None):
        sending = sender(endpoint(answer).url, batch=5, timeout_s=10)
        sending.submit(items(25))
        time.sleep(0.1)
        began = time.monotonic()
        stats = sending.close(0.5)
        assert time.monotonic() - began < 1.5
        assert stats.delivered + stats.given_up == 25
        time.sleep(0.4)
        assert sending.stats == stats, "what comes later changes the account no more"


def test_a_pause_longer_than_the_grace_is_not_begun(endpoint: Any) -> None:
    """At the end, a batch that may only be sent again after the deadline is given up at once, with its own reason."""
    server = endpoint((503, {"Retry-After": "20"}, b""))
    sending = sender(server.url)
    sending.submit(items(3))
    time.sleep(0.2)
    began = time.monotonic()
    assert sending.close(10).all_reasons() == {"http_503": 3}
    assert time.monotonic() - began < 2


def test_an_answer_that_drips_does_not_hold_the_next_batch(endpoint: Any) -> None:
    """A success whose body never ends is a success, and its body is read no longer than a request may take."""
    drip = [b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", *[b" "] * 4000]
    server = endpoint(drip, OK)
    sending = sender(server.url, batch=5, timeout_s=0.3)
    sending.submit(items(10))
    stats = sending.close(5)
    assert (stats.delivered, stats.given_up, len(server.got)) == (10, 0, 2)


def test_a_batch_that_cannot_be_written_costs_only_itself(endpoint: Any) -> None:
    """What cannot be encoded is counted, and the thread goes on."""
    server = endpoint(OK)
    sending = sender(server.url, batch=1)
    sending.submit([("", "fine"), ("", object()), ("", "fine too")])
    stats = sending.close()
    assert (stats.delivered, stats.all_reasons()) == (2, {"not_sendable": 1})


def test_a_closed_sender_refuses(endpoint: Any) -> None:
    """What comes after the end is counted as refused; a second close changes nothing."""
    sending = sender(endpoint(OK).url)
    first = sending.close()
    sending.submit(items(2))
    assert (first.refused, sending.close().refused) == (0, 2)


def test_the_reason_of_a_partial_success_is_for_people(endpoint: Any) -> None:
    """What the endpoint says about what it rejected is kept, without control characters, and not for ever long."""
    text = b"too old\\u001b[31m" + b"x" * 1000
    sending = sender(endpoint((200, {}, b'{"partialSuccess":{"rejected":1,"errorMessage":"' + text + b'"}}')).url)
    sending.submit(items(1))
    error = sending.close().last_error
    assert error.startswith("rejected: too old[31mxxx") and len(error) < 220


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90),
        ("Thursday, 01-Jan-70 00:01:40 GMT", 90),
        ("Thu Jan  1 00:01:40 1970", 90),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("9" * 5000, 999999999999),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    """Seconds, and the three forms of an HTTP date, counted from now (here: ten seconds after the epoch)."""
    assert retry_after_s(text, 10.0) == seconds


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://h:4318", "http://h:4318/v1/logs"),
        ("http://h:4318/", "http://h:4318/v1/logs"),
        ("https://h/otlp", "https://h/otlp/v1/logs"),
        ("http://h/v1/logs", "http://h/v1/logs"),
        ("http://h/v1/metrics", "http://h/v1/logs"),
        ("http://h/a/v1/traces/?k=v", "http://h/a/v1/logs?k=v"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/logs"),
    ],
)
def test_signal_url(text: str, url: str) -> None:
    """A base endpoint gets the path, a full URL becomes that of the signal."""
    assert signal_url(text, "logs") == url


@pytest.mark.parametrize(
    "text", ["", "h:4318", "ftp://h", "file:///x", "http://", "http://h:x", "http://h:99999", "http://[::1", "://a:secret@h"]
)
def test_what_is_no_url_is_bad_input(text: str) -> None:
    """Anything but HTTP to a host is refused, and a password in it is not shown."""
    with pytest.raises(InputError) as caught:
        signal_url(text, "logs")
    assert "secret" not in str(caught.value)


def test_headers_come_from_the_environment(endpoint: Any) -> None:
    """Names and percent-encoded values, those of the signal before those of all; each request carries them."""
    environment = {
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abc, x-tenant = a=b ,",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x-tenant=c",
    }
    assert headers_from_environment("metrics", environment) == {"authorization": "Bearer abc", "x-tenant": "a=b"}
    headers = headers_from_environment("logs", environment)
    assert headers == {"authorization": "Bearer abc", "x-tenant": "c"}
    server = endpoint(OK)
    sending = sender(server.url, headers=headers)
    sending.submit(items(1))
    sending.close()
    sent = server.got[0].headers
    assert (sent["authorization"], sent["x-tenant"], sent["content-type"]) == ("Bearer abc", "c", "application/json")


@pytest.mark.parametrize("text", ["secret", "=secret", "a b=secret", "k=secret%0d%0aEvil: 1", "k=secret%C3%A9"])
def test_a_bad_header_is_named_and_not_shown(text: str) -> None:
    """What is no header is refused with the variable's name and the entry's number, never with what is in it."""
    with pytest.raises(InputError) as caught:
        headers_from_environment("logs", {"OTEL_EXPORTER_OTLP_HEADERS": f"ok=1,{text}"})
    assert str(caught.value) == "OTEL_EXPORTER_OTLP_HEADERS: entry 2 is not a header"


def test_a_netrc_does_not_replace_the_header(endpoint: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login for the host in ~/.netrc is not used."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = endpoint(OK)
    sending = sender(server.url, headers={"Authorization": "Bearer abc"})
    sending.submit(items(1))
    sending.close()
    assert server.got[0].headers["authorization"] == "Bearer abc"
