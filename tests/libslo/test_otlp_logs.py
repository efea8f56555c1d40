"""Delivery as OTLP logs to a real local server: what is sent again, what is not, and an account that adds up exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import orjson
import pytest
from builders import T0, TRACE, probe, slo_event
from loopback import OK, servers

from libslo.errors import InputError
from libslo.export.otlp_logs import OtlpLogExporter, log_record, logs_request


@pytest.fixture
def endpoint() -> Iterator[Any]:
    with servers() as make:
        yield make


def deliver(url: str, count: int = 7, *, grace_s: float = 10, **options: Any) -> Any:
    exporter = OtlpLogExporter(url, **{"first_wait_s": 0.02, "timeout_s": 2, "batch": 100, **options})
    for i in range(count):
        exporter.submit("probe-event", probe(T0 + i))
    return exporter.close(grace_s)


def counts(stats: Any) -> tuple[int, int, int, int]:
    return stats.delivered, stats.rejected, stats.given_up, stats.refused


def test_everything_arrives_once(endpoint: Any) -> None:
    """Records arrive in order, packed, at /v1/logs, in batches, each once."""
    server = endpoint(OK)
    assert counts(deliver(server.url, 250)) == (250, 0, 0, 0)
    assert [record["timeUnixNano"] for record in server.log_records()] == [str(T0 + i) for i in range(250)]
    assert {got.path for got in server.got} == {"/v1/logs"} and len(server.got) == 3
    assert all(got.headers["content-encoding"] == "gzip" and got.headers["content-type"] == "application/json" for got in server.got)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500, 501, 302])
def test_what_is_final_is_not_sent_again(endpoint: Any, status: int) -> None:
    """Any status outside the four retryable ones gives the batch up at once, with the status in the account."""
    server = endpoint((status, {"Location": "/x"}, b""))
    stats = deliver(server.url)
    assert counts(stats) == (0, 0, 7, 0) and len(server.got) == 1
    assert stats.last_error == f"HTTP {status}"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_sent_again(endpoint: Any, status: int) -> None:
    """A retryable answer and then a success deliver the same batch once."""
    server = endpoint((status, {}, b""), OK)
    assert counts(deliver(server.url)) == (7, 0, 0, 0)
    assert len(server.got) == 2 and server.got[0].value == server.got[1].value


def test_a_broken_connection_is_tried_again(endpoint: Any) -> None:
    """A server that closes without an answer is asked again."""
    server = endpoint(None, OK)
    assert counts(deliver(server.url)) == (7, 0, 0, 0)
    assert len(server.got) == 2


def test_attempts_are_limited(endpoint: Any) -> None:
    """An endpoint that never recovers is asked `attempts` times, then the batch is counted as given up."""
    server = endpoint((503, {}, b""))
    assert counts(deliver(server.url, attempts=3)) == (0, 0, 7, 0)
    assert len(server.got) == 3


def test_nobody_listens() -> None:
    """An endpoint that is down costs the records, not the run."""
    stats = deliver("http://127.0.0.1:9", attempts=2)
    assert counts(stats) == (0, 0, 7, 0) and "Connection" in stats.last_error


def test_retry_after_is_honoured(endpoint: Any) -> None:
    """429 with Retry-After: 1, or with a date two seconds from now, is not asked again before; a date that is over is no wait."""
    server = endpoint((429, {"Retry-After": "1"}, b""), OK)
    assert counts(deliver(server.url)) == (7, 0, 0, 0)
    assert 0.95 <= server.got[1].mono_s - server.got[0].mono_s < 3
    dated = endpoint((503, {"Retry-After": formatdate(time.time() + 2, usegmt=True)}, b""), OK)
    assert counts(deliver(dated.url)) == (7, 0, 0, 0)
    assert 0.9 <= dated.got[1].mono_s - dated.got[0].mono_s < 4  # a date has whole seconds
    over = endpoint((503, {"Retry-After": "Fri, 02 Jan 2026 00:00:00 GMT"}, b""), OK)
    assert counts(deliver(over.url)) == (7, 0, 0, 0)
    assert over.got[1].mono_s - over.got[0].mono_s < 1


@pytest.mark.parametrize(
    ("answer", "rejected"),
    [
        (b'{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"no"}}', 3),
        (b'{"partialSuccess":{"rejectedLogRecords":2}}', 2),
        (b'{"partialSuccess":{}}', 0),
        (b"{}", 0),
        (b"", 0),
        (b"[]", 0),
        (b"no json", 0),
        (b'{"partialSuccess":{"rejectedLogRecords":"x"}}', 0),
        (b'{"partialSuccess":{"rejectedLogRecords":999}}', 7),
        (b'{"partialSuccess":{"rejectedLogRecords":-4}}', 0),
    ],
)
def test_partial_success_is_counted_and_never_sent_again(endpoint: Any, answer: bytes, rejected: int) -> None:
    """What the endpoint rejects of a batch is counted as rejected; the account stays within the batch whatever it says."""
    server = endpoint((200, {}, answer))
    assert counts(deliver(server.url)) == (7 - rejected, rejected, 0, 0)
    assert len(server.got) == 1


def test_an_endpoint_that_hangs_cannot_hold_the_pipe(endpoint: Any) -> None:
    """With an endpoint that never answers, submit returns at once, close within its grace, and every record is accounted for."""
    server = endpoint(30.0)
    began = time.monotonic()
    stats = deliver(server.url, 25, grace_s=0.5, timeout_s=1, batch=5, capacity=10)
    assert time.monotonic() - began < 6
    assert stats.delivered == stats.rejected == 0
    assert stats.given_up + stats.refused == 25 and stats.refused >= 5


def test_a_full_queue_refuses_and_counts(endpoint: Any) -> None:
    """What does not fit into the queue is refused, not waited for."""
    server = endpoint(OK)
    exporter = OtlpLogExporter(server.url, capacity=3)
    for i in range(2000):
        exporter.submit("probe-event", probe(T0 + i))
    stats = exporter.close()
    assert stats.refused > 0 and stats.delivered + stats.refused == 2000
    assert len(server.log_records()) == stats.delivered


def test_mixed_fortune_adds_up(endpoint: Any) -> None:
    """Delivered, rejected and given up together are what was submitted."""
    server = endpoint(OK, (500, {}, b""), (200, {}, b'{"partialSuccess":{"rejectedLogRecords":4}}'), (503, {}, b""), OK)
    stats = deliver(server.url, 40, batch=10)
    assert counts(stats) == (10 + 6 + 10, 4, 10, 0)
    assert str(stats).startswith("26 delivered, 4 rejected, 10 given up, 0 refused")


def test_nothing_submitted_nothing_sent(endpoint: Any) -> None:
    """An idle exporter closes at once without a request."""
    server = endpoint(OK)
    began = time.monotonic()
    assert counts(deliver(server.url, 0)) == (0, 0, 0, 0)
    assert server.got == [] and time.monotonic() - began < 2


@pytest.mark.parametrize("text", ["", "h:4318", "ftp://h", "file:///x"])
def test_what_is_no_url_is_bad_input(text: str) -> None:
    """Anything but HTTP is refused before a thread is started."""
    with pytest.raises(InputError):
        OtlpLogExporter(text)


def test_log_records_follow_the_specification() -> None:
    """Hex ids, integers as strings, severity from the status, the event's name, scalars as attributes, all of it as the body."""
    value = probe(T0, status="error", trace_id=TRACE, span_id="b7ad6b7169203331", errno=110)
    record = log_record("probe-event", value)
    assert (record["timeUnixNano"], record["severityNumber"], record["eventName"]) == (str(T0), 17, "llm_slo.probe-event")
    assert (record["traceId"], record["spanId"]) == (TRACE, "b7ad6b7169203331")
    assert {"key": "errno", "value": {"intValue": "110"}} in record["attributes"]
    assert orjson.loads(record["body"]["stringValue"]) == value
    event = log_record("slo-event", slo_event(status="warning"))
    assert (event["timeUnixNano"], event["severityNumber"], "traceId" in event) == (str(T0), 13, False)
    assert logs_request([record])["resourceLogs"][0]["scopeLogs"][0]["logRecords"] == [record]


def test_an_incident_leads_to_a_trace() -> None:
    """The log record of an incident carries the first id of its traces that is one; what is no trace id is left in the body alone."""
    incident = {"timestamp": "2026-01-01T00:00:00Z", "trace_ids": ["req-7", TRACE.upper(), "0" * 31]}
    record = log_record("incident-attribution", incident)
    assert (record["traceId"], record["severityText"]) == (TRACE, "ERROR")
    assert orjson.loads(record["body"]["stringValue"]) == incident
    for value in ({**incident, "trace_ids": []}, slo_event(trace_id="req-7"), slo_event(trace_id="")):
        assert "traceId" not in log_record("slo-event", value)
