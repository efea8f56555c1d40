"""The last resort: a network signal measured by BCC, in a child process of the system's Python.

BCC compiles at start with LLVM and the kernel's headers, and knows nothing of this package: libslo/kernel/bcc_worker.py prints
JSON lines, this module reads them. Filters, thresholds and rate limits are applied here, so what they leave out costs as much.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from libslo.errors import CannotError
from libslo.host import process_cpu_s
from libslo.kernel.account import Account
from libslo.kernel.dns_waits import TokenBuckets
from libslo.kernel.events import EVENT_DTYPE, KINDS
from libslo.kernel.polled import Readings, Targets, never
from libslo.kernel.privileges import missing_capabilities

__all__ = ["BCC_SIGNALS", "SYSTEM_PYTHON", "BccPoller"]

BCC_SIGNALS = {"bcc_udp_send_skb": "dns_latency_ms", "bcc_tcp_retransmit_skb": "tcp_retransmits_total"}
SYSTEM_PYTHON = "/usr/bin/python3"  # the one that distributions' BCC packages are for
_WORKER = Path(__file__).with_name("bcc_worker.py")
_COMPILE_S = 240.0  # seconds on a machine, more than a minute on an emulated one
_ENDS_S = 5.0
_WAIT_S = 0.1  # how long a stop may go unseen while BCC compiles
_PIPE_BYTES = 1 << 20  # what an unprivileged process may ask for: /proc/sys/fs/pipe-max-size
_COMM_BYTES = 15  # and a NUL: TASK_COMM_LEN
_ADDRESS_BYTES = 16
_FIELDS = frozenset({
    "ts_ns", "start_ns", "duration_ns", "value", "cgroup_id", "pid", "tid", "comm", "saddr", "daddr", "family", "sport", "dport",
    "rcode", "flags",
})  # fmt: skip
_MALFORMED = (AttributeError, KeyError, OverflowError, TypeError, ValueError)  # what making a record of a line can raise
_PROTOCOLS = {"dns_latency_ms": 17, "tcp_retransmits_total": 6}


class BccPoller:
    """A signal from a worker of its own (polled.WorkerPoller); the kernel kills it when this process ends."""

    _worker: subprocess.Popen[bytes]
    _pipe: int
    _cpu_s: float
    _rest: bytes
    _pending: list[bytes]

    def __init__(
        self, signal: str, targets: Targets, *, python: str = SYSTEM_PYTHON, compile_s: float = _COMPILE_S,
        stopped: Callable[[], bool] = never,
    ) -> None:  # fmt: skip
        """Raises CannotError when BCC is missing or cannot compile here, with what it said and the cure, and when `stopped`."""
        self._signal, self._targets, self._python, self._compile_s = signal, targets, python, compile_s
        self._buckets = TokenBuckets(targets.rate_limit, targets.burst_limit)
        self._cgroup_ids: set[int] = set()
        self._running, self._ended_s = False, 0.0
        self._start()
        try:
            while not self._measures():
                if stopped():
                    raise CannotError("stopped while BCC compiled", source=python)
                select.select([self._pipe], [], [], _WAIT_S)
        except BaseException:
            self.close()
            raise

    def poll(self, now_ns: int) -> Readings:
        """What the worker has printed. Raises CannotError when it has ended. now_ns: CLOCK_MONOTONIC."""
        if not self._running or not self._measures():
            return Readings()
        if self._targets.cgroups:
            self._cgroup_ids = {_inode(place) for path in self._targets.cgroups for place, _, _ in os.walk(path)}
        ended = self._worker.poll() is not None
        lines = self._lines()
        if ended and not lines:
            raise CannotError(f"BCC ended: {self._reason('')}", source=str(_WORKER), hint="start the agent anew")
        events: list[NDArray[Any]] = [np.zeros(0, EVENT_DTYPE)]
        account = Account()
        for line in lines:
            try:
                account += self._take(orjson.loads(line), now_ns, events)
            except _MALFORMED:
                account += Account(attempts=1, dropped=1)
        return Readings(np.concatenate(events), [{} for _ in events[1:]], account)

    def cpu_s(self) -> float:
        """CPU time in seconds of all its workers until now."""
        if self._running:
            self._cpu_s = process_cpu_s(self._worker.pid) or self._cpu_s  # one that has ended by itself shows none
        return self._ended_s + self._cpu_s

    def pause(self) -> None:
        """End the worker."""
        self.close()

    def resume(self) -> None:
        """Start a worker again; while it compiles, `poll` has nothing. Raises CannotError."""
        missing = missing_capabilities(("CAP_SYS_ADMIN",))
        if missing:
            raise CannotError(f"BCC: missing capability {missing[0]}", source="kernel", hint="--keep-capabilities")
        if not self._running:
            self._start()

    def close(self) -> None:
        """End the worker, if there is one."""
        if not self._running:
            return
        self._ended_s, self._cpu_s, self._running = self.cpu_s(), 0.0, False
        self._worker.kill()
        self._worker.wait()
        os.close(self._pipe)
        self._said.close()

    def _start(self) -> None:
        self._rest, self._pending, self._dropped, self._cpu_s = b"", [], 0, 0.0
        self._ready, self._until_s = False, time.monotonic() + self._compile_s
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - BCC writes its reasons to stderr; closed with the worker
        self._pipe, output = os.pipe()
        fate = "drop" if self._targets.drop_capabilities else "keep"
        try:
            self._worker = subprocess.Popen(
                [self._python, "-I", str(_WORKER), self._signal, str(os.getpid()), str(self._targets.dns_timeout_ns), fate],
                stdin=subprocess.DEVNULL, stdout=output, stderr=self._said, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(self._pipe)
            self._said.close()
            raise CannotError(f"BCC: {error}", source=self._python, hint=_cure()) from error
        finally:
            os.close(output)
        self._running = True
        fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self._pipe, False)

    def _measures(self) -> bool:
        """Whether the worker has said that its programs are attached. Raises CannotError when it cannot, or takes too long."""
        if self._ready:
            return True
        ended, late = self._worker.poll() is not None, time.monotonic() > self._until_s
        lines = self._lines()
        if not lines and not ended and not late:
            return False
        said = _first(lines[0]) if lines else {"error": "" if ended else f"not compiled within {self._compile_s:.0f} s"}
        if not said.get("ready"):
            raise CannotError(f"BCC: {self._reason(str(said.get('error', '')))}", source=self._python, hint=_cure())
        self._ready, self._pending = True, lines[1:]
        return True

    def _lines(self) -> list[bytes]:
        parts = [self._rest]
        try:
            while part := os.read(self._pipe, _PIPE_BYTES):
                parts.append(part)
        except BlockingIOError:
            pass
        *lines, self._rest = b"".join(parts).split(b"\n")
        pending, self._pending = self._pending, []
        return pending + lines

    def _take(self, line: dict[str, Any], now_ns: int, events: list[NDArray[Any]]) -> Account:
        """What becomes of a line; a record of it is added to `events` when it passes. Raises _MALFORMED."""
        if "dropped" in line:
            lost, self._dropped = line["dropped"] - self._dropped, line["dropped"]
            return Account(attempts=lost, dropped=lost)
        if not line.keys() >= _FIELDS:
            raise ValueError("not an event")
        if not self._passes(line):
            return Account(attempts=1, filtered=1)
        event = self._record(line)
        if not self._buckets.take(line["cgroup_id"], now_ns):
            return Account(attempts=1, rate_limited=1)
        events.append(event)
        return Account(attempts=1, emitted=1)

    def _reason(self, told: str) -> str:
        """What Python was told, and what BCC's libraries wrote for people."""
        with suppress(subprocess.TimeoutExpired):
            self._worker.wait(_ENDS_S)  # the C++ parts write when they end
        self._said.seek(0)
        said = [text for text in self._said.read().decode("utf-8", "replace").splitlines() if text and "modprobe" not in text]
        plain = next((text for text in said if "kernel headers" in text or "error:" in text), said[-1] if said else "")
        return ": ".join(part for part in (told, plain) if part) or f"exit status {self._worker.returncode}"

    def _passes(self, line: dict[str, Any]) -> bool:
        chosen = self._targets
        failed = line.get("err") or line["rcode"]
        return (
            (not chosen.pids or line["pid"] in chosen.pids)
            and (not chosen.comm or line["comm"] == chosen.comm)
            and (not chosen.cgroups or line["cgroup_id"] in self._cgroup_ids)
            and (self._signal != "dns_latency_ms" or bool(failed) or line["duration_ns"] >= chosen.dns_min_latency_ns)
        )

    def _record(self, line: dict[str, Any]) -> NDArray[Any]:
        events = np.zeros(1, EVENT_DTYPE)
        addresses = {name: bytes.fromhex(line[name]) for name in ("saddr", "daddr")}
        if any(len(address) != _ADDRESS_BYTES for address in addresses.values()):
            raise ValueError("an address of another length")
        for name, value in {**line, **addresses, "comm": line["comm"].encode()[:_COMM_BYTES]}.items():
            events[0][name] = value
        events["kind"] = KINDS[self._signal]
        events["protocol"] = _PROTOCOLS[self._signal]
        return events


def _first(line: bytes) -> dict[str, Any]:
    """The first line, of which nothing is known yet."""
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        said = None
    return said if isinstance(said, dict) else {"error": f"not a line of the worker: {line[:80].decode('utf-8', 'replace')}"}


def _cure() -> str:
    return f"apt-get install python3-bpfcc linux-headers-{os.uname().release}"


def _inode(place: str) -> int:
    try:
        return os.stat(place).st_ino  # noqa: PTH116 - os.walk gives strings
    except OSError:
        return 0
