"""Where a baseline comes from, and whether it is another source than the candidate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from libslo.gates.answers import Check

__all__ = ["baseline_check", "report_only", "same_source"]

_GATE = "baseline"
Manifest = Mapping[str, Any]


def baseline_check(baseline: Manifest | None, candidate: Manifest | None, changed: Sequence[str], *, required: bool) -> Check | None:
    """Whether the baseline is what its manifest says; None when there is no manifest and none is required.

    changed: files that are not as the manifest has them.
    """
    if baseline is None:
        return Check(_GATE, "", "manifest", "fail", "the baseline has no manifest, and one is required") if required else None
    figures = {"source_ref": baseline.get("source_ref"), "source_commit": baseline["source_commit"]}
    figures |= {"candidate_commit": candidate["source_commit"] if candidate else None}
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return Check(_GATE, "", "manifest", "fail", f"not what the manifest says: {changed[0]}{more}", figures)
    commit = str(baseline["source_commit"])
    if commit == "unknown" or commit.endswith("-dirty"):
        return Check(_GATE, "", "manifest", "inconclusive", f"its source cannot be had again: {commit}", figures)
    differs = [name for name in ("machine", "kernel") if candidate and candidate[name] != baseline[name]]
    if differs:
        return Check(_GATE, "", "manifest", "inconclusive", f"measured on another {' and '.join(differs)} than the candidate", figures)
    source = " ".join(str(each) for each in (baseline.get("source_ref"), commit) if each)
    same = ", the candidate's own" if same_source(baseline, candidate) else ""
    return Check(_GATE, "", "manifest", "pass", f"source {source}{same}", figures)


def same_source(baseline: Manifest | None, candidate: Manifest | None) -> bool:
    """Whether both were measured of one unchanged commit."""
    if baseline is None or candidate is None:
        return False
    commit = str(baseline["source_commit"])
    return commit == candidate["source_commit"] and commit != "unknown" and not commit.endswith("-dirty")


def report_only(check: Check) -> Check:
    """A comparison of a source with itself: what would have failed is reported, and does not fail."""
    if check.answer != "fail":
        return check
    return Check(check.gate, check.scenario, check.subject, "pass", f"same source on both sides, not failed: {check.reason}", check.figures)
