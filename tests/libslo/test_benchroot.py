"""Recordings made into a benchmark root: measured figures only, and the source that they were measured of."""

from __future__ import annotations

import csv
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import MS, TESTDATA, objects, run_tool
from builders import S as SECOND

from libslo.contracts import contract
from libslo.errors import InputError
from libslo.gates.roots import MANIFEST, OVERHEAD, SAMPLES, changed_files, read_manifest, read_runs
from libslo.lab.benchroot import compared_stretches, export_root, raw_samples
from libslo.lab.measures import Stretch, load_figures
from libslo.lab.verdict import read_stretches, rows
from libslo.recordings import Recording, RecordingWriter

RECORDINGS = TESTDATA / "recordings"
PHASES = [
    Stretch("baseline", -1, (), 0, 10 * SECOND),
    Stretch("fault", 0, ("x",), 10 * SECOND, 20 * SECOND),
    Stretch("recovery", 0, (), 20 * SECOND, 30 * SECOND),
]


def result(sent_s: float, **more: Any) -> dict[str, Any]:
    sent = int(sent_s * SECOND)
    times = {"first_token_unix_ns": sent + 300 * MS, "last_token_unix_ns": sent + 800 * MS, "end_unix_ns": sent + 810 * MS}
    return {"request_id": f"r{sent_s}", "sent_unix_ns": sent, **times, "tokens": 26, "warmup": False, **more}


def test_the_fault_is_compared_where_there_is_one() -> None:
    """The stretches with a fault on; of a run without, all of it."""
    assert compared_stretches(PHASES) == PHASES[1:2] and compared_stretches(PHASES[:1]) == PHASES[:1]


def test_a_request_becomes_a_sample() -> None:
    """TTFT from send to first token, pace of the tokens after it, within the stretch, by time sent; a valid raw-sample."""
    failed = result(12, error="http_5xx", end_unix_ns=12 * SECOND + 40 * MS)
    del failed["first_token_unix_ns"]
    unsent = {key: value for key, value in result(13).items() if key != "sent_unix_ns"}
    requests = [result(15), failed, result(9.9), result(20), result(14, warmup=True), unsent, result(11, tokens=1)]
    found = list(raw_samples(PHASES[1:2], requests))
    assert [row["request_id"] for row in found] == ["r11", "r12", "r15"] and all(map(contract("raw-sample").is_valid, found))
    assert found[2] | {"timestamp": ""} == {
        "timestamp": "", "cluster": "lab", "namespace": "lab", "workload": "rag-service", "service": "rag-service", "request_id": "r15",
        "ttft_ms": 300.0, "request_latency_ms": 810.0, "token_throughput_tps": 50.0, "error_rate": 0.0, "labels": {"phase": "fault"},
    }  # fmt: skip
    assert (found[1]["error_rate"], found[1]["ttft_ms"], found[1]["token_throughput_tps"]) == (1.0, 40.0, 0.0)
    assert found[0]["token_throughput_tps"] == 0.0


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    for name in ("baseline-medium-100", "dns_latency-low-101", "dns_latency-low-100"):
        shutil.copytree(RECORDINGS / name, tmp_path / "recorded" / name)
    return tmp_path / "recorded"


def test_a_root_of_recordings(recorded: Path, tmp_path: Path) -> None:
    """Runs numbered as they were taken; figures that other code finds in the same recordings; a valid manifest of what was written."""
    manifest = export_root(recorded, tmp_path / "root", "v1")
    assert manifest == read_manifest(tmp_path / "root" / MANIFEST) and manifest["source_ref"] == "v1"
    assert changed_files(tmp_path / "root", manifest, ["baseline", "dns_latency"]) == []
    assert [(row["scenario"], row["run"], row["seed"], row["phase"]) for row in manifest["runs"]] == [
        ("baseline", 1, 100, "baseline"), ("dns_latency", 1, 100, "fault"), ("dns_latency", 2, 101, "fault"),
    ]  # fmt: skip
    recording = Recording(recorded / "dns_latency-low-100")
    assert manifest["source_commit"] == recording.manifest["git_revision"] and manifest["machine"] == recording.manifest["machine"]
    stretch = next(each for each in read_stretches(recording) if each.phase == "fault")
    figures = load_figures(stretch, rows(recording, "load-result"))
    run = read_runs(tmp_path / "root" / "dns_latency", {SAMPLES, OVERHEAD}, ["agent"])[0]
    import numpy as np

    assert float(np.quantile(run.ttft_ms, 0.95)) == pytest.approx(figures["ttft_p95_ms"])
    assert float(np.median(run.tokens_per_s)) == pytest.approx(figures["tokens_per_s_p50"], abs=1e-3)
    assert run.error_rate.size == figures["requests"] and abs(run.begin_unix_ns - stretch.begin_unix_ns) < SECOND
    phases = read_stretches(recording)
    begin_ns, end_ns = phases[0].begin_unix_ns, phases[-1].end_unix_ns
    mine = [
        row for row in rows(recording, "overhead-sample") if row["overhead_of"] == "agent" and begin_ns <= row["ts_unix_nano"] <= end_ns
    ]
    whole_pct = 100 * (mine[-1]["cpu_s"] - mine[0]["cpu_s"]) / ((mine[-1]["ts_unix_nano"] - mine[0]["ts_unix_nano"]) / 1e9) / 2
    assert float(run.overhead_pct["lab"].mean()) == pytest.approx(whole_pct, rel=0.01)


def test_same_recordings_same_bytes(recorded: Path, tmp_path: Path) -> None:
    """Twice the same root, to the byte."""
    digests = []
    for name in ("a", "b"):
        export_root(recorded, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append([(str(path.relative_to(tmp_path / name)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
    assert digests[0] == digests[1] and len(digests[0]) == 7


def test_severities_are_kept_apart(tmp_path: Path) -> None:
    """A scenario of two severities is two."""
    for name in ("app_stall-low-100", "app_stall-high-100"):
        shutil.copytree(RECORDINGS / name, tmp_path / "recorded" / name)
    export_root(tmp_path / "recorded", tmp_path / "root")
    assert sorted(path.name for path in (tmp_path / "root").iterdir() if path.is_dir()) == ["app_stall-high", "app_stall-low"]
    with (tmp_path / "root" / "app_stall-low" / "run-1" / OVERHEAD).open() as file:
        assert {row["tool"] for row in csv.DictReader(file)} == {"agent", "collector", "attributor"}


def test_sources_are_not_mixed(recorded: Path, tmp_path: Path) -> None:
    """Recordings of another revision, a root that is there, and nothing to make one of are refused; nothing is left behind."""
    with pytest.raises(InputError, match="no recordings"):
        export_root(tmp_path / "none", tmp_path / "root")
    with pytest.raises(InputError, match="something already"):
        export_root(recorded, recorded)
    path = recorded / "baseline-medium-100" / MANIFEST
    path.write_text(path.read_text().replace('"git_revision": "', '"git_revision": "f'))
    with pytest.raises(InputError, match="git_revision") as refused:
        export_root(recorded, tmp_path / "root")
    assert refused.value.hint and not (tmp_path / "root").exists()


def test_half_a_root_is_none(recorded: Path, tmp_path: Path) -> None:
    """A recording that cannot be read leaves no root."""
    target = recorded / "dns_latency-low-101" / "load-result.jsonl.gz"
    target.write_bytes(target.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot unpack"):
        export_root(recorded, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_lab_s_recording_without_requests(tmp_path: Path) -> None:
    """No load and no overhead: an empty run, which no gate lets pass."""
    phases = [{"name": "baseline", "step": -1, "scenarios": [], "begin_unix_nano": 1, "end_unix_nano": 2}]
    with RecordingWriter(tmp_path / "recorded", {"scenario": "s", "severity": "low", "phases": phases}):
        pass
    export_root(tmp_path / "recorded", tmp_path / "root")
    done = run_tool("m5gate", "--candidate-root", str(tmp_path / "root"), "--inconclusive-exit", "4")
    assert done.returncode == 4 and {row["answer"] for row in objects(done.stdout)[0]["checks"]} == {"inconclusive"}
