"""The load generator against its peers, hey and wrk, on plain HTTP over loopback: `make bench-load`.

Same rate, same percentiles: a server whose answers take a known time is asked by each in turn at one rate, round after round. The highest
rate: a server in C on one CPU, the generator alone on another. Exit 3 when a peer or a second CPU is missing.
"""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bench_table import machine, table, write_page

HERE = Path(__file__).resolve().parent
LOADGEN = str(Path(sys.executable).parent / "loadgen")
ROUNDS, SECONDS, WORKERS = 5, 5, 10
PEAK_ROUNDS, PEAK_SECONDS, PEAK_WORKERS = 2, 2, 50
PERCENTILES = (50, 90, 99)
SERVER_CPU, CLIENT_CPU = "0", "1"


def on_client_cpu(*command: str) -> list[str]:
    return ["taskset", "-c", CLIENT_CPU, *command]


@contextmanager
def serving(*command: str) -> Iterator[str]:
    """The URL of a server that prints its port; ended in the end."""
    process = subprocess.Popen(["taskset", "-c", SERVER_CPU, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
    finally:
        process.kill()
        process.wait()


def ran(command: list[str]) -> tuple[str, float]:
    """Its stdout, and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command[3]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loadgen(url: str, rate: float, seconds: float, *more: str) -> dict:
    """Its summary."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "summary.json"
        plan = ["--load", "plain", "--rate", f"{rate:.3f}", "--duration", f"{seconds:g}"]
        files = ["--summary-out", str(out), "--out", os.devnull]
        ran(on_client_cpu(LOADGEN, "-q", *plan, "--protocol", "http", "--url", url, *files, *more))
        return json.loads(out.read_text())


def wrk_percentiles(text: str) -> dict[int, float]:
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    found = {int(p): float(value) * scale[unit] for p, value, unit in re.findall(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s)$", text, re.M)}
    return {p: found[p] for p in PERCENTILES}


def round_at_one_rate(url: str) -> dict[str, tuple[int, dict[int, float]]]:
    """By tool: n and percentiles in ms. wrk has no rate: the others take that which it comes to."""
    text, _ = ran(on_client_cpu("wrk", "-t1", f"-c{WORKERS}", f"-d{SECONDS}s", "--latency", url))
    n = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    found = {"wrk": (n, wrk_percentiles(text))}
    hey = ["-n", str(int(rate * SECONDS) // WORKERS * WORKERS), "-c", str(WORKERS), "-q", f"{rate / WORKERS:.4f}", "-o", "csv"]
    text, _ = ran(on_client_cpu("hey", *hey, url))
    ms = [1e3 * float(row["response-time"]) for row in csv.DictReader(text.splitlines())]
    found["hey"] = (len(ms), {p: float(np.percentile(ms, p)) for p in PERCENTILES})
    summary = loadgen(url, rate, SECONDS, "--keep-alive")
    row = summary["clocks"]["send"]["e2e_ms"]
    found["loadgen"] = (row["n"], {p: row[f"p{p}"] for p in PERCENTILES})
    return found


def spread(values: list[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def same_percentiles() -> list[tuple[str, ...]]:
    """A row a tool, and one with loadgen less hey, round by round."""
    rounds = []
    with serving(sys.executable, str(HERE / "bench_waits.py")) as url:
        for number in range(1, ROUNDS + 1):
            rounds.append(round_at_one_rate(url))
            print(f"round {number}: " + ", ".join(f"{tool} {row}" for tool, row in rounds[-1].items()), flush=True)
    rows = []
    for tool in ("loadgen", "hey", "wrk"):
        n = spread([each[tool][0] for each in rounds], ".0f")
        rows.append((tool, n, *(spread([each[tool][1][p] for each in rounds]) for p in PERCENTILES)))
    for peer in ("hey", "wrk"):
        apart = (spread([each["loadgen"][1][p] - each[peer][1][p] for each in rounds], "+.2f") for p in PERCENTILES)
        rows.append((f"loadgen less {peer}", "", *apart))
    return rows


def loadgen_peak(url: str, *more: str) -> tuple[float, float]:
    """The highest rate it keeps (achieved/offered of at least 0.99, all answered), to 5 %, and the CPU ms a request there.

    A rate is missed when it is missed twice: one stall of the machine must not decide.
    """
    kept, missed, cost = 500.0, 12_000.0, 0.0
    while missed / kept > 1.05:
        rate = (kept * missed) ** 0.5
        tries = (loadgen(url, rate, PEAK_SECONDS, *more) for _ in range(2))
        good = next((each for each in tries if each["valid"] and not each["errors"]), None)
        if good:
            kept, cost = rate, good["generator"]["cpu_ms_per_request"]
        else:
            missed = rate
    return kept, cost


def wrk_peak(url: str, *more: str) -> tuple[float, float]:
    text, cpu_s = ran(on_client_cpu("wrk", "-t1", f"-c{PEAK_WORKERS}", f"-d{PEAK_SECONDS}s", *more, url))
    n = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]), 1e3 * cpu_s / n  # type: ignore[index]


def hey_peak(url: str, *more: str) -> tuple[float, float]:
    text, cpu_s = ran(on_client_cpu("hey", "-cpus", "1", "-z", f"{PEAK_SECONDS}s", "-c", str(PEAK_WORKERS), *more, url))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    return rate, 1e3 * cpu_s / (rate * PEAK_SECONDS)


Peak = Callable[..., tuple[float, float]]
PEAKS: dict[str, tuple[Peak, tuple[str, ...], tuple[str, ...]]] = {  # tool: its function, options to keep connections, and not to
    "loadgen": (loadgen_peak, ("--keep-alive",), ()),
    "hey": (hey_peak, (), ("-disable-keepalive",)),
    "wrk": (wrk_peak, (), ("-H", "Connection: close")),
}


def highest_rates(folder: Path) -> list[tuple[str, ...]]:
    """A row a tool and kind of connection: the rate, CPU ms a request, and loadgen's rate over the tool's, round by round."""
    server = folder / "bench_http"
    subprocess.run(["cc", "-O2", "-o", str(server), str(HERE / "bench_http.c")], check=True)
    rows = []
    with serving(str(server)) as url:
        for kind in ("kept open", "new for each"):
            rounds: list[dict[str, tuple[float, float]]] = []
            for _ in range(PEAK_ROUNDS):
                rounds.append({tool: peak(url, *(kept if kind == "kept open" else new)) for tool, (peak, kept, new) in PEAKS.items()})
                print(f"{kind}: " + ", ".join(f"{tool} {rate:.0f}/s" for tool, (rate, _) in rounds[-1].items()), flush=True)
            for tool in PEAKS:
                rates, costs = ([each[tool][at] for each in rounds] for at in (0, 1))
                ratios = [each["loadgen"][0] / each[tool][0] for each in rounds]
                rows.append((tool, kind, spread(rates, ".0f"), spread(costs, ".3f"), "" if tool == "loadgen" else spread(ratios, ".3f")))
    return rows


def check_ground() -> None:
    """Exit 3 with the cure when something is missing."""
    missing = [program for program in ("hey", "wrk", "taskset", "cc") if shutil.which(program) is None]
    if missing:
        sys.stderr.write(f"bench-load: not installed: {', '.join(missing)}\n  try: apt-get install hey wrk util-linux gcc\n")
        raise SystemExit(3)
    if (os.cpu_count() or 1) < 2:
        sys.stderr.write("bench-load: one CPU for the server and one for the generator are needed\n")
        raise SystemExit(3)


def main() -> int:
    """Run all, print the tables; with --table FILE write the page."""
    check_ground()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        same = same_percentiles()
        peaks = highest_rates(Path(folder))
    same_head = ("tool", "n a round", *(f"p{p} ms" for p in PERCENTILES))
    peaks_head = ("tool", "connections", "requests/s", "CPU ms a request", "loadgen's rate over it")
    lines = [
        "# The load generator beside its peers",
        "",
        "`make bench-load-table` wrote this page. Plain HTTP over loopback, the server on one CPU, the generator on another; median of the",
        "rounds, with the least and the most.",
        "",
        machine() + f" Load average before: {before:.2f}.",
        "",
        "## Same rate, same percentiles",
        "",
        "A server whose answers take a lognormal time (median 20 ms, sigma 0.5).",
        f"{ROUNDS} rounds; in each wrk, hey and loadgen in turn for {SECONDS} s: wrk with {WORKERS} connections as fast as it gets",
        "answers, the others at the rate that it came to. Times from when a request was sent; the last rows are differences within",
        "a round.",
        "",
        *table(same_head, same),
        "",
        "## The highest rate of one CPU",
        "",
        f"A server in C that answers at once. {PEAK_ROUNDS} rounds of {PEAK_SECONDS} s: hey and wrk with {PEAK_WORKERS} connections",
        "as fast as they can; loadgen, whose requests leave by a schedule, at the highest rate (to 5 %) at which achieved/offered",
        "stays at 0.99 and nothing fails in one of two tries. CPU time of the peers' whole processes; of loadgen while it sends,",
        "without Python's start.",
        "",
        *table(peaks_head, peaks),
    ]
    print("\n".join(lines))
    if "--table" in sys.argv:
        write_page(Path(sys.argv[sys.argv.index("--table") + 1]), lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
