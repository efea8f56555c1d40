"""What receivers of webhooks are sent: shapes, urgency, limits in characters and bytes, keys and ids that stay."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import pytest
from builders import EPISODE, incident
from hypothesis import given
from hypothesis import strategies as st

from libslo.contracts import contract
from libslo.export.webhook_payloads import RECEIVERS, Letter, clip, encode_body, fit_key, limit_fault, make_letter, urgency
from libslo.signals import vocabulary

RECEIVER_ROWS = vocabulary("webhooks")["receivers"]


def letters(**more: Any) -> dict[str, dict[str, Letter]]:
    """Each receiver's letters by event."""
    events: tuple[Any, ...] = ("trigger", "update", "resolve")
    return {
        receiver: {event: make_letter(receiver, event, incident(**more), EPISODE if event == "resolve" else None) for event in events}
        for receiver in RECEIVERS
    }


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def test_the_generic_body() -> None:
    """Type, time and data as Standard Webhooks wants it, with the whole incident, how urgent it is, and one sentence."""
    found = letters()["generic"]
    assert found["trigger"].body == {
        "type": "incident.triggered",
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "data": {
            "event": "trigger",
            "dedup_key": "inc-1",
            "severity": "critical",
            "priority": "P1",
            "summary": "network_dns 0.97: rag burns its ttft_ms budget 20.5 times too fast",
            "incident": incident(),
        },
    }
    assert contract("incident-attribution").is_valid(found["trigger"].body["data"]["incident"])
    assert found["update"].body["type"] == "incident.updated"
    over = found["resolve"].body
    assert (over["type"], over["timestamp"], over["data"]["episode"]) == ("incident.resolved", "2026-01-01T00:00:09.000000Z", EPISODE)
    assert over["data"]["summary"] == "over: network_dns 0.97: rag: its requests keep the objectives again"


def test_the_pagerduty_body() -> None:
    """Events API v2: the action, a key that stays, a payload for the trigger and its update, none to resolve; no routing key yet."""
    found = letters()["pagerduty"]
    assert found["resolve"].body == {"event_action": "resolve", "dedup_key": "inc-1"}
    body = found["trigger"].body
    assert (body["event_action"], body["dedup_key"], body["client"]) == ("trigger", "inc-1", "llm-slo-toolkit")
    payload = body["payload"]
    assert payload.pop("custom_details") == {
        "cause": "network_dns (0.97)",
        "hypotheses": ["network_dns 0.97"],
        "slo": "ttft_ms burns its error budget 20.5 times too fast (over 60 min)",
        "evidence": ["dns_latency_ms 319.7 (before: 2.1), ebpf", "connect_errors_total 4, ebpf"],
        "request_ids": ["req-1"],
        "trace_ids": ["0af7"],
        "incident_id": "inc-1",
    }
    assert payload == {
        "summary": "network_dns 0.97: rag burns its ttft_ms budget 20.5 times too fast",
        "source": "prod/llm/rag",
        "severity": "critical",
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "component": "rag",
        "group": "llm",
        "class": "network_dns",
    }
    assert found["update"].body["event_action"] == "trigger", "an alert with the same key takes it as an update"
    assert all("routing_key" not in encode_body(each.body).decode() for each in found.values())


def test_the_opsgenie_bodies() -> None:
    """Created, noted and closed by its alias; what is created has a priority, tags and details that are texts."""
    found = letters()["opsgenie"]
    assert {event: each.path for event, each in found.items()} == {
        "trigger": "/v2/alerts",
        "update": "/v2/alerts/inc-1/notes?identifierType=alias",
        "resolve": "/v2/alerts/inc-1/close?identifierType=alias",
    }
    body = found["trigger"].body
    assert (body["alias"], body["priority"], body["entity"]) == ("inc-1", "P1", "rag")
    assert body["tags"] == ["network_dns", "ttft_ms", "prod"] and all(type(value) is str for value in body["details"].values())
    for part in ("dns_latency_ms 319.7 (before: 2.1), ebpf", "network_dns 0.97", "req-1", "0af7", "prod/llm/rag"):
        assert part in body["description"]
    assert set(found["resolve"].body) == {"note", "source"} and found["resolve"].body["note"].startswith("over: network_dns")


@pytest.mark.parametrize(
    ("burn_rate", "severity", "priority"),
    [
        (1e9, "critical", "P1"),
        (14.4, "critical", "P1"),
        (14.399, "error", "P2"),
        (6, "error", "P2"),
        (5.999, "warning", "P3"),
        (3, "warning", "P3"),
        (2.999, "info", "P4"),
        (1, "info", "P4"),
        (0.999, "info", "P5"),
        (0, "info", "P5"),
    ],
)
def test_urgency_comes_from_the_burn_rate(burn_rate: float, severity: str, priority: str) -> None:
    """The rows are those of the burn-rate windows that page people and write tickets; each border belongs to the higher row."""
    assert urgency(burn_rate) == (severity, priority)
    impact = {"sli": "ttft_ms", "burn_rate": burn_rate, "window_minutes": 60}
    assert make_letter("pagerduty", "trigger", incident(slo_impact=impact)).body["payload"]["severity"] == severity
    assert make_letter("opsgenie", "trigger", incident(slo_impact=impact)).body["priority"] == priority


def test_urgency_rows_are_the_burn_rates_of_the_policies() -> None:
    """Every burn rate that pages or writes tickets is a border of the table."""
    policies = vocabulary("burn-windows")["policies"]
    rates = {pair["burn_rate"] for name in ("page", "ticket") for pair in policies[name]["pairs"]}
    assert rates | {0} == {row["at_least"] for row in vocabulary("webhooks")["urgency"]["rows"]}


def test_the_key_is_the_same_from_trigger_to_resolve() -> None:
    """One key an episode for every receiver, also when the incident's id is longer than the receiver takes."""
    for name in ("inc-1", "i" * 700, "ü/ ?#😀" * 200):
        found = letters(incident_id=name)
        for event in ("trigger", "resolve"):
            assert found["pagerduty"][event].body["dedup_key"] == fit_key(name, 255)
        alias = found["opsgenie"]["trigger"].body["alias"]
        assert len(alias.encode()) <= 512 and len(fit_key(name, 255).encode()) <= 255
        for event in ("update", "resolve"):
            assert unquote(found["opsgenie"][event].path.split("/")[3]) == alias
            assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", found["opsgenie"][event].path.split("/")[3])
    assert fit_key("ü" * 127, 255) == "ü" * 127 and fit_key("ü" * 128, 255) != "ü" * 128
    assert fit_key("a" * 300, 255) != fit_key("a" * 299 + "b", 255), "two keys never become one"


def test_the_same_content_has_the_same_id() -> None:
    """An id says what is in the letter: made twice it is the same, made of anything else it is another."""
    found = [letter.webhook_id for each in letters().values() for letter in each.values()]
    assert len(set(found)) == 9 and found == [letter.webhook_id for each in letters().values() for letter in each.values()]
    assert make_letter("generic", "trigger", incident(confidence=0.5)).webhook_id not in found
    assert all(re.fullmatch(r"msg_[0-9a-f]{32}", each) for each in found)


@pytest.mark.parametrize("text", ["x", "ü", "😀", "\u0301e"])
def test_every_limit_is_kept(text: str) -> None:
    """Fields that are too long in ASCII, in two bytes a character, and in two code units are cut to the receiver's limit."""
    long = text * 30_000
    found = letters(service=long, namespace=long, cluster=long)
    payload = found["pagerduty"]["trigger"].body["payload"]
    for name in ("summary", "source", "component", "group"):
        assert 1000 <= units(payload[name]) <= 1024 and payload[name].endswith("…")
    body, rows = found["opsgenie"]["trigger"].body, RECEIVER_ROWS["opsgenie"]["limits"]
    for name in ("message", "description", "entity"):
        assert rows[name]["characters"] - 2 <= units(body[name]) <= rows[name]["characters"]
    assert all(units(tag) <= 50 for tag in body["tags"]) and len(body["tags"]) <= 20
    assert sum(units(key) + units(value) for key, value in body["details"].items()) <= 8000
    assert units(found["opsgenie"]["update"].body["note"]) <= 25_000
    assert not limit_fault(found["pagerduty"]["trigger"]) and not limit_fault(found["opsgenie"]["trigger"])
    assert body["message"].startswith("network_dns 0.97"), "the cause is not what is cut"


def test_a_body_that_is_too_large_does_without_lists() -> None:
    """Ids go first, evidence last, only as much as needed, and the letter names what is missing; an incident stays valid."""
    ids = [f"{number:032x}" for number in range(20_000)]
    for receiver in ("generic", "pagerduty"):
        letter = make_letter(receiver, "trigger", incident(request_ids=ids, trace_ids=ids))
        assert len(encode_body(letter.body)) <= RECEIVER_ROWS[receiver]["body_bytes"]
        data = letter.body["data"]["incident"] if receiver == "generic" else letter.body["payload"]["custom_details"]
        assert data["request_ids"] == data["trace_ids"] == [] and data["evidence"]
        assert (letter.body["data"] if receiver == "generic" else data)["left_out"] == ["request_ids", "trace_ids"]
    letter = make_letter("generic", "trigger", incident(request_ids=ids[:12_000], trace_ids=ids[:3000]))
    assert letter.body["data"]["left_out"] == ["request_ids"] and len(letter.body["data"]["incident"]["trace_ids"]) == 3000
    assert contract("incident-attribution").is_valid(letter.body["data"]["incident"])
    evidence = [{"signal": "s" * 1000, "value": 1, "source": "ebpf"}] * 1000
    assert make_letter("pagerduty", "trigger", incident(evidence=evidence)).body["payload"]["custom_details"]["evidence"] == []


def test_what_cannot_be_made_to_fit_is_said() -> None:
    """A name without end makes a generic letter too large, by bytes: half as many two-byte characters do, too."""
    for text in ("x" * 524_288, "ü" * 262_144):
        assert "more than the 524288 that generic takes" in limit_fault(make_letter("generic", "trigger", incident(service=text)))
    assert not limit_fault(make_letter("generic", "trigger", incident(service="x" * 100_000)))


@given(st.text(max_size=60), st.integers(1, 40), st.integers(3, 60))
def test_clip_keeps_both_limits_and_cuts_no_code_point(text: str, characters: int, most_bytes: int) -> None:
    """What is within both limits stays; what is not becomes a beginning of it and an ellipsis, within both."""
    cut = clip(text, characters, most_bytes)
    assert units(cut) <= characters and len(cut.encode()) <= most_bytes
    if units(text) <= characters and len(text.encode()) <= most_bytes:
        assert cut == text
    else:
        assert cut.endswith("…") and text.startswith(cut[:-1])


@given(st.text(min_size=1, max_size=600))
def test_paths_are_those_that_the_dead_letter_contract_allows(name: str) -> None:
    """Whatever an incident is called, its path stays on the receiver's host and in its API."""
    pattern = contract("webhook-dead-letter").schema["properties"]["path"]["pattern"]
    for event in ("trigger", "update", "resolve"):
        path = make_letter("opsgenie", event, incident(incident_id=name), EPISODE).path  # type: ignore[arg-type]
        assert re.fullmatch(pattern, path)


@pytest.mark.parametrize(
    ("by", "words"), [("silence", "no proof of health"), ("clock_step", "went back"), ("forgotten", "too many services")]
)
def test_an_end_that_is_no_recovery_says_so(by: str, words: str) -> None:
    """Who reads that it is over reads why."""
    for receiver in ("generic", "opsgenie"):
        assert words in encode_body(make_letter(receiver, "resolve", incident(), {**EPISODE, "closed_by": by}).body).decode()  # type: ignore[arg-type]


def test_an_unknown_cause_is_not_dressed_up() -> None:
    """Where nothing stands out, no domain and no probability is shown as the cause."""
    body = make_letter("opsgenie", "trigger", incident(predicted_fault_domain="unknown", confidence=0.31, namespace=None)).body
    assert body["message"] == "cause unknown: rag burns its ttft_ms budget 20.5 times too fast"
    assert "namespace" not in body["details"]
