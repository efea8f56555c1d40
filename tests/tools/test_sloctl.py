"""sloctl: models are fitted on recordings, shown to people, and judged on recordings that had no part in the fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from builders import ROOT, run_tool

from libslo.recordings import RecordingWriter

KEPT = ROOT / "testdata" / "recordings"
SHIPPED = ROOT / "contracts" / "models" / "bayes.json"
SCENARIOS = [
    *("app_stall", "cpu_throttle", "dns_latency", "memory_pressure"),
    *("network_partition", "provider_error", "provider_throttle", "retrieval_slowdown"),
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of each single fault, as links."""
    place = tmp_path_factory.mktemp("recordings")
    for scenario in SCENARIOS:
        for seed in (100, 101):
            name = f"{scenario}-high-{seed}"
            (place / name).symlink_to(KEPT / name)
    return place


@pytest.fixture(scope="module")
def fitted(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model fitted on them."""
    out = tmp_path_factory.mktemp("model") / "deep" / "model.json"
    done = run_tool("sloctl", "model", "fit", "--recordings", str(recordings), "--out", str(out))
    assert done.returncode == 0, done.stderr.decode()
    assert b"temperature" in done.stderr
    return out


@pytest.mark.slow
def test_fit_writes_a_model_with_its_provenance(fitted: Path, recordings: Path) -> None:
    """The file says on what it was fitted, and the attributor takes it."""
    about = json.loads(fitted.read_text())["provenance"]
    assert about["runs"] == 16 and about["seeds"] == [100, 101] and len(about["recordings"]) == 16
    assert f"--recordings {recordings}" in about["command"]
    done = run_tool("attributor", "--model", str(fitted), data=b"")
    assert done.returncode == 0


@pytest.mark.slow
def test_show_says_what_speaks_for_each_domain(fitted: Path) -> None:
    """For people: where it comes from, and the strongest signals of every domain."""
    done = run_tool("sloctl", "model", "show", "--model", str(fitted))
    said = done.stdout.decode()
    assert done.returncode == 0 and "seeds: 100, 101" in said
    rows = {line.split()[0]: line for line in said.splitlines() if line}
    assert "dns_latency_ms" in rows["network_dns"] and "cfs_throttled_ms" in rows["cpu_throttle"] and "unknown" in rows


@pytest.mark.slow
def test_evaluate_judges_and_says_when_it_is_no_test(fitted: Path, recordings: Path) -> None:
    """Figures with n and intervals; runs that the model was fitted on are named as such."""
    place = str(recordings / "dns_latency-high-100")
    done = run_tool("sloctl", "model", "evaluate", "--recordings", place, "--model", str(fitted), "--robustness")
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["recordings_that_the_model_was_fitted_on"] == 1 and b"no figure of them says" in done.stderr
    assert report["accuracy"] == {"n": 1, "right": 1, "share": 1.0, "wilson95": report["accuracy"]["wilson95"]}
    assert report["robustness"]["half_missing"]["draws"] == 20
    again = run_tool("sloctl", "model", "evaluate", "--recordings", place, "--model", str(fitted), "--robustness")
    assert again.stdout == done.stdout


def test_a_holdout_is_not_fitted_on(tmp_path: Path) -> None:
    """What is kept for evaluation is refused."""
    shutil.copytree(KEPT / "baseline-medium-100", tmp_path / "holdout" / "baseline-medium-100")
    done = run_tool("sloctl", "model", "fit", "--recordings", str(tmp_path / "holdout"))
    assert done.returncode == 2 and b"for evaluation only" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model["prior"].pop("network_dns"), b"prior: no network_dns"),
        (lambda model: model["likelihood"]["dns_latency_ms"].update({"network_dns/low": [0.2, 0.3, 1.5]}), b"are not 3 probabilities"),
        (lambda model: model.update(temperature=0), b"temperature is not positive"),
        (lambda model: model["prior"].update(unknown=1.5), b"a prior is not a probability"),
        (lambda model: model.pop("likelihood"), b"not a model"),
    ],
)
def test_a_broken_model_is_refused_with_its_place(tmp_path: Path, change: object, said: bytes) -> None:
    """Exit 2, and the key that is wrong."""
    model = json.loads(SHIPPED.read_text())
    change(model)  # type: ignore[operator]
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(model))
    for command in (["sloctl", "model", "show", "--model"], ["attributor", "--model"]):
        done = run_tool(command[0], *command[1:], str(broken), data=b"")
        assert done.returncode == 2 and said in done.stderr and str(broken).encode() in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["model", "fit"], 2, b"--recordings"),
        (["model", "show", "--model", "/nowhere"], 2, b"cannot read the model"),
        (["model", "evaluate", "--recordings", "/nowhere"], 2, b"no recording in it"),
        (["nothing"], 2, b"nothing"),
    ],
)
def test_bad_use(arguments: list[str], code: int, said: bytes) -> None:
    """What is missing is named."""
    done = run_tool("sloctl", *arguments)
    assert done.returncode == code and said in done.stderr


@pytest.mark.parametrize("arguments", [["evaluate"], ["fit", "--out", "model.json"]])
def test_recordings_of_which_nobody_knows_what_was_true(tmp_path: Path, arguments: list[str]) -> None:
    """Neither judged by nor fitted on: real incidents would count as false alarms."""
    with RecordingWriter(tmp_path / "run"):
        pass
    done = run_tool("sloctl", "model", *arguments, "--recordings", str(tmp_path))
    assert done.returncode == 2 and done.stdout == b""
    assert f"{tmp_path / 'run'}: no fault-window in it: nobody knows what was true" in done.stderr.decode()


def test_the_shipped_model_is_shown() -> None:
    """Without --model it is the one that travels with the toolkit: its signals, by domain."""
    done = run_tool("sloctl", "model", "show")
    rows = {line.split()[0]: line for line in done.stdout.decode().splitlines() if line}
    assert done.returncode == 0 and "dns_latency_ms" in rows["network_dns"] and "mem_reclaim_latency_ms" in rows["memory_pressure"]
