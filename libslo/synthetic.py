"""Synthetic raw-samples and probe-events that hang together: a request is slow because its own waits were.

Everything is drawn from `rng`; the same seed gives the same bytes. What comes out says that it is synthetic: the cluster
is called "synthetic" and every probe-event carries the attribute. Pure: no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from libslo.scenarios import Scenario, load_profile
from libslo.signals import signal
from libslo.slo import format_timestamp

__all__ = ["SYNTHETIC_EPOCH_NS", "SyntheticSettings", "fault_windows", "synthetic_records"]

SYNTHETIC_EPOCH_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z: a fixed start, so that the same seed gives the same bytes
_NETWORK = {"dns_latency_ms": ("udp", 53), "connect_latency_ms": ("tcp", 443), "tls_handshake_ms": ("tcp", 443)}


@dataclass(frozen=True)
class SyntheticSettings:
    """count requests at `rate_per_s` (None: the profile's), beginning at start_unix_ns. profile None: the scenario's own."""

    scenario: Scenario
    count: int
    rate_per_s: float | None = None
    start_unix_ns: int = SYNTHETIC_EPOCH_NS
    service: str = "rag-service"
    profile: str | None = None


@dataclass(frozen=True)
class _Stretch:
    begin: int  # first request
    end: int  # one past the last
    faults: tuple[str, ...]


def _stretches(settings: SyntheticSettings) -> list[_Stretch]:
    edges = np.round(
        np.cumsum([0.0, *(phase.share for phase in settings.scenario.phases)])
        / sum(p.share for p in settings.scenario.phases)
        * settings.count
    )
    return [_Stretch(int(a), int(b), phase.faults) for a, b, phase in zip(edges, edges[1:], settings.scenario.phases, strict=False)]


def _rate(settings: SyntheticSettings) -> float:
    return settings.rate_per_s or float(load_profile(settings.profile or settings.scenario.profile)["request_rate_per_s"])


def fault_windows(settings: SyntheticSettings) -> Iterator[dict[str, Any]]:
    """Ground truth of what `synthetic_records` makes: a fault-window for the begin and the end of every fault."""
    step_ns = 1e9 / _rate(settings)
    for number, stretch in enumerate(_stretches(settings)):
        if not stretch.faults or stretch.end == stretch.begin:
            continue
        begin, end = (settings.start_unix_ns + int(index * step_ns) for index in (stretch.begin, stretch.end))
        window: dict[str, Any] = {
            "fault_id": f"{settings.scenario.name}-{number}",
            "scenario": settings.scenario.name,
            "fault": "+".join(stretch.faults),
            "mechanism": "synthetic",
            "target": {"service": settings.service},
            "parameters": {},
            "begin_unix_nano": begin,
            "expected_domains": list(dict.fromkeys(d for fault in stretch.faults for d in settings.scenario.domains[fault])),
            "synthetic": True,
        }
        yield {**window, "phase": "begin"}
        yield {**window, "phase": "end", "end_unix_nano": end}


def synthetic_records(settings: SyntheticSettings, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """raw-sample and probe-event objects in the order of their times."""
    profile = load_profile(settings.profile or settings.scenario.profile)
    step_ns = int(1e9 / _rate(settings))
    who = {"node": "node-a", "namespace": "llm", "pod": f"{settings.service}-0", "container": settings.service}
    pid = 4242
    pending: list[tuple[int, int, dict[str, Any]]] = []  # what lies after a request's start is held until time has come that far
    serial = 0

    def probe(ts: int, name: str, value: float, tid: int) -> None:
        nonlocal serial
        about = signal(name)
        event: dict[str, Any] = {
            "ts_unix_nano": ts,
            "signal": name,
            **who,
            "pid": pid,
            "tid": tid,
            "value": round(value, 4),
            "unit": about.unit,
            "status": about.status(value),
            "service": settings.service,
            "attributes": {"synthetic": True},
        }
        if name in _NETWORK:
            protocol, port = _NETWORK[name]
            event["conn_tuple"] = {
                "src_ip": "10.0.0.5",
                "dst_ip": "10.0.0.53" if port == 53 else "10.0.9.1",
                "src_port": 32768 + serial % 28000,
                "dst_port": port,
                "protocol": protocol,
            }
        pending.append((ts, serial, event))
        serial += 1

    per_second_done = 0
    for stretch in _stretches(settings):
        effects = _combine(profile, {fault: settings.scenario.effects[fault] for fault in stretch.faults})
        for index in range(stretch.begin, stretch.end):
            started = settings.start_unix_ns + index * step_ns
            while per_second_done * 1_000_000_000 <= started - settings.start_unix_ns:
                second = settings.start_unix_ns + per_second_done * 1_000_000_000
                for name, row in effects["per_second"].items():
                    for value in _draw(row, rng):
                        probe(second + int(rng.integers(0, 1_000_000_000)), name, value, pid)
                per_second_done += 1
            sample = _request(settings, effects, rng, index, started, probe, pid, who)
            pending.append((int(sample.pop("_end")), serial, sample))
            serial += 1
            pending.sort(key=lambda row: row[:2])
            ready = next((i for i, row in enumerate(pending) if row[0] > started), len(pending))
            yield from (row[2] for row in pending[:ready])
            del pending[:ready]
    yield from (row[2] for row in sorted(pending, key=lambda row: row[:2]))


def _request(
    settings: SyntheticSettings,
    effects: dict[str, Any],
    rng: np.random.Generator,
    index: int,
    started: int,
    probe: Any,
    pid: int,
    who: dict[str, str],
) -> dict[str, Any]:
    request = effects["request"]
    at = started
    first_waits_ms = 0.0  # of each kind of wait the first one belongs to retrieval
    for name, row in effects["per_request"].items():
        for number, value in enumerate(_draw(row, rng)):
            at += int(value * 1e6)
            first_waits_ms += value if number == 0 and name != "tls_handshake_ms" else 0.0
            probe(at, name, value, pid + 1 + index % 8)
    retrieval_ms = None
    if effects["retrieval_ms"]:
        own_ms = _lognormal(request.get("retrieval_ms", effects["retrieval_ms"]), rng) * request["retrieval_factor"]
        at += int(own_ms * 1e6)
        retrieval_ms = own_ms + first_waits_ms
    ttft = (at - started) / 1e6 + _lognormal(request["ttft_base_ms"], rng) * request["ttft_factor"]
    rate = _lognormal(request["token_throughput_tps"], rng) * request["throughput_factor"]
    latency = ttft + effects["tokens"] / rate * 1e3
    failed = bool(rng.random() < request["error_probability"])
    label = "+".join(effects["faults"]) if effects["faults"] else "baseline"
    sample: dict[str, Any] = {
        "timestamp": format_timestamp(started + int(latency * 1e6)),
        "cluster": "synthetic",
        "namespace": who["namespace"],
        "workload": settings.service,
        "service": settings.service,
        "node": who["node"],
        "pod": who["pod"],
        "container": who["container"],
        "pid": pid,
        "request_id": f"req-{index:06d}",
        "trace_id": rng.bytes(16).hex(),
        "ttft_ms": round(ttft, 3),
        "request_latency_ms": round(latency, 3),
        "token_throughput_tps": round(rate, 3),
        "error_rate": 1.0 if failed else 0.0,
        "labels": {"synthetic": "true"},
        "fault_label": label,
        "_end": started + int(latency * 1e6),
    }
    status = request["error_status"] if failed else "200"
    if status:
        sample["labels"]["http.response.status_code"] = status
    if retrieval_ms is not None:
        sample["retrieval_latency_ms"] = round(retrieval_ms, 3)
    return sample


def _combine(profile: dict[str, Any], faults: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The profile with the effects of all faults that are on: the larger median wins, factors multiply."""
    effects = list(faults.values())
    request: dict[str, Any] = {
        "ttft_factor": 1.0,
        "throughput_factor": 1.0,
        "retrieval_factor": 1.0,
        "error_status": "",
        **profile["request"],
    }
    for effect in effects:
        for key, value in (effect.get("request") or {}).items():
            if key.endswith("_factor"):
                request[key] *= value
            elif key == "error_probability":
                request[key] = max(request[key], value)
            elif key == "error_status":
                request[key] = value or request[key]
            else:
                request[key] = value
    combined: dict[str, Any] = {
        "request": request,
        "tokens": profile["tokens"],
        "retrieval_ms": profile.get("retrieval_ms"),
        "faults": list(faults),
    }
    for part in ("per_request", "per_second"):
        rows = {name: dict(row) for name, row in profile[part].items()}
        for effect in effects:
            for name, row in (effect.get(part) or {}).items():
                now = rows.get(name, {})
                key = "poisson" if "poisson" in row else "median"
                if row[key] > now.get(key, -1):
                    rows[name] = {**now, **row}
        combined[part] = rows
    return combined


def _draw(row: dict[str, float], rng: np.random.Generator) -> list[float]:
    if "poisson" in row:
        count = int(rng.poisson(row["poisson"]))
        return [float(count)] if count else []
    return [_lognormal(row, rng) for _ in range(int(row.get("count", 1)))]


def _lognormal(row: dict[str, float], rng: np.random.Generator) -> float:
    return float(row["median"] * np.exp(rng.normal(0.0, row["sigma"])))
