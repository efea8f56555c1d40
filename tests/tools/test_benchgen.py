"""benchgen: a bundle from recordings and from samples, the same bytes each time; what is no labelled input is refused."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import TESTDATA, lines, objects, run_tool, tool_command

FILES = {
    "attribution_summary.json",
    "class_metrics.csv",
    "collector_overhead.csv",
    "confusion-matrix.csv",
    "detection.csv",
    "incident_predictions.csv",
    "provenance.json",
    "report.html",
    "report.md",
}
RECORDINGS = [str(TESTDATA / "recordings" / name) for name in ("baseline-medium-100", "dns_latency-high-100")]


def samples(*arguments: str) -> bytes:
    done = run_tool("faultreplay", "--scenario", "dns_latency", "--count", "400", "--seed", "7", "--window-s", "2", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bundle(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refused(done: subprocess.CompletedProcess[bytes], code: int = 2) -> tuple[str, str]:
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    fact, cure = done.stderr.decode().splitlines()[-2:]
    assert cure.startswith("  try: ")
    return fact, cure


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a quiet run and one with slow DNS."""
    out = tmp_path_factory.mktemp("bundle") / "new" / "bench"
    done = run_tool("benchgen", *(f"--recordings={place}" for place in RECORDINGS), "--out", str(out), timeout=300)
    assert (done.returncode, done.stdout) == (0, b"") and b"2 of 2 recordings replayed" in done.stderr, done.stderr
    return out


def test_a_bundle_of_recordings(recorded: Path) -> None:
    """Every file; the fault with its delay, the windows without one, what the tools cost, where it is all from."""
    files = bundle(recorded)
    assert set(files) == FILES
    summary, provenance = orjson.loads(files["attribution_summary.json"]), orjson.loads(files["provenance.json"])
    cases = list(csv.DictReader(files["incident_predictions.csv"].decode().splitlines()))
    faulty = [case for case in cases if case["actual"]]
    assert [(case["run"], case["actual"], case["severity"]) for case in faulty] == [("dns_latency-high-100", "network_dns", "high")]
    assert 0.5 < float(faulty[0]["delay_s"]) < 6
    assert len(cases) > 1 and summary["false_accusations"]["n"] == len(cases) - 1
    assert summary["exploratory"] is True and summary["runs_per_domain"] == {"network_dns": 1} and summary["runs"] == 2
    assert summary["detection"]["missed"]["n"] == 1 and summary["detection"]["no_fault_s"] > 15
    costs = list(csv.DictReader(files["collector_overhead.csv"].decode().splitlines()))
    assert {row["tool"] for row in costs} == {"agent", "collector", "attributor"} and {row["run"] for row in costs} == {
        c["run"] for c in cases
    }
    assert all(0 <= float(row["node_cpu_pct"]) < 100 and int(row["rss_bytes"]) > 10**7 for row in costs)
    assert set(provenance["datasets"]) == {Path(place).name for place in RECORDINGS} and len(provenance["model"]["sha256"]) == 64
    assert provenance["recordings"]["seeds"] == [100] and provenance["recordings"]["last_unix_nano"] > 0


def test_the_report_shows_the_incident(recorded: Path) -> None:
    """The page has its four plots and the timeline of the one domain; the text says that it proves little."""
    page, text = (recorded / "report.html").read_text(), (recorded / "report.md").read_text()
    names = ("confusion", "reliability", "risk-coverage", "delay", "timeline-network_dns")
    assert page.count("<svg") == len(names) and all(f'aria-label="{name}"' in page for name in names)
    assert "EXPLORATORY" in page and "EXPLORATORY" in text and "| network_dns | 1 | 1 |" in text


def test_same_recordings_same_bytes(recorded: Path, tmp_path: Path) -> None:
    """In another process with another order of hashes, the recordings named the other way round: the same files."""
    env = {"PYTHONHASHSEED": "99"}
    turned = (f"--recordings={place}" for place in reversed(RECORDINGS))
    done = run_tool("benchgen", *turned, "--out", str(tmp_path / "b"), env=env, timeout=300)
    assert done.returncode == 0 and bundle(tmp_path / "b") == bundle(recorded)


def test_a_bundle_of_samples(tmp_path: Path) -> None:
    """From a pipe: windows with a fault and without, an empty overhead table with its reason, twice the same bytes."""
    data = samples()
    for name in ("a", "b"):
        done = run_tool("benchgen", "--out", str(tmp_path / name), data=data, env={"PYTHONHASHSEED": str(ord(name))})
        assert done.returncode == 0, done.stderr
    files = bundle(tmp_path / "a")
    assert files == bundle(tmp_path / "b") and set(files) == FILES
    summary = orjson.loads(files["attribution_summary.json"])
    rows = objects(data)
    assert summary["class_balance"]["network_dns"] == 1
    assert summary["class_balance"]["none"] == sum(row["fault_label"] == "baseline" for row in rows)
    assert summary["synthetic"] == summary["predictions"]
    assert files["collector_overhead.csv"].count(b"\n") == 1
    provenance = orjson.loads(files["provenance.json"])
    assert "do not say what the tools used" in provenance["no_overhead"]
    assert 0 < provenance["samples"]["first_unix_nano"] < provenance["samples"]["last_unix_nano"]
    assert b"timeline-network_dns" in files["report.html"]


def test_samples_in_any_order(tmp_path: Path) -> None:
    """Samples are judged in order of time, however they come: the same bundle."""
    rows = objects(samples())
    for name, order in (("a", rows), ("b", rows[::-1])):
        assert run_tool("benchgen", "--out", str(tmp_path / name), data=lines(order)).returncode == 0
    assert bundle(tmp_path / "a") == bundle(tmp_path / "b")


def test_labels_decide_nothing(tmp_path: Path) -> None:
    """With every fault's label changed for another, the same windows get the same answers."""
    data = samples()
    other = lines(
        {**row, "fault_label": "cpu_throttle", "expected_domains": ["cpu_throttle"]} if row["expected_domains"] else row
        for row in objects(data)
    )
    said = []
    for name, stream in (("a", data), ("b", other)):
        assert run_tool("benchgen", "--out", str(tmp_path / name), data=stream).returncode == 0
        rows = list(csv.DictReader((tmp_path / name / "incident_predictions.csv").open()))
        said.append([{key: value for key, value in row.items() if key != "actual"} for row in rows])
    assert said[0] == said[1] != []


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"fault_label": None}, "a sample without its label"),
        ({"expected_domains": None}, "a sample without its label"),
        ({"expected_domains": ["disk"]}, "disk"),
        ({"fault_label": "baseline", "expected_domains": ["network_dns"]}, "do not agree"),
        ({"fault_label": "dns_latency", "expected_domains": []}, "do not agree"),
    ],
)
def test_samples_that_cannot_be_judged(change: dict[str, Any], fact: str, tmp_path: Path) -> None:
    """No label, an unknown domain, a label that contradicts its domains: exit 2, the line, and no directory."""
    rows = objects(samples())
    rows[2] = {key: value for key, value in {**rows[2], **change}.items() if value is not None}
    said, _ = refused(run_tool("benchgen", "--out", str(tmp_path / "b"), data=lines(rows)))
    assert said.startswith("benchgen: stdin:3: ") and fact in said
    assert not any(tmp_path.iterdir())


def test_input_that_is_none(tmp_path: Path) -> None:
    """Nothing, records of another contract, a missing file, a directory without recordings, a recording of nobody knows what."""
    out = ("--out", str(tmp_path / "b"))
    assert refused(run_tool("benchgen", *out))[0] == "benchgen: stdin: no fault-sample in it"
    impossible = {**objects(samples())[0], "slis": [{"sli": "ttft_ms", "requests": 3, "mean": 1.0, "p95": 1.0, "bad": 4}]}
    assert "stdin:1: not a valid fault-sample: 4 of 3" in refused(run_tool("benchgen", *out, data=lines([impossible])))[0]
    assert "stdin:1: not a fault-sample" in refused(run_tool("benchgen", *out, data=lines([{"x": 1}])))[0]
    assert "no such file" in refused(run_tool("benchgen", "--input", str(tmp_path / "none.jsonl"), *out))[0]
    assert "no recording in it" in refused(run_tool("benchgen", "--recordings", str(tmp_path), *out))[0]
    assert run_tool("collector", "--record", str(tmp_path / "mine"), data=b"").returncode == 0
    fact, _ = refused(run_tool("benchgen", "--recordings", str(tmp_path / "mine"), *out))
    assert "no fault-window in it: nobody knows what was true" in fact
    fact, _ = refused(run_tool("benchgen", "--recordings", RECORDINGS[0], "--recordings", RECORDINGS[0], *out, timeout=300))
    assert "two recordings named baseline-medium-100" in fact
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_one_class_only(tmp_path: Path) -> None:
    """Windows without a fault only: a bundle in which nothing was accused, and no accuracy."""
    rows = [row for row in objects(samples()) if not row["expected_domains"]]
    done = run_tool("benchgen", "--out", str(tmp_path / "b"), data=lines(rows))
    assert done.returncode == 0, done.stderr
    summary = orjson.loads((tmp_path / "b" / "attribution_summary.json").read_bytes())
    assert summary["accuracy"]["share"] is None and summary["false_accusations"]["n"] == len(rows) and summary["exploratory"] is True


def test_a_directory_in_use_is_not_touched(tmp_path: Path) -> None:
    """A file in it: refused before any work. --force replaces it; a file of that name is never replaced."""
    out, data = tmp_path / "b", samples()
    out.mkdir()
    (out / "mine").write_text("x")
    fact, cure = refused(run_tool("benchgen", "--out", str(out), data=data))
    assert "there is something already" in fact and "--force" in cure and bundle(out) == {"mine": b"x"}
    assert run_tool("benchgen", "--out", str(out), "--force", data=data).returncode == 0
    assert set(bundle(out)) == FILES
    (tmp_path / "file").write_text("x")
    fact, cure = refused(run_tool("benchgen", "--out", str(tmp_path / "file"), "--force", data=data))
    assert "there is something already" in fact and (tmp_path / "file").read_text() == "x"
    (tmp_path / "empty").mkdir()
    assert run_tool("benchgen", "--out", str(tmp_path / "empty"), data=data).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "empty", "file"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """No file may be larger than 16 KiB: exit 3 with the reason, and no half bundle."""
    script = 'ulimit -f 16; exec "$@"'
    command = ["bash", "-c", script, "bash", *tool_command("benchgen"), "--out", str(tmp_path / "b")]
    done = subprocess.run(command, input=samples(), capture_output=True, check=False)
    fact, _ = refused(done, 3)
    assert fact == f"benchgen: {tmp_path / 'b'}: cannot write: file too large"
    assert not any(tmp_path.iterdir())


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    """Recordings and samples at once, no place for the bundle, a model that is none."""
    fact, _ = refused(run_tool("benchgen", "--recordings", RECORDINGS[0], "--input", "x.jsonl", "--out", str(tmp_path / "b")))
    assert "--recordings, or --input" in fact
    assert "--out" in refused(run_tool("benchgen"))[0]
    fact, _ = refused(run_tool("benchgen", "--model", "/nonexistent.json", "--out", str(tmp_path / "b"), data=samples()))
    assert "/nonexistent.json: cannot read the model" in fact


def test_rules_answer_too(tmp_path: Path) -> None:
    """--attribution-mode rule: its answers, and its file's hash in the provenance."""
    done = run_tool("benchgen", "--attribution-mode", "rule", "--out", str(tmp_path / "b"), data=samples())
    assert done.returncode == 0
    summary = orjson.loads((tmp_path / "b" / "attribution_summary.json").read_bytes())
    assert summary["accuracy"]["right"] == 1
    assert orjson.loads((tmp_path / "b" / "provenance.json").read_bytes())["model"]["mode"] == "rule"
