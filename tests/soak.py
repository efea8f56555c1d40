"""The agent under mixed load for a while: `make soak` (SECONDS=… to shorten). Needs root.

Exit 1 when something grew, an account did not close, an event was lost on the way out, or something was left behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

# The directory of this file comes first otherwise, and its libslo/ and tools/ would be taken for the packages.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click

from libslo.errors import CannotError
from libslo.lab.netns import find_netns, netns_inode, netns_of
from libslo.lab.run import tool_path
from libslo.lab.topology import bound_to_me, cgroup2_root, importable
from libslo.statistics import theil_sen_slope

TREND_MB = 1.0  # what the fitted line may rise over the second half of a whole run,
GROWTH_MB = 3.0  # and what its last samples may lie above its first ones
MORE_FDS, MORE_THREADS = 2, 2  # a scrape under way when the sample was taken
SHORT_S = 120.0  # a run below this says nothing of a trend: the agent's tables are still filling
# Short-lived cgroups, of two processes each: in half of ten minutes more than the agent remembers (8192 processes, 4096 owners of
# cgroups, 16384 paths of cgroups), so that its tables are full when memory is judged.
LIVES_PER_S = 60.0
_EDGE = 5  # samples at each end of the second half
_TABLE = "{:28}  {:4}  {}"


@dataclass(frozen=True)
class Sample:
    """The agent's process at one moment."""

    at_s: float
    rss_bytes: int
    fds: int
    threads: int


@dataclass(frozen=True)
class Check:
    """One line of the verdict. kept None: not judged."""

    name: str
    kept: bool | None
    fact: str


@dataclass
class Observed:
    """Everything that a run left to judge. events: lines that the agent wrote. left: what is still there."""

    samples: list[Sample] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    events: int = 0
    scrapes: int = 0
    exit_code: int = 0
    held: int = 0  # maps, programs and links of the agent
    left: list[str] = field(default_factory=list)
    did: dict[str, int] = field(default_factory=dict)


def judge_memory(samples: Sequence[Sample]) -> Check:
    """RSS is flat when neither a robust line through the second half nor its ends rise."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return Check("RSS flat", False, "less than four samples")
    mb = [sample.rss_bytes / 1e6 for sample in half]
    lasts_s = half[-1].at_s - half[0].at_s
    trend = theil_sen_slope([sample.at_s for sample in half], mb) * lasts_s
    growth = statistics.median(mb[-_EDGE:]) - statistics.median(mb[:_EDGE])
    limits = f"trend {trend:+.2f} MB (<= {TREND_MB:g}), growth {growth:+.2f} MB (<= {GROWTH_MB:g})"
    fact = f"{mb[-1]:.1f} MB; over the last {lasts_s:.0f} s {limits}"
    if samples[-1].at_s - samples[0].at_s < SHORT_S:
        return Check("RSS flat", None if growth <= GROWTH_MB else False, fact + f"; not judged below {SHORT_S:g} s")
    return Check("RSS flat", trend <= TREND_MB and growth <= GROWTH_MB, fact)


def judge_count(name: str, counts: Sequence[int], more: int) -> Check:
    """A count is flat when the second half never lies more than `more` above what the first half reached."""
    middle = len(counts) // 2
    first, second = max(counts[:middle], default=0), max(counts[middle:], default=0)
    return Check(f"{name} flat", bool(counts) and second <= first + more, f"at most {first}, then {second}")


def judge_accounts(reports: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Every report closes; the last one is final, and everything emitted was drained."""
    wrong = [
        f"{entry['signal']} in report {number}"
        for number, report in enumerate(reports, 1)
        for entry in report["signals"]
        if entry["account"]["attempts"] != sum(entry["account"][name] for name in ("emitted", "filtered", "rate_limited", "dropped"))
    ]
    last = reports[-1] if reports else {"signals": [], "final": False}
    undrained = [entry["signal"] for entry in last["signals"] if entry["drained"] != entry["account"]["emitted"]]
    fates = ("attempts", "emitted", "filtered", "rate_limited", "dropped")
    totals = " ".join(f"{name} {sum(entry['account'][name] for entry in last['signals']):,}" for name in fates)
    missing = [entry["signal"] for entry in last["signals"] if not entry["attached"]]
    return [
        Check("every signal attached", not missing and bool(reports), ", ".join(missing) or f"{len(last['signals'])} signals"),
        Check("account closes", not wrong and bool(reports), f"{len(reports)} reports; {', '.join(wrong[:5]) or 'all close'}"),
        Check("drained == emitted", bool(last["final"]) and not undrained, ", ".join(undrained) or totals),
    ]


def verdict(seen: Observed) -> list[Check]:
    """All checks of a run."""
    drained = sum(entry["drained"] for entry in seen.reports[-1]["signals"]) if seen.reports else -1
    return [
        judge_memory(seen.samples),
        judge_count("file descriptors", [sample.fds for sample in seen.samples], MORE_FDS),
        judge_count("threads", [sample.threads for sample in seen.samples], MORE_THREADS),
        *judge_accounts(seen.reports),
        Check("written == drained", seen.events == drained, f"{seen.events:,} lines, {drained:,} drained"),
        Check("metrics answered", seen.scrapes > 0, f"{seen.scrapes} scrapes"),
        Check("ended well", seen.exit_code == 0, f"exit {seen.exit_code}"),
        Check(
            "nothing left behind",
            seen.held > 0 and not seen.left,
            ", ".join(seen.left[:8]) or f"none of {seen.held} maps, programs and links; no cgroup, namespace or process",
        ),
    ]


def table(checks: Sequence[Check]) -> str:
    """The verdict for people."""
    words = {True: "ok", False: "NO", None: "-"}
    return "\n".join(_TABLE.format(check.name, words[check.kept], check.fact) for check in checks)


class _Counter(threading.Thread):
    """Counts the lines of a pipe."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._pipe, self.lines = pipe, 0

    def run(self) -> None:
        for block in iter(lambda: self._pipe.read1(1 << 16), b""):  # type: ignore[attr-defined]
            self.lines += block.count(b"\n")


def sample(pid: int, since_s: float) -> Sample:
    """Read a process."""
    proc = Path(f"/proc/{pid}")
    words = [line.split() for line in (proc / "status").read_text().splitlines()]
    status = {each[0].rstrip(":"): each[1] for each in words if len(each) > 1}
    return Sample(time.monotonic() - since_s, int(status["VmRSS"]) * 1024, len(list((proc / "fd").iterdir())), int(status["Threads"]))


def kernel_objects(pid: int) -> set[tuple[str, int]]:
    """("map", id) and so on of what a process holds open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = entry.read_text()
        except OSError:
            continue  # closed meanwhile
        fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        found |= {(kind, int(fields[f"{kind}_id"])) for kind in ("map", "prog", "link") if f"{kind}_id" in fields}
    return found


def still_there(objects: set[tuple[str, int]]) -> list[str]:
    """Those that bpftool can still show, after the kernel had time to free them."""
    left: list[str] = []
    for _ in range(20):
        left = []
        for kind, number in sorted(objects):
            shown = subprocess.run(["bpftool", kind, "show", "id", str(number)], capture_output=True, check=False)
            if shown.returncode == 0:
                left.append(f"{kind} {number}")
        if not left:
            break
        time.sleep(0.1)
    return left


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def soak(seconds: float, interval_s: float, directory: Path, *, only_load: bool) -> Observed:
    """Run the agent under load and gather what there is to judge. Raises CannotError when it does not come up."""
    seen = Observed()
    cgroup = cgroup2_root() / f"slo-soak-{os.getpid()}"
    cgroup.mkdir()
    reports, log = directory / "reports.jsonl", directory / "agent.log"
    port = free_port()
    options = [
        "--signal-set", "all", "--min-latency", "0", "--rate-limit", "200", "--signal-rate-limit", "2000", "--max-overhead-pct", "0",
        "--metrics-listen", f"127.0.0.1:{port}", "--report-interval", f"{min(5.0, interval_s):g}", "--report-out", str(reports),
        *(["--cgroup", str(cgroup)] if only_load else []),
    ]  # fmt: skip
    load = subprocess.Popen(
        bound_to_me(["unshare", "--net", sys.executable, str(Path(__file__).with_name("soak_load.py")), str(cgroup), f"{LIVES_PER_S:g}"]),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    agent = None
    try:
        assert load.stdout is not None
        if load.stdout.readline() != "ready\n":
            raise CannotError("the load did not come up", hint="run as root; iproute2 and bash are needed")
        namespace = netns_inode(netns_of(load.pid))
        with log.open("wb") as errors:
            agent = subprocess.Popen(
                bound_to_me([tool_path("agent"), *options]), stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **importable()}
            )
        assert agent.stdout is not None
        counter = _Counter(agent.stdout)
        counter.start()
        objects = _watch(agent.pid, agent, f"http://127.0.0.1:{port}/metrics", reports, seconds, interval_s, seen, log)
        agent.terminate()
        seen.exit_code = agent.wait(30)
        counter.join(10)
        seen.events = counter.lines
        output, _ = load.communicate(timeout=60)
        seen.did = json.loads(output)
    finally:
        for process in (agent, load):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        left = _remove(cgroup)
    seen.reports = [json.loads(line) for line in reports.read_text().splitlines()]
    seen.held = len(objects)
    seen.left = still_there(objects) + left
    if find_netns(namespace):
        seen.left.append(f"network namespace {namespace}")
    return seen


def _remove(cgroup: Path) -> list[str]:
    """Remove the load's cgroup; what was still below it, and itself where that does not go."""
    left = [str(path) for path in cgroup.iterdir() if path.is_dir()]
    for path in [*map(Path, left), cgroup]:
        for _ in range(100):
            try:
                path.rmdir()
                break
            except OSError:  # who was waited for may still be leaving
                time.sleep(0.01)
    return left + ([str(cgroup)] if cgroup.exists() else [])


def _watch(
    pid: int, agent: subprocess.Popen[bytes], url: str, reports: Path, seconds: float, interval_s: float, seen: Observed, log: Path
) -> set[tuple[str, int]]:
    """Take samples until the time is over; what the agent held in the kernel."""
    deadline_s = time.monotonic() + 30
    while not (reports.is_file() and reports.stat().st_size):
        if agent.poll() is not None or time.monotonic() > deadline_s:
            raise CannotError(f"the agent did not come up: {log.read_text(errors='replace').strip()}")
        time.sleep(0.05)
    begun_s = time.monotonic()
    objects: set[tuple[str, int]] = set()
    while time.monotonic() - begun_s < seconds:
        time.sleep(interval_s)
        if agent.poll() is not None:
            raise CannotError(f"the agent ended with {agent.returncode}: {log.read_text(errors='replace').strip()}")
        seen.samples.append(sample(pid, begun_s))
        objects |= kernel_objects(pid)
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own address
            seen.scrapes += response.status == 200 and b"slo" in response.read()
    return objects


@click.command()
@click.option("--seconds", type=click.FloatRange(1), default=600.0, show_default=True, help="How long.")
@click.option("--interval", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Seconds between two samples.")
@click.option("--only-load", is_flag=True, help="Let the agent look at the load only: for a machine on which others work meanwhile.")
def main(seconds: float, interval: float, only_load: bool) -> None:
    """Soak the agent and judge it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is taken down in order
    try:
        if os.geteuid() != 0:
            raise CannotError("not root", hint="sudo make soak")
        with tempfile.TemporaryDirectory() as folder:
            seen = soak(seconds, interval, Path(folder), only_load=only_load)
    except CannotError as error:
        print(f"cannot: {error}", file=sys.stderr)
        sys.exit(3)
    checks = verdict(seen)
    print(f"{seconds:g} s, {len(seen.samples)} samples, load: {', '.join(f'{count:,} {name}' for name, count in seen.did.items())}")
    print(f"whole machine's load average {os.getloadavg()[1]:.1f}; the agent looks at {'the load only' if only_load else 'everything'}")
    print(table(checks))
    print("RSS, MB:", " ".join(f"{each.rss_bytes / 1e6:.1f}" for each in seen.samples[:: max(1, len(seen.samples) // 20)]))
    sys.exit(1 if any(check.kept is False for check in checks) else 0)


if __name__ == "__main__":
    main()
