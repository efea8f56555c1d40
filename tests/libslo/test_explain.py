"""What the person on call reads: what burns, what is named and why, what speaks against the next, what is missing, where to look."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from builders import MS, T0
from hypothesis import given
from hypothesis import strategies as st
from runs import incidents

import libslo.explain
from libslo.answers import Incident
from libslo.attribution import DOMAINS, UNKNOWN, Hypothesis, Verdict
from libslo.evidence import Evidence, evidence_kinds
from libslo.explain import explain, plain_lines, rich_form
from libslo.signals import vocabulary

ABOUT = vocabulary("fault-domains")["domains"]
EVIDENCE = (
    Evidence("dns_latency_ms", "ebpf", 412.3, 2.06, 5.0, 2),
    Evidence("retrieval_latency_ms", "otel", 1031.0, 98.0, 2.5, 2),
    Evidence("tcp_retransmits_total", "ebpf", 0.0, 0.0, 0.0, 0),
    Evidence("token_throughput_tps", "otel", 36.1, 124.0, 1.3, 1),
    Evidence("provider_failed_ratio", "otel", 0.021, 0.02, 0.0, 0),
)
VERDICT = Verdict(
    "network_dns",
    0.9412,
    (
        Hypothesis("network_dns", 0.9412, ("dns_latency_ms", "retrieval_latency_ms")),
        Hypothesis("network_egress", 0.08, ()),
        Hypothesis("memory_pressure", 0.06, ()),
        Hypothesis("cpu_throttle", 0.02, ()),
    ),
)


def incident(verdict: Verdict = VERDICT, evidence: tuple[Evidence, ...] = EVIDENCE, **more: Any) -> Incident:
    value = {
        "incident_id": "inc-1", "timestamp": "2026-01-01T00:00:03.000000Z", "cluster": "prod", "namespace": "llm", "service": "rag",
        "slo_impact": {"sli": "ttft_ms", "burn_rate": 8.304, "window_minutes": 1},
        "request_ids": ["r1", "r1", "r2", "r3", "r4", "r5"], "trace_ids": [],
    }  # fmt: skip
    return Incident(value, T0, T0 + 2600 * MS, evidence, verdict, **more)


def text(said: Incident) -> str:
    return "\n".join(plain_lines(explain(said)))


def test_the_whole_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part, in the order in which it is needed."""
    silent = ("tls_handshake_ms", "tls_handshake_fail_total", "disk_io_latency_ms", "cpu_steal_pct", "provider_wait_ms")
    kinds = {name: evidence_kinds()[name] for name in (*(each.signal for each in EVIDENCE), *silent)}
    monkeypatch.setattr(libslo.explain, "evidence_kinds", lambda: kinds)
    unmeasured = {"tls_handshake_ms": "not attached", "tls_handshake_fail_total": "not attached", "disk_io_latency_ms": "shed"}
    expected = """\
rag: network_dns (94%): name look-ups are slow or fail
  inc-1 in prod/llm at 2026-01-01T00:00:03.000000Z
  ttft_ms misses its objective since 2026-01-01T00:00:00.000000Z, found 2.6 s later; the error budget burns
      8.3 times as fast as allowed
  less likely: network_egress (8%), memory_pressure (6%, no data of mem_reclaim_latency_ms,
      disk_io_latency_ms)
    signal                           now        before   change  speaks                  source
    dns_latency_ms                412 ms       2.06 ms    x 200  for network_dns         ebpf
    retrieval_latency_ms         1031 ms         98 ms   x 10.5  for network_dns         otel
    token_throughput_tps   36.1 tokens/s  124 tokens/s  x 0.291  raised too              otel
    tcp_retransmits_total           0 /s          0 /s     same  against network_egress  ebpf
  as before: provider_failed_ratio
  not measured: tls_handshake_ms, tls_handshake_fail_total (not attached)
  not measured: disk_io_latency_ms (shed)
  no events: cpu_steal_pct
  not in spans: provider_wait_ms
  look first: the name server that the service asks (/etc/resolv.conf): its latency, errors and load; then
      search domains (ndots) and loss on UDP port 53
  requests: r1, r2, r3 and 2 more"""
    assert text(incident(unmeasured=unmeasured)) == expected


def test_without_an_agent_report_nobody_knows_what_is_measured() -> None:
    """A signal without events is not called well: there was no report to say that it is watched."""
    assert "(no agent report: nobody knows whether they are measured)" in " ".join(text(incident()).split())
    assert "no agent report" not in text(incident(unmeasured={}))


def test_two_causes_are_both_named() -> None:
    """A second fault as likely as the first stands in the title, and each has its own place to look at."""
    both = Verdict("network_dns", 0.9, (VERDICT.hypotheses[0], Hypothesis("cpu_throttle", 0.5, ("token_throughput_tps",))))
    said = text(incident(both))
    assert said.startswith("rag: network_dns (90%) and cpu_throttle (50%): name look-ups")
    assert "look first: network_dns: the name server" in said and "look first: cpu_throttle: nr_throttled" in said
    assert "for cpu_throttle" in said and "take it as a guess" not in said


def test_an_answer_without_evidence_is_called_a_guess() -> None:
    """When nothing measured speaks for the answer it says so, and what it would have shown itself in."""
    guess = Verdict("memory_pressure", 0.57, (Hypothesis("memory_pressure", 0.57, ()),))
    said = " ".join(text(incident(guess, EVIDENCE[2:3])).split())
    assert "nothing that was measured speaks for memory_pressure, no data of mem_reclaim_latency_ms, disk_io_latency_ms: take it" in said


def test_what_tells_most_comes_first() -> None:
    """The rows for a cause stand in the order in which they speak for it."""
    turned = replace(VERDICT.hypotheses[0], evidence=VERDICT.hypotheses[0].evidence[::-1])
    rows = explain(incident(Verdict("network_dns", 0.94, (turned,)))).rows
    assert [row[0] for row in rows[:2]] == ["retrieval_latency_ms", "dns_latency_ms"]


def test_what_speaks_against_the_answer_is_shown() -> None:
    """Evidence in which the answer would show itself, and does not."""
    answer = Verdict("network_egress", 0.6, (Hypothesis("network_egress", 0.6, ("retrieval_latency_ms",)),))
    rows = explain(incident(answer)).rows
    assert [(row[0], row[4]) for row in rows] == [
        ("retrieval_latency_ms", "for network_egress"),
        ("dns_latency_ms", "raised too"),
        ("token_throughput_tps", "raised too"),
        ("tcp_retransmits_total", "against network_egress"),
    ]


def test_what_is_hardly_raised_speaks_neither_way() -> None:
    """Not raised, but not as before either: that is no evidence against a domain that shows itself in it."""
    answer = Verdict("network_egress", 0.6, (Hypothesis("network_egress", 0.6, ("retrieval_latency_ms",)),))
    for score, words in ((0.4, "against network_egress"), (0.6, "unclear for network_egress"), (None, "against network_egress")):
        row = Evidence("tcp_retransmits_total", "ebpf", 0.4, 0.1, score, 0)
        assert explain(incident(answer, (row,))).rows[0][4] == words


def test_unknown_and_undecided_are_two_answers() -> None:
    """Nothing stands out, or no cause is likely enough: the second names the closest."""
    nothing = Verdict(UNKNOWN, 0.97, (Hypothesis(UNKNOWN, 0.97, ()),))
    assert text(incident(nothing, ())).startswith("rag: unknown (97%): nothing that is measured explains it")
    undecided = Verdict(UNKNOWN, 0.2, (Hypothesis("cpu_throttle", 0.45, ()), Hypothesis(UNKNOWN, 0.2, ())))
    said = text(incident(undecided, ()))
    assert said.startswith("rag: unknown: no cause is likely enough, cpu_throttle (45%) comes closest")
    assert "possible: cpu_throttle (45%, no data of" in said
    assert "look first: what was not measured (above)" in said


def test_few_others_are_named() -> None:
    """Three at most, and none that is next to impossible."""
    others = [Hypothesis(domain, 0.3, ()) for domain in DOMAINS if domain != "network_dns"]
    (said,) = (each for each in explain(incident(Verdict("network_dns", 0.9, (VERDICT.hypotheses[0], *others)))).said if "less" in each)
    assert said.count("(30%") == 3


def test_an_update_says_what_is_new() -> None:
    """What has changed stands where the incident is named."""
    assert "Z, update: cpu_throttle too; b rose" in text(incident(changes=("cpu_throttle too", "b rose")))


@pytest.mark.parametrize(
    ("signal", "value", "baseline", "cells"),
    [
        ("dns_latency_ms", 412.3, None, ("412 ms", "-", "-")),
        ("dns_latency_ms", 2.1, 2.0, ("2.1 ms", "2 ms", "same")),
        ("dns_latency_ms", 0.001, 0.0, ("<0.01 ms", "0 ms", "new")),
        ("connect_errors_total", 0.0, 3.0, ("0 /s", "3 /s", "gone")),
        ("provider_throttled_ratio", 0.354, 0.01, ("35.4 %", "1 %", "x 35.4")),
        ("cpu_steal_pct", 31.0, 1.0, ("31 %", "1 %", "x 31")),
        ("cfs_throttled_ms", 312.0, 4.0, ("312 ms/s", "4 ms/s", "x 78")),
    ],
)
def test_numbers_for_people(signal: str, value: float, baseline: float | None, cells: tuple[str, ...]) -> None:
    """Three figures, the unit, and how many times; without a baseline no comparison."""
    assert explain(incident(evidence=(Evidence(signal, "ebpf", value, baseline, None, 1),))).rows[0][1:4] == cells


def test_the_vocabulary_knows_every_domain() -> None:
    """Every domain has words and a place to look first, on one line, and shows itself in evidence that there is."""
    assert set(ABOUT) == {*DOMAINS, UNKNOWN}
    for domain, about in ABOUT.items():
        assert about["is"] and about["look_first"] and "\n" not in about["look_first"]
        assert set(about["shows_in"]) <= set(evidence_kinds()) and bool(about["shows_in"]) == (domain != UNKNOWN)


def test_a_terminal_shows_the_same_words() -> None:
    """The form for rich holds what the plain lines hold."""
    from rich.console import Console

    said = explain(incident(changes=("x",)))
    stream = io.StringIO()
    Console(file=stream, width=200).print(rich_form(said))
    assert set(" ".join(plain_lines(said)).split()) == set(stream.getvalue().split())
    assert rich_form(replace(said, rows=())) is not None


NUMBER = st.floats(0, 1e300)
SOME_EVIDENCE = st.lists(
    st.builds(
        lambda kind, value, baseline, score, level: Evidence(kind.signal, kind.source, value, baseline, score, level),
        st.sampled_from(list(evidence_kinds().values())), NUMBER, st.none() | NUMBER, st.none() | st.floats(-9, 9), st.integers(0, 2),
    ),
    unique_by=lambda each: each.signal,
)  # fmt: skip
SOME_HYPOTHESES = st.lists(
    st.builds(
        Hypothesis, st.sampled_from([*DOMAINS, UNKNOWN]), st.floats(0, 1), st.lists(st.sampled_from(list(evidence_kinds()))).map(tuple)
    ),
    unique_by=lambda each: each.domain,
)


@given(SOME_EVIDENCE, SOME_HYPOTHESES, st.none() | st.dictionaries(st.sampled_from(list(evidence_kinds())), st.text(max_size=9)))
def test_whatever_was_found_can_be_explained(found: Any, hypotheses: Any, unmeasured: Any) -> None:
    """No verdict and no number breaks it, and every signal there is stands in it."""
    first = max(hypotheses, key=lambda each: each.posterior, default=Hypothesis(UNKNOWN, 1.0, ()))
    each = incident(Verdict(first.domain, first.posterior, tuple(hypotheses)), tuple(found), unmeasured=unmeasured)
    said = explain(each)
    words = " ".join([*(row[0] for row in said.rows), *(sentence for _, sentence in said.notes)])
    assert all(name in words for name in evidence_kinds()) and plain_lines(said)
    assert all(len(cell) < 24 for row in said.rows for cell in row[1:4])


def test_every_scenario_can_be_explained() -> None:
    """Incidents as the engine raises them: the title names the answer, every line is short enough to read."""
    for each in (*incidents("mixed", 42), *incidents("mixed_multi", 42)):
        said = plain_lines(explain(each))
        assert said[0].startswith(f"rag-service: {each.verdict.domain}")
        assert max(map(len, said)) <= 160
