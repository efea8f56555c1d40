"""The summary of m5gate for machines, for a page, and for a person at a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libslo.gates.answers import Check, worst

__all__ = ["markdown", "summary", "table_lines"]

TITLES = {
    "B5": "B5, what the tools cost",
    "D3": "D3, whether reruns agree",
    "E3": "E3, whether the first token comes later",
    "baseline": "baseline, where it comes from",
}


def summary(checks: Sequence[Check], settings: Mapping[str, Any], sources: Mapping[str, Any]) -> dict[str, Any]:
    """One object: the answer, that of each gate, all checks, what was asked, and what was compared."""
    gates = {gate: worst(check.answer for check in checks if check.gate == gate) for gate in dict.fromkeys(c.gate for c in checks)}
    return {
        "m5gate": worst(gates.values()),
        "gates": gates,
        "checks": [check.as_json() for check in checks],
        "settings": dict(settings),
        "sources": dict(sources),
    }


def table_lines(found: Mapping[str, Any], *, passed: bool = False) -> Iterator[str]:
    """For a terminal: the answer, then each check that did not pass in a line, failures first; passed: those that did instead."""
    if not passed:
        count = sum(row["answer"] == "pass" for row in found["checks"])
        gates = ", ".join(f"{gate} {answer}" for gate, answer in found["gates"].items())
        yield f"{found['m5gate']}: {gates}; {count} of {len(found['checks'])} checks passed"
    for wanted in ("pass",) if passed else ("fail", "inconclusive"):
        for row in found["checks"]:
            if row["answer"] == wanted:
                place = " ".join(each for each in (row["scenario"], row["subject"]) if each)
                yield f"{wanted:12} {row['gate']:8} {place}: {row['reason']}"


def markdown(found: Mapping[str, Any]) -> str:
    """The summary as a page."""
    lines = [f"# m5gate: {found['m5gate']}", ""]
    for name, source in found["sources"].items():
        about = source.get("manifest")
        said = f"{source['root']}, " + (_source(about) if about else "no manifest")
        lines.append(f"- {name}: {said}")
    lines.append("- " + ", ".join(f"{name} {value}" for name, value in found["settings"].items() if value not in (None, [], ())))
    for gate, answer in found["gates"].items():
        lines += ["", f"## {TITLES.get(gate, gate)}: {answer}", "", "| scenario | what | answer | why |", "| --- | --- | --- | --- |"]
        for row in found["checks"]:
            if row["gate"] == gate:
                cells = (row["scenario"] or "all", row["subject"], row["answer"], row["reason"])
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _source(manifest: Mapping[str, Any]) -> str:
    machine = manifest["machine"]
    ref = f" ({manifest['source_ref']})" if "source_ref" in manifest else ""
    return f"source {manifest['source_commit']}{ref}, {machine['cpus']} CPUs {machine['architecture']}, Linux {manifest['kernel']}"
