"""Write a benchmark bundle: every file of it, or none. Same input and seed, same bytes."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libslo import __version__
from libslo.attribute import AttributeSettings, incident_settings
from libslo.bench.document import as_html, as_markdown
from libslo.bench.material import Material
from libslo.bench.plots import draw_all
from libslo.bench.recorded import Mode, material_of_recordings, model_provenance
from libslo.bench.report import TITLE, report_blocks
from libslo.bench.sampled import material_of_samples
from libslo.bench.tables import bundle_summary, tables
from libslo.errors import CannotError, InputError, os_reason, write_error
from libslo.recordings import git_revision
from libslo.resources import data_path

__all__ = ["BenchSettings", "bench", "bundle_files", "write_directory"]


@dataclass(frozen=True)
class BenchSettings:
    """What benchgen was asked to do: recordings, or else the fault-samples in `source`."""

    out: str
    recordings: tuple[str, ...] = ()
    source: str = "-"
    mode: Mode = "bayes"
    model: str | None = None
    abstain_below: float = 0.5
    seed: int = 42
    force: bool = False


def bench(settings: BenchSettings, note: Callable[[str], None]) -> None:
    """Make the bundle. InputError for bad input and for a directory that is in use, CannotError when it cannot be written."""
    out = Path(settings.out)
    _check_free(out, settings.force)
    rules = incident_settings(AttributeSettings(mode=settings.mode, model=settings.model, abstain_below=settings.abstain_below))
    about = {"model": model_provenance(settings.mode, settings.model, settings.abstain_below)}
    if settings.recordings:
        material = material_of_recordings(settings.recordings, rules.attribute, about, note)
    else:
        material = material_of_samples(settings.source, rules, about)
    files = bundle_files(material, settings.seed)
    write_directory(out, files, replace=settings.force)
    faults = sum(bool(each.actual) for each in material.predictions)
    note(f"{out}: {len(material.answers)} cases, {faults} with a fault; see {out / 'report.html'}")


def bundle_files(material: Material, seed: int) -> dict[str, bytes]:
    """File name to content."""
    import orjson

    summary = bundle_summary(material, seed)
    provenance = _provenance(material, seed)
    drawings = draw_all(material.answers, summary["calibration"], material.timelines)
    blocks = report_blocks(material, summary, provenance, drawings)
    pretty = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return {
        **{name: text.encode() for name, text in tables(material).items()},
        "attribution_summary.json": orjson.dumps(summary, option=pretty),
        "provenance.json": orjson.dumps(provenance, option=pretty),
        "report.md": as_markdown(TITLE, blocks).encode(),
        "report.html": as_html(TITLE, blocks).encode(),
    }


def _provenance(material: Material, seed: int) -> dict[str, Any]:
    return {
        "toolkit": {
            "version": __version__,
            "git_revision": git_revision(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "seed": seed,
        **material.provenance,
        "config": {name: _sha256(f"contracts/vocabulary/{name}.json") for name in ("burn-windows", "evidence", "signals", "slis")},
        **({"no_overhead": material.no_overhead} if material.no_overhead else {}),
        "datasets": dict(sorted(material.datasets.items())),
    }


def _sha256(name: str) -> str:
    import hashlib

    return hashlib.sha256(data_path(name).read_bytes()).hexdigest()


def _check_free(out: Path, force: bool) -> None:
    try:
        in_use = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise CannotError(f"cannot look into it: {os_reason(error)}", source=str(out), hint="check the path") from error
    if in_use and not (force and out.is_dir()):
        hint = "name a new directory, or --force to replace it" if out.is_dir() else "name a directory"
        raise InputError("there is something already", source=str(out), hint=hint)


def write_directory(out: Path, files: Mapping[str, bytes], *, replace: bool = False) -> None:
    """Write the files into a new directory beside it, then give it its name; `replace` takes away what had that name."""
    part: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        for name, content in files.items():
            with (part / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        part.chmod(0o755)
        if replace and out.exists():
            _swap(part, out)
        else:
            part.replace(out)
    except OSError as error:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
        raise write_error(error, out) from error


def _swap(part: Path, out: Path) -> None:
    """Give `part` the name of `out`, and take `out` away; when that is not possible, `out` is as it was."""
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        out.replace(old)
        try:
            part.replace(out)
        except OSError:
            old.replace(out)
            raise
    except OSError:
        if old.exists():
            old.rmdir()
        raise
    shutil.rmtree(old)
