"""What `sloctl model` does: fit a model on recordings, show what one knows, judge one on recordings that it was not fitted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from libslo.attribution import DOMAINS, UNKNOWN, Model, attribute_bayes, attribute_rule, load_model
from libslo.cases import find_recordings, read_runs
from libslo.errors import InputError, write_error
from libslo.evaluation import Prediction, class_metrics, confusion, summarize
from libslo.modelfit import fit_model
from libslo.predictions import Decide, predict_runs
from libslo.robustness import robustness_report

__all__ = ["EvaluateSettings", "evaluate_places", "fit_file", "model_lines"]

HOLDOUT = "holdout"
_SHOWN = 4  # signals a domain
_SPEAKS = 2.0


def fit_file(places: Sequence[str], out: str, note: Callable[[str], None]) -> None:
    """Fit a model on the recordings and write its file. A holdout is refused: what was fitted on it could not be judged by it."""
    import orjson

    if kept_apart := [str(path) for path in find_recordings(places) if HOLDOUT in path.absolute().parts]:
        raise InputError("recordings of a holdout are for evaluation only", source=kept_apart[0], hint="fit on others")
    command = " ".join(["sloctl model fit", *(f"--recordings {place}" for place in places), "--out", out])
    model = fit_model([run for _, run in read_runs(places, note)], command)
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
        raise write_error(error, out) from error
    note(f"{out}: {sum(model['provenance']['cases'].values())} cases, temperature {model['temperature']:g}")


@dataclass(frozen=True)
class EvaluateSettings:
    """What `sloctl model evaluate` was asked to do."""

    places: tuple[str, ...]
    model: str | None = None
    rule: bool = False
    abstain_below: float = 0.5
    robustness: bool = False
    seed: int = 42


def evaluate_places(settings: EvaluateSettings, note: Callable[[str], None]) -> bytes:
    """Judge a model on recordings: the JSON report; tells people the table of the domains."""
    import numpy as np
    import orjson

    model = load_model(settings.model)
    runs = [run for _, run in read_runs(settings.places, note)]
    decide: Decide = attribute_rule if settings.rule else partial(attribute_bayes, model=model, abstain_below=settings.abstain_below)
    predictions = list(predict_runs(runs, decide))
    fitted_on = {str(name) for name in model.provenance.get("recordings", {}).values()} & {run.sha256 for run in runs}
    report: dict[str, Any] = {
        "attribution_mode": "rule" if settings.rule else "bayes",
        "model": {"version": model.version, "temperature": model.temperature},
        "recordings": len(runs),
        "recordings_that_the_model_was_fitted_on": 0 if settings.rule else len(fitted_on),
        "injections_noticed": sum(len(run.found) for run in runs),
        "injections_missed": sum(len(run.missed) for run in runs),
        "injections_that_moved_no_sli": sum(run.unmoved for run in runs),
        "false_alarms": sum(len(run.alarms) for run in runs),
        **summarize(predictions, np.random.default_rng(settings.seed)),
    }
    if settings.robustness:
        report["robustness"] = robustness_report(runs, decide, np.random.default_rng(settings.seed))
    for line in _table(predictions):
        note(line)
    if report["recordings_that_the_model_was_fitted_on"]:
        note("the model was fitted on some of these recordings: no figure of them says how it does on others")
    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _table(predictions: Sequence[Prediction]) -> Iterator[str]:
    yield f"{'domain':<20}{'cases':>6}{'right':>7}  said instead"
    wrong = Counter((actual, said) for actual, said, count in confusion(predictions) for _ in range(count) if actual != said)
    for row in class_metrics(predictions):
        instead = ", ".join(f"{said} {count}" for (actual, said), count in sorted(wrong.items()) if actual == row.domain)
        yield f"{row.domain:<20}{row.support:>6}{row.right:>7}  {instead}"


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
        found = sorted(((_times(model, table, domain), name) for name, table in model.likelihood.items()), reverse=True)
        said = [f"{name} x{times:.1f}" for times, name in found[:_SHOWN] if times >= _SPEAKS]
        yield f"{domain:<20}{cases.get(domain, '-'):>6}  {', '.join(said) or '-'}"
    yield f"{UNKNOWN:<20}{cases.get(UNKNOWN, '-'):>6}  every signal as usual"


def _times(model: Model, table: Mapping[str, Sequence[float]], domain: str) -> float:
    raised, usual = (max(1 - table[profile][0] for profile in model.of(each)) for each in (domain, UNKNOWN))
    return raised / usual
