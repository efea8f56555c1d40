"""Benchmark roots: ROOT/SCENARIO/run-N/{raw_samples.jsonl,collector_overhead.csv}, and ROOT/manifest.json."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libslo.contracts import contract, explain
from libslo.errors import InputError, os_reason
from libslo.gates.m5 import Run
from libslo.jsonl import read_jsonl

__all__ = [
    "MANIFEST",
    "OVERHEAD",
    "OVERHEAD_COLUMNS",
    "SAMPLES",
    "changed_files",
    "find_scenarios",
    "read_manifest",
    "read_pairs",
    "read_runs",
]

SAMPLES = "raw_samples.jsonl"
OVERHEAD = "collector_overhead.csv"
MANIFEST = "manifest.json"
OVERHEAD_COLUMNS = ("ts_unix_nano", "node", "tool", "node_cpu_pct", "rss_bytes")  # node_cpu_pct, of all its CPUs, must be there
_RUN = re.compile(r"run-([0-9]+)")
_LAYOUT = f"the layout is ROOT/SCENARIO/run-N/{SAMPLES}"


def find_scenarios(root: Path, only: Sequence[str] = ()) -> list[str]:
    """The scenarios of a root by name: all, or those named. InputError when it is no directory, has none, or lacks one that was named."""
    if not root.is_dir():
        raise InputError("no such directory", source=str(root), hint=f"check the path; {_LAYOUT}")
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and any(_RUN.fullmatch(each.name) for each in path.iterdir()))
    if not found:
        raise InputError("no runs in it", source=str(root), hint=_LAYOUT)
    for name in only:
        if name not in found:
            raise InputError(f"no scenario {name!r} in it", source=str(root), hint=f"it has {', '.join(found)}")
    return list(dict.fromkeys(only)) or found


def read_runs(directory: Path, parts: Collection[str], tools: Collection[str] = ()) -> list[Run]:
    """The runs of one scenario by number; none when the directory is not there. parts: which of the two files are read.

    tools: those whose overhead counts, all when none is named. A missing overhead file is a run without any.
    Raises InputError for a line or a cell that is not what it should be.
    """
    numbered = [
        (int(found[1]), path) for path in (directory.iterdir() if directory.is_dir() else ()) if (found := _RUN.fullmatch(path.name))
    ]
    runs = []
    for _, path in sorted(numbered):
        overhead = read_overhead(path / OVERHEAD, tools) if OVERHEAD in parts and (path / OVERHEAD).exists() else {}
        runs.append(Run(overhead_pct=overhead, **(_read_samples(path / SAMPLES) if SAMPLES in parts else {})))
    return runs


def _read_samples(path: Path) -> dict[str, Any]:
    """A failed request (error_rate 1) counts as such and has no TTFT; a pace of 0 is none."""
    rows: list[tuple[float, float, float]] = []
    first = ""
    for batch in read_jsonl(str(path), ("raw-sample",)):
        for kind, value, _, line in batch:
            if not kind:
                raise InputError("not a raw-sample", source=str(path), line=line, hint=f"{SAMPLES} holds raw-samples only")
            rows.append((value["ttft_ms"], value["token_throughput_tps"], value["error_rate"]))
            first = first or value["timestamp"]
    ttft_ms, tokens_per_s, error_rate = np.array(rows, np.float64).reshape(-1, 3).T
    answered = error_rate < 1
    return {
        "ttft_ms": ttft_ms[answered],
        "tokens_per_s": tokens_per_s[answered & (tokens_per_s > 0)],
        "error_rate": error_rate,
        "begin_unix_ns": int(datetime.fromisoformat(first.upper()).timestamp() * 1e9) if first else 0,
        "sha256": _sha256(path) if rows else "",
    }


def read_overhead(path: Path, tools: Collection[str] = ()) -> dict[str, NDArray[np.float64]]:
    """By node, the CPU of all tools together at each time, per cent of the node; NaN for an empty cell.

    Without a column ts_unix_nano each row is a time of its own, without node all is one node, without tool all is one tool.
    """
    sums: dict[str, dict[str, float]] = {}
    measured: set[str] = set()
    for line, row in _rows(path, ("node_cpu_pct",)):
        if tools and "tool" not in row:
            raise InputError("no column tool to choose by", source=str(path), line=1, hint="leave --overhead-of out")
        measured.add(row.get("tool", ""))
        if tools and row["tool"] not in tools:
            continue
        by_time = sums.setdefault(row.get("node") or "node", {})
        at = row.get("ts_unix_nano") or f"line {line}"
        by_time[at] = by_time.get(at, 0.0) + _number(row["node_cpu_pct"], path, line)
    absent = [tool for tool in tools if tool not in measured]
    if measured and absent:
        raise InputError(f"no overhead of {', '.join(absent)}", source=str(path), hint=f"it has {', '.join(sorted(measured))}")
    return {node: np.array(list(by_time.values())) for node, by_time in sums.items()}


def read_pairs(path: Path) -> list[float]:
    """The ratios of a CSV with columns `with` and `without`: one row a pair of application runs, any figure of which less is better."""
    return [_ratio(_number(row["with"], path, line), _number(row["without"], path, line)) for line, row in _rows(path, ("with", "without"))]


def _ratio(with_tools: float, without: float) -> float:
    return with_tools / without if without else math.nan


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column of each row of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            for name in needed:
                if columns and name not in columns:
                    hint = f"it has {', '.join(columns)}"
                    raise InputError(f"no column {name}", source=str(path), line=1, hint=hint)
            for row in reader:
                if None in row or None in row.values():
                    hint = f"its head names {len(columns)} columns"
                    raise InputError("more or fewer cells than columns", source=str(path), line=reader.line_num, hint=hint)
                yield reader.line_num, row
    except OSError as error:
        raise InputError(os_reason(error), source=str(path), hint="check the path and its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not CSV: {str(error).lower()}", source=str(path), hint="make the file again") from error


def _number(cell: str, path: Path, line: int) -> float:
    try:
        value = float(cell) if cell.strip() else math.nan
    except ValueError as error:
        raise InputError(f"{cell!r} is not a number", source=str(path), line=line, hint="correct the cell, or leave it empty") from error
    if value < 0:
        raise InputError(f"{cell} is negative", source=str(path), line=line, hint="a share of time cannot be; make the file again")
    return value


def read_manifest(path: Path) -> dict[str, Any]:
    """A benchmark-manifest. InputError when it cannot be read or is none."""
    import orjson

    hint = "make m5-baseline-rebuild writes one"
    try:
        value = orjson.loads(path.read_bytes())
    except OSError as error:
        raise InputError(os_reason(error), source=str(path), hint=hint) from error
    except ValueError as error:
        raise InputError(f"not JSON: {error}", source=str(path), hint=hint) from error
    wrong = explain(value, contract("benchmark-manifest").schema)
    if wrong:
        raise InputError(f"not a valid benchmark-manifest: {wrong}", source=str(path), hint=hint)
    manifest: dict[str, Any] = value
    return manifest


def changed_files(root: Path, manifest: Mapping[str, Any], scenarios: Collection[str]) -> list[str]:
    """What of these scenarios is not what the manifest says: files that are missing, new, or hold other bytes."""
    listed = {row["path"]: row["sha256"] for row in manifest["files"] if row["path"].split("/")[0] in scenarios}
    there = {str(path.relative_to(root)): path for name in scenarios for path in (root / name).glob("run-*/*") if path.is_file()}
    changed = {name for name in listed.keys() & there.keys() if _sha256(there[name]) != listed[name]}
    return sorted(changed | (listed.keys() ^ there.keys()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
