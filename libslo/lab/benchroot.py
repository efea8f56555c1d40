"""Recordings of the laboratory made into a benchmark root that m5gate reads: `make m5-candidate-rebuild`, `m5-baseline-rebuild`.

Of a run with a fault the requests sent while it was on are taken, of one without all requests: so reruns of an incident are held
against each other, and the first token during the same incident. The overhead is that of all phases; the start of the tools is none of
them. All figures are measured.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from libslo.cli import common_options, make_main, note
from libslo.errors import InputError, write_error
from libslo.gates.roots import MANIFEST, OVERHEAD, OVERHEAD_COLUMNS, SAMPLES
from libslo.jsonl import encode
from libslo.lab.measures import Stretch
from libslo.lab.stack import APP_SERVICE
from libslo.lab.verdict import read_stretches, rows
from libslo.recordings import Recording
from libslo.slo import format_timestamp
from libslo.usage import usage

__all__ = ["compared_stretches", "export_root", "raw_samples"]

_S = 1_000_000_000
_NODE = "lab"


def compared_stretches(stretches: Sequence[Stretch]) -> list[Stretch]:
    """The stretches whose requests are compared: those with a fault on, and all where none was ever on."""
    return [stretch for stretch in stretches if stretch.phase == "fault"] or list(stretches)


def raw_samples(stretches: Sequence[Stretch], requests: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The load-results sent within the stretches as raw-samples, by the time when they were sent.

    A failed request has error_rate 1, no pace, and as TTFT and latency the time until it failed.
    """
    for result in sorted(
        (each for each in requests if "sent_unix_ns" in each), key=lambda each: (each["sent_unix_ns"], each["request_id"])
    ):
        sent_ns = result["sent_unix_ns"]
        phase = next((each.phase for each in stretches if each.begin_unix_ns <= sent_ns < each.end_unix_ns), None)
        if phase is None or result["warmup"] or "end_unix_ns" not in result:
            continue
        answered = "error" not in result and "first_token_unix_ns" in result
        latency_ms = (result["end_unix_ns"] - sent_ns) / 1e6
        yield {
            "timestamp": format_timestamp(sent_ns),
            "cluster": "lab",
            "namespace": "lab",
            "workload": APP_SERVICE,
            "service": APP_SERVICE,
            "request_id": result["request_id"],
            "ttft_ms": (result["first_token_unix_ns"] - sent_ns) / 1e6 if answered else latency_ms,
            "request_latency_ms": latency_ms,
            "token_throughput_tps": round(_pace(result), 4) if answered else 0.0,
            "error_rate": 0.0 if answered else 1.0,
            "labels": {"phase": phase},
        }


def _pace(result: Mapping[str, Any]) -> float:
    """Tokens a second after the first; 0 with a single one."""
    lasted_ns = result["last_token_unix_ns"] - result["first_token_unix_ns"]
    return (result["tokens"] - 1) * _S / lasted_ns if result["tokens"] > 1 and lasted_ns > 0 else 0.0


def export_root(source: Path, root: Path, source_ref: str | None = None) -> dict[str, Any]:
    """Make a new benchmark root of all recordings below a directory, and return its manifest, which is written last.

    A scenario's directory carries its name, and the severity too where there are several; its runs are numbered as they were taken.
    Raises InputError when there is none, when they are not of one source and machine, or when the root exists.
    """
    recordings = [Recording(path.parent) for path in sorted(source.rglob(MANIFEST)) if path.is_file()]
    if not recordings:
        raise InputError("no recordings in it", source=str(source), hint="make lab leaves them in artifacts/lab")
    recordings.sort(key=lambda each: (read_stretches(each)[0].begin_unix_ns, str(each.directory)))
    about = _one_source(recordings)
    if root.exists():
        raise InputError("there is something already", source=str(root), hint="name a new directory, or remove it")
    names = _names(recordings)
    files: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    try:
        for recording in recordings:
            name = names[recording.directory]
            number = sum(row["scenario"] == name for row in runs) + 1
            runs.append(_export_run(recording, root, name, number, files))
        manifest = {"benchmark_format": 1, **({"source_ref": source_ref} if source_ref else {}), **about, "runs": runs, "files": files}
        (root / MANIFEST).write_bytes(encode(manifest))
    except BaseException as error:
        shutil.rmtree(root, ignore_errors=True)  # half a root would pass for a whole one
        if isinstance(error, OSError):
            raise write_error(error, root) from error
        raise
    return manifest


def _one_source(recordings: Sequence[Recording]) -> dict[str, Any]:
    """What all recordings must have in common."""
    about = {"source_commit": "git_revision", "tool_version": "tool_version", "kernel": "kernel", "machine": "machine"}
    first = recordings[0]
    for name in about.values():
        other = next((each for each in recordings if each.manifest[name] != first.manifest[name]), None)
        if other is not None:
            fact = f"{name} {other.manifest[name]}, where {first.directory} has {first.manifest[name]}"
            raise InputError(fact, source=str(other.directory), hint="keep runs of one source and machine together, or take them again")
    return {ours: first.manifest[theirs] for ours, theirs in about.items()}


def _names(recordings: Sequence[Recording]) -> dict[Path, str]:
    severities: dict[str, set[str]] = {}
    for recording in recordings:
        severities.setdefault(recording.manifest["scenario"], set()).add(recording.manifest["severity"])
    return {
        each.directory: each.manifest["scenario"]
        + (f"-{each.manifest['severity']}" if len(severities[each.manifest["scenario"]]) > 1 else "")
        for each in recordings
    }


def _export_run(recording: Recording, root: Path, name: str, number: int, files: list[dict[str, Any]]) -> dict[str, Any]:
    """Write one run; what the manifest says about it, and about its files through `files`."""
    phases = read_stretches(recording)
    stretches = compared_stretches(phases)
    samples = [encode(row) for row in raw_samples(stretches, rows(recording, "load-result"))]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(OVERHEAD_COLUMNS)
    node = recording.manifest.get("host", _NODE)
    used = usage(rows(recording, "overhead-sample"), recording.manifest["machine"]["cpus"], phases[0].begin_unix_ns, phases[-1].end_unix_ns)
    overhead = [(each.round_unix_ns, node, each.tool, round(each.node_cpu_pct, 4), each.rss_bytes) for each in used]
    writer.writerows(overhead)
    directory = root / name / f"run-{number}"
    directory.mkdir(parents=True)
    for file, data, lines in ((SAMPLES, b"".join(samples), len(samples)), (OVERHEAD, table.getvalue().encode(), len(overhead) + 1)):
        (directory / file).write_bytes(data)
        files.append({"path": f"{name}/run-{number}/{file}", "lines": lines, "sha256": hashlib.sha256(data).hexdigest()})
    known: dict[str, Any] = {key: recording.manifest[key] for key in ("severity", "seed", "load") if key in recording.manifest}
    begin_ns, end_ns = stretches[0].begin_unix_ns, stretches[-1].end_unix_ns
    return {
        "scenario": name, "run": number, "phase": stretches[0].phase, **known, "begin_unix_nano": begin_ns, "end_unix_nano": end_ns,
    }  # fmt: skip


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--source-ref", metavar="REF", help="The name by which the source was asked for, for the manifest.")
@common_options
def command(source: Path, root: Path, source_ref: str | None) -> None:
    """Make a benchmark root of the recordings below SOURCE.

    \b
    Example:
      python -m libslo.lab.benchroot artifacts/lab artifacts/m5/candidate
    """
    manifest = export_root(source, root, source_ref)
    note(f"{root}: {len(manifest['runs'])} runs of {manifest['source_commit']}")


main = make_main(command, "benchroot")

if __name__ == "__main__":
    main(None)
