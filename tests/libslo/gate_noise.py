"""Comparisons between which nothing changed, of real noise, and what E3 and simpler rules say of them.

The noise is that of recordings in testdata/recordings: TTFT of their quiet phases, in the order in which the runs were taken. Only runs
of one source count, of the one with the most: between sources something did change.
A comparison takes neighbouring runs, gives them to the sides in turns (or one side after the other), and of each run a block
of consecutive requests, so that what requests of a run and neighbouring runs have in common stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from builders import TESTDATA

from libslo.gates.m5 import Limits, Run, regression_check
from libslo.lab.benchroot import raw_samples
from libslo.lab.verdict import read_stretches, rows
from libslo.recordings import Recording

RECORDINGS = TESTDATA / "recordings"
RULES = ("p below .05 alone", "the four conditions, requests pooled", "the four conditions, run by run (E3)")
RISE = 1.1


@cache
def of_one_source() -> tuple[Recording, ...]:
    """The recordings of the source that most were made with."""
    recordings = [Recording(path.parent) for path in sorted(RECORDINGS.glob("*/manifest.json"))]
    revisions = Counter(recording.manifest["git_revision"] for recording in recordings)
    (most, _), *_ = revisions.most_common(1)
    return tuple(recording for recording in recordings if recording.manifest["git_revision"] == most)


@cache
def quiet_series() -> tuple[np.ndarray[Any, np.dtype[np.float64]], ...]:
    """TTFT in ms of the quiet phase of every recording, in the order in which they were taken."""
    found = []
    for recording in of_one_source():
        stretch = read_stretches(recording)[0]
        assert stretch.phase == "baseline"
        ended = [row for row in rows(recording, "load-result") if row.get("end_unix_ns", stretch.end_unix_ns) < stretch.end_unix_ns]
        samples = [row["ttft_ms"] for row in raw_samples([stretch], ended) if row["error_rate"] == 0]
        found.append((stretch.begin_unix_ns, np.array(samples)))
    return tuple(series for _, series in sorted(found, key=lambda each: each[0]))


@dataclass(frozen=True)
class Comparison:
    """Runs of both sides, between which nothing was changed."""

    candidate: Sequence[Run]
    baseline: Sequence[Run]

    def slower(self, factor: float) -> Comparison:
        """The same with every TTFT of the candidate that many times as long."""
        return Comparison([Run(run.ttft_ms * factor, begin_unix_ns=run.begin_unix_ns) for run in self.candidate], self.baseline)


def fault_splits() -> Iterator[tuple[str, Comparison]]:
    """By scenario and severity, every way to deal the requests of its recordings' faults to two sides of as many runs."""
    runs: dict[str, list[Run]] = {}
    for recording in of_one_source():
        faults = [stretch for stretch in read_stretches(recording) if stretch.phase == "fault"]
        if faults:
            samples = [row["ttft_ms"] for row in raw_samples(faults, rows(recording, "load-result")) if row["error_rate"] < 1]
            name = f"{recording.manifest['scenario']}, {recording.manifest['severity']}"
            runs.setdefault(name, []).append(Run(np.array(samples), begin_unix_ns=faults[0].begin_unix_ns))
    for name, mine in runs.items():
        for picked in combinations(range(len(mine)), len(mine) // 2):
            yield name, Comparison([mine[i] for i in picked], [each for i, each in enumerate(mine) if i not in picked])


def draw(runs: int, requests: int, taken_in_turns: bool, rng: np.random.Generator) -> Comparison:
    """Neighbouring runs from a random place, dealt to the sides by a coin for each pair, or for all."""
    series = quiet_series()
    begin = int(rng.integers(0, len(series) - 2 * runs + 1))
    sides: tuple[list[Run], list[Run]] = ([], [])
    coin = bool(rng.random() < 0.5)
    for place in range(2 * runs):
        if taken_in_turns and place % 2 == 0:
            coin = bool(rng.random() < 0.5)
        first = place % 2 == 0 if taken_in_turns else place < runs
        values = series[begin + place]
        at = int(rng.integers(0, values.size - requests + 1))
        sides[first == coin].append(Run(values[at : at + requests], begin_unix_ns=place + 1))
    return Comparison(*sides)


def verdicts(comparison: Comparison, seed: int) -> tuple[bool, ...]:
    """Whether each of the rules fails it."""
    pooled = Limits(min_runs=1)
    found = regression_check("", comparison.candidate, comparison.baseline, Limits(), np.random.default_rng(seed))
    assert found.answer != "inconclusive", found.reason
    both = ([Run(np.concatenate([run.ttft_ms for run in runs]))] for runs in (comparison.candidate, comparison.baseline))
    p = found.figures["mann_whitney_p"]
    assert isinstance(p, float)
    return p < 0.05, regression_check("", *both, pooled, np.random.default_rng(seed)).answer == "fail", found.answer == "fail"


def count(runs: int, requests: int, taken_in_turns: bool, comparisons: int, seed: int) -> dict[str, tuple[int, int]]:
    """By rule: false alarms, and rises that were found, of so many comparisons."""
    rng = np.random.default_rng(seed)
    alarms, finds = np.zeros(len(RULES), int), np.zeros(len(RULES), int)
    for number in range(comparisons):
        comparison = draw(runs, requests, taken_in_turns, rng)
        alarms += verdicts(comparison, number)
        finds += verdicts(comparison.slower(RISE), number)
    return {rule: (int(a), int(b)) for rule, a, b in zip(RULES, alarms, finds, strict=True)}
