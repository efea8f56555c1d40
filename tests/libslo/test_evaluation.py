"""Evaluation: labels are looked up by time, and figures come with n, an interval and a trivial baseline."""

from __future__ import annotations

from typing import Any

import pytest
from builders import T0, S, slo_event

from libslo.attribution import Hypothesis, Verdict
from libslo.evaluation import Evaluation, LabelBook
from libslo.incidents import Incident
from libslo.slo import format_timestamp


def note(book: LabelBook, at_s: float, label: str | None, status: str = "ok", service: str = "rag") -> None:
    labels = {"fault_label": label} if label else {}
    book.note(slo_event(timestamp=format_timestamp(T0 + int(at_s * S)), labels=labels, status=status, service=service))


def incident(domain: str, **others: float) -> Incident:
    hypotheses = tuple(Hypothesis(name, p, ()) for name, p in {domain: 0.8, **others}.items())
    return Incident({"service": "rag"}, T0, T0 + S, (), Verdict(domain, 0.8, hypotheses))


def summary(*pairs: tuple[str, Incident]) -> dict[str, Any]:
    evaluation = Evaluation()
    for label, each in pairs:
        evaluation.note(label, each)
    return evaluation.summary()


def test_the_label_of_the_bad_requests_counts() -> None:
    """In a window with more quiet requests than hurt ones, the label of the hurt ones is what was true."""
    book = LabelBook()
    for i in range(10):
        note(book, i * 0.1, "baseline")
    note(book, 0.5, "dns_latency", "breach")
    assert book.label("rag", T0, T0 + S) == "dns_latency"
    assert book.label("rag", T0 + S * 6 // 10, T0 + S) == "baseline"


def test_windows_and_services_are_kept_apart() -> None:
    """Only labels of the service, between the two times, both included."""
    book = LabelBook()
    note(book, 1, "dns_latency", "breach")
    note(book, 2, "cpu_throttle", "breach")
    note(book, 1, "memory_pressure", "breach", "other")
    assert book.label("rag", T0 + S, T0 + S) == "dns_latency"
    assert book.label("rag", T0 + 2 * S, T0 + 9 * S) == "cpu_throttle"
    assert book.label("rag", T0 + 3 * S, T0 + 9 * S) == "" == book.label("nobody", T0, T0 + S)


def test_events_without_labels_are_no_labels() -> None:
    """Real traffic carries none."""
    book = LabelBook()
    note(book, 1, None)
    assert not book.labelled and book.label("rag", T0, T0 + 9 * S) == ""
    note(book, 1, "baseline")
    assert book.labelled


def test_ties_do_not_depend_on_order() -> None:
    """Equally frequent labels: always the same one."""
    answers = set()
    for order in (("a", "b"), ("b", "a")):
        book = LabelBook()
        for label in order:
            note(book, 1, label, "breach")
        answers.add(book.label("rag", T0, T0 + 9 * S))
    assert len(answers) == 1


def test_summary_of_single_faults() -> None:
    """Right and wrong answers, the interval around the share, and what always answering the most frequent would get."""
    found = summary(
        ("dns_latency", incident("network_dns")),
        ("dns_latency", incident("network_dns")),
        ("dns_latency", incident("unknown")),
        ("cpu_throttle", incident("network_dns", cpu_throttle=0.2)),
    )
    assert found["single_fault"] == {
        "n": 4,
        "right": 2,
        "share": 0.5,
        "wilson95": [pytest.approx(0.15, abs=0.01), pytest.approx(0.85, abs=0.01)],
    }
    assert found["single_fault_always_majority"]["right"] == 3
    assert found["coverage"]["right"] == 3 and found["abstained"] == 1
    assert found["incidents_without_fault"] == 0


def test_summary_of_two_faults_and_of_none() -> None:
    """Partial accuracy takes any of the expected; coverage asks for all at 0.10; an incident without a fault is a false accusation."""
    found = summary(
        ("dns_latency+cpu_throttle", incident("network_dns", cpu_throttle=0.5)),
        ("dns_latency+cpu_throttle", incident("network_dns", cpu_throttle=0.05)),
        ("baseline", incident("network_dns")),
        ("", incident("unknown")),
    )
    assert found["single_fault"]["n"] == 0 and found["single_fault"]["share"] is None
    assert found["partial"]["right"] == 2 and (found["coverage"]["right"], found["coverage"]["n"]) == (3, 4)
    assert (found["accused_without_fault"], found["incidents_without_fault"]) == (1, 2)


def test_confusion_rows() -> None:
    """actual, predicted, count in a fixed order; pairs joined with +, no fault is "none"."""
    evaluation = Evaluation()
    for label, domain in (
        ("dns_latency", "network_dns"),
        ("baseline", "unknown"),
        ("dns_latency", "network_dns"),
        ("dns_latency+cpu_throttle", "cpu_throttle"),
    ):
        evaluation.note(label, incident(domain))
    assert list(evaluation.confusion()) == [
        ("network_dns", "network_dns", 2),
        ("network_dns+cpu_throttle", "cpu_throttle", 1),
        ("none", "unknown", 1),
    ]


def test_no_incidents() -> None:
    """Nothing raised is a defined summary."""
    found = summary()
    assert found["incidents"] == 0 and found["single_fault"]["wilson95"] == [0.0, 1.0]
