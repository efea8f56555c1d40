"""What a run measured: figures of a phase, signals that moved, and what must hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from libslo.lab.measures import Stretch, check_assertions, load_figures, moves, per_second
from libslo.resources import data_path
from libslo.scenarios import Assertion
from libslo.signals import signals

_S = 1_000_000_000
_T0 = 1_800_000_000 * _S
BASE = Stretch("baseline", -1, (), _T0, _T0 + 10 * _S)
FAULT = Stretch("fault", 0, ("dns_latency",), _T0 + 10 * _S, _T0 + 20 * _S)


def request(sent_s: float, ttft_ms: float | None, tokens: int = 11, lasts_s: float = 1.0, **more: Any) -> dict[str, Any]:
    sent = _T0 + int(sent_s * _S)
    row: dict[str, Any] = {"sent_unix_ns": sent, "end_unix_ns": sent + int(lasts_s * _S), "tokens": tokens, **more}
    if ttft_ms is not None:
        row["first_token_unix_ns"] = sent + int(ttft_ms * 1e6)
        row["last_token_unix_ns"] = row["first_token_unix_ns"] + _S // 10
    return row


def event(at_s: float, name: str, value: float, service: str = "app", **more: Any) -> dict[str, Any]:
    return {"ts_unix_nano": _T0 + int(at_s * _S), "signal": name, "value": value, "service": service, **more}


def test_figures_of_a_phase() -> None:
    """Failed requests count as failed and are not timed; ones under way when a baseline ends belong to no phase."""
    requests = [*(request(second, 100 + second) for second in range(9)), request(9.5, 5000), request(3, None, error="http_429")]
    figures = load_figures(BASE, requests)
    assert figures["requests"] == 10 and figures["error_ratio"] == pytest.approx(0.1)
    assert figures["ttft_p50_ms"] == pytest.approx(104) and figures["tokens_per_s_p50"] == pytest.approx(100)
    assert load_figures(FAULT, requests)["ttft_p95_ms"] is None


def test_signals_by_the_second() -> None:
    """Values of one service are added up by the second, levels averaged; a fault's first second is left out."""
    events = [
        event(0.1, "dns_latency_ms", 5), event(0.9, "dns_latency_ms", 7), event(1, "dns_latency_ms", 1), event(1, "dns_latency_ms", 9, "b"),
        event(2, "cfs_throttled_ms", 10), event(2.5, "cfs_throttled_ms", 30), event(10.5, "dns_latency_ms", 99),
        event(11, "dns_latency_ms", 4),
        event(3, "syscall_latency_ms", 50, attributes={"syscall.waits_for": "peer"}),
    ]  # fmt: skip
    before, during = per_second(BASE, events, "app"), per_second(FAULT, events, "app")
    assert before["dns_latency_ms"].tolist() == [12, 1] + [0] * 8
    assert before["cfs_throttled_ms"][2] == 20 and before["syscall_latency_ms"].sum() == 0
    assert during["dns_latency_ms"].tolist() == [4] + [0] * 8


def test_a_signal_that_moved() -> None:
    """A clear rise moves a signal; noise, a fall, a rise of next to nothing and too few seconds do not."""
    rng = np.random.default_rng(1)
    quiet = {name: np.zeros(12) for name in signals()}
    noise = {"dns_latency_ms": rng.uniform(0, 40, 12), "connect_latency_ms": rng.uniform(0, 40, 12), "disk_io_latency_ms": np.zeros(12)}
    before = quiet | noise
    during = quiet | {
        "dns_latency_ms": rng.uniform(200, 400, 12), "connect_latency_ms": rng.uniform(0, 40, 12), "disk_io_latency_ms": np.full(12, 0.5),
    }  # fmt: skip
    found = moves(before, during)
    assert [name for name, move in found.items() if move.moved] == ["dns_latency_ms"]
    assert found["dns_latency_ms"].delta == 1 and found["disk_io_latency_ms"].delta == 1
    assert not any(move.moved for move in moves(during, before).values())
    few = moves({name: values[:3] for name, values in before.items()}, during)
    assert few["dns_latency_ms"].p is None and not few["dns_latency_ms"].moved


def test_what_a_scenario_may_assert_is_measured() -> None:
    """Every metric that the schema of scenarios lets in has a figure."""
    schema = json.loads(data_path("contracts/config/v1alpha1/scenario.schema.json").read_text())
    metrics = schema["properties"]["assertions"]["items"]["properties"]["metric"]["enum"]
    figures = {**load_figures(BASE, [request(second, 100) for second in range(9)]), "incidents": 0.0}
    found = check_assertions([Assertion(metric, ">=", 0, "baseline") for metric in metrics], [BASE], [figures])
    assert [(each.metric, each.kept) for each in found] == [(metric, True) for metric in metrics]


def test_assertions_hold_in_every_stretch_of_their_phase() -> None:
    """Each stretch is judged by its own figures, a ratio against the first baseline's; without a figure nothing is kept."""
    again = Stretch("fault", 1, ("cpu_throttle",), FAULT.end_unix_ns, FAULT.end_unix_ns + _S)
    figures: list[dict[str, float | None]] = [
        {"ttft_p95_ms": 100.0, "error_ratio": 0.0}, {"ttft_p95_ms": 200.0, "error_ratio": 0.1}, {"ttft_p95_ms": None, "error_ratio": None},
    ]  # fmt: skip
    asserted = [Assertion("ttft_p95_ratio", ">=", 1.5, "fault"), Assertion("error_ratio", "<=", 0.05, "fault")]
    found = check_assertions(asserted, [BASE, FAULT, again], figures)
    assert [(each.metric, each.step, each.found, each.kept) for each in found] == [
        ("ttft_p95_ratio", 0, 2.0, True), ("ttft_p95_ratio", 1, None, None), ("error_ratio", 0, 0.1, False), ("error_ratio", 1, None, None),
    ]  # fmt: skip
    with pytest.raises(KeyError, match="nonsense"):
        check_assertions([Assertion("nonsense", "<", 1, "fault")], [BASE, FAULT], figures[:2])
