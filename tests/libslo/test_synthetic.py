"""Synthetic records: repeatable, in order, valid, and slow only because of their own waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import S, lines
from runs import synthetic

from libslo.contracts import contract
from libslo.scenarios import load_scenario, scenario_names
from libslo.signals import signal
from libslo.slo import parse_timestamps
from libslo.synthetic import SYNTHETIC_EPOCH_NS, SyntheticSettings, fault_windows, synthetic_records


def draw(name: str, seed: int = 42, count: int = 60, **options: Any) -> list[dict[str, Any]]:
    return list(synthetic_records(SyntheticSettings(load_scenario(name), count, **options), np.random.default_rng(seed)))


def time_of(record: dict[str, Any]) -> int:
    return record["ts_unix_nano"] if "signal" in record else int(parse_timestamps([record["timestamp"]])[0])


@pytest.mark.parametrize("name", scenario_names())
def test_same_seed_same_bytes(name: str) -> None:
    """The same seed gives the same bytes, another seed others."""
    assert lines(draw(name)) == lines(draw(name)) != lines(draw(name, seed=43))


@pytest.mark.parametrize("name", scenario_names())
def test_records_are_valid_and_in_order(name: str) -> None:
    """Every record keeps its contract, says that it is synthetic, and none comes before its time."""
    records = synthetic(name, 42)
    for record in records:
        kind = "probe-event" if "signal" in record else "raw-sample"
        assert contract(kind).is_valid(record)
        assert record.get("cluster", "synthetic") == "synthetic"
        assert record["attributes"]["synthetic"] is True if kind == "probe-event" else record["labels"]["synthetic"] == "true"
    times = [time_of(record) // 1000 for record in records]
    assert times == sorted(times)
    assert sum("ttft_ms" in record for record in records) == 200


@pytest.mark.parametrize("name", ["baseline", "dns_latency", "network_partition", "retrieval_slowdown"])
def test_waits_of_a_request_add_up_in_its_ttft(name: str) -> None:
    """With requests far apart: a request's waits follow each other from its start, and their sum is part of its TTFT and time."""
    records = draw(name, rate_per_s=0.1, count=40)
    samples = [record for record in records if "ttft_ms" in record]
    slow_by_wait = 0
    for sample in samples:
        start = SYNTHETIC_EPOCH_NS + int(sample["request_id"][4:]) * 10 * S
        end = start + int(sample["request_latency_ms"] * 1e6)
        assert time_of(sample) == pytest.approx(end, abs=2000)
        own = [r for r in records if "signal" in r and start <= r["ts_unix_nano"] <= end + 1000 and r["tid"] != r["pid"]]
        assert len(own) >= 5
        at = start
        for wait in sorted(own, key=lambda r: r["ts_unix_nano"]):
            assert wait["ts_unix_nano"] - wait["value"] * 1e6 == pytest.approx(at, abs=1000)
            at = wait["ts_unix_nano"]
        total_ms = sum(wait["value"] for wait in own)
        assert total_ms < sample["ttft_ms"] <= sample["request_latency_ms"]
        slow_by_wait += total_ms > 400
        if name == "retrieval_slowdown":
            assert sample["retrieval_latency_ms"] < sample["ttft_ms"]
    assert (slow_by_wait > 10) is (name in ("dns_latency", "network_partition"))


def test_labels_follow_the_phases() -> None:
    """The share of labelled requests is that of the fault phases; two faults at once share a label."""
    samples = [r for r in synthetic("dns_latency", 42) if "ttft_ms" in r]
    labels = [r["fault_label"] for r in sorted(samples, key=lambda r: r["request_id"])]
    assert labels == ["baseline"] * 60 + ["dns_latency"] * 100 + ["baseline"] * 40
    assert "dns_latency+cpu_throttle" in {r["fault_label"] for r in synthetic("mixed_multi", 42) if "ttft_ms" in r}


def test_status_says_what_the_value_says() -> None:
    """Status and unit of every signal are the catalogue's."""
    for record in synthetic("mixed", 42):
        if "signal" in record:
            about = signal(record["signal"])
            assert record["unit"] == about.unit and record["value"] >= 0
            assert record["status"] == about.status(record["value"]) or abs(record["value"] - about.warning) < 1e-3


def test_provider_faults_show_their_http_status() -> None:
    """Throttled requests end with 429, failed ones with 503, the others with 200."""
    for name, status in (("provider_throttle", "429"), ("provider_error", "503")):
        samples = [r for r in synthetic(name, 42) if "ttft_ms" in r]
        hurt = [r for r in samples if r["error_rate"] and r["fault_label"] == name]
        assert len(hurt) > 30 and {r["labels"]["http.response.status_code"] for r in hurt} == {status}
        assert {r["labels"].get("http.response.status_code") for r in samples if not r["error_rate"]} == {"200"}


@pytest.mark.parametrize("name", scenario_names())
def test_truth_windows_match_the_labels(name: str) -> None:
    """The fault-windows are valid, come in pairs, and hold exactly the requests that carry the label."""
    settings = SyntheticSettings(load_scenario(name), 200)
    windows = list(fault_windows(settings))
    assert all(contract("fault-window").is_valid(window) for window in windows)
    begins, ends = ([w for w in windows if w["phase"] == phase] for phase in ("begin", "end"))
    assert [w["fault_id"] for w in begins] == [w["fault_id"] for w in ends]
    labelled = {SYNTHETIC_EPOCH_NS + int(r["request_id"][4:]) * S // 5: r["fault_label"] for r in synthetic(name, 42) if "ttft_ms" in r}
    for start, label in labelled.items():
        inside = [w["fault"] for w in ends if w["begin_unix_nano"] <= start < w["end_unix_nano"]]
        assert inside == ([] if label == "baseline" else [label])


def test_no_requests_no_records() -> None:
    """A count of zero is nothing."""
    assert draw("mixed", count=0) == []
    assert list(fault_windows(SyntheticSettings(load_scenario("mixed"), 0))) == []
