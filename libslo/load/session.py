"""A run of the load generator: where its plan comes from, and what becomes of the results."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from typing import Any

import numpy as np

from libslo.errors import CannotError, InputError
from libslo.jsonl import JsonlWriter, OnBad, read_jsonl
from libslo.load.plans import LoadRequest, check_order, planned
from libslo.load.profiles import changed_arrival, read_loads
from libslo.load.results import ResultColumns
from libslo.load.summary import summarize
from libslo.load.target import Counts, Target
from libslo.load.traces import trace_requests

__all__ = ["PlanSettings", "Verdict", "drive_plan", "requests_of", "stored_summary"]

_DURATION_S = 30.0


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """Where requests come from: a load by name, a trace, or lines of a plan. duration_s: None for 30 s of a load, all of the others.

    arrival: what replaces the load's own kind, rate, rate_to and shape. speed, profile: of a trace.
    """

    load: str | None = None
    trace: str | None = None
    source: str | None = None
    loads_file: str | None = None
    arrival: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float | None = None
    count: int | None = None
    speed: float = 1.0
    profile: str = "rag_medium"
    prefix: str = "r"
    seed: int = 42
    on_bad: OnBad = "fail"

    @property
    def inputs(self) -> list[str]:
        """Files that are read meanwhile."""
        return [name for name in (self.trace, self.source) if name]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to, its warm-up included. summary: see libslo.load.summary; stopped: by a signal; began: any was due.

    last_error: in words.
    """

    summary: dict[str, Any]
    stopped: bool
    began: bool
    answered: int
    errors: dict[str, int]
    last_error: str


def requests_of(settings: PlanSettings, report: Callable[[InputError], None]) -> Iterator[LoadRequest]:
    """The requests of a plan in order of time; those of a load are drawn as they are asked for.

    report: gets each bad line that on_bad "skip" leaves out. InputError for what is wrong in the load, the trace or the plan.
    """
    rng = np.random.default_rng(settings.seed)
    if settings.load is not None:
        load = changed_arrival(read_loads(settings.loads_file).load(settings.load), **settings.arrival)
        return planned(load, rng, settings.duration_s or _DURATION_S, prefix=settings.prefix, max_requests=settings.count)
    if settings.trace is not None:
        columns = read_loads(settings.loads_file).trace_columns
        skip = report if settings.on_bad == "skip" else None
        lines = trace_requests(
            settings.trace, columns, rng, speed=settings.speed, profile=settings.profile, prefix=settings.prefix, skip=skip
        )
    else:
        lines = _plan_lines(settings, report)
    ordered = check_order(lines, _named(settings.trace or settings.source))
    if settings.duration_s is not None:
        end_ns = settings.duration_s * 1e9
        ordered = takewhile(lambda request: request.offset_ns < end_ns, ordered)
    return islice(ordered, settings.count)


def _plan_lines(settings: PlanSettings, report: Callable[[InputError], None]) -> Iterator[tuple[int, LoadRequest]]:
    for batch in read_jsonl(settings.source or "-", ["load-request"], on_bad=settings.on_bad, report=report):
        for kind, value, _, line in batch:
            if not kind:
                hint = "loadgen --load NAME writes load-request lines"
                raise InputError("not a load-request", source=_named(settings.source), line=line, hint=hint)
            yield line, LoadRequest.from_record(value)


def _named(source: str | None) -> str:
    return "stdin" if source in (None, "-") else str(source)


def drive_plan(
    plan: Iterator[LoadRequest],
    target: Target,
    out: str,
    progress: Callable[[Counts], None],
    *,
    inputs: Iterable[str] = (),
    limits: Mapping[str, float],
    min_achieved: float,
) -> Verdict:
    """Send a plan, write each result to `out`, and sum up.

    CannotError without aiohttp; InputError for an empty plan or a wrong CA file, before `out` is opened.
    """
    drive_load = _driver(target.ca)
    first = next(plan, None)
    if first is None:
        raise InputError("the plan holds no request", hint="a longer --duration, or a higher --rate")
    columns = ResultColumns()
    kinds: Counter[str] = Counter()  # of errors, "" for none
    words: deque[str] = deque(maxlen=1)
    with JsonlWriter(out, inputs) as writer:

        def emit(result: dict[str, Any]) -> None:
            writer.write(result)
            columns.add(result)
            kinds[result.get("error", "")] += 1
            words.append(result.get("detail", ""))

        def tick(counts: Counts) -> None:
            writer.flush()
            progress(counts)

        drive = drive_load(chain([first], plan), target, emit, tick)
    summary = summarize(columns, limits=limits, min_achieved=min_achieved)
    summary["stopped"] = drive.stopped
    summary["generator"] = {"cpu_s": drive.cpu_s, "cpu_ms_per_request": 1e3 * drive.cpu_s / max(1, writer.lines)}
    answered = kinds.pop("", 0)
    return Verdict(summary, drive.stopped, bool(writer.lines), answered, dict(kinds), words[-1] if words else "")


def _driver(ca: str | None) -> Callable[..., Any]:
    try:
        from libslo.load.connections import tls_context
        from libslo.load.driver import drive_load
    except ModuleNotFoundError as error:
        hint = "pip install 'llm-slo-ebpf-toolkit[lab]'"
        raise CannotError(f"the Python package {error.name} is not installed", hint=hint) from error
    if ca is not None:
        tls_context(ca)  # a wrong file is said before the output is opened
    return drive_load


def stored_summary(
    source: str, report: Callable[[InputError], None], *, limits: Mapping[str, float], min_achieved: float, on_bad: OnBad
) -> dict[str, Any]:
    """The summary of stored load-results; other records among them are passed over."""
    columns = ResultColumns()
    for batch in read_jsonl(source, ["load-result"], on_bad=on_bad, report=report):
        for kind, value, _, _ in batch:
            if kind:
                columns.add(value)
    return summarize(columns, limits=limits, min_achieved=min_achieved)
