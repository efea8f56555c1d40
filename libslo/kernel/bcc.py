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
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from libslo.errors import CannotError
from libslo.kernel.account import Account
from libslo.kernel.dns_waits import TokenBuckets
from libslo.kernel.events import EVENT_DTYPE, KINDS
from libslo.kernel.polled import Readings, Targets

__all__ = ["BCC_SIGNALS", "SYSTEM_PYTHON", "BccPoller"]

BCC_SIGNALS = {"bcc_udp_send_skb": "dns_latency_ms", "bcc_tcp_retransmit_skb": "tcp_retransmits_total"}
SYSTEM_PYTHON = "/usr/bin/python3"  # the one that distributions' BCC packages are for
_WORKER = Path(__file__).with_name("bcc_worker.py")
_COMPILE_S = 240.0  # seconds on a machine, more than a minute on an emulated one
_ENDS_S = 5.0
_PIPE_BYTES = 1 << 20  # what an unprivileged process may ask for: /proc/sys/fs/pipe-max-size
_PROTOCOLS = {"dns_latency_ms": 17, "tcp_retransmits_total": 6}


class BccPoller:
    """A signal from a worker of its own (polled.Poller); the kernel kills it when this process ends."""

    def __init__(self, signal: str, targets: Targets, *, python: str = SYSTEM_PYTHON, compile_s: float = _COMPILE_S) -> None:
        """Raises CannotError when BCC is missing or cannot compile here, with what it said and the cure."""
        self._signal, self._targets = signal, targets
        self._buckets = TokenBuckets(targets.rate_limit, targets.burst_limit)
        self._rest = b""
        self._cgroup_ids: set[int] = set()
        self._pending: list[dict[str, Any]] = []
        self._dropped = 0
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - BCC writes its reasons to stderr; closed with the worker
        self._pipe, output = os.pipe()
        try:
            self._worker = subprocess.Popen(
                [python, "-I", str(_WORKER), signal, str(os.getpid()), str(targets.dns_timeout_ns)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=self._said, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(self._pipe)
            self._said.close()
            raise CannotError(f"BCC: {error}", source=python, hint=_cure()) from error
        finally:
            os.close(output)
        fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self._pipe, False)
        try:
            first = self._first_line(compile_s)
            if not first.get("ready"):
                raise CannotError(f"BCC: {self._reason(first)}", source=python, hint=_cure())
        except BaseException:
            self.close()
            raise

    def poll(self, now_ns: int) -> Readings:
        """What the worker has printed. Raises CannotError when it has ended. now_ns: CLOCK_MONOTONIC."""
        if self._targets.cgroups:
            self._cgroup_ids = {_inode(place) for path in self._targets.cgroups for place, _, _ in os.walk(path)}
        rows: list[dict[str, Any]] = []
        account = Account()
        for line in self._lines():
            if "dropped" in line:
                lost, self._dropped = line["dropped"] - self._dropped, line["dropped"]
                account += Account(attempts=lost, dropped=lost)
            elif not self._passes(line):
                account += Account(attempts=1, filtered=1)
            elif not self._buckets.take(line["cgroup_id"], now_ns):
                account += Account(attempts=1, rate_limited=1)
            else:
                account += Account(attempts=1, emitted=1)
                rows.append(line)
        if not rows and self._worker.poll() is not None:
            raise CannotError(f"BCC ended: {self._reason({})}", source=str(_WORKER), hint="start the agent anew")
        return Readings(self._records(rows), [{} for _ in rows], account)

    def close(self) -> None:
        """End the worker."""
        self._worker.kill()
        self._worker.wait()
        os.close(self._pipe)
        self._said.close()

    def _first_line(self, timeout_s: float) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            select.select([self._pipe], [], [], 0.1)
            lines = self._lines()
            if lines:
                self._pending = lines[1:]
                return lines[0]
            if self._worker.poll() is not None:
                return {}
        return {"error": f"not compiled within {timeout_s:.0f} s"}

    def _lines(self) -> list[dict[str, Any]]:
        parts = [self._rest]
        try:
            while part := os.read(self._pipe, _PIPE_BYTES):
                parts.append(part)
        except BlockingIOError:
            pass
        *lines, self._rest = b"".join(parts).split(b"\n")
        pending, self._pending = self._pending, []
        return pending + [orjson.loads(line) for line in lines]

    def _reason(self, line: dict[str, Any]) -> str:
        """What BCC's libraries wrote for people, and what Python was told."""
        with suppress(subprocess.TimeoutExpired):
            self._worker.wait(_ENDS_S)  # the C++ parts write when they end
        self._said.seek(0)
        said = [text for text in self._said.read().decode("utf-8", "replace").splitlines() if text and "modprobe" not in text]
        plain = next((text for text in said if "kernel headers" in text or "error:" in text), said[-1] if said else "")
        return ": ".join(part for part in (line.get("error", ""), plain) if part) or f"exit status {self._worker.returncode}"

    def _passes(self, line: dict[str, Any]) -> bool:
        chosen = self._targets
        failed = line.get("err") or line["rcode"]
        return (
            (not chosen.pids or line["pid"] in chosen.pids)
            and (not chosen.comm or line["comm"] == chosen.comm)
            and (not chosen.cgroups or line["cgroup_id"] in self._cgroup_ids)
            and (self._signal != "dns_latency_ms" or bool(failed) or line["duration_ns"] >= chosen.dns_min_latency_ns)
        )

    def _records(self, rows: list[dict[str, Any]]) -> np.ndarray[Any, np.dtype[Any]]:
        events = np.zeros(len(rows), EVENT_DTYPE)
        for event, row in zip(events, rows, strict=True):
            for name in ("saddr", "daddr"):
                row[name] = bytes.fromhex(row[name])
            for name, value in row.items():
                event[name] = value
        events["kind"] = KINDS[self._signal]
        events["protocol"] = _PROTOCOLS[self._signal]
        return events


def _cure() -> str:
    return f"apt-get install python3-bpfcc linux-headers-{os.uname().release}"


def _inode(place: str) -> int:
    try:
        return os.stat(place).st_ino  # noqa: PTH116 - os.walk gives strings
    except OSError:
        return 0
