"""m5gate through its command line: answers become exit codes, bad input its place, and a closed pipe changes neither."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import TESTDATA, objects, run_tool, tool_command
from gate_roots import write_root, write_run

MEASURED = TESTDATA / "golden" / "m5gate" / "regression"


def gate(*arguments: str | Path) -> tuple[int, dict[str, Any], str]:
    done = run_tool("m5gate", *map(str, arguments))
    return done.returncode, (objects(done.stdout) or [{}])[0], done.stderr.decode()


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    return write_root(tmp_path / "candidate"), write_root(tmp_path / "baseline", seed=2)


def test_all_gates_pass(sides: tuple[Path, Path]) -> None:
    """Two roots of the same noise: pass, exit 0, one line of JSON, one sentence for people."""
    code, found, said = gate("--candidate-root", sides[0], "--baseline-root", sides[1])
    assert code == 0 and found["m5gate"] == "pass" and found["gates"] == {"B5": "pass", "D3": "pass", "E3": "pass"}
    assert said == "m5gate: pass: B5 pass, D3 pass, E3 pass; 5 of 5 checks passed\n"
    assert found["sources"]["baseline"] == {"root": str(sides[1]), "manifest": None}


def test_a_slower_candidate_fails(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """20 % slower: exit 1, and the line says by how much."""
    slow = write_root(tmp_path / "slow", 1.2, seed=3)
    code, found, said = gate("--candidate-root", slow, "--baseline-root", sides[1])
    assert code == 1 and found["gates"] == {"B5": "pass", "D3": "pass", "E3": "fail"}
    assert "  fail         E3       dns_latency TTFT p95: " in said
    assert gate("--candidate-root", slow, "--baseline-root", sides[1], "--ttft-regression-pct", "40")[0] == 0


def test_costly_tools_fail(tmp_path: Path) -> None:
    """B5 alone: 4 % of the node is over 3 % and under 5 %."""
    write_run(tmp_path / "c" / "s" / "run-1", [300], [4.0] * 20)
    assert gate("--candidate-root", tmp_path / "c", "--gate", "B5")[0] == 1
    assert gate("--candidate-root", tmp_path / "c", "--gate", "B5", "--max-overhead-pct", "5")[0] == 0


def test_reruns_that_differ_fail(tmp_path: Path) -> None:
    """D3 alone: 300, 300 and 400 ms."""
    for number, ttft in enumerate((300, 300, 400), 1):
        write_run(tmp_path / "c" / "s" / f"run-{number}", [ttft] * 30)
    assert gate("--candidate-root", tmp_path / "c", "--gate", "D3")[0] == 1
    assert gate("--candidate-root", tmp_path / "c", "--gate", "D3", "--max-variance-pct", "20")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["B5", "D3", "E3"])
def test_too_little_is_inconclusive(gates: str, tmp_path: Path) -> None:
    """One run with two requests and two samples of overhead: each gate says so; the exit code is what was asked for, 1 by default."""
    for side in ("c", "b"):
        write_run(tmp_path / side / "s" / "run-1", [300, 310], [1, 1])
    arguments = ("--candidate-root", tmp_path / "c", "--baseline-root", tmp_path / "b", "--gate", gates)
    code, found, _ = gate(*arguments)
    assert code == 1 and found["m5gate"] == "inconclusive" == found["gates"][gates]
    assert gate(*arguments, "--inconclusive-exit", "4")[0] == 4 and gate(*arguments, "--inconclusive-exit", "0")[0] == 0


def test_a_scenario_that_the_candidate_lost_does_not_pass(tmp_path: Path) -> None:
    """The baseline has one more: inconclusive, by its name; unless only the other is asked for."""
    candidate, baseline = write_root(tmp_path / "c", scenarios=("a",)), write_root(tmp_path / "b", seed=2, scenarios=("a", "lost"))
    arguments = ("--candidate-root", candidate, "--baseline-root", baseline, "--gate", "E3")
    code, found, said = gate(*arguments)
    assert code == 1 and found["m5gate"] == "inconclusive" and "lost TTFT p95: the baseline has it, the candidate has not" in said
    assert gate(*arguments, "--scenarios", "a")[0] == 0


def test_a_failure_is_not_an_inconclusive(tmp_path: Path) -> None:
    """--inconclusive-exit does not soften a failure."""
    write_run(tmp_path / "c" / "s" / "run-1", [300], [9.0] * 20)
    code, found, _ = gate("--candidate-root", tmp_path / "c", "--inconclusive-exit", "0")
    assert code == 1 and found["gates"] == {"B5": "fail", "D3": "inconclusive", "E3": "inconclusive"}


@pytest.mark.parametrize("code", ["2", "3", "70", "130", "-1"])
def test_exit_codes_with_a_meaning_are_not_taken(code: str) -> None:
    """2, 3 and 70 stay what they are everywhere."""
    done = run_tool("m5gate", "--candidate-root", "x", "--inconclusive-exit", code)
    assert done.returncode == 2 and b"--inconclusive-exit" in done.stderr


def test_empty_runs_are_inconclusive(tmp_path: Path) -> None:
    """Three runs without a request and without overhead."""
    for number in (1, 2, 3):
        write_run(tmp_path / "c" / "s" / f"run-{number}", [], [])
    code, found, said = gate("--candidate-root", tmp_path / "c", "--baseline-root", tmp_path / "c")
    assert code == 1 and set(found["gates"].values()) == {"inconclusive"} and "no answered request" in said


def test_a_baseline_that_is_the_candidate_is_inconclusive(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """The same directory, and a copy of it: nothing was compared."""
    shutil.copytree(sides[0], tmp_path / "copy")
    for baseline in (sides[0], tmp_path / "copy"):
        code, found, said = gate("--candidate-root", sides[0], "--baseline-root", baseline)
        assert code == 1 and found["gates"]["E3"] == "inconclusive" and "the same samples" in said


def test_a_table_without_its_column(sides: tuple[Path, Path]) -> None:
    """Exit 2 with file, line and what there is."""
    path = sides[0] / "dns_latency" / "run-2" / "collector_overhead.csv"
    path.write_text("cpu,node\n1,a\n")
    code, found, said = gate("--candidate-root", sides[0])
    assert (code, found) == (2, {}) and said == f"m5gate: {path}:1: no column node_cpu_pct\n  try: it has cpu, node\n"


def test_a_broken_line(sides: tuple[Path, Path]) -> None:
    """Exit 2 with file and line."""
    path = sides[1] / "dns_latency" / "run-3" / "raw_samples.jsonl"
    path.write_bytes(path.read_bytes() + b"{\n")
    code, _, said = gate("--candidate-root", sides[0], "--baseline-root", sides[1])
    assert code == 2 and said.startswith(f"m5gate: {path}:41: not JSON")


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ((), "Missing option '--candidate-root'"),
        (("--candidate-root", "none"), "none: no such directory"),
        (("--candidate-root", str(MEASURED / "baseline"), "--scenarios", "dns_latency,typo"), "no scenario 'typo' in it"),
        (("--candidate-root", str(MEASURED / "baseline"), "--baseline-root", "none"), "none: no such directory"),
        (("--candidate-root", str(MEASURED / "baseline"), "--require-baseline-manifest"), "goes with --baseline-root"),
        (("--candidate-root", str(MEASURED / "baseline"), "--gate", "D3", "--application-pairs", "x"), "goes with gate B5"),
        (("--candidate-root", str(MEASURED / "baseline"), "--alpha", "nan"), "nan"),
        (("--candidate-root", str(MEASURED / "baseline"), "--application-pairs", "none"), "none: no such file"),
        (("--candidate-root", "x", "--baseline-root", str(MEASURED / "baseline"), "--baseline-manifest", "none"), "x: no such directory"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], fact: str) -> None:
    """Exit 2, the fact, a cure, and nothing on stdout."""
    code, found, said = gate(*arguments)
    assert (code, found) == (2, {}) and fact in said and "\n  try: " in said


def with_manifest(root: Path, **changes: Any) -> Path:
    """A copy of the measured root whose manifest says something else."""
    manifest = orjson.loads((MEASURED / "baseline" / "manifest.json").read_bytes()) | changes
    (root / "manifest.json").write_bytes(orjson.dumps(manifest))
    return root


def test_the_same_source_is_reported_and_does_not_fail(tmp_path: Path) -> None:
    """A measured rise of 105 % between two roots of one commit: pass, with what was found; between two commits: fail."""
    candidate = with_manifest(shutil.copytree(MEASURED / "candidate", tmp_path / "candidate"))
    arguments = ("--candidate-root", candidate, "--baseline-root", MEASURED / "baseline", "--gate", "E3")
    code, found, _ = gate(*arguments)
    (check,) = (row for row in found["checks"] if row["gate"] == "E3")
    assert code == 0 and check["answer"] == "pass" and "not failed: 738.4 ms +105.4 %" in check["reason"]
    with_manifest(candidate, source_commit="c" * 40)
    code, found, _ = gate(*arguments)
    assert code == 1 and found["gates"] == {"E3": "fail", "baseline": "pass"}


def test_a_baseline_without_a_manifest(sides: tuple[Path, Path]) -> None:
    """Fails when one is required; an altered baseline fails when it has one."""
    arguments = ("--candidate-root", sides[0], "--baseline-root", sides[1])
    code, found, _ = gate(*arguments, "--require-baseline-manifest")
    assert code == 1 and found["gates"]["baseline"] == "fail"
    manifest = MEASURED / "baseline" / "manifest.json"
    code, found, said = gate(*arguments, "--baseline-manifest", manifest, "--require-baseline-manifest")
    assert code == 1 and found["gates"]["baseline"] == "fail" and "not what the manifest says" in said


def test_paired_application_runs(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """A CSV of runs with and without the tools is judged by gate B5 as well."""
    pairs = tmp_path / "pairs.csv"
    for with_tools, code in (("10.1", 0), ("11", 1)):
        pairs.write_text("without,with\n" + f"10,{with_tools}\n" * 5)
        found = gate("--candidate-root", sides[0], "--gate", "B5", "--application-pairs", pairs)
        assert found[0] == code and found[1]["checks"][-1]["figures"]["pairs"] == 5


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    """--scenarios leaves the others unread, bad as they may be."""
    root = write_root(tmp_path / "c", scenarios=("a", "b"))
    (root / "b" / "run-1" / "raw_samples.jsonl").write_text("{")
    code, found, _ = gate("--candidate-root", root, "--scenarios", " a,", "--gate", "D3")
    assert code == 0 and {row["scenario"] for row in found["checks"]} == {"a"}


def test_files_say_the_same(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """--out-json and --out-md into new directories; nothing on stdout; -v lists what passed."""
    out, page = tmp_path / "new" / "m5.json", tmp_path / "pages" / "m5.md"
    arguments = ("--candidate-root", sides[0], "--baseline-root", sides[1])
    done = run_tool("m5gate", *map(str, arguments), "-v", "--out-json", str(out), "--out-md", str(page))
    assert (done.returncode, done.stdout) == (0, b"") and done.stderr.decode().count("\n  pass ") == 5
    assert objects(out.read_bytes())[0] == gate(*arguments)[1]
    assert page.read_text().startswith("# m5gate: pass\n") and "| dns_latency | TTFT p95 | pass |" in page.read_text()


def test_a_page_that_cannot_be_written(sides: tuple[Path, Path], tmp_path: Path) -> None:
    """A directory in its place is bad input, a full disk the machine's fault."""
    for place, code in ((tmp_path, 2), (Path("/dev/full"), 3)):
        done = run_tool("m5gate", "--candidate-root", str(sides[0]), "--gate", "D3", "--out-md", str(place))
        assert done.returncode == code and f"m5gate: {place}: cannot write" in done.stderr.decode()


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.2, 1)])
def test_a_closed_pipe_changes_no_answer(factor: float, code: int, sides: tuple[Path, Path], tmp_path: Path) -> None:
    """Nobody reads stdout: the exit code is the verdict's all the same, without a complaint, buffered or not."""
    candidate = write_root(tmp_path / "other", factor, seed=3)
    command = [*tool_command("m5gate"), "--candidate-root", str(candidate), "--baseline-root", str(sides[1])]
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    for env in (plain, {**plain, "PYTHONUNBUFFERED": "1"}):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=env, check=False)
        os.close(writer)
        assert done.returncode == code and "roken" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.slow
def test_same_seed_same_bytes(sides: tuple[Path, Path]) -> None:
    """Twice the same; another seed, another interval."""
    arguments = ("--candidate-root", str(sides[0]), "--baseline-root", str(sides[1]))
    first, again, other = (run_tool("m5gate", *arguments, "--seed", seed).stdout for seed in ("1", "1", "2"))
    low = [[row["figures"]["ci95_low_ms"] for row in objects(out)[0]["checks"] if row["gate"] == "E3"] for out in (first, other)]
    assert first == again and low[0] != low[1]


def test_a_scenario_s_answer_does_not_depend_on_its_company(tmp_path: Path) -> None:
    """The same figures alone and beside another scenario."""
    roots = [write_root(tmp_path / name, scenarios=("a", "b"), seed=seed) for name, seed in (("c", 1), ("b", 2))]
    arguments = ("--candidate-root", roots[0], "--baseline-root", roots[1], "--gate", "E3")
    both, alone = gate(*arguments)[1]["checks"], gate(*arguments, "--scenarios", "b")[1]["checks"]
    assert [row["scenario"] for row in both] == ["a", "b"] and both[1:] == alone


def test_without_scipy(sides: tuple[Path, Path]) -> None:
    """Exit 3 and how to get it; gate B5 goes without."""
    program = "import sys; sys.modules['scipy'] = None; import slotools.m5gate as t; t.main()"
    command = [sys.executable, "-c", program, "--candidate-root", str(sides[0]), "--gate"]
    done = subprocess.run([*command, "D3"], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stderr.startswith("m5gate: scipy is not installed\n  try: pip install")
    assert subprocess.run([*command, "B5"], capture_output=True, check=False).returncode == 0
