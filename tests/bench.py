"""Speed, as ratios against named peers in the same run: `make bench`.

Times on a shared machine are noisy; ratios of CPU times measured in turns hold. Each row names what was measured, its peer,
the ratio (median of the rounds, with the least and the most), and the limit that the project set itself. Exit 1 when a
limit is passed.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

# The directory of this file comes first otherwise, and its libslo/ and tools/ would be taken for the packages.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_table import machine, table, write_page

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SAMPLES = 200_000
FAULT_SAMPLES = 100_000
ATTRIBUTOR_S = 1.5
M5GATE_S = 5.0
ROUNDS = 5
ROWS: list[tuple[str, ...]] = []


def cpu_of_child(arguments: list[str]) -> float:
    """User and system seconds of one child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cpu_of(work: Callable[[], object]) -> float:
    """User and system seconds of a call in this process."""
    before = time.process_time()
    work()
    return time.process_time() - before


def report(name: str, peer: str, ours: list[float], theirs: list[float], unit: str, limit: float | None) -> bool:
    """One row; False when the median ratio passes the limit."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    kept = limit is None or ratio <= limit
    verdict = ""
    scale, digits = {"s": (1, 3), "ms": (1e3, 1), "ns": (1e9, 1)}[unit]
    if limit is not None:
        verdict = f"at most {limit:.1f}: {'kept' if kept else 'PASSED'}"
    us, them = (f"{statistics.median(times) * scale:.{digits}f} {unit}" for times in (ours, theirs))
    spread = f"[{min(ratios):.2f}, {max(ratios):.2f}] n={len(ratios)}"
    print(f"{name:34} {us:>10}   {peer:46} {them:>10}   ratio {ratio:5.2f} {spread}  {verdict}", flush=True)
    ROWS.append((name, us, peer, them, f"{ratio:.2f} {spread}", verdict))
    return kept


def write_table(path: Path) -> None:
    """The rows as a Markdown page, with the command that makes it and the machine it ran on."""
    write_page(
        path,
        [
            "# Speed\n",
            "`make bench-table` wrote this page. Median of the rounds; CPU seconds of the whole process for the collector, wall clock for",
            "`--help`, best of three for the ring. Ratios hold between machines better than times do.\n",
            machine() + "\n",
            *table(("what", "ours", "peer", "peer's", "ratio [least, most]", "limit"), ROWS),
        ],
    )


def bench_collector(folder: Path) -> bool:
    """The whole collector process on 200,000 raw-samples against bare orjson on the same lines."""
    import numpy as np
    import orjson

    from libslo.scenarios import load_scenario
    from libslo.synthetic import SyntheticSettings, synthetic_records

    drawn = synthetic_records(SyntheticSettings(load_scenario("baseline"), 2000), np.random.default_rng(1))
    samples = [record for record in drawn if "ttft_ms" in record]
    source, target = folder / "raw.jsonl", folder / "events.jsonl"
    with source.open("wb") as file:
        for part in range(SAMPLES // len(samples)):
            file.writelines(orjson.dumps({**s, "request_id": f"{s['request_id']}-{part}"}) + b"\n" for s in samples)
    run = [str(BIN / "collector"), "-q", "--input", str(source), "--out"]
    subprocess.run([*run, str(target)], check=True)
    lines = source.read_bytes().splitlines()
    events = [orjson.loads(line) for line in target.read_bytes().splitlines()]
    assert len(lines) == SAMPLES and len(events) == 4 * SAMPLES, (len(lines), len(events))

    def bare() -> None:
        for line in lines:
            orjson.loads(line)
        for event in events:
            orjson.dumps(event)

    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(cpu_of_child([*run, os.devnull]))
        theirs.append(cpu_of(bare))
    return report("collector, 200k samples -> 800k", "orjson: decode the input, encode the output", ours, theirs, "s", 3.0)


def bench_attributor(folder: Path) -> bool:
    """The whole attributor process on 100,000 fault-samples of faults in sequence against bare orjson on the same lines."""
    import orjson

    source, drawn = folder / "samples.jsonl", folder / "drawn.jsonl"
    subprocess.run(
        [str(BIN / "faultreplay"), "-q", "--scenario", "mixed", "--count", "10000", "--window-s", "2", "--out", str(drawn)], check=True
    )
    values = [orjson.loads(line) for line in drawn.read_bytes().splitlines()]
    assert len(values) > 500
    lines = [orjson.dumps({**values[i % len(values)], "service": f"rag-{i // len(values)}"}) for i in range(FAULT_SAMPLES)]
    source.write_bytes(b"\n".join(lines) + b"\n")
    run = [str(BIN / "attributor"), "-q", "--input", str(source), "--out", os.devnull]
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(cpu_of_child(run))
        theirs.append(cpu_of(lambda: [orjson.dumps(orjson.loads(line)) for line in lines]))
    kept = statistics.median(ours) <= ATTRIBUTOR_S
    print(f"attributor: at most {ATTRIBUTOR_S:g} s: {'kept' if kept else 'PASSED'}")
    return report("attributor, 100k fault-samples", "orjson: decode and encode the same lines", ours, theirs, "s", 3.0) and kept


def bench_m5gate(folder: Path) -> bool:
    """The whole m5gate process on two sides of 7 scenarios x 10 runs x 2,000 samples against bare orjson on the same lines."""
    import numpy as np
    import orjson

    rng = np.random.default_rng(1)
    about = {"cluster": "c", "namespace": "n", "workload": "w", "service": "s", "error_rate": 0, "timestamp": "2026-01-01T00:00:00Z"}
    rest = about | {"request_latency_ms": 650.5, "token_throughput_tps": 60.0}
    runs = [folder / side / f"scenario-{s}" / f"run-{r}" for side in ("candidate", "baseline") for s in range(7) for r in range(1, 11)]
    for run in runs:
        run.mkdir(parents=True)
        samples = ({**rest, "request_id": f"r{i}", "ttft_ms": ttft} for i, ttft in enumerate(rng.lognormal(5.7, 0.05, 2000).tolist()))
        (run / "raw_samples.jsonl").write_bytes(b"".join(orjson.dumps(sample) + b"\n" for sample in samples))
        (run / "collector_overhead.csv").write_text("node_cpu_pct\n" + "1.5\n" * 60)
    lines = [line for run in runs for line in (run / "raw_samples.jsonl").read_bytes().splitlines()]
    assert len(lines) == 280_000
    command = [str(BIN / "m5gate"), "-q", "--candidate-root", str(folder / "candidate"), "--baseline-root", str(folder / "baseline")]
    ours = [cpu_of_child([*command, "--out", os.devnull]) for _ in range(ROUNDS)]
    theirs = [cpu_of(lambda: [orjson.loads(line) for line in lines]) for _ in range(ROUNDS)]
    kept = statistics.median(ours) <= M5GATE_S
    print(f"m5gate: at most {M5GATE_S:g} s: {'kept' if kept else 'PASSED'}")
    return report("m5gate, 2 x 7 x 10 x 2,000 samples", "orjson: decode the samples", ours, theirs, "s", None) and kept


def bench_bootstrap() -> bool:
    """1,000 resamples of the p95 of 10 runs x 2,000 values against drawing them, by scipy (pooled) and in a loop over numpy."""
    import numpy as np
    from scipy.stats import bootstrap

    from libslo.statistics import resampled_quantiles

    rng = np.random.default_rng(1)
    runs = [rng.lognormal(5.7, 0.05, 2000) for _ in range(10)]
    pooled = np.concatenate(runs)

    def p95(values: object, axis: int = -1) -> object:
        return np.quantile(values, 0.95, axis=axis)

    def loop() -> None:
        for _ in range(1000):
            for run in rng.integers(0, 10, 10):
                np.quantile(rng.choice(runs[run], 2000), 0.95)

    ours, scipys, loops = [], [], []
    for _ in range(ROUNDS):
        ours.append(cpu_of(lambda: resampled_quantiles(runs, 0.95, 1000, rng)))
        scipys.append(cpu_of(lambda: bootstrap((pooled,), p95, n_resamples=1000, batch=100, method="percentile")))
        loops.append(cpu_of(loop))
    kept = report("p95 of 20,000, 1,000 resamples", "scipy.stats.bootstrap, pooled", ours, scipys, "ms", 1.0)
    return report("p95 of 20,000, 1,000 resamples", "numpy: a loop over runs", ours, loops, "ms", 1.0) and kept


def bench_help() -> bool:
    """--help of every tool against `import click`, wall clock, in turns."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    kept = True
    for tool in scripts:
        ours, theirs = [], []
        for _ in range(15):
            for times, arguments in ((ours, [str(BIN / tool), "--help"]), (theirs, [sys.executable, "-c", "import click"])):
                begin = time.perf_counter()
                subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
                times.append(time.perf_counter() - begin)
        kept &= report(f"{tool} --help", 'python -c "import click"', ours, theirs, "ms", 2.0)
    return kept


def bench_ring() -> bool:
    """Draining the ring buffer against a bare copy of the same bytes and against a loop in C (no limit: it is one core's small change)."""
    from libslo.kernel.benchmark import ring_drain_ns_per_event

    rounds = [ring_drain_ns_per_event(runs=3) for _ in range(ROUNDS)]
    drained = [each.drain_ns * 1e-9 for each in rounds]
    report("ring drain, per event", "numpy: bare copy of the same bytes", drained, [each.copy_ns * 1e-9 for each in rounds], "ns", None)
    in_c = [each.c_ns * 1e-9 for each in rounds if each.c_ns]
    if len(in_c) == len(rounds):
        report("ring drain, per event", "C: libbpf-style loop, one memcpy a record", drained, in_c, "ns", None)
    else:
        print("ring drain: no C compiler, so no C consumer to compare with")
    return True


def main() -> int:
    """Run all; 1 when a limit is passed."""
    with tempfile.TemporaryDirectory() as folder:
        kept = bench_collector(Path(folder)) & bench_attributor(Path(folder)) & bench_m5gate(Path(folder))
    kept &= bench_bootstrap()
    kept &= bench_help()
    kept &= bench_ring()
    if "--table" in sys.argv:
        write_table(Path(sys.argv[sys.argv.index("--table") + 1]))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
