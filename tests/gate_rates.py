"""How often m5gate's E3 is wrong on real noise: false alarms, and power at +10 %, beside simpler rules: `make gate-rates`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "libslo")]

import numpy as np  # noqa: E402
from bench_table import machine, table, write_page  # noqa: E402
from gate_noise import RISE, RULES, count, fault_splits, of_one_source, quiet_series  # noqa: E402

from libslo.gates.m5 import Limits, regression_check  # noqa: E402
from libslo.statistics import wilson_interval  # noqa: E402

LAYOUTS = ((3, 10), (5, 6), (3, 30), (3, 60), (10, 60))  # runs of a side, requests of a run


def _share(part: int, n: int) -> str:
    low, high = wilson_interval(part, n)
    return f"{100 * part / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def fault_lines() -> list[str]:
    """What E3 says of two runs a side during the same fault."""
    limits = Limits(min_runs=2, min_samples=20)
    splits, alarms, missed = 0, Counter[str](), Counter[str]()
    faults = set()
    for name, comparison in fault_splits():
        splits += 1
        faults.add(name.split(",")[0])
        for found, each in ((alarms, comparison), (missed, comparison.slower(RISE))):
            fails = regression_check(name, each.candidate, each.baseline, limits, np.random.default_rng(1)).answer == "fail"
            found[name] += fails == (found is alarms)
    return [
        "\n## During faults\n",
        f"Those are rates of quiet phases. The same recordings' faults ({', '.join(sorted(faults))}; no others), the runs of each severity",
        f"dealt to two sides in all {splits} ways (`--min-runs 2 --min-samples 20`, which is less than E3 asks for):",
        f"false alarms {_share(alarms.total(), splits)}{_where(alarms)}; rises by 10 % found {_share(splits - missed.total(), splits)},",
        f"missed{_where(missed)}.",
    ]


def _where(counts: Counter[str]) -> str:
    return " (" + "; ".join(f"{name}: {count}" for name, count in sorted(counts.items()) if count) + ")"


def main() -> int:
    """Write the page; 1 when E3 breaks a bound on runs that were taken in turns."""
    comparisons, seed, lines, kept = 2000, 1, [], True
    for taken_in_turns in (True, False):
        for runs, requests in LAYOUTS:
            for rule, (alarms, finds) in count(runs, requests, taken_in_turns, comparisons, seed).items():
                order = "in turns" if taken_in_turns else "one side after the other"
                lines.append((f"{runs} x {requests}", order, rule, _share(alarms, comparisons), _share(finds, comparisons)))
                print(*lines[-1], sep="   ", flush=True)
                if taken_in_turns and rule == RULES[-1]:
                    kept &= alarms <= 0.01 * comparisons and finds >= 0.9 * comparisons
    revisions = sorted({recording.manifest["git_revision"][:12] for recording in of_one_source()})
    page = [
        "# How often m5gate's E3 is wrong\n",
        f"`make gate-rates` wrote this page. Real noise: TTFT in the quiet phases of {len(quiet_series())} recordings of the laboratory",
        f"({', '.join(revisions)}), resampled as neighbouring runs and blocks of consecutive requests. {comparisons} comparisons a row,",
        f"seed {seed}; 95 % intervals (Wilson) of the draws, which share the recordings; E3 was chosen on them, among others.",
        "Asked: at most 1 % false alarms where runs were taken in turns, at least 90 % power at +10 % with n = 30 (3 x 10, 5 x 6):",
        f"{'kept' if kept else 'NOT KEPT'}.\n",
        machine() + "\n",
        *table(("runs x requests a side", "runs taken", "rule", "false alarms", "power at +10 %"), lines),
        *fault_lines(),
    ]
    write_page(ROOT / "docs" / "m5gate-rates.md", page)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
