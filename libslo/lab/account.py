"""What a run showed, computed from the files it left: detection, evidence, joins, losses, and what the clients felt."""

from __future__ import annotations

import json
import platform
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from libslo.errors import InputError
from libslo.lab.measures import load_figures
from libslo.lab.run import LOGS
from libslo.lab.verdict import account_closes, read_stretches, rows
from libslo.recordings import Recording

__all__ = ["Account", "Incident", "Phase", "markdown_table", "read_account"]

_CONFIDENCE = "llm.ebpf.correlation_confidence"


@dataclass(frozen=True)
class Incident:
    """An incident line and when it arrived (Unix ns, this machine's clock)."""

    body: dict[str, Any]
    arrival_unix_ns: int

    @property
    def domain(self) -> str:
        """The domain held responsible."""
        return str(self.body["predicted_fault_domain"])

    @property
    def event_unix_ns(self) -> int:
        """The incident's own timestamp."""
        return int(datetime.fromisoformat(self.body["timestamp"]).timestamp() * 1e9)


@dataclass(frozen=True)
class Phase:
    """Requests sent in one phase of the run; times in ms from send to first token, None without a token."""

    name: str
    requests: int
    failed: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None


@dataclass(frozen=True)
class Account:
    """Everything the report and the table say about one run."""

    directory: Path
    scenario: str
    mechanism: str
    expected: list[str]
    measured: dict[str, Any]
    begin_unix_ns: int
    end_unix_ns: int
    in_baseline: list[Incident]
    in_fault: list[Incident]
    after: list[Incident]
    phases: list[Phase]
    spans: int
    enriched: dict[str, int]  # confidence as written -> spans
    probe_events: dict[str, int]
    losses: list[dict[str, Any]] = field(default_factory=list)

    @property
    def hit(self) -> Incident | None:
        """The first incident that arrived during the fault and names its domain."""
        return next((incident for incident in self.in_fault if incident.domain in self.expected), None)

    @property
    def first(self) -> Incident | None:
        """The first incident that arrived during the fault, right or wrong."""
        return self.in_fault[0] if self.in_fault else None

    @property
    def passed(self) -> bool:
        """Whether all that was said while the fault was on named it, something was said, and nothing was accused before."""
        return bool(self.in_fault) and all(one.domain in self.expected for one in self.in_fault) and not self.in_baseline

    @property
    def account_closes(self) -> bool:
        """Whether the account of each attached signal does."""
        attached = [signal for signal in self.losses if signal["attached"]]
        return bool(attached) and all(account_closes(signal) for signal in attached)

    def delay_wall_s(self, incident: Incident) -> float:
        """Arrival of the incident's line after the fault was on."""
        return (incident.arrival_unix_ns - self.begin_unix_ns) / 1e9

    def delay_event_s(self, incident: Incident) -> float:
        """The incident's timestamp after the fault was on."""
        return (incident.event_unix_ns - self.begin_unix_ns) / 1e9

    def lines(self) -> Iterator[str]:
        """The account for people, line by line."""
        duration_s = (self.end_unix_ns - self.begin_unix_ns) / 1e9
        measured = ", ".join(f"{key} {value:g}" for key, value in self.measured.items()) or "nothing"
        yield f"truth      {self.scenario} ({self.mechanism}) on for {duration_s:.1f} s, expected {', '.join(self.expected)}"
        yield f"           measured {measured}"
        for phase in self.phases:
            ttft = f"TTFT p50 {_ms(phase.ttft_p50_ms)} p95 {_ms(phase.ttft_p95_ms)}"
            yield f"{phase.name:<10} {phase.requests} requests, {phase.failed} failed, {ttft}"
        yield f"incidents  {len(self.in_baseline)} in the baseline, {len(self.in_fault)} during the fault, {len(self.after)} after it"
        for incident in [*self.in_baseline, *self.in_fault]:
            body = incident.body
            wall_s, event_s = self.delay_wall_s(incident), self.delay_event_s(incident)
            false = "FALSE " if incident in self.in_baseline else ""
            when = f"{wall_s:.2f} s from the fault's begin (event time {event_s:.2f} s)"
            yield f"  {false}{incident.domain} confidence {body['confidence']:.3f}, {when}"
            impact = body["slo_impact"]
            yield f"    impact    {impact['sli']} burn rate {impact['burn_rate']:.1f} over {impact['window_minutes']:g} min"
            for guess in body.get("fault_hypotheses", []):
                yield f"    posterior {guess['posterior']:.3f} {guess['domain']} from {', '.join(guess['evidence']) or 'no signal'}"
            for entry in body["evidence"]:
                yield f"    evidence  {entry['signal']} = {entry['value']:g} ({entry['source']})"
        enriched = ", ".join(f"{count} at {confidence}" for confidence, count in sorted(self.enriched.items(), reverse=True)) or "none"
        yield f"spans      {self.spans} seen, {sum(self.enriched.values())} enriched: {enriched}"
        events = ", ".join(f"{signal} {count}" for signal, count in sorted(self.probe_events.items()))
        yield f"probes     {events or 'none'}"
        for signal in self.losses:
            if not signal["attached"]:
                yield f"  {signal['signal']} not attached: {signal.get('reason', 'no reason given')}"
                continue
            numbers = " ".join(f"{key} {value}" for key, value in signal["account"].items())
            verdict = "closes" if account_closes(signal) else "DOES NOT CLOSE"
            yield f"  {signal['signal']} ({signal['variant']}) {numbers}, drained {signal['drained']}: {verdict}"
        yield f"verdict    {'named in time' if self.passed else 'NOT named as expected'}; files in {self.directory}"


def read_account(directory: Path) -> Account:
    """The account of a finished run; InputError when a file of it is missing or broken."""
    try:
        recording = Recording(directory)
        windows = rows(recording, "fault-window")
        begin = next(row for row in windows if row["phase"] == "begin")
        end = next(row for row in windows if row["phase"] == "end")
        stretches = read_stretches(recording)
        requests = rows(recording, "load-result")
        arrivals = {row["incident_id"]: row["incident_arrival_unix_nano"] for row in rows(recording, "incident-arrival")}
        incidents = [Incident(body, arrivals[body["incident_id"]]) for body in rows(recording, "incident-attribution")]
        reports = rows(recording, "agent-report")
        begin_ns, end_ns = begin["begin_unix_nano"], end["end_unix_nano"]
        spans, enriched = _spans(directory / LOGS / "joined.jsonl")
        return Account(
            directory=directory,
            scenario=begin["scenario"],
            mechanism=begin["mechanism"],
            expected=begin["expected_domains"],
            measured=begin.get("measured") or end.get("measured") or {},
            begin_unix_ns=begin_ns,
            end_unix_ns=end_ns,
            in_baseline=[one for one in incidents if one.event_unix_ns < begin_ns],
            in_fault=[one for one in incidents if begin_ns <= one.event_unix_ns and one.arrival_unix_ns <= end_ns],
            after=[one for one in incidents if begin_ns <= one.event_unix_ns and one.arrival_unix_ns > end_ns],
            phases=[_phase(stretch.phase, load_figures(stretch, requests)) for stretch in stretches],
            spans=spans,
            enriched=enriched,
            probe_events=dict(Counter(row["signal"] for row in rows(recording, "probe-event"))),
            losses=next((row["signals"] for row in reversed(reports) if row.get("final")), []),
        )
    except (OSError, KeyError, ValueError, StopIteration) as error:
        raise InputError(f"not the files of a whole run ({type(error).__name__}: {error})", source=str(directory)) from error


def markdown_table(accounts: Sequence[Account], command_line: str) -> str:
    """The runs as a Markdown table with medians, under the command that made them and the machine they were made on."""
    columns = [
        *("run", "incident domain (top-1)", "posterior", "delay wall s", "delay event s", "incidents in baseline", "after the fault"),
        *("TTFT p50 baseline ms", "TTFT p50 fault ms", "enriched spans", "account closes", "passed"),
    ]
    rows = [_table_row(number, account) for number, account in enumerate(accounts, 1)]
    medians = ["median"] + [_median([row[index] for row in rows]) for index in range(1, len(columns))]
    about = f"n = {len(rows)}, passed {sum(account.passed for account in accounts)}; Linux {platform.release()} {platform.machine()}."
    lines = [
        "# First light: the live slice, run after run",
        "",
        f"`{command_line}`",
        "",
        about,
        "Delays: from the moment the fault was on to the incident line's arrival (wall) and to its timestamp (event).",
        "",
        *("| " + " | ".join(_cell(value) for value in row) + " |" for row in [columns, ["---"] * len(columns), *rows, medians]),
    ]
    return "\n".join(lines) + "\n"


def _table_row(number: int, account: Account) -> list[Any]:
    first, hit = account.first, account.hit
    guesses = hit.body.get("fault_hypotheses", []) if hit else []
    posterior = next((guess["posterior"] for guess in guesses if hit and guess["domain"] == hit.domain), None)
    ttft = {phase.name: phase.ttft_p50_ms for phase in account.phases}
    return [
        number,
        first.domain if first else "none",
        posterior if posterior is not None or hit is None else hit.body["confidence"],
        account.delay_wall_s(hit) if hit else None,
        account.delay_event_s(hit) if hit else None,
        len(account.in_baseline),
        len(account.after),
        ttft.get("baseline"),
        ttft.get("fault"),
        sum(account.enriched.values()),
        account.account_closes,
        account.passed,
    ]


def _median(values: Sequence[Any]) -> float | str:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return float(statistics.median(numbers)) if numbers else ""


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)  # noqa: RUF001 (an empty cell)


def _phase(name: str, figures: Mapping[str, float | None]) -> Phase:
    count, ratio = int(figures["requests"] or 0), figures["error_ratio"] or 0.0
    return Phase(name, count, round(count * ratio), figures["ttft_p50_ms"], figures["ttft_p95_ms"])


def _spans(path: Path) -> tuple[int, dict[str, int]]:
    from libslo.spans import decode_spans

    count, enriched = 0, Counter[str]()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "resourceSpans" not in row:
            continue
        for span in decode_spans(row):
            count += 1
            if _CONFIDENCE in span.attributes:
                enriched[f"{span.attributes[_CONFIDENCE]:.2f}"] += 1
    return count, dict(enriched)


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.0f} ms"
