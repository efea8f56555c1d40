"""The recordings that are kept for tests and fitting: whole, of real faults, and replayed to the same incidents."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from builders import ROOT, run_tool

from libslo.recordings import Recording
from libslo.scenarios import expected_domains

KEPT = sorted(path.parent for path in (ROOT / "testdata" / "recordings").glob("*/manifest.json"))
HOLDOUT = sorted(path.parent for path in (ROOT / "testdata" / "recordings" / "holdout").glob("*/manifest.json"))


def _run(tool: str, *arguments: str, given: bytes = b"") -> bytes:
    """What a tool writes; its exit code must be 0."""
    done = run_tool(tool, *arguments, data=given)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_there_are_enough() -> None:
    """Every single-fault scenario is there several times, in two severities, and so is the service without a fault."""
    found = Counter((path.name.split("-")[0], path.name.split("-")[1]) for path in KEPT)
    scenarios = {name for name, _ in found}
    domains = {domain for name in scenarios for domain in expected_domains(name)}
    assert len(domains) == 8
    assert all(found[name, severity] >= 5 for name in scenarios - {"baseline"} for severity in ("low", "high")), found
    assert found["baseline", "medium"] >= 5


def test_the_holdout_is_other_runs() -> None:
    """Ten runs of each single fault and of the pairs, with no seed and no severity that a model is fitted on."""
    about = [json.loads((path / "manifest.json").read_text()) for path in HOLDOUT]
    fitted = [json.loads((path / "manifest.json").read_text()) for path in KEPT]
    count = Counter(each["scenario"] for each in about)
    singles = {each["scenario"] for each in fitted} - {"baseline"}
    assert all(count[name] >= 10 for name in {*singles, "mixed_multi"}), count
    assert not {each["seed"] for each in about} & {each["seed"] for each in fitted}
    assert {each["severity"] for each in about} == {"medium"}
    assert not {each["severity"] for each in fitted if each["scenario"] != "baseline"} & {"medium"}
    model = json.loads((ROOT / "contracts" / "models" / "bayes.json").read_text())["provenance"]["recordings"]
    assert set(model) == {path.name for path in KEPT}


@pytest.mark.parametrize("path", [*KEPT, *HOLDOUT], ids=lambda path: str(path.name))
def test_whole_and_real(path: Path) -> None:
    """Every file is what its manifest says, and no injected fault is synthetic; a baseline has none."""
    recording = Recording(path)
    assert [verdict for verdict in recording.verdicts() if not verdict["valid"]] == []
    windows = [json.loads(line) for line in recording.lines("fault-window")] if recording.has("fault-window") else []
    assert all(not window["synthetic"] and window["severity"] == recording.manifest["severity"] for window in windows)
    assert bool(windows) == (recording.manifest["scenario"] != "baseline")
    assert "host" not in recording.manifest


@pytest.mark.parametrize("name", ["dns_latency-high-100", "provider_error-low-100", "baseline-medium-100"])
def test_replayed_to_the_same_incidents(name: str) -> None:
    """Through collector and attributor a recording gives the same bytes each time, and an incident when there was a fault."""
    path = str(ROOT / "testdata" / "recordings" / name)

    def incidents() -> bytes:
        return _run("attributor", "--slo", "ttft_ms=500@0.95", given=_run("collector", given=_run("faultreplay", path)))

    first = incidents()
    assert first == incidents()
    assert len(first.splitlines()) == (0 if name.startswith("baseline") else 1)
