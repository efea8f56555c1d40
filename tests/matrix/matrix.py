"""Boot the guests, try everything there and on this machine, write the results and the page about them.

Usage: matrix.py [--kernels 6.1,6.12,host] [--lockdown none,integrity,confidentiality] [--sets all,needed,tracing,none,no_btf] [--quick]
                 [--results FILE --page FILE]

--quick: two levels of lockdown and three sets, written below artifacts/ and compared with the results that are kept.
Exit status 1: a cell that was measured in the kept results is not any more, or a run went wrong.
3: under SLO_REQUIRE_MATRIX=1 something was skipped.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import guest
from compatibility import lost, page, unsound
from guest_kernels import SUITES, guest_kernel
from workloads import BY_SIGNAL

from libslo.errors import SloError
from libslo.kernel.catalogue import known_signals
from libslo.kernel.probes import DEFAULT_BTF

ROOT = Path(__file__).resolve().parents[2]
KEPT, PAGE = ROOT / "testdata" / "kernel-matrix.jsonl", ROOT / "docs" / "compatibility.md"
RUNNER = Path(__file__).with_name("matrix_runner.py")
QUICK = {"lockdown": "none,confidentiality", "sets": "all,needed,no_btf"}
TIMEOUT_S = 900


def host_obstacle() -> str:
    """Why this machine's own kernel cannot be tried, or an empty string."""
    if os.geteuid() != 0:
        return "not root"
    return "" if DEFAULT_BTF.is_file() else f"no BTF at {DEFAULT_BTF}: the objects are not compiled"


def try_machine(version: str, options: argparse.Namespace, artifacts: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is to be said about one kernel, and its results; one that cannot be tried here is `skipped`, one that went wrong `failed`."""
    arguments = ["--sets", options.sets, *(["--signals", options.signals] if options.signals else [])]
    machine: dict[str, Any] = {"version": version}
    if version == "host":
        machine["kernel"] = os.uname().release
        if found := host_obstacle():
            return machine | {"skipped": found}, []
        kernel = None
    else:
        try:
            guest.require()
            kernel = guest_kernel(version)
        except SloError as error:
            return machine | {"skipped": f"{error} (try: {error.hint})" if error.hint else str(error)}, []
        machine |= {"kernel": kernel.release, "package": kernel.package.replace("_", " ")}
    log = artifacts / f"kernel-matrix-{version}.log"
    with tempfile.TemporaryDirectory() as place, log.open("w") as console:
        out = Path(place) / "results.jsonl"
        try:
            if kernel is None:
                command = [sys.executable, str(RUNNER), "--out", str(out), *arguments]
                status = subprocess.run(command, stdout=console, stderr=console, check=False, timeout=TIMEOUT_S).returncode
            else:
                command = ["python", str(RUNNER), "--out", "/out/results.jsonl", "--lockdown", options.lockdown, *arguments]
                status = guest.run_in_guest(kernel, command, cpus=1, timeout_s=TIMEOUT_S, keep=Path(place), console=console.fileno())
        except (SloError, TimeoutError, subprocess.SubprocessError) as error:
            return machine | {"failed": f"{error}; see {log}"}, []
        if status or not out.is_file():
            return machine | {"failed": f"the run ended with status {status}; see {log}"}, []
        return machine, [{"version": version, **json.loads(line)} for line in out.read_text().splitlines()]


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run and the rows of a results file."""
    run, *rows = map(json.loads, path.read_text().splitlines())
    return run, rows


def write(path: Path, run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (run, *rows)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default=",".join([*SUITES, "host"]))
    parser.add_argument("--lockdown", default=",".join(guest.LOCKDOWN))
    parser.add_argument("--sets", default="all,needed,tracing,none,no_btf")
    parser.add_argument("--signals", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--render", action="store_true", help="only write the page of the kept results")
    options = parser.parse_args()
    if options.render:
        PAGE.write_text(page(*read(KEPT)))
        return 0
    if options.quick:
        options.lockdown, options.sets = QUICK["lockdown"], QUICK["sets"]
    artifacts = ROOT / "artifacts"
    artifacts.mkdir(exist_ok=True)
    results = options.results or (artifacts / "kernel-matrix.jsonl" if options.quick else KEPT)
    to = options.page or (artifacts / "compatibility.md" if options.quick else PAGE)
    versions = options.kernels.split(",")
    begun = time.monotonic()
    found = {}
    if "host" in versions:  # by itself: it tells milliseconds apart, and the guests would be in its way
        found["host"] = try_machine("host", options, artifacts)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # one virtual CPU each
        waiting = {version: pool.submit(try_machine, version, options, artifacts) for version in versions if version != "host"}
        found |= {version: future.result() for version, future in waiting.items()}
    machines, rows = [found[version][0] for version in versions], [row for version in versions for row in found[version][1]]
    run = {
        "made": time.strftime("%Y-%m-%d", time.gmtime()), "machines": machines,
        "workloads": {name: BY_SIGNAL[name].what if name in BY_SIGNAL else "No workload" for name in known_signals()},
    }  # fmt: skip
    worse = []
    # On a machine's own kernel tests/kernel judge: they know what a machine lacks, such as a disk, or a program with OpenSSL that runs.
    judged = [row for row in rows if not options.quick or row["version"] != "host"]
    if options.quick and KEPT.is_file():
        kept, before = read(KEPT)
        then = {machine["version"]: machine.get("kernel", "") for machine in kept["machines"]}
        worse = lost(
            before, judged, {machine["version"]: (then.get(machine["version"], ""), machine.get("kernel", "")) for machine in machines}
        )
    write(results, run, rows)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(page(run, rows))
    counts = {word: sum(row["result"] == word for row in rows) for word in dict.fromkeys(row["result"] for row in rows)}
    print(f"kernel-matrix: {counts} in {time.monotonic() - begun:.0f} s; {results}, {to}")
    skipped = [f"{machine['version']}: {machine['skipped']}" for machine in machines if "skipped" in machine]
    for line in skipped:
        print(f"kernel-matrix: skipped {line}", file=sys.stderr)
    for line in worse:
        print(f"kernel-matrix: was measured, is not: {line}", file=sys.stderr)
    wrong = unsound(judged)
    for line in wrong:
        print(f"kernel-matrix: not as it was: {line}", file=sys.stderr)
    failed = [f"{machine['version']}: {machine['failed']}" for machine in machines if "failed" in machine]
    for line in failed:
        print(f"kernel-matrix: failed {line}", file=sys.stderr)
    if worse or wrong or failed:
        return 1
    return 3 if skipped and os.environ.get("SLO_REQUIRE_MATRIX") == "1" else 0


if __name__ == "__main__":
    sys.exit(main())
