"""The live demonstration: its account from files, its table, and one short run of everything."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lab_traces import Traces

from libslo.errors import CannotError, InputError
from libslo.lab.account import Account, markdown_table, read_account
from libslo.lab.run import LOGS, tool_path
from libslo.lab.topology import importable
from libslo.recordings import Recording, RecordingWriter

_S = 1_000_000_000
_T0 = 1_800_000_000 * _S  # 2027-01-15T08:00:00Z
_TOOLS = ("agent", "collector", "attributor", "faultinject", "loadgen")


def _incident(domain: str, event_s: float, arrival_s: float) -> tuple[dict[str, Any], dict[str, int]]:
    body = {
        "incident_id": f"i{event_s}",
        "timestamp": f"2027-01-15T08:00:{event_s:06.3f}Z",
        "cluster": "local",
        "service": "rag-service",
        "predicted_fault_domain": domain,
        "confidence": 0.9,
        "evidence": [{"signal": "dns_latency_ms", "value": 201.5, "source": "ebpf"}],
        "slo_impact": {"sli": "ttft_ms", "burn_rate": 12.0, "window_minutes": 1},
        "fault_hypotheses": [{"domain": domain, "posterior": 0.93, "evidence": ["dns_latency_ms"]}],
    }
    return body, {"arrival_unix_ns": _T0 + int(arrival_s * _S)}


def _request(sent_s: float, ttft_ms: float | None, status: int = 200) -> dict[str, Any]:
    sent_ns = _T0 + int(sent_s * _S)
    row: dict[str, Any] = {"request_id": "r", "sent_unix_ns": sent_ns, "end_unix_ns": sent_ns + int((ttft_ms or 0) * 1e6), "status": status}
    row |= {"tokens": 0, **({} if status == 200 else {"error": f"http_{status}"})}
    if ttft_ms is not None:
        row |= {
            "first_token_unix_ns": sent_ns + int(ttft_ms * 1e6),
            "last_token_unix_ns": sent_ns + int((ttft_ms + 100) * 1e6),
            "tokens": 16,
        }
    return row


def _stretch(phase: str, step: int, begin_s: int, end_s: int) -> dict[str, Any]:
    names = ["dns_latency"] if phase == "fault" else []
    return {"name": phase, "step": step, "scenarios": names, "begin_unix_nano": _T0 + begin_s * _S, "end_unix_nano": _T0 + end_s * _S}


def _span(confidence: float | None) -> dict[str, Any]:
    attributes = [] if confidence is None else [{"key": "llm.ebpf.correlation_confidence", "value": {"doubleValue": confidence}}]
    span = {"traceId": "0" * 31 + "1", "spanId": "0" * 15 + "1", "name": "x", "startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [span | {"attributes": attributes}]}]}]}


def _signal(dropped: int = 0) -> dict[str, Any]:
    account = {"attempts": 10, "emitted": 8, "filtered": 2, "rate_limited": 0, "dropped": dropped}
    return {"signal": "dns_latency_ms", "variant": "cgroup_skb", "attached": True, "blind_spots": [], "drained": 8, "account": account}


def _write_run(directory: Path, incidents: list[tuple[dict[str, Any], dict[str, int]]], signals: list[dict[str, Any]]) -> Path:
    """Files of a run with the baseline from 0 s, the fault from 10 s to 20 s."""
    window = {
        "fault_id": "f",
        "scenario": "dns_latency",
        "fault": "dns_delay",
        "mechanism": "nfqueue",
        "target": {},
        "parameters": {"delay_ms": 200},
        "phase": "begin",
        "begin_unix_nano": _T0 + 10 * _S,
        "expected_domains": ["network_dns"],
        "synthetic": False,
        "measured": {"delay_ms": 201.0},
    }
    requests = [
        _request(-1, 9000),  # warm-up
        *(_request(second, 300 + second) for second in range(9)),
        _request(9.8, 700),  # under way when the fault came on
        *(_request(10 + second, 900) for second in range(9)),
        _request(19.5, None, status=502),
        _request(21, 310),
    ]
    files: dict[str, list[Any]] = {
        "fault-window": [window, window | {"phase": "end", "end_unix_nano": _T0 + 20 * _S}],
        "load-result": requests,
        "incident-attribution": [body for body, _ in incidents],
        "incident-arrival": [
            {"incident_id": body["incident_id"], "incident_arrival_unix_nano": row["arrival_unix_ns"]} for body, row in incidents
        ],
        "agent-report": [{"final": False, "signals": []}, {"final": True, "signals": signals}],
        "probe-event": [{"signal": "dns_latency_ms"}, {"signal": "dns_latency_ms"}],
    }
    phases = [_stretch("baseline", -1, 0, 10), _stretch("fault", 0, 10, 20), _stretch("recovery", 0, 20, 30)]
    with RecordingWriter(directory, {"phases": phases}) as writer:
        for name, rows in files.items():
            writer.file(name, "about").write("".join(json.dumps(row) + "\n" for row in rows).encode(), len(rows))
    (directory / LOGS).mkdir()
    joined = [{"event_id": "e"}, _span(0.9), _span(0.9), _span(1.0), _span(None)]
    (directory / LOGS / "joined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in joined))
    return directory


def _account(tmp_path: Path, *incidents: tuple[dict[str, Any], dict[str, int]], dropped: int = 0) -> Account:
    return read_account(_write_run(tmp_path / "run", list(incidents), [_signal(dropped)]))


def test_named_in_time(tmp_path: Path) -> None:
    """Delays count from the moment the fault was on: by the line's arrival and by the incident's own time."""
    account = _account(tmp_path, _incident("network_dns", 12.25, 12.5), _incident("unknown", 22, 23))
    assert account.passed
    assert account.hit is not None
    assert account.delay_wall_s(account.hit) == pytest.approx(2.5)
    assert account.delay_event_s(account.hit) == pytest.approx(2.25)
    assert (len(account.in_baseline), len(account.in_fault), len(account.after)) == (0, 1, 1)


def test_phases(tmp_path: Path) -> None:
    """Warm-up and requests under way when the fault came on are in no phase; failures are counted, not timed."""
    baseline, fault, recovery = _account(tmp_path).phases
    assert (baseline.requests, baseline.failed, baseline.ttft_p50_ms) == (9, 0, pytest.approx(304))
    assert (fault.requests, fault.failed, fault.ttft_p50_ms) == (10, 1, pytest.approx(900))
    assert (recovery.requests, recovery.ttft_p95_ms) == (1, pytest.approx(310))


@pytest.mark.parametrize(
    "incidents",
    [
        [],
        [("network_egress", 12, 12.5)],
        [("network_dns", 12, 20.5)],
        [("network_dns", 5, 6), ("network_dns", 12, 12.5)],
    ],
    ids=["none", "wrong", "after the fault", "also in the baseline"],
)
def test_not_named_as_expected(tmp_path: Path, incidents: list[tuple[str, float, float]]) -> None:
    """No incident, a wrong one, one that comes when the fault is over, or a false one before: not passed."""
    account = _account(tmp_path, *(_incident(*row) for row in incidents))
    assert not account.passed
    assert "NOT named" in "\n".join(account.lines())


def test_enriched_spans_and_losses(tmp_path: Path) -> None:
    """Spans are counted by the confidence they carry; an account that does not add up is said to."""
    account = _account(tmp_path, dropped=1)
    assert (account.spans, account.enriched) == (4, {"0.90": 2, "1.00": 1})
    assert account.probe_events == {"dns_latency_ms": 2}
    assert not account.account_closes
    assert "DOES NOT CLOSE" in "\n".join(account.lines())


def test_account_that_closes(tmp_path: Path) -> None:
    """attempts = emitted + filtered + rate_limited + dropped closes; without any attached signal nothing closes."""
    assert _account(tmp_path).account_closes
    assert not read_account(_write_run(tmp_path / "empty", [], [])).account_closes


def test_table(tmp_path: Path) -> None:
    """One row a run under the command that made it, and medians over the runs that have a value."""
    first = read_account(_write_run(tmp_path / "a", [_incident("network_dns", 12, 12.5)], [_signal()]))
    second = read_account(_write_run(tmp_path / "b", [], [_signal()]))
    third = read_account(_write_run(tmp_path / "c", [_incident("network_dns", 13, 13.5)], [_signal()]))
    lines = markdown_table([first, second, third], "python -m libslo.lab.slice --runs 3").splitlines()
    assert lines[2] == "`python -m libslo.lab.slice --runs 3`"
    assert "n = 3, passed 2" in lines[4]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header, _, *runs, median = rows
    assert [row[header.index("delay wall s")] for row in runs] == ["2.5", "–", "3.5"]  # noqa: RUF001
    assert median[header.index("delay wall s")] == "3"
    assert median[header.index("TTFT p50 fault ms")] == "900"
    assert [row[header.index("passed")] for row in runs] == ["yes", "no", "yes"]
    assert {len(row) for row in rows} == {len(header)}


def test_broken_run_directory(tmp_path: Path) -> None:
    """A run that did not finish is an input error with its directory."""
    directory = _write_run(tmp_path / "run", [], [])
    (directory / "fault-window.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match="0 lines, where the manifest says 2") as caught:
        read_account(directory)
    assert str(caught.value.source).startswith(str(directory))


def test_missing_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tool that is not installed is named with the cure."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotError, match="agent is not installed") as caught:
        tool_path("agent")
    assert "pip install" in str(caught.value.hint)


def test_live_run(traces: Traces, tmp_path: Path) -> None:
    """Everything at once: a real DNS delay is named while it is on, nothing before, every event accounted for, nothing left."""
    missing = [tool for tool in _TOOLS if not (Path(sys.executable).parent / tool).exists() and shutil.which(tool) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        if os.environ.get("SLO_REQUIRE_KERNEL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    before = (traces.mounts(), traces.links())
    options = ["--baseline", "8", "--fault", "7", "--recovery", "1", "--only-lab"]
    files = ["--artifacts", str(tmp_path / "runs"), "--table", str(tmp_path / "t.md")]
    command = [sys.executable, "-m", "libslo.lab.slice", *options, *files]
    environment = {**os.environ, **importable()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    if done.returncode == 3 and os.environ.get("SLO_REQUIRE_KERNEL") != "1":
        pytest.skip(f"this machine cannot: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    domains = [json.loads(line)["predicted_fault_domain"] for line in done.stdout.splitlines()]
    assert "network_dns" in domains
    (directory,) = (tmp_path / "runs").iterdir()
    account = read_account(directory)
    assert account.account_closes, done.stderr
    baseline, fault, _ = account.phases
    assert baseline.failed == fault.failed == 0
    assert baseline.ttft_p50_ms is not None
    assert fault.ttft_p50_ms is not None
    assert baseline.ttft_p50_ms < 450
    assert fault.ttft_p50_ms - baseline.ttft_p50_ms == pytest.approx(600, abs=90)
    assert sum(account.enriched.values()) > 0
    assert "network_dns" in (tmp_path / "t.md").read_text()
    lab_id = json.loads(next(Recording(directory).lines("fault-window")))["target"]["lab"]
    assert f"slo-lab-{lab_id}" not in traces.cgroups()
    assert (traces.mounts(), traces.links()) == before
    assert traces.files() == []
