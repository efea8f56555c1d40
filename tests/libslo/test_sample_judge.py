"""Fault-samples: an episode is a run of windows that surely burn; evidence is change against the windows outside episodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from libslo.answers import Incident
from libslo.attribute import AttributeSettings, incident_settings
from libslo.contracts import contract
from libslo.sample_judge import SampleJudge
from libslo.slo import format_timestamp
from libslo.statistics import wilson_interval

SETTINGS = incident_settings(AttributeSettings())


def sample(
    number: int, bad: int = 0, requests: int = 20, service: str = "rag", label: str = "baseline", **signals: float
) -> dict[str, Any]:
    return {
        "timestamp": format_timestamp(1_700_000_000_000_000_000 + number * 5_000_000_000),
        "window_ms": 5000.0,
        "service": service,
        "slis": [{"sli": "ttft_ms", "requests": requests, "mean": 300.0, "p95": 400.0, "bad": bad}],
        "signals": [{"signal": name, "source": "ebpf", "value": value} for name, value in signals.items()],
        "expected_domains": [],
        "fault_label": "baseline",
        "synthetic": True,
    }


def incidents(*samples: dict[str, Any], update_s: float | None = None) -> list[Incident]:
    judge = SampleJudge(replace(SETTINGS, update_interval_ns=None if update_s is None else int(update_s * 1e9)))
    return [incident for each in samples if (incident := judge.feed(each)) is not None]


def healthy(n: int = 4, **more: Any) -> list[dict[str, Any]]:
    return [sample(i, dns_latency_ms=2.0, cfs_throttled_ms=0.0, **more) for i in range(n)]


def test_one_incident_a_run_of_burning_windows() -> None:
    """The first burning window is the incident, a healthy one ends the episode, the next burning one is another incident."""
    sick = [sample(i, bad=18, dns_latency_ms=300.0, cfs_throttled_ms=0.0) for i in (4, 5, 6)]
    found = incidents(*healthy(), *sick, sample(7, dns_latency_ms=2.0), sample(8, bad=18, dns_latency_ms=300.0))
    assert [each.value["timestamp"] for each in found] == [sick[0]["timestamp"], sample(8)["timestamp"]]
    first = found[0]
    assert first.value["predicted_fault_domain"] == "network_dns"
    assert contract("incident-attribution").is_valid(first.value)
    dns = next(each for each in first.evidence if each.signal == "dns_latency_ms")
    assert (dns.value, dns.baseline, dns.level) == (300.0, 2.0, 2)
    assert first.value["slo_impact"]["burn_rate"] == pytest.approx(18)


def test_the_service_that_was_silent_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two: a third one takes the place of the silent one, and the one that goes on keeps its baseline."""
    monkeypatch.setattr("libslo.sample_judge._MOST_SERVICES", 2)
    rows = [*healthy(3, service="busy"), sample(3, service="silent"), *healthy(1, service="busy"), sample(5, service="third")]
    (found,) = incidents(*rows, sample(6, bad=18, service="busy", dns_latency_ms=300.0))
    assert next(each for each in found.evidence if each.signal == "dns_latency_ms").baseline == 2.0


@pytest.mark.parametrize(("bad", "requests", "burns"), [(0, 20, False), (2, 10, False), (8, 17, True), (1, 1, True), (3, 40, False)])
def test_a_window_must_surely_burn(bad: int, requests: int, burns: bool) -> None:
    """Two of ten bad requests may be chance; eight of seventeen are not."""
    assert bool(incidents(*healthy(), sample(9, bad=bad, requests=requests))) is burns


@given(st.integers(3, 10**6), st.floats(0, 1) | st.floats(0.99, 1.2), st.sampled_from([0.95, 0.99, 0.9999, 1.0]))
@example(10**6, 1.01, 0.95)
def test_a_window_burns_when_the_lower_bound_of_its_bad_share_does(requests: int, part: float, ratio: float) -> None:
    """Shares that are far too small, which are not looked at any further, would not have begun an episode."""
    objectives = {"ttft_ms": replace(SETTINGS.objectives["ttft_ms"], ratio=ratio)}
    judge = SampleJudge(replace(SETTINGS, objectives=objectives))
    least = (1 - ratio) * min(pair.burn_rate for pair in SETTINGS.policy.pairs)
    bad = max(1, min(round(part * least * requests), requests))
    assert (judge.feed(sample(0, bad=bad, requests=requests)) is not None) is (wilson_interval(bad, requests)[0] >= least)


def test_windows_of_an_episode_are_no_baseline() -> None:
    """A long fault does not become the usual."""
    long = [sample(4 + i, bad=18, dns_latency_ms=300.0) for i in range(30)]
    again = sample(36, bad=18, dns_latency_ms=300.0)
    found = incidents(*healthy(), *long, sample(35, dns_latency_ms=2.0), again)
    assert [each.value["predicted_fault_domain"] for each in found] == ["network_dns"] * 2


def test_an_update_keeps_the_id() -> None:
    """With updates a second fault in the same episode is said under the same incident_id; an unchanged window says nothing."""
    quiet = healthy()
    one, same = (sample(i, bad=18, dns_latency_ms=300.0, cfs_throttled_ms=0.0) for i in (4, 5))
    both = sample(6, bad=18, dns_latency_ms=300.0, cfs_throttled_ms=700.0)
    found = incidents(*quiet, one, same, both, update_s=1)
    assert len(found) == 2 and found[0].value["incident_id"] == found[1].value["incident_id"]
    assert found[1].changes and found[1].value["timestamp"] == both["timestamp"]


def test_services_are_apart() -> None:
    """One service's windows say nothing of another."""
    found = incidents(*healthy(), *healthy(service="other"), sample(9, bad=18, service="other", dns_latency_ms=300.0))
    assert [each.value["service"] for each in found] == ["other"]


@given(st.lists(st.sampled_from(["baseline", "dns_latency", "cpu_throttle", "anything"]), min_size=6, max_size=6))
def test_labels_change_nothing(labels: list[str]) -> None:
    """Whatever the samples are labelled, the answers are the same."""
    rows = [*healthy(), sample(4, bad=18, dns_latency_ms=300.0), sample(5, bad=18, dns_latency_ms=300.0)]
    for row, label in zip(rows, labels, strict=True):
        row["fault_label"], row["expected_domains"] = label, ["cpu_throttle"]
    plain = [*healthy(), sample(4, bad=18, dns_latency_ms=300.0), sample(5, bad=18, dns_latency_ms=300.0)]
    assert [each.value for each in incidents(*rows)] == [each.value for each in incidents(*plain)]
