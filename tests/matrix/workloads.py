"""Known workloads, one a group of signals: what happened is known before the probes are asked.

The programs are those of tests/kernel. Each is started before the probes attach, so that its pid can be asked for, and waits for a word.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KERNEL_TESTS = Path(__file__).resolve().parents[1] / "kernel"
sys.path.insert(0, str(KERNEL_TESTS))

from kernel_harness import ControlGroup, Namespace, finish, first_line, script, server, tell  # noqa: E402
from taskstats import delay_accounting, reclaim_delay  # noqa: E402

from libslo.kernel.polled import parse_cpu_times  # noqa: E402

N = 23  # of everything that can be counted
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """seen and known: how many events, or units, there were and should be. right: count and values are as they should be."""

    seen: int
    known: int
    right: bool
    detail: str
    unit: str = ""


class Lab:
    """What lasts for a whole run: a network namespace with its servers, a directory on a disk, a cgroup with little memory."""

    def __init__(self, stack: contextlib.ExitStack, place: Path) -> None:
        self.place = place
        self.namespace = Namespace()
        stack.callback(self.namespace.close)
        self.namespace.run("ip", "link", "set", "lo", "mtu", "1500")
        self.authority = place / "authority.pem"
        here = os.path.relpath(Path(__file__).parent, KERNEL_TESTS)
        for program, *arguments in (("dns_server.py",), ("tcp_server.py", 8080), (f"{here}/tls_server.py", 8443, self.authority)):
            stack.enter_context(server(self.namespace, str(program), *arguments))
        # The delays of tasks are counted from their start on, where the switch exists (since 5.14).
        stack.enter_context(delay_accounting())


@dataclass(slots=True)
class Workload:
    """One program that waits for a word. `start` gives the pids to ask for, `run` says what happened, `judge` compares."""

    lab: Lab
    stack: contextlib.ExitStack
    told: Any = None
    pids: tuple[int, ...] = ()
    process: Any = None
    more: dict[str, Any] = field(default_factory=dict)

    signals = ()
    what = ""

    def start(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        raise NotImplementedError

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        raise NotImplementedError

    def client(self, name: str, *, plan: Any = None, arguments: Sequence[object] = ()) -> subprocess.Popen[str]:
        """A traffic program inside the namespace that has said `ready`."""
        process = self.lab.namespace.start(name, *arguments)

        def end() -> None:
            process.kill()
            process.communicate()

        self.stack.callback(end)
        assert process.stdin is not None
        if plan is not None:
            process.stdin.write(json.dumps(plan) + "\n")
            process.stdin.flush()
        assert first_line(process) == "ready"
        self.pids += (process.pid,)
        return process


class Dns(Workload):
    signals = ("dns_latency_ms",)
    asked_ms = 20
    what = f"{N} queries over UDP (IPv4 connected, IPv6 not connected) to a name server that answers after {asked_ms} ms"

    def start(self) -> None:
        def queries(first: int, count: int) -> list[dict[str, Any]]:
            return [{"txid": first + index, "name": f"d{self.asked_ms}.test", "qtype": 1} for index in range(count)]

        plan = [
            {"family": 4, "connected": True, "server": "127.0.0.1", "queries": queries(100, 12), "together": False},
            {"family": 6, "connected": False, "server": "::1", "queries": queries(200, N - 12), "together": True},
        ]
        self.process = self.client("dns_client.py", plan=[plan, 10, 0])

    def run(self) -> None:
        self.told = [(entry["got_ns"] - entry["sent_ns"]) / 1e6 for entry in finish(self.process, "go")]
        assert len(self.told) == N and min(self.told) > 0

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        values = [event["value"] for event in events]
        right = len(values) == N and all(0.99 * self.asked_ms <= value <= max(self.told) + 1 for value in values)
        return Verdict(
            len(values), N, right, f"{middle(values)} where {self.asked_ms} ms were asked for and the client saw {middle(self.told)}"
        )


class Connects(Workload):
    signals = ("connect_latency_ms", "connect_errors_total")
    what = f"{N} non-blocking connects that succeed and {N} that are refused"

    def start(self) -> None:
        plan = [{"host": "127.0.0.1", "port": port} for port in (8080, 9) for _ in range(N)]
        self.process = self.client("tcp_client.py", plan=plan)

    def run(self) -> None:
        results = finish(self.process, "go")
        self.told = [result["elapsed_ms"] for result in results if not result["errno"]]
        assert len(self.told) == N and len(results) == 2 * N

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        if signal == "connect_errors_total":
            refused = sum(event.get("errno") == errno.ECONNREFUSED for event in events)
            return Verdict(len(events), N, len(events) == refused == N, f"{refused} with errno {errno.ECONNREFUSED} (ECONNREFUSED)")
        values = [event["value"] for event in events]
        right = len(values) == N and all(0 < value <= max(self.told) for value in values)
        return Verdict(len(values), N, right, f"{middle(values)}, the client saw {middle(self.told)}")


class Retransmits(Workload):
    signals = ("tcp_retransmits_total",)
    ports = frozenset((80, 8080))
    what = f"{N} connects whose first SYN is dropped, and 1 MB sent with every 20th packet dropped; known: the kernel's own RetransSegs"

    def start(self) -> None:
        plan = [{"host": "127.0.0.9", "port": 80, "give_up_s": 1.6} for _ in range(N)]
        plan += [{"host": "127.0.0.1", "port": 8080, "send_bytes": 1_000_000}]
        self.process = self.client("tcp_client.py", plan=plan)
        # The kernel's counter has both ends in it, and who listens is not known to everybody (it takes CAP_SYS_PTRACE).
        self.pids = ()

    def run(self) -> None:
        rules = (
            ("-d", "127.0.0.9", "-j", "DROP"),
            ("-p", "tcp", "--dport", "8080", "-m", "statistic", "--mode", "nth", "--every", "20", "--packet", "7", "-j", "DROP"),
        )
        for rule in rules:
            self.lab.namespace.run("iptables", "-A", "INPUT", *rule)
        before = self.lab.namespace.tcp_counter("RetransSegs")
        finish(self.process, "go")
        self.lab.namespace.run("iptables", "-F", "INPUT")
        time.sleep(0.5)  # what is still unacknowledged is sent again now
        self.told = self.lab.namespace.tcp_counter("RetransSegs") - before
        assert self.told > N

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        ends = [{event["conn_tuple"]["src_port"], event["conn_tuple"]["dst_port"]} for event in events]
        mine = [event for event, ports in zip(events, ends, strict=True) if ports & self.ports]
        segments = round(sum(event["value"] for event in mine))
        return Verdict(segments, self.told, segments == self.told, f"in {len(mine)} events", "segments")


class Reclaim(Workload):
    signals = ("mem_reclaim_latency_ms",)
    what = "a file of 48 MiB read in a cgroup that may hold 12 MiB; known: the kernel's delay accounting of the reader"

    def start(self) -> None:
        path = self.lab.place / "pages"
        if not path.exists():
            path.write_bytes(bytes(48 << 20))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        group = self.stack.enter_context(ControlGroup("memory"))
        group.set(("memory.limit_in_bytes", 12 << 20), ("memory.max", 12 << 20))
        self.process = self.stack.enter_context(script("mem_reader.py", path))
        group.take(self.process.pid)
        self.pids = (self.process.pid,)

    def run(self) -> None:
        tell(self.process)
        told = json.loads(first_line(self.process))
        self.told = *reclaim_delay(self.process.pid), (told["ended_ns"] - told["begun_ns"]) / 1e6

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        count, delay_ns, elapsed_ms = self.told
        total_ms = sum(event["value"] for event in events)
        # The kernel counts a reclaim again when it found nothing and starts over (do_try_to_free_pages(), retry). Its two clock readings
        # are enclosed by the probes, and each probe by those of the other sets that hang at the same place: that much longer may it be.
        counted = 10 < len(events) <= count <= len(events) + 10
        right = counted and delay_ns / 1e6 <= total_ms <= min(1.5 * delay_ns / 1e6 + 5, elapsed_ms)
        return Verdict(len(events), count, right, f"{total_ms:.1f} ms in all, {delay_ns / 1e6:.1f} ms by the kernel's account")


class RunQueue(Workload):
    signals = ("runqueue_delay_ms",)
    what = "two busy loops on one CPU for a second; known: run_delay of their schedstat"

    def start(self) -> None:
        cpu = max(os.sched_getaffinity(0))
        self.process = [self.stack.enter_context(script("cpu_worker.py", "busy", 1, cpu)) for _ in range(2)]
        self.pids = tuple(process.pid for process in self.process)

    def run(self) -> None:
        for process in self.process:
            tell(process)
        self.told = [json.loads(first_line(process)) for process in self.process]

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        begun, ended = min(each["begun_ns"] for each in self.told), max(each["ended_ns"] for each in self.told)
        waits = [event["value"] for event in events if begun <= event["ts_unix_nano"] <= ended]
        known = sum(each["run_delay_ms"] for each in self.told)
        right = len(waits) > N and abs(sum(waits) - known) <= 0.1 * known + 50
        return Verdict(round(sum(waits)), round(known), right, f"waited, in {len(waits)} events", "ms")


class Throttled(Workload):
    signals = ("cfs_throttled_ms",)
    what = "a busy loop with a fifth of a CPU for two seconds; known: cpu.stat of its cgroup"

    def start(self) -> None:
        self.more["group"] = group = self.stack.enter_context(ControlGroup("cpu"))
        group.set(("cpu.cfs_quota_us", 20_000), ("cpu.max", "20000 100000"))
        self.process = self.stack.enter_context(script("cpu_worker.py", "busy", 2))
        group.take(self.process.pid)
        self.pids = (self.process.pid,)

    def run(self) -> None:
        before = self.more["group"].throttled_ms()
        tell(self.process)
        first_line(self.process)
        time.sleep(1.3)  # readings are taken once a second, and a period is counted when it is over
        self.told = self.more["group"].throttled_ms() - before

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        total = sum(event["value"] for event in events)
        right = bool(events) and abs(total - self.told) <= 0.1 * self.told + 200
        return Verdict(round(total), round(self.told), right, f"held back, in {len(events)} events", "ms")


class Steal(Workload):
    signals = ("cpu_steal_pct",)
    what = "three seconds of whatever the machine does; known: /proc/stat over the same time"
    of_the_node = True  # it belongs to no process

    def start(self) -> None:
        self.pids = ()

    def run(self) -> None:
        before = parse_cpu_times(Path("/proc/stat").read_text())
        begun_ns = time.time_ns()
        time.sleep(3.2)
        after = parse_cpu_times(Path("/proc/stat").read_text())
        self.told = begun_ns, time.time_ns(), 100 * (after[0] - before[0]) / (after[1] - before[1])

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        begun, ended, share = self.told
        values = [event["value"] for event in events if begun <= event["ts_unix_nano"] <= ended]
        found = statistics.fmean(values) if values else 0.0
        right = len(values) >= 2 and abs(found - share) <= 2
        detail = f"{found:.1f} % stolen where /proc/stat says {share:.1f} %"
        return Verdict(len(values), len(values) if right else 3, right, detail, "readings")


class Disk(Workload):
    signals = ("disk_io_latency_ms",)
    what = f"{N} direct reads of a file on a block device"

    def start(self) -> None:
        path = self.lab.place / "blocks"
        if not path.exists():
            path.write_bytes(os.urandom(1 << 20))
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self.process = self.stack.enter_context(script("disk_user.py", path, N, 0))
        self.pids = (self.process.pid,)

    def run(self) -> None:
        tell(self.process)
        self.told = [(ended - begun) / 1e6 for _, begun, ended in json.loads(first_line(self.process))]

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        values = [event["value"] for event in events]
        right = len(values) == N and all(0 < value <= max(self.told) for value in values)
        return Verdict(len(values), N, right, f"{middle(values)}, the reader saw {middle(self.told)}")


class Syscalls(Workload):
    signals = ("syscall_latency_ms",)
    asked_ms = 20
    what = f"{N} reads from a pipe that has something to read after {asked_ms} ms; shorter calls are not counted"

    def start(self) -> None:
        self.process = self.stack.enter_context(script("../matrix/pipe_reader.py", N, self.asked_ms))
        self.pids = (self.process.pid,)

    def run(self) -> None:
        tell(self.process)
        self.told = json.loads(first_line(self.process))

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        values = [event["value"] for event in events if event["value"] >= self.asked_ms / 2]
        waits = [value for value in values if value <= max(self.told)]  # the thread that answers sleeps, and waits for the word to begin
        right = len(waits) >= N and abs(statistics.median(waits) - statistics.median(self.told)) <= 2
        return Verdict(min(len(waits), N), N, right, f"{middle(waits)}, the reader saw {middle(self.told)}")


class Tls(Workload):
    signals = ("tls_handshake_ms", "tls_handshake_fail_total")
    what = f"{N} TLS handshakes that succeed and {N} that the client breaks off because it does not trust the server"

    def start(self) -> None:
        here = os.path.relpath(Path(__file__).parent, KERNEL_TESTS)
        self.process = self.client(f"{here}/tls_client.py", arguments=(8443, self.lab.authority, N, N))

    def run(self) -> None:
        self.told = finish(self.process, "go")

    def judge(self, signal: str, events: Sequence[Event]) -> Verdict:
        if signal == "tls_handshake_fail_total":
            return Verdict(len(events), N, len(events) == N, "failures")
        values = [event["value"] for event in events]
        right = len(values) == N and all(0 < value <= max(self.told) + 2 for value in values)
        return Verdict(len(values), N, right, f"{middle(values)}, the client saw {middle(self.told)}")


WORKLOADS: tuple[type[Workload], ...] = (Dns, Connects, Retransmits, Reclaim, RunQueue, Throttled, Steal, Disk, Syscalls, Tls)
BY_SIGNAL: dict[str, type[Workload]] = {name: kind for kind in WORKLOADS for name in kind.signals}


def middle(values: Sequence[float]) -> str:
    """A median for people."""
    return f"median {statistics.median(values):.2f} ms" if values else "no value"


def start_all(
    lab: Lab, stack: contextlib.ExitStack, signals: Sequence[str], note: Callable[[str], None]
) -> dict[type[Workload], Workload | str]:
    """Every workload that a signal asks for, waiting; or why one could not be started."""
    started: dict[type[Workload], Workload | str] = {}
    for kind in WORKLOADS:
        if not set(kind.signals) & set(signals):
            continue
        workload = kind(lab, stack)
        try:
            workload.start()
            started[kind] = workload
        except (OSError, AssertionError, subprocess.SubprocessError) as error:
            started[kind] = f"{type(error).__name__}: {error}"
            note(f"{kind.__name__}: {started[kind]}")
    return started
