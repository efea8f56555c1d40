"""Load-results as slo-events: what clients saw of a service, counted from when the request left."""

from __future__ import annotations

from typing import Any

import pytest
from builders import MS, T0, TESTDATA, objects

from libslo.contracts import contract
from libslo.load_slis import slo_events_from_load_result
from libslo.slo import parse_timestamps


def result(**more: Any) -> dict[str, Any]:
    """A request that was due at T0, left 100 ms later, and gave eleven tokens from 400 ms to 900 ms after that."""
    return {
        "request_id": "r-1", "profile": "p", "scheduled_unix_ns": T0, "sent_unix_ns": T0 + 100 * MS,
        "first_token_unix_ns": T0 + 500 * MS, "last_token_unix_ns": T0 + 1000 * MS, "end_unix_ns": T0 + 1010 * MS,
        "status": 200, "tokens": 11, "warmup": False, "synthetic": False, **more,
    }  # fmt: skip


def events(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert contract("load-result").is_valid(value), value
    found = slo_events_from_load_result(value, "rag", "lab")
    assert all(contract("slo-event").is_valid(each) for each in found)
    return {each["sli_name"]: each for each in found}


def without(*keys: str, **more: Any) -> dict[str, Any]:
    return {key: value for key, value in result(**more).items() if key not in keys}


def test_an_answered_request() -> None:
    """Four events: first token and end from when it left, pace between first and last token, no error; their time is its end."""
    found = events(result(trace_id="0" * 31 + "1"))
    assert {name: event["sli_value"] for name, event in found.items()} == {
        "ttft_ms": 400, "request_latency_ms": 910, "token_throughput_tps": 20, "error_rate": 0,
    }  # fmt: skip
    assert {name: event["status"] for name, event in found.items()} == {
        "ttft_ms": "ok", "request_latency_ms": "warning", "token_throughput_tps": "warning", "error_rate": "ok",
    }  # fmt: skip
    for name, event in found.items():
        assert (event["service"], event["workload"], event["cluster"], event["namespace"]) == ("rag", "rag", "lab", "default")
        assert (event["request_id"], event["event_id"], event["trace_id"]) == ("r-1", f"r-1/{name}", "0" * 31 + "1")
        assert int(parse_timestamps([event["timestamp"]])[0]) == T0 + 1010 * MS
        assert event["labels"] == {"http.response.status_code": "200"}


def test_a_refused_request() -> None:
    """A 429 is an error with its code, which is what evidence looks for; without tokens there is no first token and no pace."""
    found = events(without("first_token_unix_ns", "last_token_unix_ns", status=429, error="http_429", tokens=0))
    assert {name: event["sli_value"] for name, event in found.items()} == {"request_latency_ms": 910, "error_rate": 1}
    assert found["error_rate"]["labels"] == {"http.response.status_code": "429", "error.type": "http_429"}


def test_a_request_without_an_answer() -> None:
    """A connection that failed has no code, and no trace when none was sent."""
    found = events(without("first_token_unix_ns", "last_token_unix_ns", status=0, error="connect", tokens=0))
    assert found["error_rate"]["labels"] == {"error.type": "connect"} and "trace_id" not in found["error_rate"]


def test_an_answer_that_broke_off_had_its_first_token() -> None:
    """What was seen counts: the first token came in time, the request failed all the same."""
    found = events(result(error="stream_error"))
    assert found["ttft_ms"]["sli_value"] == 400 and found["error_rate"]["sli_value"] == 1


@pytest.mark.parametrize("tokens", [0, 1])
def test_one_token_has_no_pace(tokens: int) -> None:
    """A pace needs two tokens at two times."""
    assert "token_throughput_tps" not in events(result(tokens=tokens))
    assert "token_throughput_tps" not in events(result(last_token_unix_ns=T0 + 500 * MS))


@pytest.mark.parametrize(
    "value",
    [
        result(warmup=True),
        result(error="cancelled"),
        without("sent_unix_ns", "end_unix_ns", error="not_sent", status=0, tokens=0),
        without("end_unix_ns"),
        without("sent_unix_ns"),
    ],
)
def test_what_says_nothing_of_the_service(value: dict[str, Any]) -> None:
    """Warm-up, what the generator broke off or never sent, and what has no end: no event."""
    assert events(value) == {}


def test_the_examples_of_the_contract_are_taken() -> None:
    """Each good load-result gives valid events or none."""
    for path in sorted((TESTDATA / "contracts/good/load-result").glob("*.jsonl")):
        assert [events(value) for value in objects(path.read_bytes())]
