"""The tables of a bundle as CSV, and its summary. Pure. Numbers are written so that reading them gives the same number again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from libslo.bench.material import Material, OverheadRow, TruthRow, runs_per_domain
from libslo.estimates import Share, mean_estimate, median_estimate, rounded
from libslo.evaluation import CLASSES, class_metrics, confusion, summarize

__all__ = ["FEWEST_RUNS", "bundle_summary", "detection_figures", "overhead_figures", "tables"]

FEWEST_RUNS = 10  # of a domain; with fewer a bundle calls itself exploratory


def tables(material: Material) -> dict[str, str]:
    """File name to content."""
    return {
        "incident_predictions.csv": _csv(
            ("case", "run", "scenario", "severity", "synthetic", "actual", "predicted", "confidence", "largest_z", "delay_s", *CLASSES),
            (
                (
                    each.prediction.case,
                    each.run,
                    each.scenario,
                    each.severity,
                    int(each.prediction.synthetic),
                    "+".join(sorted(each.prediction.actual)),
                    each.prediction.predicted,
                    each.prediction.confidence,
                    each.prediction.largest_z,
                    each.prediction.delay_s,
                    *(each.prediction.posteriors.get(domain, 0.0) for domain in CLASSES),
                )
                for each in material.answers
            ),
        ),
        "confusion-matrix.csv": _csv(("actual", "predicted", "count"), confusion(material.predictions)),
        "class_metrics.csv": _csv(
            ("domain", "support", "predicted", "right", "precision", "recall", "f1"),
            (
                (each.domain, each.support, each.predicted, each.right, each.precision, each.recall, each.f1)
                for each in class_metrics(material.predictions)
            ),
        ),
        "detection.csv": _csv(
            ("run", "scenario", "severity", "fault", "begin_unix_nano", "length_s", "moved_sli", "episodes", "delay_s"),
            (
                (t.run, t.scenario, t.severity, t.label, t.begin_unix_ns, t.length_s, int(t.moved_sli), t.episodes, t.delay_s)
                for t in material.truth
            ),
        ),
        "collector_overhead.csv": _csv(
            ("run", "scenario", "tool", "ts_unix_nano", "node_cpu_pct", "rss_bytes"),
            ((o.run, o.scenario, o.tool, o.ts_unix_ns, o.node_cpu_pct, o.rss_bytes) for o in material.overhead),
        ),
    }


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return file.getvalue()


def bundle_summary(material: Material, seed: int) -> dict[str, Any]:
    """What attribution_summary.json holds."""
    rng = np.random.default_rng(seed)
    runs = runs_per_domain(material.answers)
    return {
        "exploratory": not runs or min(runs.values()) < FEWEST_RUNS,
        "runs": len({each.run for each in material.answers} | {each.run for each in material.truth}),
        "runs_per_domain": runs,
        **summarize(material.predictions, rng),
        "detection": detection_figures(material.truth, rng),
        "overhead": overhead_figures(material.overhead, rng),
        "left_out": dict(material.left_out),
    }


def detection_figures(truth: Sequence[TruthRow], rng: np.random.Generator) -> dict[str, Any]:
    """Faults that hurt and were not noticed, stretches without a fault in which something was, and the delay of what was found."""
    hurt = [each for each in truth if each.label and each.moved_sli]
    quiet = [each for each in truth if not each.label]
    return {
        "injections": sum(bool(each.label) for each in truth),
        "moved_no_sli": sum(bool(each.label) and not each.moved_sli for each in truth),
        "missed": Share(sum(each.episodes == 0 for each in hurt), len(hurt)).as_dict(),
        "duplicates": sum(max(each.episodes - 1, 0) for each in truth if each.label),
        "alarmed_windows": Share(sum(each.episodes > 0 for each in quiet), len(quiet)).as_dict(),
        "false_alarms": sum(each.episodes for each in quiet),
        "no_fault_s": rounded(sum(each.length_s for each in quiet)),
        "delay_s": median_estimate([each.delay_s for each in truth if each.delay_s is not None], rng).as_dict(),
    }


def overhead_figures(rows: Sequence[OverheadRow], rng: np.random.Generator) -> dict[str, Any]:
    """By tool: the mean over runs of a run's mean CPU, the 95th percentile of all samples, and the most memory of any."""
    found = {}
    for tool in sorted({each.tool for each in rows}):
        mine = [each for each in rows if each.tool == tool]
        means = [float(np.mean([each.node_cpu_pct for each in mine if each.run == run])) for run in sorted({each.run for each in mine})]
        found[tool] = {
            "node_cpu_pct": mean_estimate(means, rng).as_dict(),
            "node_cpu_pct_p95": rounded(float(np.percentile([each.node_cpu_pct for each in mine], 95))),
            "rss_bytes_max": max(each.rss_bytes for each in mine),
        }
    return found
