"""An incident in words, for the person on call: what burns, what is named and why, what else it may be, what to look at first.

Pure: an Incident in, an Explanation out, and that as plain lines or as something that rich can show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from libslo.answers import Incident, update_rule
from libslo.attribution import UNKNOWN, Hypothesis
from libslo.evidence import Evidence, evidence_kinds
from libslo.signals import vocabulary
from libslo.slo import format_timestamp

__all__ = ["Explanation", "explain", "plain_lines", "rich_form"]

_HEADER = ("signal", "now", "before", "change", "speaks", "source")
_RIGHT = (1, 2, 3)  # columns of numbers
_MOST_NEXT = 3  # hypotheses named after the answer
_NEXT_FROM = 0.05
_MOST_EXAMPLES = 3
_WIDTH = 110  # of plain lines
_SAME = 1.15  # a change of less is called none
_UNCLEAR_FROM = 0.5  # a score from which a signal that is not raised is not called as before


@dataclass(frozen=True, slots=True)
class Explanation:
    """title: service and answer. said: sentences on what burns and what it may be. rows: a cell for each of signal, now, before,
    change, speaks, source. notes: (what, sentence) on what is missing, what to look at, and examples.
    """

    title: str
    said: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[tuple[str, str], ...]


def explain(incident: Incident) -> Explanation:
    """The explanation of one incident, as it is said first or as an update."""
    return Explanation(
        f"{incident.value['service']}: {_answer(incident)}",
        tuple(_said(incident)),
        tuple((each.signal, *_numbers(each), speaks, each.source) for each, speaks in _ranked(incident)),
        tuple(_notes(incident)),
    )


# --- sentences


def _answer(incident: Incident) -> str:
    verdict = incident.verdict
    about = vocabulary("fault-domains")["domains"]
    first = verdict.hypotheses[0] if verdict.hypotheses else None
    if verdict.domain == UNKNOWN and first is not None and first.domain != UNKNOWN:
        return f"unknown: no cause is likely enough, {first.domain} ({_percent(first.posterior)}) comes closest"
    also = "".join(f" and {h.domain} ({_percent(h.posterior)})" for h in _causes(incident) if h.domain != verdict.domain)
    return f"{verdict.domain} ({_percent(verdict.confidence)}){also}: {about[verdict.domain]['is']}"


def _said(incident: Incident) -> Iterator[str]:
    value = incident.value
    place = "/".join(filter(None, (value["cluster"], value.get("namespace"))))
    news = f", update: {'; '.join(incident.changes)}" if incident.changes else ""
    yield f"{value['incident_id']} in {place} at {value['timestamp']}{news}"
    after_s = (incident.detected_unix_ns - incident.onset_unix_ns) / 1e9
    impact = value["slo_impact"]
    yield (
        f"{impact['sli']} misses its objective since {format_timestamp(incident.onset_unix_ns)}, found {after_s:.1f} s later;"
        f" the error budget burns {impact['burn_rate']:.3g} times as fast as allowed"
    )
    for hypothesis in _causes(incident):
        if not hypothesis.evidence:
            yield f"nothing that was measured speaks for {hypothesis.domain}{_untold(incident, hypothesis)}: take it as a guess"
    others = [f"{h.domain} ({_percent(h.posterior)}{_untold(incident, h)})" for h in _next(incident)]
    if others:
        yield f"{'less likely' if _causes(incident) else 'possible'}: {', '.join(others)}"


def _notes(incident: Incident) -> Iterator[tuple[str, str]]:
    shown = {each.signal for each, _ in _ranked(incident)}
    usual = [each.signal for each in incident.evidence if each.signal not in shown]
    if usual:
        yield "as before", ", ".join(usual)
    yield from _missing(incident)
    causes = [h.domain for h in _causes(incident)] or [UNKNOWN]
    for domain in causes:
        advice = vocabulary("fault-domains")["domains"][domain]["look_first"]
        yield "look first", f"{domain}: {advice}" if len(causes) > 1 else advice
    for name, key in (("requests", "request_ids"), ("traces", "trace_ids")):
        examples = list(dict.fromkeys(incident.value.get(key, ())))
        if examples:
            more = f" and {len(examples) - _MOST_EXAMPLES} more" if len(examples) > _MOST_EXAMPLES else ""
            yield name, ", ".join(examples[:_MOST_EXAMPLES]) + more


def _missing(incident: Incident) -> Iterator[tuple[str, str]]:
    """What no evidence came of: a signal that is not measured is not a signal that is well."""
    found = {each.signal for each in incident.evidence}
    kinds = {name: kind for name, kind in evidence_kinds().items() if name not in found}
    unmeasured = incident.unmeasured or {}
    for reason in dict.fromkeys(unmeasured[name] for name in kinds if name in unmeasured):
        yield "not measured", f"{', '.join(name for name in kinds if unmeasured.get(name) == reason)} ({reason})"
    silent = [name for name, kind in kinds.items() if kind.source == "ebpf" and name not in unmeasured]
    if silent:
        agent = " (no agent report: nobody knows whether they are measured)" if incident.unmeasured is None else ""
        yield "no events", ", ".join(silent) + agent
    untold = [name for name, kind in kinds.items() if kind.source != "ebpf"]
    if untold:
        yield "not in spans", ", ".join(untold)


def _untold(incident: Incident, hypothesis: Hypothesis) -> str:
    """Says so when nothing could have spoken against it."""
    shows_in = vocabulary("fault-domains")["domains"][hypothesis.domain]["shows_in"]
    return "" if {each.signal for each in incident.evidence} & set(shows_in) else f", no data of {', '.join(shows_in)}"


# --- the table


def _causes(incident: Incident) -> list[Hypothesis]:
    """The hypotheses that the answer names: the first one, and others as likely as a second fault is."""
    verdict = incident.verdict
    at = update_rule().named_at
    return [h for h in verdict.hypotheses if h.domain != UNKNOWN and (h.domain == verdict.domain or h.posterior >= at)]


def _next(incident: Incident) -> list[Hypothesis]:
    named = {UNKNOWN, *(h.domain for h in _causes(incident))}
    return [h for h in incident.verdict.hypotheses if h.domain not in named and h.posterior >= _NEXT_FROM][:_MOST_NEXT]


def _ranked(incident: Incident) -> list[tuple[Evidence, str]]:
    """Evidence that says something, with what it says: what speaks for a cause first, then what else is raised, then what is not."""
    hypotheses = [*_causes(incident), *_next(incident)]
    rows = [(each, *_speaks(each, hypotheses)) for each in incident.evidence]
    return [(each, words) for each, words, _ in sorted((row for row in rows if row[1]), key=lambda row: row[2])]


def _speaks(each: Evidence, hypotheses: Sequence[Hypothesis]) -> tuple[str, tuple[int, int]]:
    """What it says, and its rank among the rows: by hypothesis, what tells most first; "" for what says nothing."""
    for rank, hypothesis in enumerate(hypotheses):
        if each.signal in hypothesis.evidence:
            return f"for {hypothesis.domain}", (rank, hypothesis.evidence.index(each.signal))
    last = len(hypotheses)
    if each.level > 0:
        return "raised too", (last, 0)
    about = vocabulary("fault-domains")["domains"]
    shown = [h.domain for h in hypotheses if each.signal in about[h.domain]["shows_in"]]
    how = "unclear for" if (each.score or 0.0) >= _UNCLEAR_FROM else "against"
    return (f"{how} {' and '.join(shown)}", (last + 1, 0)) if shown else ("", (0, 0))


def _numbers(each: Evidence) -> tuple[str, str, str]:
    unit, scale = _unit(each.signal)
    now = f"{_figure(each.value * scale)} {unit}"
    if each.baseline is None:
        return now, "-", "-"
    return now, f"{_figure(each.baseline * scale)} {unit}", _times(each.value, each.baseline)


def _unit(name: str) -> tuple[str, float]:
    """The unit that a person reads, and what a value is multiplied by for it."""
    unit = evidence_kinds()[name].unit
    return ("%", 100.0) if unit == "ratio" else (unit.removeprefix("1"), 1.0)


def _times(value: float, baseline: float) -> str:
    if min(value, baseline) <= 0:
        return "same" if value == baseline else "new" if value > baseline else "gone"
    ratio = value / baseline
    if 1 / _SAME < ratio < _SAME:
        return "same"
    return f"x {_figure(ratio)}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.3g}" if value >= 0.01 or value == 0 else "<0.01"


def _percent(share: float) -> str:
    return ">99%" if share > 0.99 else f"{100 * share:.0f}%"


# --- forms


def plain_lines(explanation: Explanation) -> list[str]:
    """Lines for a file, a pipe or a log."""
    out = [explanation.title, *(line for sentence in explanation.said for line in _wrapped(sentence))]
    if explanation.rows:
        table = [_HEADER, *explanation.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(_HEADER))]
        cells = (
            [cell.rjust(w) if i in _RIGHT else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))] for row in table
        )
        out += ["    " + "  ".join(row).rstrip() for row in cells]
    return [*out, *(line for what, sentence in explanation.notes for line in _wrapped(f"{what}: {sentence}"))]


def _wrapped(sentence: str) -> list[str]:
    return wrap(sentence, _WIDTH, initial_indent="  ", subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)


def rich_form(explanation: Explanation) -> Any:
    """The same as a renderable of rich, for a terminal."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(explanation.title, style="bold"), *(Padding(Text(sentence), (0, 2)) for sentence in explanation.said)]
    if explanation.rows:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for i, name in enumerate(_HEADER):
            table.add_column(name, justify="right" if i in _RIGHT else "left")
        for row in explanation.rows:
            table.add_row(*(Text(cell) for cell in row), style="bold" if row[4].startswith("for ") else "")
        parts.append(Padding(table, (0, 4)))
    parts += [Padding(Text.assemble((f"{what}: ", "dim"), sentence), (0, 2)) for what, sentence in explanation.notes]
    return Group(*parts)
