"""Recorded runs as cases: the evidence is what the engine would have asked about, the truth comes from the injector's own record."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import ROOT

from libslo.cases import find_recordings, read_run, recording_stream
from libslo.errors import InputError
from libslo.recordings import Recording

KEPT = ROOT / "testdata" / "recordings"


@pytest.fixture(scope="module")
def dns() -> object:
    """A recorded run with slow DNS."""
    return read_run(KEPT / "dns_latency-high-100")


def test_a_noticed_fault_is_a_case(dns: object) -> None:
    """Expected domains, every look until the time to settle was over, and the delay from the injection."""
    (case,) = dns.found  # type: ignore[attr-defined]
    assert case.expected == ("network_dns",) and len(case.evidence) > 1
    last = {each.signal: each for each in case.evidence[-1]}
    assert last["dns_latency_ms"].level == 2 and last["dns_latency_ms"].value == pytest.approx(400, rel=0.1)
    assert last["mem_reclaim_latency_ms"].value == 0.0  # watched, and nothing happened
    assert 0 < case.delay_s < 7
    assert dns.missed == () and dns.unmoved == 0 and dns.alarms == ()  # type: ignore[attr-defined]


def test_windows_without_a_fault_are_cases(dns: object) -> None:
    """Windows of three seconds of the baseline, the first one with something before it to compare with."""
    assert len(dns.quiet) == 2  # type: ignore[attr-defined]
    for case in dns.quiet:  # type: ignore[attr-defined]
        (evidence,) = case.evidence
        assert case.expected == () and any(each.baseline is not None for each in evidence)


def test_a_run_without_a_fault_has_windows_only() -> None:
    """Nothing injected: nothing found, nothing missed."""
    run = read_run(KEPT / "baseline-medium-100")
    assert run.injections == () and run.found == () and len(run.quiet) >= 4


def test_another_service_in_trouble_changes_nothing(monkeypatch: pytest.MonkeyPatch, dns: object) -> None:
    """What the engine would have asked about one service is not taken for evidence of the other, whose incident comes first."""
    from libslo import cases

    def with_twin(recording: Recording) -> Iterator[tuple[str, Any]]:
        for kind, value in recording_stream(recording):
            if kind == "slo-event":
                yield kind, {**value, "service": "other", "request_id": f"other-{value['request_id']}"}
            yield kind, value

    monkeypatch.setattr(cases, "recording_stream", with_twin)
    assert read_run(KEPT / "dns_latency-high-100") == dns


def test_evidence_knows_nothing_of_the_truth(tmp_path: Path, dns: object) -> None:
    """With other labels in fault-window and manifest the evidence is the same; only what was expected changes."""
    import gzip
    import json

    changed = tmp_path / "dns_latency-high-100"
    shutil.copytree(KEPT / "dns_latency-high-100", changed)
    path = changed / "fault-window.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    other = [{**row, "scenario": "cpu_throttle", "fault": "cpu_quota", "expected_domains": ["cpu_throttle"]} for row in rows]
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in other)))
    manifest = json.loads((changed / "manifest.json").read_text())
    (changed / "manifest.json").write_text(json.dumps({**manifest, "scenario": "cpu_throttle", "severity": "low"}))
    run = read_run(changed)
    assert run.found[0].expected == ("cpu_throttle",)
    assert run.found[0].evidence == dns.found[0].evidence  # type: ignore[attr-defined]
    assert [case.evidence for case in run.quiet] == [case.evidence for case in dns.quiet]  # type: ignore[attr-defined]


def test_places_are_recordings_or_hold_some(tmp_path: Path) -> None:
    """A recording is itself; a directory gives those directly in it, in order of name; an empty one is an error."""
    assert find_recordings([KEPT / "dns_latency-high-100"]) == [KEPT / "dns_latency-high-100"]
    found = find_recordings([KEPT])
    assert found == sorted(found) and all(path.parent == KEPT for path in found)
    with pytest.raises(InputError, match="no recording in it"):
        find_recordings([tmp_path])
