"""What `sloctl model` does: fit a model on recordings, show what one knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from libslo.attribution import DOMAINS, UNKNOWN, Model
from libslo.cases import Run, find_recordings, read_run
from libslo.errors import CannotError, InputError
from libslo.modelfit import fit_model

__all__ = ["fit_file", "model_lines", "read_runs"]

HOLDOUT = "holdout"
_SHOWN = 4  # signals a domain
_SPEAKS = 2.0


def read_runs(places: Sequence[str], note: Callable[[str], None]) -> list[Run]:
    """Replay every recording in the places; says how far it is. InputError when there is none."""
    runs = []
    paths = find_recordings(places)
    for number, path in enumerate(paths, 1):
        runs.append(read_run(path))
        if number % 20 == 0 or number == len(paths):
            note(f"{number} of {len(paths)} recordings replayed")
    return runs


def fit_file(places: Sequence[str], out: str, note: Callable[[str], None]) -> None:
    """Fit a model on the recordings and write its file. A holdout is refused: what was fitted on it could not be judged by it."""
    import orjson

    if kept_apart := [str(path) for path in find_recordings(places) if HOLDOUT in path.absolute().parts]:
        raise InputError("recordings of a holdout are for evaluation only", source=kept_apart[0], hint="fit on others")
    command = " ".join(["sloctl model fit", *(f"--recordings {place}" for place in places), "--out", out])
    model = fit_model(read_runs(places, note), command)
    data = orjson.dumps(model, option=orjson.OPT_INDENT_2) + b"\n"
    if out == "-":
        import sys

        sys.stdout.buffer.write(data)
        return
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{out}.part")
        part.write_bytes(data)
        part.replace(out)
    except OSError as error:
        raise CannotError(f"cannot write the model: {(error.strerror or '').lower()}", source=out, hint="check --out") from error
    note(f"{out}: {sum(model['provenance']['cases'].values())} cases, temperature {model['temperature']:g}")


def model_lines(model: Model) -> Iterator[str]:
    """What a model knows, for people: where it comes from, and by how much each signal speaks for each domain when it is raised."""
    about = model.provenance
    yield f"version {model.version}, temperature {model.temperature:g}"
    for key in ("data", "command", "runs", "windows_without_a_fault", "seeds", "severities", "prior"):
        if key in about:
            value = about[key]
            yield f"{key.replace('_', ' ')}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
    cases = about.get("cases", {})
    yield ""
    yield f"{'domain':<20}{'cases':>6}  a raised signal is so many times as likely as without a fault"
    for domain in DOMAINS:
        found = sorted(((_times(table, domain), name) for name, table in model.likelihood.items()), reverse=True)
        said = [f"{name} x{times:.1f}" for times, name in found[:_SHOWN] if times >= _SPEAKS]
        yield f"{domain:<20}{cases.get(domain, '-'):>6}  {', '.join(said) or '-'}"
    yield f"{UNKNOWN:<20}{cases.get(UNKNOWN, '-'):>6}  every signal as usual"


def _times(table: Mapping[str, Sequence[float]], domain: str) -> float:
    return (1 - table[domain][0]) / (1 - table[UNKNOWN][0])
