"""The project's key results as one page: `make key-results`. Every figure is measured here, from recordings; none is typed.

`python -m libslo.bench.key_results --holdout DIR --recordings DIR --table FILE`. The holdout is what counts; the recordings that the
model was fitted on stand beside it, to show by how much a figure on one's own data flatters. Needs no root.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from libslo.attribute import AttributeSettings, incident_settings
from libslo.attribution import load_model
from libslo.bench.key_facts import KeyFacts, key_facts
from libslo.bench.recorded import model_provenance
from libslo.bench.report import NONE, share_text, value_text
from libslo.cli import common_options, make_main, note
from libslo.evaluation import confusion
from libslo.files import write_file

__all__ = ["ROWS", "Row", "figure_of", "main", "page"]

SEED = 42
Figure = Mapping[str, Any]
_NO_FIGURE: Figure = {"n": 0}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    key: place of the figure in a benchmark's summary, or its name among the extra facts. trivial: key of what a trivial answer gets, with
    the words that say which answer; or one with {} in the place of the baseline's name, for the two baselines of a summary; None for
    none. published: what the seed documents say, and in which of them.
    """

    name: str
    key: str
    trivial: tuple[str, str] | str | None = None
    published: str = NONE
    digits: int = 3


_FIRST = "alarm at the first bad request"
_MEDIAN = "median of the others"
_LAST = "the request that began last"
ROWS = (
    Row("attribution accuracy, one fault", "accuracy", "baselines.{}.accuracy"),
    Row("attribution accuracy, mixed: one fault after another", "mixed", "mixed_{}", "1.00 (003)"),
    Row("several faults at once: an actual one was said", "multi_fault.partial", "multi_fault.baselines.{}.partial"),
    Row("several faults at once: all found at 0.10 or more", "multi_fault.coverage", "multi_fault.baselines.{}.coverage"),
    Row("several faults at once: exactly these named", "multi_fault.exact_set", "multi_fault.baselines.{}.exact_set"),
    Row("macro-F1, one fault", "macro_f1", "baselines.{}.macro_f1"),
    Row("abstained though there was a domain", "abstained", "baselines.{}.abstained"),
    Row("accuracy of the surest 80 %", "at_coverage.0.80", "baselines.{}.partial"),
    Row("calibration error (ECE)", "calibration.ece"),
    Row("Brier score", "brier", "baselines.{}.brier"),
    Row("a domain accused in a window without a fault", "false_accusations", "baselines.{}.false_accusations"),
    Row("detection: windows without a fault with an alarm", "detection.alarmed_windows", ("trivial_alarmed", _FIRST), "0.00 (003)"),
    Row("detection: faults that hurt, missed", "detection.missed", ("trivial_missed", _FIRST), "0.00 (003)"),
    Row("detection delay, median, s", "detection.delay_s", ("trivial_delay_s", _FIRST), "2.50 (003)", 2),
    Row("burn-rate prediction error, since the trouble began", "burn_error_since_onset", ("trivial_burn_error", _MEDIAN), "0.07 (003)"),
    Row("burn-rate prediction error, the alert's window", "burn_error_said", ("trivial_burn_error", _MEDIAN), "0.07 (003)"),
    Row("agent CPU, % of the node", "overhead.agent.node_cpu_pct", None, "at most 3 (002)", 2),
    Row("agent memory, peak of a run, MB", "agent_memory_mb", digits=1),
    Row("collector CPU, % of the node", "overhead.collector.node_cpu_pct", None, "2.20 (003)", 2),
    Row("collector memory, peak of a run, MB", "collector_memory_mb", None, "120 (003)", 1),
    Row("correlation precision, spans tell their port", "join_precision", ("trivial_join", _LAST), "at least 0.90 (003)"),
    Row("correlation recall, spans tell their port", "join_recall", ("trivial_join", _LAST), "at least 0.85 (003)"),
    Row("correlation precision, pod, process and time alone", "blind_join_precision", ("trivial_join", _LAST), "at least 0.90 (003)"),
    Row("correlation recall, pod, process and time alone", "blind_join_recall", ("trivial_join", _LAST), "at least 0.85 (003)"),
)


def figure_of(facts: KeyFacts, key: str) -> Figure:
    """The figure of a row: an extra fact, or what the summary has at a place; n is 0 where it has nothing."""
    if key in facts.extra:
        return facts.extra[key]
    head, _, rest = key.partition(".")
    found: Any = facts.summary.get(head)
    while rest and found is not None:
        part = rest if rest in found else rest.partition(".")[0]  # "0.80" is one name
        rest = rest[len(part) + 1 :]
        found = found.get(part)
    return found or _NO_FIGURE


def _trivial(facts: KeyFacts, row: Row) -> str:
    if row.key == "calibration.ece":
        band = facts.summary["calibration"]["ece_of_perfect95"]
        return NONE if band is None else f"{band[0]:.3f} to {band[1]:.3f}: a perfect one"
    if row.trivial is None:
        return NONE
    if isinstance(row.trivial, tuple):
        return f"{_plain(figure_of(facts, row.trivial[0]), row.digits)}: {row.trivial[1]}"
    majority, largest = (_plain(figure_of(facts, row.trivial.format(name)), row.digits) for name in ("always_majority", "largest_z"))
    return f"{majority}: majority; {largest}: largest change"


_MEANING = """\
A *case* is an incident of a fault that was noticed, or a window of 3 s in a phase without a fault. Detection is judged by run: a fault
hurt when at least 15 % of the requests that ended in it missed an objective; one that did not is neither found nor missed.
*Delay* is from the moment the injector had verified the fault to the detection, in event time.

*Burn-rate prediction error* is |predicted - felt| / felt, on average. Felt: of the requests that clients sent while the fault was on,
the share that missed the incident's objective, over the budget. Predicted, as it was said live when the episode opened: the burn rate
of the alert's long window (`slo_impact.burn_rate`, which still holds the good time before), or the episode's bad requests over
its requests since the trouble began. The trivial prediction is the median of what was felt in the other runs.

*CPU and memory* are those of the live tools from sample to sample within a run's phases, mean over runs, of the revision that recorded
them; CPU in percent of all CPUs of the node. The lab's agent captures all signals and its overhead guard is off. *Correlation* is judged
on TCP events (connect, TLS, retransmit) of connections whose local port a span wrote down: that span's request is the right one. The join
reads that port too (`network.local.port`), so the figures of spans that tell it say what a service gets that writes it down, and the
others what it gets otherwise. Precision: right over joined with a confidence that enriches; recall: right over all; mean over runs.

Trivial answers: the *majority* always says the most frequent domain, the *largest change* the domain of the signal that changed most;
neither is surer of one answer than of another. An *alarm at the first bad request* is judged by what clients saw, its false alarms in
the baseline of each run. In brackets: 95 % intervals, Wilson's for shares, bootstrap over cases or runs otherwise.
(002), (003): the seed documents, about another program."""


def _plain(figure: Figure, digits: int) -> str:
    value = figure.get("share", figure.get("value"))
    return NONE if value is None else f"{value:.{digits}f}"


def _text(figure: Figure, digits: int) -> str:
    if "wilson95" in figure:
        return share_text(figure)
    return value_text(figure, digits) if "bootstrap95" in figure else NONE


def page(sets: Sequence[KeyFacts], model: Mapping[str, Any], command: str) -> str:
    """The page. sets: the one that counts first."""
    first = sets[0]
    lines = ["# Key results", "", f"`{command}` wrote this page (`make key-results`): no figure on it is typed by hand. Seed {SEED}.", ""]
    lines += [f"Model: {model['version']}, {model['fitted_on']}, sha256 `{model['sha256'][:16]}`.", ""]
    for facts in sets:
        lines += [
            (
                f"- {facts.name}: {facts.recordings} recordings, {facts.fitted_on} of which the model was fitted on; "
                f"Linux {', '.join(facts.kernels)}; digest `{facts.digest[:16]}`. {_warning(facts)}"
            ).rstrip()
        ]
    lines += ["", *_table(sets), ""]
    lines += [f"A key is the place of a figure in attribution_summary.json as `benchgen --recordings DIR --seed {SEED}` writes it.", ""]
    lines += ["## By domain", "", f"Single faults of the {first.name}.", "", *_domains(first), ""]
    if first.together:
        lines += ["## Several faults at once, by domain", "", *_together(first), ""]
    lines += ["## When the evidence is worse", "", *_robustness(first), ""]
    counts = first.joins
    lines += ["## What the figures mean", "", _MEANING, ""]
    lines += [
        f"Joins in the {first.name}: {counts.known} events of known request, {counts.joined} joined,",
        f"{counts.right_trace} with the right request, {counts.right_span} with the right span;",
        f"{counts.unknown} events of connections that no single span wrote down are left out.",
    ]
    return "\n".join(lines) + "\n"


def _warning(facts: KeyFacts) -> str:
    return "Exploratory: fewer than 10 runs of a domain." if facts.summary["exploratory"] else ""


def _table(sets: Sequence[KeyFacts]) -> Iterator[str]:
    head = ["figure", *(cell for facts in sets for cell in (facts.name, "n")), f"trivial answer, {sets[0].name}", "published", "key"]
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for row in ROWS:
        figures = [figure_of(facts, row.key) for facts in sets]
        cells = [cell for figure in figures for cell in (_text(figure, row.digits), str(figure["n"] or NONE))]
        key = NONE if row.key in sets[0].extra else f"`{row.key}`"
        yield "| " + " | ".join([row.name, *cells, _trivial(sets[0], row), row.published, key]) + " |"


def _robustness(facts: KeyFacts) -> Iterator[str]:
    found = facts.robustness
    half, lost = found["half_missing"], list(found["accuracy_lost_without"].items())
    yield f"Single faults of the {facts.name}, n = {found['n']}: {found['right']} right as it is."
    yield ""
    yield "| evidence | what becomes of the answers |"
    yield "| --- | --- |"
    worst = ", ".join(f"{name} {100 * share:.1f}" for name, share in lost[:3])
    yield f"| one of {len(lost)} signals missing, each in turn | points of accuracy lost, the worst three: {worst} |"
    yield (
        f"| half of the signals missing, {half['draws']} draws, n = {half['n']} | {half['right']} right, {half['unknown']} unknown, "
        f"{half['wrong']} wrong, {half['wrong_and_sure']} of these at 0.9 or more |"
    )
    yield (
        f"| everything takes, or happens, three times as much, before the fault too | of {found['cases']} cases "
        f"{found['named_changed_when_scaled_by_3']} name other domains, {found['first_changed_when_scaled_by_3']} another one first |"
    )


def _together(facts: KeyFacts) -> Iterator[str]:
    yield f"Of the {facts.name}. An answer is given at the first look that is clear; the later looks of its wait might have found more"
    yield "(`attributor --updates` says so when they do)."
    yield ""
    yield "| domain | was one of them | found at 0.10 or more, as answered | at the end of the wait |"
    yield "| --- | --- | --- | --- |"
    for domain, counts in facts.together.items():
        yield "| " + " | ".join([domain, *map(str, counts)]) + " |"


def _domains(facts: KeyFacts) -> Iterator[str]:
    yield "| domain | cases | right | precision | recall | F1 | said instead |"
    yield "|" + " --- |" * 7
    said = confusion(facts.material.predictions)
    for row in facts.summary["domains"]:
        ratios = (NONE if row[key] is None else f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
        instead = ", ".join(f"{predicted} {count}" for actual, predicted, count in said if actual == row["domain"] != predicted)
        yield "| " + " | ".join([row["domain"], str(row["support"]), str(row["right"]), *ratios, instead or NONE]) + " |"


@click.command()
@click.option("--holdout", metavar="DIR", help="Recordings that no model was fitted on.")
@click.option("--recordings", metavar="DIR", help="The others.")
@click.option("--model", "model_file", metavar="FILE", help="Model file (default: the one that travels with the toolkit).")
@click.option("--table", required=True, metavar="FILE", help="The page to write.")
@common_options
def command(holdout: str | None, recordings: str | None, model_file: str | None, table: str) -> None:
    """Measure the key results and write them as one page.

    \b
    Example:
      python -m libslo.bench.key_results --holdout testdata/recordings/holdout --table docs/key-results.md
    """
    places = {name: place for name, place in (("holdout", holdout), ("other recordings", recordings)) if place}
    if not places:
        raise click.UsageError("give --holdout, --recordings or both")
    asked = {"--holdout": holdout, "--recordings": recordings, "--model": model_file, "--table": table}
    words = [word for option, place in asked.items() if place for word in (option, place)]
    shown = shlex.join(["python", "-m", "libslo.bench.key_results", *words])
    decide = incident_settings(AttributeSettings(model=model_file)).attribute
    model = model_provenance("bayes", model_file, AttributeSettings().abstain_below)
    fitted_on = {str(name): str(sha) for name, sha in load_model(model_file).provenance.get("recordings", {}).items()}
    sets = [key_facts(name, [place], decide, fitted_on, {"model": model}, SEED, note) for name, place in places.items()]
    write_file(table, page(sets, model, shown).encode())


main = make_main(command, "key_results")

if __name__ == "__main__":
    main(None)
