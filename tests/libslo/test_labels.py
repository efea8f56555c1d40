"""Labels: looked up by service and time, the bad requests' first."""

from __future__ import annotations

from builders import T0, S, slo_event

from libslo.labels import LabelBook
from libslo.slo import format_timestamp


def note(book: LabelBook, at_s: float, label: str | None, status: str = "ok", service: str = "rag") -> None:
    labels = {"fault_label": label} if label else {}
    book.note(slo_event(timestamp=format_timestamp(T0 + int(at_s * S)), labels=labels, status=status, service=service))


def test_the_label_of_the_bad_requests_counts() -> None:
    """In a window with more quiet requests than hurt ones, labelled or not, the label of the hurt ones is what was true."""
    book = LabelBook()
    for i in range(10):
        note(book, i * 0.1, "baseline")
    note(book, 0.5, "dns_latency", "breach")
    for i in range(3):
        note(book, 0.6 + i * 0.1, "cpu_throttle")
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
