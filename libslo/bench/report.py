"""What a bundle says to people: the same figures as its summary, in the order in which they are asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libslo.bench.document import Block, Figure, Heading, Paragraph, Table
from libslo.bench.material import Material
from libslo.bench.tables import FEWEST_RUNS
from libslo.evaluation import confusion

__all__ = ["TITLE", "report_blocks", "share_text", "value_text"]

TITLE = "Attribution benchmark"
NONE = "–"  # noqa: RUF001 (an empty cell)
_HEADLINES = (
    ("accuracy", "accuracy (one fault)"),
    ("macro_f1", "macro-F1 (one fault)"),
    ("partial", "partial: an actual domain was said"),
    ("coverage", "coverage: actual domains at posterior 0.10 or more"),
    ("exact_set", "exact set of domains"),
    ("jaccard", "Jaccard of domains"),
    ("abstained", "abstained though there was a domain"),
    ("false_accusations", "accused without a fault"),
    ("brier", "Brier score (lower is better)"),
)


def report_blocks(
    material: Material, summary: Mapping[str, Any], provenance: Mapping[str, Any], drawings: Mapping[str, str]
) -> list[Block]:
    """The report. drawings: SVG by name, see libslo.bench.plots."""
    return [
        *_opening(material, summary),
        *_answers(summary),
        *_domains(material, summary, drawings),
        *_calibration(summary, drawings),
        *_detection(summary, drawings),
        *_overhead(material, summary),
        *_timelines(material, drawings),
        *_wrong(material),
        *_provenance(provenance),
    ]


def share_text(figure: Mapping[str, Any]) -> str:
    """A share as 0.950 [0.901, 0.976]."""
    low, high = figure["wilson95"]
    return NONE if figure["share"] is None else f"{figure['share']:.3f} [{low:.3f}, {high:.3f}]"


def value_text(figure: Mapping[str, Any], digits: int = 3) -> str:
    """An estimate as 0.950 [0.901, 0.976]."""
    low, high = figure["bootstrap95"]
    return NONE if figure["value"] is None else f"{figure['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _text(figure: Mapping[str, Any]) -> str:
    return share_text(figure) if "wilson95" in figure else value_text(figure)


def _opening(material: Material, summary: Mapping[str, Any]) -> Iterator[Block]:
    faults = sum(count for name, count in summary["class_balance"].items() if name != "none")
    kind = "all of them synthetic" if summary["synthetic"] == summary["predictions"] else "from recordings of real faults"
    if 0 < summary["synthetic"] < summary["predictions"]:
        kind = f"{summary['synthetic']} of them synthetic"
    yield Paragraph(
        f"{_count(summary['predictions'], 'case')} in {_count(summary['runs'], 'run')}, {kind}: {faults} with a fault, "
        f"{summary['class_balance'].get('none', 0)} without. "
        "In brackets: 95 % intervals, Wilson's for shares, bootstrap otherwise."
    )
    if summary["exploratory"]:
        yield Paragraph(f"EXPLORATORY: of at least one domain there are fewer than {FEWEST_RUNS} runs. These figures prove little.")
    for reason, count in material.left_out.items():
        if count:
            yield Paragraph(f"Left out: {count} {reason.replace('_', ' ')}.")


def _answers(summary: Mapping[str, Any]) -> Iterator[Block]:
    yield Heading("How right the answers are")
    others = [summary["baselines"]["always_majority"], summary["baselines"]["largest_z"]]
    rows = [
        (name, str(summary[key]["n"]), _text(summary[key]), *(_text(other[key]) for other in others))
        for key, name in _HEADLINES
        if summary[key]["n"]
    ]
    yield Table(("figure", "n", "attributor", "always the most frequent", "the largest change"), tuple(rows))
    if summary["multi_fault"]:
        yield Paragraph("Several faults at once:")
        keys = [(key, name) for key, name in _HEADLINES if key in ("partial", "coverage", "exact_set", "jaccard", "abstained")]
        pairs = [(name, str(summary["multi_fault"][key]["n"]), _text(summary["multi_fault"][key])) for key, name in keys]
        yield Table(("figure", "n", "attributor"), tuple(pairs))


def _domains(material: Material, summary: Mapping[str, Any], drawings: Mapping[str, str]) -> Iterator[Block]:
    yield Heading("By domain")
    rows = [
        (
            row["domain"],
            str(row["support"]),
            str(summary["runs_per_domain"].get(row["domain"], 0)),
            *(_ratio(row[key]) for key in ("precision", "recall", "f1")),
        )
        for row in summary["domains"]
    ]
    yield Table(("domain", "cases", "runs", "precision", "recall", "F1"), tuple(rows))
    yield Figure(drawings["confusion"], "Rows: what was true, with the number of cases. Columns: what was said.")
    yield Table(("was true", "said", "cases"), tuple((a, p, str(count)) for a, p, count in confusion(material.predictions)), left=2)


def _calibration(summary: Mapping[str, Any], drawings: Mapping[str, str]) -> Iterator[Block]:
    yield Heading("Can the probabilities be trusted?")
    found = summary["calibration"]
    if found["ece"]["n"]:
        low, high = found["ece_of_perfect95"]
        verdict = "inside" if found["ece_inside"] else "OUTSIDE"
        yield Paragraph(
            f"Calibration error (ECE) {value_text(found['ece'])}, {verdict} of what a perfectly calibrated one would show at this n: "
            f"{low:.3f} to {high:.3f}. Brier {value_text(summary['brier'])}; always the majority {_brier(summary, 'always_majority')}, "
            f"the shares of the domains {_ratio(found['brier_class_shares'])}."
        )
    table = [
        (f"{row['low']:.1f} to {row['high']:.1f}", str(row["n"]), _ratio(row["mean_confidence"]), share_text(row))
        for row in found["reliability"]
        if row["n"]
    ]
    yield Table(("confidence", "answers", "mean confidence", "share right"), tuple(table))
    yield Figure(drawings["reliability"], "Dots on the dashed line: a confidence of 0.8 is right in 80 % of the cases.")
    kept = [(name, str(row["n"]), _ratio(row["threshold"]), share_text(row)) for name, row in summary["at_coverage"].items() if row]
    yield Table(("kept, the surest first", "answers", "confidence from", "share right"), tuple(kept))
    yield Figure(drawings["risk-coverage"], "What is right when only the surest answers are listened to.")


def _brier(summary: Mapping[str, Any], baseline: str) -> str:
    return _ratio(summary["baselines"][baseline]["brier"]["value"])


def _detection(summary: Mapping[str, Any], drawings: Mapping[str, str]) -> Iterator[Block]:
    yield Heading("Detection")
    found = summary["detection"]
    if found["injections"] or found["alarmed_windows"]["n"]:
        yield Paragraph(
            f"{found['injections']} injections, of which {found['moved_no_sli']} moved no indicator. Of those that did, missed: "
            f"{found['missed']['right']} of {found['missed']['n']}, {share_text(found['missed'])}; noticed twice: {found['duplicates']}. "
            f"False alarms: {found['false_alarms']} in {found['no_fault_s'] or 0:.0f} s without a fault, in "
            f"{found['alarmed_windows']['right']} of {found['alarmed_windows']['n']} windows, {share_text(found['alarmed_windows'])}."
        )
    yield Paragraph(f"Delay from the fault's begin, median: {value_text(summary['delay_s'], 2)} s, n = {summary['delay_s']['n']}.")
    yield Figure(drawings["delay"], "One dot a case; of very many, some.")


def _overhead(material: Material, summary: Mapping[str, Any]) -> Iterator[Block]:
    yield Heading("What the tools cost")
    if material.no_overhead:
        yield Paragraph(f"Not measured: {material.no_overhead}.")
        return
    rows = [
        (
            tool,
            str(row["node_cpu_pct"]["n"]),
            value_text(row["node_cpu_pct"], 2),
            f"{row['node_cpu_pct_p95']:.2f}",
            f"{row['rss_bytes_max'] / 1e6:.1f}",
        )
        for tool, row in summary["overhead"].items()
    ]
    yield Table(("tool", "runs", "CPU, % of the node", "95th percentile of the samples", "most memory, MB"), tuple(rows))


def _timelines(material: Material, drawings: Mapping[str, str]) -> Iterator[Block]:
    if material.timelines:
        yield Heading("One incident of each domain")
    for timeline in material.timelines:
        yield Figure(drawings[f"timeline-{timeline.domain}"], timeline.case)


def _wrong(material: Material) -> Iterator[Block]:
    wrong = [
        (
            each.prediction.case,
            each.severity or NONE,
            "+".join(each.prediction.actual) or "none",
            each.prediction.predicted,
            f"{each.prediction.confidence:.2f}",
        )
        for each in material.answers
        if not (
            each.prediction.predicted in each.prediction.actual or (not each.prediction.actual and each.prediction.predicted == "unknown")
        )
    ]
    yield Heading(f"Wrong answers: {len(wrong)}")
    if wrong:
        yield Table(("case", "severity", "was true", "said", "confidence"), tuple(wrong), left=4)


def _provenance(provenance: Mapping[str, Any]) -> Iterator[Block]:
    yield Heading("Provenance")
    rows = [(key, text) for key, text in _flat(provenance) if not key.startswith("datasets.")]
    yield Table(("fact", "value"), tuple(rows), left=2)
    yield Paragraph(f"The hash of {_count(len(provenance['datasets']), 'data set')} is in provenance.json.")


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, each in value.items():
        if isinstance(each, Mapping):
            yield from _flat(each, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, each)) if isinstance(each, Sequence) and not isinstance(each, str) else str(each)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
