"""Gate a release by measured runs: what the tools cost (B5), whether reruns agree (D3), whether the first token comes later (E3).

Reads benchmark roots, ROOT/SCENARIO/run-N/{raw_samples.jsonl,collector_overhead.csv}; writes one summary as JSON, and as Markdown.
Buffers one scenario at a time. How it decides, and how often it is wrong: ../m5gate.md.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from libslo.cli import FiniteFloat, common_options, make_main, note, seed_option
from libslo.errors import EXIT_NO, EXIT_OK

_TAKEN = (2, 3, 70, 130)  # they have a meaning of their own


def _inconclusive_exit(_: click.Context, parameter: click.Parameter, value: int) -> int:
    if value in _TAKEN:
        raise click.BadParameter(f"{value} means something else already", param=parameter)
    return value


@click.command()
@click.option("--candidate-root", required=True, metavar="DIR", help="Runs of what is to be released.")
@click.option("--baseline-root", metavar="DIR", help="Runs of what it is compared with; without them E3 is inconclusive.")
@click.option("--baseline-manifest", metavar="FILE", help="What the baseline was measured of (default: its manifest.json, if there).")
@click.option("--require-baseline-manifest", is_flag=True, help="A baseline without a manifest fails.")
@click.option("--scenarios", metavar="LIST", help="Only these, for example dns_latency,cpu_throttle (default: all of the candidate).")
@click.option("--gate", "gates", multiple=True, type=click.Choice(["B5", "D3", "E3"]), help="Only this gate (repeatable; default: all).")
@click.option("--overhead-of", multiple=True, metavar="TOOL", help="Count this tool's overhead only (repeatable; default: all tools).")
@click.option("--application-pairs", metavar="FILE", help="B5 also judges these: CSV, a figure with and without the tools a row.")
@click.option("--max-overhead-pct", type=FiniteFloat(min=0), default=3.0, show_default=True, help="B5: of a node's CPU, mean and p95.")
@click.option("--max-variance-pct", type=FiniteFloat(min=0), default=10.0, show_default=True, help="D3: coefficient of variation.")
@click.option("--min-runs", type=click.IntRange(1), default=3, show_default=True, help="D3, E3: runs of each scenario and side.")
@click.option("--ttft-regression-pct", type=FiniteFloat(min=0), default=5.0, show_default=True, help="E3: rise of TTFT p95.")
@click.option("--alpha", type=FiniteFloat(min=0, max=1), default=0.05, show_default=True, help="E3, D3: level of significance.")
@click.option("--bootstrap-iters", type=click.IntRange(100, 20_000), default=1000, show_default=True, help="E3: resamples.")
@click.option("--min-samples", type=click.IntRange(1), default=30, show_default=True, help="E3: answered requests of each side.")
@click.option("--min-cliffs-delta", type=FiniteFloat(min=0, max=1), default=0.147, show_default=True, help="E3: least size of effect.")
@click.option("--out-json", "--out", metavar="FILE", default="-", show_default=True, help="Write the summary here; - is stdout.")
@click.option("--out-md", metavar="FILE", help="Write it as Markdown here.")
@click.option(
    "--inconclusive-exit", type=click.IntRange(0, 125), default=1, show_default=True, metavar="N", callback=_inconclusive_exit,
    help="Exit code when what was measured cannot tell; 0 lets it pass, 4 tells it apart from a failure.",
)  # fmt: skip
@seed_option
@common_options
def command(
    scenarios: str | None,
    gates: tuple[str, ...],
    out_json: str,
    out_md: str | None,
    inconclusive_exit: int,
    seed: int,
    candidate_root: str,
    baseline_root: str | None,
    baseline_manifest: str | None,
    require_baseline_manifest: bool,
    overhead_of: tuple[str, ...],
    application_pairs: str | None,
    **limits: Any,
) -> int:
    """Gate a release by measured runs: pass, fail, or inconclusive.

    B5: mean and p95 of the tools' CPU on each node. D3: TTFT p95, tokens/s p50 and error rate over reruns. E3: TTFT p95 against a
    baseline, run by run. No numbers, nothing and too few never pass. Exit 0 when all gates pass, 1 when one fails, --inconclusive-exit
    otherwise; a closed pipe does not change that.

    \b
    Examples:
      m5gate --candidate-root candidate --baseline-root baseline --out-json m5.json --out-md m5.md
      m5gate --candidate-root candidate --gate B5 --overhead-of agent --inconclusive-exit 4
    """
    from libslo.gates.judge import GATES, GateSettings, judge_roots, write_summary
    from libslo.gates.m5 import Limits
    from libslo.gates.report import table_lines

    if baseline_root is None and (baseline_manifest is not None or require_baseline_manifest):
        raise click.UsageError("a baseline's manifest goes with --baseline-root")
    chosen = tuple(gate for gate in GATES if not gates or gate in gates)
    if application_pairs is not None and "B5" not in chosen:
        raise click.UsageError("--application-pairs goes with gate B5")
    names = [name.strip() for name in (scenarios or "").split(",") if name.strip()]
    settings = GateSettings(
        candidate_root, baseline_root, baseline_manifest, require_baseline_manifest, names, chosen, overhead_of, application_pairs, seed,
        Limits(**limits),
    )  # fmt: skip
    found = judge_roots(settings)
    note("\n  ".join(table_lines(found)))
    note("\n  ".join(["passed", *table_lines(found, passed=True)]), level=1)
    with suppress(BrokenPipeError):  # nobody reads it: the answer stands
        write_summary(found, out_json, out_md)
    return {"pass": EXIT_OK, "fail": EXIT_NO}.get(found["m5gate"], inconclusive_exit)


main = make_main(command, "m5gate")
