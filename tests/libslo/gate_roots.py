"""Benchmark roots for tests: small, with noise that a seed draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from builders import lines, raw_sample


def write_run(directory: Path, ttft_ms: Sequence[float], overhead_pct: Sequence[Any] = (1.0,) * 20, **sample: Any) -> Path:
    """One run of that many answered requests, and a CSV with node_cpu_pct alone."""
    directory.mkdir(parents=True)
    samples = [raw_sample(request_id=f"r{i}", ttft_ms=float(ttft), **sample) for i, ttft in enumerate(ttft_ms)]
    (directory / "raw_samples.jsonl").write_bytes(lines(samples))
    (directory / "collector_overhead.csv").write_text("".join(f"{cell}\n" for cell in ("node_cpu_pct", *overhead_pct)))
    return directory


def write_root(
    root: Path, factor: float = 1.0, *, scenarios: Sequence[str] = ("dns_latency",), runs: int = 3, n: int = 40, seed: int = 1
) -> Path:
    """Runs of some 300 ms times the factor."""
    rng = np.random.default_rng(seed)
    for scenario in scenarios:
        for number in range(1, runs + 1):
            write_run(root / scenario / f"run-{number}", factor * rng.lognormal(math.log(300), 0.05, n))
    return root
