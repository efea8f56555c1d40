"""Material from recordings: each is replayed, its evidence given to the attributor's model, the answers set beside what was true."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from libslo.attribution import load_model
from libslo.bench.material import Answer, Material, OverheadRow, TruthRow
from libslo.bench.timelines import recorded_timelines
from libslo.cases import Run, read_runs
from libslo.errors import InputError
from libslo.jsonl import decode_lines
from libslo.predictions import Decide, predict_runs
from libslo.recordings import Recording
from libslo.resources import data_path
from libslo.usage import usage

__all__ = ["Mode", "material_of_recordings", "material_of_runs", "model_provenance", "overhead_rows"]

Mode = Literal["bayes", "rule"]


def material_of_recordings(
    places: Sequence[str | Path], decide: Decide, provenance: Mapping[str, Any], note: Callable[[str], None]
) -> Material:
    """Replay the recordings in the places. InputError when there is none, or nobody knows what was true in one."""
    return material_of_runs(read_runs(places, note), decide, provenance)


def material_of_runs(
    runs: Sequence[tuple[Path, Run]], decide: Decide, provenance: Mapping[str, Any], *, with_timelines: bool = True
) -> Material:
    """The same of runs that were replayed already, each with its directory. InputError when two have one name."""
    names = [run.name for _, run in runs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two recordings named {doubled[0]}", hint="give each once, and in directories of different names")
    answers = tuple(answer for _, run in runs for answer in _answers(run, decide))
    recordings = [Recording(path) for path, _ in runs]
    overhead = tuple(
        row for (_, run), recording in zip(runs, recordings, strict=True) for row in overhead_rows(run.name, run.scenario, recording)
    )
    return Material(
        answers=answers,
        truth=tuple(row for _, run in runs for row in _truth(run)),
        overhead=overhead,
        no_overhead="" if overhead else "no overhead-sample in the recordings",
        timelines=tuple(recorded_timelines(answers, {run.name: (path, run) for path, run in runs}, decide)) if with_timelines else (),
        datasets={run.name: run.sha256 for _, run in runs},
        provenance={**provenance, "recordings": _recorded_on(recordings)},
    )


def _answers(run: Run, decide: Decide) -> Iterator[Answer]:
    return (Answer(prediction, run.name, run.scenario, run.severity) for prediction in predict_runs([run], decide))


def _truth(run: Run) -> Iterator[TruthRow]:
    about = (run.name, run.scenario, run.severity)
    for each in run.injections:
        length_s = (each.end_ns - each.begin_ns) / 1e9
        yield TruthRow(*about, each.label, each.begin_ns, length_s, each.moved_sli, each.episodes, each.delay_event_s)
    for length_s, alarms in run.windows:
        yield TruthRow(*about, "", None, length_s, False, alarms)


def overhead_rows(run: str, scenario: str, recording: Recording) -> Iterator[OverheadRow]:
    """What the tools used from sample to sample within the phases of a run: their start is not part of it."""
    if not recording.has("overhead-sample"):
        return
    phases = recording.manifest.get("phases", [])
    begin, end = (phases[0]["begin_unix_nano"], phases[-1]["end_unix_nano"]) if phases else (0, None)
    place = f"{recording.directory}/overhead-sample.jsonl.gz"
    samples = (sample for _, sample, *_ in decode_lines(recording.lines("overhead-sample"), ("overhead-sample",), place))
    for each in usage(samples, recording.manifest["machine"]["cpus"], begin, end):
        yield OverheadRow(run, scenario, each.tool, each.ts_unix_ns, round(each.node_cpu_pct, 3), each.rss_bytes)


def model_provenance(mode: Mode, model_path: str | None, abstain_below: float) -> dict[str, Any]:
    """Which model answered: its file's hash (of the rules in rule mode) and where it says it is from."""
    path = data_path("contracts/models/rules.json") if mode == "rule" else Path(model_path or data_path("contracts/models/bayes.json"))
    about: dict[str, Any] = {"mode": mode, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "abstain_below": abstain_below}
    if mode == "bayes":
        model = load_model(model_path)
        about |= {"version": model.version, "fitted_by": model.provenance.get("command"), "fitted_on": model.provenance.get("data")}
    return about


def _recorded_on(recordings: Sequence[Recording]) -> dict[str, Any]:
    manifests = [recording.manifest for recording in recordings]
    times = [phase[key] for manifest in manifests for phase in manifest.get("phases", []) for key in ("begin_unix_nano", "end_unix_nano")]
    return {
        "git_revisions": sorted({manifest["git_revision"] for manifest in manifests}),
        "kernels": sorted({manifest["kernel"] for manifest in manifests}),
        "tool_versions": sorted({manifest["tool_version"] for manifest in manifests}),
        "seeds": sorted({manifest["seed"] for manifest in manifests if manifest.get("seed") is not None}),
        "loads": sorted({manifest["load"] for manifest in manifests if manifest.get("load")}),
        "first_unix_nano": min(times, default=None),
        "last_unix_nano": max(times, default=None),
    }
