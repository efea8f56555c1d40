"""What m5gate does: read both roots, ask each gate, and write the summary."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from libslo.errors import CannotError
from libslo.files import write_file
from libslo.gates.answers import Check
from libslo.gates.m5 import Limits, overhead_checks, pairs_check, regression_check, rerun_checks
from libslo.gates.provenance import baseline_check, report_only, same_source
from libslo.gates.report import markdown, summary
from libslo.gates.roots import MANIFEST, OVERHEAD, SAMPLES, changed_files, find_scenarios, read_manifest, read_pairs, read_runs
from libslo.jsonl import JsonlWriter

__all__ = ["GATES", "GateSettings", "judge_roots", "write_summary"]

GATES = ("B5", "D3", "E3")
_READS = {"B5": {OVERHEAD}, "D3": {SAMPLES}, "E3": {SAMPLES}}


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What to judge, and by what."""

    candidate_root: str
    baseline_root: str | None = None
    baseline_manifest: str | None = None
    require_baseline_manifest: bool = False
    scenarios: Sequence[str] = ()
    gates: Sequence[str] = GATES
    overhead_of: Sequence[str] = ()
    application_pairs: str | None = None
    seed: int = 42
    limits: Limits = field(default_factory=Limits)


def judge_roots(settings: GateSettings) -> dict[str, Any]:
    """The summary: see libslo.gates.report.

    Raises InputError for a root, a line or a cell that is not what it should be, CannotError without scipy.
    """
    if set(settings.gates) != {"B5"} or settings.application_pairs is not None:
        _need_scipy()
    candidate_root = Path(settings.candidate_root)
    scenarios = find_scenarios(candidate_root, settings.scenarios)
    candidate = read_manifest(candidate_root / MANIFEST) if (candidate_root / MANIFEST).exists() else None
    baseline_root = Path(settings.baseline_root) if settings.baseline_root is not None else None
    there = find_scenarios(baseline_root) if baseline_root is not None else []
    gone = [] if settings.scenarios else [name for name in there if name not in scenarios]
    baseline = _baseline_manifest(settings, baseline_root)
    checks: list[Check] = []
    if "E3" in settings.gates and baseline_root is None:
        checks.append(Check("E3", "", "TTFT p95", "inconclusive", "no baseline to compare with"))
    if "E3" in settings.gates:
        checks += [Check("E3", name, "TTFT p95", "inconclusive", "the baseline has it, the candidate has not") for name in gone]
    parts = set().union(*(_READS[gate] for gate in settings.gates))
    for name in scenarios:
        runs = read_runs(candidate_root / name, parts, settings.overhead_of)
        if "B5" in settings.gates:
            checks += overhead_checks(name, runs, settings.limits)
        if "D3" in settings.gates:
            checks += rerun_checks(name, runs, settings.limits)
        if "E3" in settings.gates and baseline_root is not None:
            rng = np.random.default_rng([settings.seed, zlib.crc32(name.encode())])  # whatever other scenarios there are
            check = regression_check(name, runs, read_runs(baseline_root / name, {SAMPLES}), settings.limits, rng)
            checks.append(report_only(check) if same_source(baseline, candidate) else check)
    if settings.application_pairs is not None:
        checks.append(pairs_check(read_pairs(Path(settings.application_pairs)), settings.limits, np.random.default_rng(settings.seed)))
    if "E3" in settings.gates and baseline_root is not None:
        changed = changed_files(baseline_root, baseline, scenarios) if baseline else []
        provenance = baseline_check(baseline, candidate, changed, required=settings.require_baseline_manifest)
        checks += [provenance] if provenance else []
    sources = {"candidate": {"root": str(candidate_root), "manifest": _about(candidate)}}
    if baseline_root is not None:
        sources["baseline"] = {"root": str(baseline_root), "manifest": _about(baseline)}
    order = [*GATES, "baseline"]
    asked = {**asdict(settings.limits), "seed": settings.seed, "overhead_of": list(settings.overhead_of)}
    return summary(sorted(checks, key=lambda check: order.index(check.gate)), asked, sources)


def _need_scipy() -> None:
    try:
        import scipy.stats  # noqa: F401
    except ImportError as error:
        raise CannotError("scipy is not installed", hint="pip install 'llm-slo-ebpf-toolkit[stats]'; gate B5 alone needs none") from error


def _baseline_manifest(settings: GateSettings, root: Path | None) -> dict[str, Any] | None:
    if root is None:
        return None
    if settings.baseline_manifest is not None:
        return read_manifest(Path(settings.baseline_manifest))
    return read_manifest(root / MANIFEST) if (root / MANIFEST).exists() else None


def _about(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a manifest what a reader of the summary wants: not every file."""
    return {key: value for key, value in manifest.items() if key not in ("files", "runs")} if manifest else None


def write_summary(found: dict[str, Any], out_json: str, out_md: str | None) -> None:
    """JSON to a path or stdout, and Markdown to a path when one is named. BrokenPipeError when the reader of stdout has gone."""
    if out_md is not None:
        write_file(out_md, markdown(found).encode())
    with JsonlWriter(out_json) as writer:
        writer.write(found)
