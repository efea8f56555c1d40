"""The judges of the matrix: what is right is called right, and one event more, less or wrong is not."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from workloads import (
    BY_SIGNAL,
    Connects,
    Disk,
    Dns,
    N,
    Reclaim,
    Retransmits,
    RunQueue,
    Steal,
    Syscalls,
    Throttled,
    Tls,
    Workload,
)

MS = 1_000_000


def event(value: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "ts_unix_nano": 500 * MS, **more}


TUPLE = {"src_port": 40_000, "dst_port": 8080}

# kind, signal, what the workload knows, events that are right, events that are wrong in value though not in number
CASES: list[tuple[type[Workload], str, Any, list[dict[str, Any]], list[dict[str, Any]]]] = [
    (Dns, "dns_latency_ms", [21.0] * N, [event(20.5)] * N, [event(12)] * N),
    (Connects, "connect_latency_ms", [3.0] * N, [event(0.2)] * N, [event(9)] * N),
    (Connects, "connect_errors_total", [3.0] * N, [event(1, errno=111)] * N, [event(1, errno=110)] * N),
    (Retransmits, "tcp_retransmits_total", 40, [event(2, conn_tuple=TUPLE)] * 20, [event(3, conn_tuple=TUPLE)] * 20),
    (Reclaim, "mem_reclaim_latency_ms", (30, 30 * MS, 40.0), [event(1.05)] * 30, [event(1.34)] * 30),
    (RunQueue, "runqueue_delay_ms", [{"begun_ns": 0, "ended_ns": 1000 * MS, "run_delay_ms": 500}] * 2, [event(10)] * 100, [event(1)] * 100),
    (Throttled, "cfs_throttled_ms", 1600.0, [event(800)] * 2, [event(400)] * 2),
    (Steal, "cpu_steal_pct", (0, 1000 * MS, 1.0), [event(1.0)] * 3, [event(9.0)] * 3),
    (Disk, "disk_io_latency_ms", [1.0] * N, [event(0.4)] * N, [event(4)] * N),
    (Syscalls, "syscall_latency_ms", [20.2] * N, [event(20.1)] * N, [event(12)] * N),
    (Tls, "tls_handshake_ms", [9.0] * N, [event(8.0)] * N, [event(80.0)] * N),
    (Tls, "tls_handshake_fail_total", [9.0] * N, [event(1)] * N, [event(1)] * (N + 1)),
]


def judged(kind: type[Workload], signal: str, told: Any, events: list[dict[str, Any]]) -> tuple[bool, int]:
    verdict = kind(None, contextlib.ExitStack(), told).judge(signal, events)  # type: ignore[arg-type]
    return verdict.right, verdict.seen


@pytest.mark.parametrize(("kind", "signal", "told", "right", "wrong"), CASES)
def test_judges(kind: type[Workload], signal: str, told: Any, right: list[dict[str, Any]], wrong: list[dict[str, Any]]) -> None:
    """The events of the workload are right; none at all, too few, and others in their place are not."""
    assert judged(kind, signal, told, right)[0]
    assert judged(kind, signal, told, wrong)[0] is False
    assert judged(kind, signal, told, []) == (False, 0)
    assert judged(kind, signal, told, right[: len(right) // 2])[0] is (signal == "cpu_steal_pct" and len(right) // 2 >= 2)


def test_every_judge_is_tried() -> None:
    """No signal with a workload is missing above."""
    assert {signal for _, signal, *_ in CASES} == set(BY_SIGNAL)


def test_retransmissions_of_others_are_not_counted() -> None:
    """Segments of connections that the workload did not make neither help nor hurt."""
    other = event(7, conn_tuple={"src_port": 40_000, "dst_port": 443})
    assert judged(Retransmits, "tcp_retransmits_total", 2, [event(2, conn_tuple=TUPLE), other]) == (True, 2)
