"""Faults of a cgroup: too small a CPU quota, memory at its limit, neighbours that want the same CPUs.

Limits are remembered as they were and written back as they were. Processes of ours carry a tag in their environment by which
they are found again, and die with the thread that started them.
"""

from __future__ import annotations

import math
import os
import secrets
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from libslo.errors import CannotError, InputError
from libslo.host import process_cpu_s
from libslo.lab.faults.base import Injector
from libslo.lab.faults.pressure import free_bytes, pressing_way
from libslo.lab.faults.undo import INJECTION_TAG, tagged_pids, write_limit
from libslo.lab.topology import bound_to_me, importable

__all__ = ["CpuQuota", "MemoryLimit", "NoisyNeighbour", "read_limit"]

_MB = 1_000_000
_LEAST_QUOTA_US = 1000  # min_cfs_quota_period of kernel/sched/core.c
_ROOM = 1.25  # of what the pressing processes may write
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ENTER = 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"'
_START_S = 20.0
_TOOK_S = 5.0
_GUARD_S = 0.05


def read_limit(path: Path) -> str:
    """The content of a file of a cgroup; CannotError with place and reason when it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CannotError(f"cannot read the limit: {error.strerror}", source=str(path), hint="see whether the cgroup has gone") from error


def _counts(path: Path) -> dict[str, int]:
    """Lines of a name and a number, as in cpu.stat."""
    return {name: int(value) for name, value in (line.split() for line in read_limit(path).splitlines())}


class CgroupFault(Injector):
    """What the faults of a cgroup share."""

    controller = "cpu"
    tag = ""

    @property
    def directory(self) -> Path:
        """The target's directory in the hierarchy of the fault's controller."""
        place = self.target.cgroups.get(self.controller)
        if place is None:
            raise CannotError(
                f"the target has no cgroup with the {self.controller} controller", hint=f"cgroup:PATH names one that has {self.controller}"
            )
        return place[0]

    def key(self) -> str:
        """The directory, which a pid and a path may both have named."""
        return str(self.directory)

    def check(self) -> None:
        """The target must have the controller, or there must be one at all."""
        super().check()
        read_limit(self.directory / "cgroup.procs")

    def before(self) -> None:
        """A cgroup without a process would make a fault that nobody feels."""
        if not any(read_limit(path) for path in [self.directory / "cgroup.procs", *self.directory.glob("**/cgroup.procs")]):
            raise CannotError("no process is in the cgroup", source=str(self.directory), hint="name the cgroup of a running service")

    def write_step(self, name: str, value: str) -> dict[str, Any]:
        """A step of the record that gives a file its value back."""
        return {"do": "write", "path": str(self.directory / name), "inode": self.directory.stat().st_ino, "value": value}

    def kill_step(self) -> dict[str, Any]:
        """A step of the record that ends the processes of this injection."""
        self.tag = f"{INJECTION_TAG}={secrets.token_hex(8)}"
        return {"do": "kill", "tag": self.tag}

    def check_limit(self, name: str, wanted: str) -> None:
        """CannotError when the file says something else than was written."""
        found = read_limit(self.directory / name)
        if found != wanted:
            place = str(self.directory / name)
            raise CannotError(
                f"{self.fault} did not take: wrote {wanted}, found {found}", source=place, hint="see who else manages this cgroup"
            )

    def start(self, command: Sequence[str], into: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process of this injection, inside a cgroup if given. To be called from the thread that lasts as long as the fault."""
        if into is not None:
            command = ["sh", "-c", _ENTER, "pressure", str(into), *command]
        name, _, value = self.tag.partition("=")
        env = {**os.environ, **importable(), name: value}
        return subprocess.Popen(bound_to_me(command), env=env, start_new_session=True, stderr=subprocess.DEVNULL, **options)


class CpuQuota(CgroupFault):
    """cpu_quota: `cpus` CPUs in every period of `period_ms`; cpu.max on cgroup v2, cpu.cfs_quota_us on v1."""

    _throttled = 0

    def put_on(self) -> None:
        """By self.mechanism."""
        quota, period = self._asked()
        self._throttled = self._throttled_periods()
        if self.mechanism == "cpu.max":
            self.remember([self.write_step("cpu.max", read_limit(self.directory / "cpu.max"))])
            write_limit(self.directory / "cpu.max", f"{quota} {period}")
            return
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        old_quota, old_period = (read_limit(self.directory / name) for name in names)
        # without a quota in between: the kernel checks each write against the parent's share
        self.remember([self.write_step(names[0], "-1"), self.write_step(names[1], old_period), self.write_step(names[0], old_quota)])
        for name, value in ((names[0], "-1"), (names[1], str(period)), (names[0], str(quota))):
            write_limit(self.directory / name, value)

    def verify(self) -> dict[str, float]:
        """The quota that the kernel has now, in CPUs, and the periods in which somebody had to wait since it came."""
        quota, period = self._asked()
        if self.mechanism == "cpu.max":
            self.check_limit("cpu.max", f"{quota} {period}")
        else:
            self.check_limit("cpu.cfs_quota_us", str(quota))
            self.check_limit("cpu.cfs_period_us", str(period))
        return {"cpus": round(quota / period, 4), "throttled_periods": self._throttled_periods() - self._throttled}

    def _asked(self) -> tuple[int, int]:
        period = round(self.number("period_ms") * 1000)
        quota = round(self.number("cpus") * period)
        if quota < _LEAST_QUOTA_US:
            fact = f"cpu_quota: {quota / 1000:g} ms in a period of {period / 1000:g} ms is less than the kernel takes, 1 ms"
            raise InputError(fact, hint="a longer period_ms, or more cpus")
        return quota, period

    def _throttled_periods(self) -> int:
        return _counts(self.directory / "cpu.stat").get("nr_throttled", 0)


class MemoryLimit(CgroupFault):
    """memory_limit: so much memory as is in use now and `headroom_mb` more, while a process of ours in the cgroup reads files.

    The limit is raised when what cannot be given back comes near it: the service must be slowed down, not killed.
    """

    controller = "memory"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limit_bytes = 0
        self._hits = 0
        self._seen_hits = 0  # when it was verified last: a fault that lasts goes on meeting its limit
        self._kills = 0
        self._raised = 0
        self._presser: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._guard: threading.Thread | None = None
        self._writing = threading.Lock()

    @property
    def _file(self) -> str:
        return self.mechanism

    def put_on(self) -> None:
        """By self.mechanism: the pressing process first, for its own memory counts, then the limit, then it reads."""
        old = read_limit(self.directory / self._file)
        self.remember([self.kill_step(), self.write_step(self._file, old)])
        if self.number("pressure_mb") > 0:
            self._start_presser()
        self._hits, self._kills = self._limit_hits(), self._oom_kills()
        self._seen_hits = self._hits
        wanted = self._usage_bytes() + self.number("headroom_mb") * _MB
        if old.isdigit() and int(old) <= wanted:
            raise CannotError(
                f"the cgroup has a limit of {int(old) / _MB:.0f} MB, which is less",
                source=str(self.directory),
                hint="a smaller headroom_mb",
            )
        self._set(wanted)
        if self._presser and self._presser.stdin:
            self._presser.stdin.close()
        self._stop.clear()  # set when a first mechanism was taken back
        self._guard = threading.Thread(target=self._watch, name="memory-guard", daemon=True)
        self._guard.start()

    def verify(self) -> dict[str, float]:
        """The limit, how often an allocation met it since it came, and how often it had to be raised to spare the service."""
        if self._presser and self._presser.poll() is not None:
            raise CannotError(
                "memory_limit went off: the process that pressed has ended", source=str(self.directory), hint="dmesg says why"
            )
        if self.number("pressure_mb") > self.number("headroom_mb"):
            deadline_s = time.monotonic() + _TOOK_S
            while self._limit_hits() == self._seen_hits:
                if time.monotonic() > deadline_s or (self._presser and self._presser.poll() is not None):
                    raise CannotError(
                        "memory_limit did not take: the cgroup does not meet its limit",
                        source=str(self.directory),
                        hint="a larger pressure_mb",
                    )
                time.sleep(0.02)
        with self._writing:
            self.check_limit(self._file, str(self._limit_bytes))
        self._seen_hits = self._limit_hits()
        hits = self._seen_hits - self._hits
        kills = self._oom_kills() - self._kills  # of the pressing processes first: then less presses than was asked
        return {"limit_mb": round(self._limit_bytes / _MB, 1), "limit_hits": hits, "limit_raised": self._raised, "oom_kills": kills}

    def stop_renewing(self) -> None:
        """The guard must not write the limit again."""
        self._stop.set()
        if self._guard:
            self._guard.join()
            self._guard = None

    def let_go(self) -> None:
        """Reap the process that was ended by the undo record."""
        if self._presser:
            self._presser.kill()
            self._presser.wait()
            for pipe in (self._presser.stdin, self._presser.stdout):
                if pipe:
                    pipe.close()
            self._presser = None

    def _start_presser(self) -> None:
        numbers = [f"{self.number(name):g}" for name in ("pressure_mb", "readers", "writers")]
        way, needed = pressing_way(), self.number("writers") * self.number("pressure_mb") * _MB
        if way == "files" and (free := free_bytes()) < _ROOM * needed:
            fact = f"memory_limit may write {needed / 1e9:.1f} GB, and there is room for {free / 1e9:.1f}"
            raise CannotError(fact, source="/var/tmp", hint="free some space, or fewer writers")  # noqa: S108
        command = [sys.executable, "-m", "libslo.lab.faults.pressure", way, *numbers]
        self._presser = self.start(command, self.directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._presser.stdout is not None  # noqa: S101 (started with a pipe)
        with selectors.DefaultSelector() as selector:
            selector.register(self._presser.stdout, selectors.EVENT_READ)
            ready = selector.select(_START_S)
        if not ready or self._presser.stdout.readline() != b"ready\n":
            hint = "the cgroup must take processes, and /var/tmp files"
            raise CannotError("the process that presses the memory did not come up", source=str(self.directory), hint=hint)

    def _set(self, limit_bytes: float) -> None:
        with self._writing:
            self._limit_bytes = int(limit_bytes) // _PAGE_BYTES * _PAGE_BYTES  # as the kernel rounds it
            write_limit(self.directory / self._file, str(self._limit_bytes))

    def _watch(self) -> None:
        """Keep half the headroom, at most 8 MB, between what cannot be given back and the limit."""
        spare = min(self.number("headroom_mb") / 2, 8) * _MB
        while not self._stop.wait(_GUARD_S):
            try:
                needed = self._unreclaimable_bytes() + spare
                if needed > self._limit_bytes:
                    self._raised += 1
                    self._set(needed + spare)
            except (CannotError, ValueError):
                return  # the cgroup has gone

    def _usage_bytes(self) -> int:
        return int(read_limit(self.directory / ("memory.current" if self.mechanism == "memory.max" else "memory.usage_in_bytes")))

    def _unreclaimable_bytes(self) -> int:
        stat = _counts(self.directory / "memory.stat")
        return (
            self._usage_bytes()
            - stat.get("total_inactive_file", stat.get("inactive_file", 0))
            - stat.get("total_active_file", stat.get("active_file", 0))
        )

    def _limit_hits(self) -> int:
        if self.mechanism == "memory.max":
            return _counts(self.directory / "memory.events")["max"]
        return int(read_limit(self.directory / "memory.failcnt"))

    def _oom_kills(self) -> int:
        name = "memory.events" if self.mechanism == "memory.max" else "memory.oom_control"
        return _counts(self.directory / name).get("oom_kill", 0)


class NoisyNeighbour(CgroupFault):
    """noisy_neighbour: `workers` busy processes for each CPU that the target's processes may use, outside its cgroup."""

    _process: subprocess.Popen[bytes] | None = None
    _used_s: Mapping[int, float] = {}

    def put_on(self) -> None:
        """With stress-ng, on the target's CPUs."""
        self.remember([self.kill_step()])
        cpus = self._cpus()
        workers = round(self.number("workers") * len(cpus))
        taskset = ",".join(map(str, sorted(cpus)))
        # --keep-name: a new name would be written over the environment, and with it over the tag
        command = ["stress-ng", "--keep-name", "--cpu", str(workers), "--taskset", taskset, "--quiet", "--temp-path", "/var/tmp"]  # noqa: S108
        self._process = self.start(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            # Where sessions are scheduled as groups (sched_autogroup), all of them together would weigh as much as one process.
            nice = -round(math.log(self.number("workers"), 1.25))  # a step of nice is a quarter of weight: kernel/sched/core.c
            Path(f"/proc/{self._process.pid}/autogroup").write_text(str(max(-20, nice)))
        except OSError:
            pass  # they are not scheduled so, and weigh what they weigh

    def verify(self) -> dict[str, float]:
        """How many CPUs the neighbours got for a moment."""
        deadline_s = time.monotonic() + _TOOK_S
        while time.monotonic() < deadline_s:
            before_s, began_s = self._cpu_s(), time.monotonic()
            time.sleep(0.4)
            used = (self._cpu_s() - before_s) / (time.monotonic() - began_s)
            if used > 0.1:
                return {"neighbour_cpus": round(used, 2), "workers": len(tagged_pids(self.tag)) - 1}
        raise CannotError("noisy_neighbour did not take: the neighbours use no CPU", hint="run stress-ng --cpu 1 and see what it says")

    def let_go(self) -> None:
        """Reap the process that was ended by the undo record."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _cpus(self) -> set[int]:
        for pid in read_limit(self.directory / "cgroup.procs").split():
            try:
                return os.sched_getaffinity(int(pid))
            except ProcessLookupError:
                continue
        return os.sched_getaffinity(0)

    def _cpu_s(self) -> float:
        return sum(process_cpu_s(pid) or 0.0 for pid in tagged_pids(self.tag))
