"""Benchmark roots: what is read of them, and what is refused with its place."""

from __future__ import annotations

import math
from pathlib import Path

import orjson
import pytest
from builders import TESTDATA, lines, raw_sample, slo_event
from gate_roots import write_root, write_run

from libslo.errors import InputError
from libslo.gates.roots import (
    MANIFEST,
    OVERHEAD,
    SAMPLES,
    changed_files,
    find_scenarios,
    read_manifest,
    read_overhead,
    read_pairs,
    read_runs,
)

MEASURED = TESTDATA / "golden" / "m5gate" / "regression" / "baseline"


def test_runs_by_number(tmp_path: Path) -> None:
    """run-10 comes after run-2; other directories are no runs; a file that is not asked for is not read."""
    for number, ttft in ((10, 3), (2, 2), (1, 1)):
        write_run(tmp_path / "s" / f"run-{number}", [ttft])
    (tmp_path / "s" / "notes").mkdir()
    runs = read_runs(tmp_path / "s", {SAMPLES, OVERHEAD})
    assert [run.ttft_ms.tolist() for run in runs] == [[1], [2], [3]] and runs[0].begin_unix_ns == 1_767_225_600_000_000_000
    assert runs[0].overhead_pct["node"].tolist() == [1.0] * 20
    (tmp_path / "s" / "run-1" / SAMPLES).unlink()
    assert [run.ttft_ms.size for run in read_runs(tmp_path / "s", {OVERHEAD})] == [0, 0, 0]
    assert read_runs(tmp_path / "none", {SAMPLES}) == []


def test_failed_requests_have_no_first_token(tmp_path: Path) -> None:
    """They count in the error rate only; a pace of 0 is none."""
    directory = write_run(tmp_path / "s" / "run-1", [])
    samples = [
        raw_sample(),
        raw_sample(ttft_ms=9000, error_rate=1, token_throughput_tps=0),
        raw_sample(ttft_ms=310, token_throughput_tps=0, error_rate=0.1),
    ]
    (directory / SAMPLES).write_bytes(lines(samples))
    (run,) = read_runs(tmp_path / "s", {SAMPLES})
    assert (run.ttft_ms.tolist(), run.tokens_per_s.tolist(), run.error_rate.tolist()) == ([300, 310], [60], [0, 1, 0.1])


def test_an_empty_run_is_a_run(tmp_path: Path) -> None:
    """An empty file of samples, a CSV without rows, an empty CSV and none: no samples, and no error."""
    for number, table in enumerate(("node_cpu_pct\n", "", None), 1):
        directory = write_run(tmp_path / "s" / f"run-{number}", [])
        (directory / OVERHEAD).unlink() if table is None else (directory / OVERHEAD).write_text(table)
    runs = read_runs(tmp_path / "s", {SAMPLES, OVERHEAD})
    assert [(run.ttft_ms.size, run.begin_unix_ns, run.overhead_pct) for run in runs] == [(0, 0, {})] * 3


def test_tools_of_one_time_and_node_are_added(tmp_path: Path) -> None:
    """Their sum by node and time; with tools named, those alone; an empty cell is no number."""
    path = tmp_path / OVERHEAD
    path.write_text("ts_unix_nano,node,tool,node_cpu_pct\n1,a,agent,1\n1,a,collector,2\n2,a,agent,1.5\n1,b,agent,4\n2,b,agent,\n")
    found = read_overhead(path)
    assert found["a"].tolist() == [3, 1.5] and found["b"][0] == 4 and math.isnan(found["b"][1])
    assert {node: values.tolist() for node, values in read_overhead(path, ["collector"]).items()} == {"a": [2]}
    for asked in (["agnt"], ["agent", "agnt"]):
        with pytest.raises(InputError, match="no overhead of agnt") as refused:
            read_overhead(path, asked)
        assert refused.value.hint == "it has agent, collector"


@pytest.mark.parametrize(
    ("table", "line", "fact"),
    [
        ("cpu,node\n1,a\n", 1, "no column node_cpu_pct"),
        ("node_cpu_pct\n1\nmuch\n", 3, "'much' is not a number"),
        ("node_cpu_pct\n-1\n", 2, "-1 is negative"),
        ("node_cpu_pct,node\n1\n", 2, "more or fewer cells than columns"),
        ("node_cpu_pct,node\n1,a,b\n", 2, "more or fewer cells than columns"),
    ],
)
def test_a_table_that_is_not_what_it_should_be(table: str, line: int, fact: str, tmp_path: Path) -> None:
    """A missing column, a word, a negative share, a torn row: refused with file, line and a cure."""
    path = tmp_path / OVERHEAD
    path.write_text(table)
    with pytest.raises(InputError, match=fact) as refused:
        read_overhead(path)
    assert (refused.value.source, refused.value.line) == (str(path), line) and refused.value.hint


def test_bytes_that_are_no_table(tmp_path: Path) -> None:
    """Not UTF-8, and a file that is not there."""
    (tmp_path / "x.csv").write_bytes(b"node_cpu_pct\n\xff\n")
    for name, fact in (("x.csv", "not CSV"), ("none.csv", "no such file")):
        with pytest.raises(InputError, match=fact):
            read_overhead(tmp_path / name)


def test_tools_cannot_be_chosen_without_their_column(tmp_path: Path) -> None:
    """--overhead-of needs a column tool."""
    write_run(tmp_path / "s" / "run-1", [1])
    with pytest.raises(InputError, match="no column tool"):
        read_runs(tmp_path / "s", {OVERHEAD}, ["agent"])


@pytest.mark.parametrize("data", [b'{"a":\n', lines([raw_sample(), slo_event()]), lines([raw_sample(ttft_ms=-1)])])
def test_samples_that_are_none(data: bytes, tmp_path: Path) -> None:
    """Broken JSON, another contract's record, a negative time: refused with the file and its line."""
    directory = write_run(tmp_path / "s" / "run-1", [])
    (directory / SAMPLES).write_bytes(data)
    with pytest.raises(InputError) as refused:
        read_runs(tmp_path / "s", {SAMPLES})
    assert refused.value.source == str(directory / SAMPLES) and refused.value.line == data.count(b"\n") and refused.value.hint


def test_samples_that_are_missing(tmp_path: Path) -> None:
    """A run directory without its samples is a broken root, not a run without requests."""
    (tmp_path / "s" / "run-1").mkdir(parents=True)
    with pytest.raises(InputError, match="no such file"):
        read_runs(tmp_path / "s", {SAMPLES})


def test_scenarios_of_a_root(tmp_path: Path) -> None:
    """All by name, or those that were named; a root without any, or without one that was named, is refused."""
    write_root(tmp_path / "r", scenarios=("b", "a"))
    assert find_scenarios(tmp_path / "r") == ["a", "b"] and find_scenarios(tmp_path / "r", ["b", "b"]) == ["b"]
    (tmp_path / "empty").mkdir()
    for root, only, fact in (
        (tmp_path / "none", (), "no such directory"),
        (tmp_path / "empty", (), "no runs"),
        (tmp_path / "r", ["c"], "'c'"),
    ):
        with pytest.raises(InputError, match=fact):
            find_scenarios(root, only)


def test_pairs(tmp_path: Path) -> None:
    """with over without, row by row; nothing over nothing is no ratio."""
    path = tmp_path / "pairs.csv"
    path.write_text("without,with\n10,11\n8,8\n0,1\n")
    found = read_pairs(path)
    assert found[:2] == [1.1, 1.0] and math.isnan(found[2])
    path.write_text("before,after\n1,2\n")
    with pytest.raises(InputError, match="no column with"):
        read_pairs(path)


def test_what_a_manifest_says_of_files(tmp_path: Path) -> None:
    """A measured root is what its manifest says; a changed byte, a file more and one less are found, in the scenarios asked for."""
    import shutil

    root = tmp_path / "root"
    shutil.copytree(MEASURED, root)
    manifest = read_manifest(root / MANIFEST)
    assert changed_files(root, manifest, ["dns_latency"]) == []
    place = root / "dns_latency"
    (place / "run-1" / OVERHEAD).write_text("node_cpu_pct\n0\n")
    (place / "run-2" / OVERHEAD).unlink()
    write_run(place / "run-4", [300])
    expected = [f"run-1/{OVERHEAD}", f"run-2/{OVERHEAD}", f"run-4/{OVERHEAD}", f"run-4/{SAMPLES}"]
    assert changed_files(root, manifest, ["dns_latency"]) == [f"dns_latency/{name}" for name in expected]
    assert changed_files(root, manifest, []) == []


@pytest.mark.parametrize(
    ("data", "fact"), [(b"{", "not JSON"), (b"[]", "not a valid"), (orjson.dumps({"benchmark_format": 2}), "not a valid")]
)
def test_a_manifest_that_is_none(data: bytes, fact: str, tmp_path: Path) -> None:
    """Refused with its place and how to make one."""
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(InputError, match=fact) as refused:
        read_manifest(tmp_path / MANIFEST)
    assert refused.value.hint and refused.value.source == str(tmp_path / MANIFEST)
    with pytest.raises(InputError, match="no such file"):
        read_manifest(tmp_path / "none.json")
