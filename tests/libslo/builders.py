"""Small records for tests: every builder gives a valid object of its contract, with what the test says on top."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from libslo.spans import Span, decode_spans

ROOT = Path(__file__).resolve().parents[2]
TESTDATA = ROOT / "testdata"
T0 = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
MS = 1_000_000
S = 1_000_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"


def raw_sample(**more: Any) -> dict[str, Any]:
    return {
        "timestamp": "2026-01-01T00:00:00Z",
        "cluster": "local",
        "namespace": "llm",
        "workload": "rag",
        "service": "rag",
        "request_id": "req-1",
        "ttft_ms": 300,
        "request_latency_ms": 650.5,
        "token_throughput_tps": 60,
        "error_rate": 0,
        **more,
    }


def slo_event(**more: Any) -> dict[str, Any]:
    return {
        "event_id": "e1",
        "timestamp": "2026-01-01T00:00:00Z",
        "cluster": "local",
        "namespace": "llm",
        "workload": "rag",
        "service": "rag",
        "request_id": "req-1",
        "sli_name": "ttft_ms",
        "sli_value": 300,
        "unit": "ms",
        "status": "ok",
        **more,
    }


def probe(ts: int = T0, signal: str = "dns_latency_ms", value: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "ts_unix_nano": ts,
        "signal": signal,
        "node": "node-a",
        "namespace": "llm",
        "pod": "rag-0",
        "container": "rag",
        "pid": 7,
        "tid": 7,
        "value": value,
        "unit": "ms",
        "status": "ok",
        **more,
    }


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    def any_value(value: Any) -> dict[str, Any]:
        if isinstance(value, bool):
            return {"boolValue": value}
        if isinstance(value, int):
            return {"intValue": str(value)}
        return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}

    return [{"key": key, "value": any_value(value)} for key, value in values.items()]


RESOURCE = {
    "service.name": "rag",
    "k8s.namespace.name": "llm",
    "k8s.pod.name": "rag-0",
    "host.name": "node-a",
    "process.pid": 7,
}


def raw_span(
    start: int = T0,
    end: int | None = T0 + S,
    *,
    trace: str = TRACE,
    span: str = "b7ad6b7169203331",
    parent: str = "",
    name: str = "chat.request",
    kind: int | str = 2,
    error: bool = False,
    attrs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    raw: dict[str, Any] = {"traceId": trace, "spanId": span, "name": name, "kind": kind, "startTimeUnixNano": str(start)}
    if end is not None:
        raw["endTimeUnixNano"] = str(end)
    if parent:
        raw["parentSpanId"] = parent
    if attrs:
        raw["attributes"] = attributes(attrs)
    if error:
        raw["status"] = {"code": 2}
    return raw


def span_request(*spans: dict[str, Any], resource: dict[str, Any] | None = None) -> dict[str, Any]:
    about = RESOURCE if resource is None else resource
    return {
        "resourceSpans": [{"resource": {"attributes": attributes(about)}, "scopeSpans": [{"scope": {"name": "t"}, "spans": list(spans)}]}]
    }


def one_span(*args: Any, resource: dict[str, Any] | None = None, **kwargs: Any) -> Span:
    (span,) = decode_spans(span_request(raw_span(*args, **kwargs), resource=resource))
    return span


def span_id(number: int) -> str:
    return f"{number:016x}"


def trace_id(number: int) -> str:
    return f"{number:032x}"


def lines(values: Iterable[Any]) -> bytes:
    return b"".join(orjson.dumps(value) + b"\n" for value in values)


def objects(data: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in data.splitlines() if line.strip()]


class Chunks(io.RawIOBase):
    """A stream that gives `data` in pieces of the given sizes (the last size goes on for ever)."""

    def __init__(self, data: bytes, sizes: Iterable[int]) -> None:
        self._data, self._sizes, self._size = data, iter(sizes), 1

    def read(self, size: int = -1) -> bytes:
        self._size = next(self._sizes, self._size)
        piece, self._data = self._data[: self._size], self._data[self._size :]
        return piece


def tool_command(tool: str) -> list[str]:
    return [sys.executable, "-c", f"import slotools.{tool} as t; t.main()"]


def run_tool(
    tool: str,
    *arguments: str,
    data: bytes = b"",
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[bytes]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLO_")}
    return subprocess.run(
        [*tool_command(tool), *arguments],
        input=data,
        capture_output=True,
        env={**clean, **(env or {})},
        cwd=cwd,
        timeout=timeout,
        check=False,
    )


def agent_report(*, dropped: int = 0, final: bool = False, attached: bool = True, **more: Any) -> dict[str, Any]:
    """An agent report of the signals of the network, DNS having lost `dropped` events."""
    account = {"attempts": 100 + dropped, "emitted": 90, "filtered": 7, "rate_limited": 3, "dropped": dropped}
    names = ("dns_latency_ms", "connect_latency_ms", "connect_errors_total")
    states = [
        {"signal": name, "variant": "v", "attached": attached, "blind_spots": [], "account": account, "drained": 90} for name in names
    ]
    return {
        "ts_unix_nano": T0, "node": "node-a", "agent_version": "0", "mode": "core_full", "kernel": "6", "final": final,
        "signals": states, **more,
    }  # fmt: skip


def incident(**more: Any) -> dict[str, Any]:
    return {
        "incident_id": "inc-1",
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "cluster": "prod",
        "namespace": "llm",
        "service": "rag",
        "predicted_fault_domain": "network_dns",
        "confidence": 0.974,
        "evidence": [
            {"signal": "dns_latency_ms", "value": 319.7, "source": "ebpf"},
            {"signal": "dns_latency_ms.baseline", "value": 2.1, "source": "ebpf"},
            {"signal": "connect_errors_total", "value": 4, "source": "ebpf"},
        ],
        "slo_impact": {"sli": "ttft_ms", "burn_rate": 20.5, "window_minutes": 60},
        "fault_hypotheses": [{"domain": "network_dns", "posterior": 0.974, "evidence": ["dns_latency_ms"]}],
        "request_ids": ["req-1"],
        "trace_ids": ["0af7"],
        **more,
    }


EPISODE = {"incident_id": "inc-1", "state": "closed", "closed_by": "recovery", "closed_unix_nano": T0 + 9_000_000_000}
