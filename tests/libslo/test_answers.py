"""What is said of an episode again: when the answer is another one, at most so often, and never because something was forgotten."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from builders import MS, T0, Chunks, S, agent_report, lines, probe, slo_event
from runs import CONSUMES

import libslo.incidents
from libslo.answers import Incident, UpdateRule, update_rule, what_changed
from libslo.attribute import AttributeSettings, incident_settings
from libslo.attribution import UNKNOWN, Hypothesis, Verdict
from libslo.contracts import contract
from libslo.evidence import Evidence
from libslo.incidents import IncidentEngine
from libslo.jsonl import read_jsonl
from libslo.signals import vocabulary
from libslo.slo import format_timestamp

Rows = list[tuple[int, dict[str, Any]]]


# --- the rule


def verdict(*domains: tuple[str, float]) -> Verdict:
    return Verdict(*domains[0], tuple(Hypothesis(domain, posterior, ()) for domain, posterior in domains))


def evidence(**levels: int) -> tuple[Evidence, ...]:
    return tuple(Evidence(name, "ebpf", 1.0, 1.0, 0.0, level) for name, level in levels.items())


def said(answer: Verdict, shown: Sequence[Evidence] = ()) -> Incident:
    return Incident({}, T0, T0, tuple(shown), answer)


DNS = ("network_dns", 0.9)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ((DNS,), (DNS,), ()),
        ((DNS,), (("network_dns", 0.81),), ()),
        ((DNS,), (("network_dns", 0.8),), ("confidence 0.90 to 0.80",)),
        ((DNS,), (("cpu_throttle", 0.9),), ("cpu_throttle, no longer network_dns",)),
        ((DNS,), (DNS, ("cpu_throttle", 0.49)), ()),
        ((DNS,), (DNS, ("cpu_throttle", 0.5)), ("cpu_throttle too",)),
        ((DNS, ("cpu_throttle", 0.5)), (DNS, ("cpu_throttle", 0.49)), ("cpu_throttle no longer",)),
        ((DNS,), (DNS, (UNKNOWN, 0.6)), ()),
        (((UNKNOWN, 0.6),), (("network_dns", 0.6),), ("network_dns, no longer unknown",)),
        ((DNS, ("cpu_throttle", 0.6)), (("cpu_throttle", 0.7), ("network_dns", 0.6)), ("cpu_throttle, no longer network_dns",)),
    ],
)
def test_another_answer(before: Any, after: Any, words: tuple[str, ...]) -> None:
    """Another domain, a domain that comes or goes, a confidence that moved by a tenth: said in words; less is nothing."""
    assert what_changed(said(verdict(*before)), verdict(*after), (), update_rule()) == words


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"a": 0}, {"a": 1}, ()),
        ({"a": 0}, {"a": 2}, ("a rose",)),
        ({"a": 2, "b": 0}, {"a": 0, "b": 2}, ("a fell", "b rose")),
        ({}, {"a": 2}, ("a rose",)),
        ({"a": 2}, {}, ("a fell",)),
        ({}, {"a": 0, "b": 1}, ()),
    ],
)
def test_other_evidence(before: dict[str, int], after: dict[str, int], words: tuple[str, ...]) -> None:
    """A level that moved by two is news, one that lies on a border is none."""
    assert what_changed(said(verdict(DNS), evidence(**before)), verdict(DNS), evidence(**after), update_rule()) == words


def test_the_rule_is_data() -> None:
    """Its numbers come from the vocabulary, with where they are from."""
    row = vocabulary("incident-updates")
    assert update_rule() == UpdateRule(row["named_at"], row["confidence_step"], row["level_step"], row["hold_s"]) and row["source"]


# --- the engine

SIGNS = {"dns_latency_ms": "network_dns", "tcp_retransmits_total": "network_egress"}


class Watcher:
    """Names what has a sign at level 1 or more; counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, shown: Sequence[Evidence]) -> Verdict:
        self.calls += 1
        found = [SIGNS[each.signal] for each in shown if each.signal in SIGNS and each.level > 0]
        return verdict(*((domain, 0.95) for domain in sorted(found) or [UNKNOWN]))


def requests(begin_s: float, end_s: float, value: float, per_s: int = 20) -> Rows:
    times = [T0 + int((begin_s + i / per_s) * S) for i in range(round((end_s - begin_s) * per_s))]
    return [(ts, slo_event(timestamp=format_timestamp(ts), sli_value=value, request_id=f"r{ts}")) for ts in times]


def signal(begin_s: float, end_s: float, value: float, name: str = "dns_latency_ms") -> Rows:
    times = [T0 + int((begin_s + i / 10) * S) for i in range(round((end_s - begin_s) * 10))]
    return [(ts, probe(ts, name, value, service="rag")) for ts in times]


def run(*parts: Rows, interval_s: float | None = 2, decide: Any = None, **options: Any) -> list[Incident]:
    """What the engine says of these rows, the end of the input left out where `ends` is False."""
    ends = options.pop("ends", True)
    rules = incident_settings(AttributeSettings(update_interval_s=interval_s, **options))
    engine = IncidentEngine(replace(rules, attribute=decide or Watcher()))
    found: list[Incident] = []
    for _, value in sorted((row for part in parts for row in part), key=lambda row: row[0]):
        found += engine.feed("slo-event" if "sli_name" in value else "probe-event" if "signal" in value else "agent-report", value)
    return found + (list(engine.finish()) if ends else [])


QUIET = [*requests(0, 10, 300), *signal(0, 10, 2)]
SLOW = [*requests(10, 40, 1500), *signal(10, 40, 400)]
LOSSES = signal(20, 40, 3, "tcp_retransmits_total")
AFTER = [*requests(40, 60, 300), *signal(40, 60, 2)]


def at_s(incident: Incident) -> float:
    from libslo.slo import parse_timestamps

    return (int(parse_timestamps([incident.value["timestamp"]])[0]) - T0) / S


def test_a_second_fault_that_shows_later_is_named() -> None:
    """The same incident again, under its id with a later time and both domains, soon after the second fault began, and once only."""
    first, update = run(QUIET, SLOW, LOSSES, AFTER)
    assert first.changes == () and [h.domain for h in first.verdict.hypotheses] == ["network_dns"]
    assert update.changes[0] == "network_egress too"
    assert {row["domain"] for row in update.value["fault_hypotheses"]} == {"network_dns", "network_egress"}
    assert update.value["incident_id"] == first.value["incident_id"] and 20 < at_s(update) <= 26 and at_s(first) < 12
    assert (update.onset_unix_ns, update.detected_unix_ns) == (first.onset_unix_ns, first.detected_unix_ns)
    assert contract("incident-attribution").is_valid(update.value)
    assert update.value["slo_impact"]["burn_rate"] > first.value["slo_impact"]["burn_rate"]


def test_without_updates_it_is_said_once() -> None:
    """The same lines, no update asked for: the first incident, to the byte, and nothing else."""
    once = run(QUIET, SLOW, LOSSES, AFTER, interval_s=None)
    assert [i.value for i in once] == [run(QUIET, SLOW, LOSSES, AFTER)[0].value]


def test_nothing_new_is_not_said() -> None:
    """A fault that goes on, ends and is over says nothing again, however often it is judged: what comes after its end is no news."""
    assert len(run(QUIET, SLOW, AFTER, interval_s=0)) == 1


def test_at_most_so_often() -> None:
    """An answer that changes with every judgement is said once an interval, and judged no more often than that."""

    class Fickle(Watcher):
        def __call__(self, shown: Sequence[Evidence]) -> Verdict:
            self.calls += 1
            return verdict((("network_dns", "cpu_throttle")[self.calls % 2], 0.95))

    decide = Fickle()
    found = run(QUIET, SLOW, interval_s=5, decide=decide, ends=False)
    times = [at_s(incident) for incident in found]
    assert 5 <= len(found) == decide.calls <= 7
    assert all(later - earlier >= 5 for earlier, later in pairwise(times))


def test_evidence_is_computed_once_a_bucket_at_most() -> None:
    """Without an interval: one judgement for each bucket from the first to the one that closes the episode."""
    decide, episodes = Watcher(), []
    rules = replace(incident_settings(AttributeSettings(update_interval_s=0)), attribute=decide)
    engine = IncidentEngine(rules, episodes.append)
    found = [
        each
        for _, event in [*requests(0, 10, 300), *requests(10, 40, 1500), *requests(40, 60, 300)]
        for each in engine.feed("slo-event", event)
    ]
    lasted_ns = episodes[1]["closed_unix_nano"] - episodes[0]["detected_unix_nano"]
    assert len(found) == 1 and decide.calls == lasted_ns // rules.policy.bucket_ns + 1


def test_the_time_after_its_end_is_not_of_the_episode() -> None:
    """While good requests show that it is over, what they dilute is no news: three losses in two seconds stay that."""
    losses = signal(10.5, 10.8, 1, "tcp_retransmits_total")
    found = run(QUIET, requests(10, 12, 1500), losses, requests(12, 30, 300), interval_s=0)
    assert [(i.verdict.domain, i.changes) for i in found] == [("network_egress", ())]


@pytest.mark.parametrize(("rows", "closed_at"), [(AFTER, 43.5), ([], 40)])
def test_it_is_said_a_last_time_at_the_end(rows: Rows, closed_at: float) -> None:
    """What changed since the last judgement is said when the episode closes, or the input ends."""
    _, update = run(QUIET, SLOW, LOSSES, rows, interval_s=3600)
    assert update.changes[0] == "network_egress too" and at_s(update) == pytest.approx(closed_at, abs=0.7)


def test_a_service_that_only_hangs_is_judged_by_what_its_signals_say_meanwhile() -> None:
    """No request comes any more; what the kernel sees of it until the long window is empty still changes the answer."""
    beat = [(T0 + i * S, agent_report(ts_unix_nano=T0 + i * S)) for i in range(30)]
    first, update = run(QUIET, requests(10, 12, 1500), signal(13, 30, 3, "tcp_retransmits_total"), beat)
    assert (first.verdict.domain, update.verdict.domain) == (UNKNOWN, "network_egress")


def test_silence_takes_no_answer_back() -> None:
    """A service that was named a cause and then sends nothing more: rates over its silence are none of the episode's."""
    beat = [(T0 + i * S, agent_report(ts_unix_nano=T0 + i * S)) for i in range(60)]
    losses = signal(10, 10.3, 1, "tcp_retransmits_total")
    found = run(QUIET, requests(10, 12, 1500), losses, beat, interval_s=0)
    assert [(i.verdict.domain, i.changes) for i in found] == [("network_egress", ())]


def test_what_was_forgotten_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode that outlasts the memory keeps its baseline for `hold_s`; after that nothing is said instead of something else."""
    rows = [*requests(0, 4, 300), *signal(0, 4, 2), *requests(4, 60, 1500), *signal(4, 60, 40)]
    later = signal(30, 60, 3, "tcp_retransmits_total")
    assert [i.changes for i in run(rows, baseline_s=5)] == [()]
    assert [i.changes[:1] for i in run(rows, later, baseline_s=5)] == [(), ("network_egress too",)]
    monkeypatch.setattr(libslo.incidents, "update_rule", lambda: replace(update_rule(), hold_s=5))
    assert [i.changes for i in run(rows, baseline_s=5)] == [()]


@pytest.mark.parametrize("sizes", [[1 << 20], [700], [1, 3000, 77]])
def test_the_cut_changes_no_update(sizes: list[int]) -> None:
    """Whole or in pieces, now or replayed: the same incidents and updates, to the byte."""

    def updated(stream: Any) -> bytes:
        rules = incident_settings(AttributeSettings(update_interval_s=0.5))
        engine = IncidentEngine(replace(rules, attribute=Watcher()))
        found: list[Incident] = []
        for records in read_jsonl("F", CONSUMES, stream=stream):
            for kind, value, _, _ in records:
                found += engine.feed(kind, value)
        return lines(incident.value for incident in [*found, *engine.finish()])

    rows = sorted([*QUIET, *SLOW, *LOSSES, *AFTER], key=lambda row: row[0])
    data = lines(value for _, value in rows)
    whole = updated(io.BytesIO(data))
    assert whole.count(b"\n") == 2 and updated(Chunks(data, sizes)) == whole


def test_time_alone_ends_an_episode() -> None:
    """When no record comes any more, the moments that a quiet collector tells close the episode, as other records would."""
    episodes: list[dict[str, Any]] = []
    engine = IncidentEngine(incident_settings(AttributeSettings()), episodes.append)
    for _, value in [*requests(0, 10, 300), *requests(10, 14, 1500)]:
        list(engine.feed("slo-event", value))
    for i in range(36):
        list(engine.feed("stream-time", {"stream_unix_nano": T0 + (14 + i) * S}))
    assert [episode["state"] for episode in episodes] == ["open", "closed"] and episodes[1]["closed_by"] == "silence"
    assert episodes[1]["closed_unix_nano"] == pytest.approx(T0 + 44 * S, abs=200 * MS)
