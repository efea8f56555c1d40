"""Run scenarios with real faults, one after another, and judge each: `make lab`, `make chaos-matrix`.

Writes one verdict a line; what happens meanwhile, and the table in the end, go to stderr.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click

from libslo.cli import common_options, make_main, note
from libslo.errors import EXIT_NO, EXIT_OK, CannotError, write_error
from libslo.lab.run import Plan


@click.command()
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="Only this scenario (repeatable; default: all).")
@click.option("--severity", "severities", multiple=True, help="low, medium, high or all (repeatable; default: the harness's).")
@click.option("--runs", type=click.IntRange(1), help="Repetitions of each (default: the harness's).")
@click.option("--profile", help="Durations: a profile of scenarios/harness.yaml (default: the harness's).")
@click.option("--seed", type=click.IntRange(0), help="Seed of the first repetition, counted on (default: the harness's).")
@click.option("--only-lab", is_flag=True, help="Let the agent look at the lab only: for a machine on which other things happen.")
@click.option("--artifacts", metavar="DIR", default="artifacts/lab", show_default=True, help="Recordings; what is there is not run again.")
@click.option("--compact-to", metavar="DIR", help="Also keep each run here, cut down to what attribution of the application needs.")
@click.option("--load", metavar="NAME", help="Load of scenarios/loads.yaml (default: the harness's).")
@click.option("--table", metavar="FILE", help="Write the table here, as Markdown.")
@common_options
def command(
    scenarios: tuple[str, ...],
    severities: tuple[str, ...],
    runs: int | None,
    profile: str | None,
    seed: int | None,
    only_lab: bool,
    artifacts: str,
    compact_to: str | None,
    load: str | None,
    table: str | None,
) -> int:
    """Run scenarios with real faults on a live service, and judge each run.

    Needs root. A run that is there already (same scenario file, severity, seed and durations) is taken as it is, so a matrix that was
    interrupted goes on where it stopped. Exit 1 when something that must hold did not.

    \b
    Examples:
      python -m libslo.lab.chaos --scenario dns_latency --runs 3
      python -m libslo.lab.chaos --severity all --table docs/lab.md
    """
    from libslo.files import write_file
    from libslo.lab.chaos_table import markdown, summary_line
    from libslo.lab.compact import compact_recording
    from libslo.lab.run import run_plan
    from libslo.lab.stack import APP_SERVICE
    from libslo.lab.verdict import judge_run
    from libslo.load.profiles import read_loads

    if load is not None and load not in read_loads().loads:
        raise click.UsageError(f"no load {load!r}; one of: {', '.join(read_loads().loads)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is taken down in order
    plans = [(replace(plan, load=load) if load else plan, n) for plan, n in _plans(scenarios, severities, runs, profile, seed, only_lab)]
    verdicts = []
    reading = True
    lock = _lock(Path(artifacts))
    places = [Path(artifacts) / plan.scenario / plan.severity / f"run-{repetition}" for plan, repetition in plans]
    for directory, (plan, _) in zip(places, plans, strict=True):
        _is_there(directory, plan)  # what cannot be taken as it is must be known before the first hour is over
    for number, (directory, (plan, repetition)) in enumerate(zip(places, plans, strict=True), 1):
        place = f"[{number}/{len(plans)}] {plan.scenario} {plan.severity} run {repetition}"
        if _is_there(directory, plan):
            verdict = judge_run(directory)
        else:
            note(f"{place}: begins")
            shutil.rmtree(directory, ignore_errors=True)
            run_plan(plan, directory, lambda _: None, lambda text: note(f"  {text}"))
            verdict = judge_run(directory)
        if compact_to:
            target = Path(compact_to) / f"{plan.scenario}-{plan.severity}-{plan.seed}"
            shutil.rmtree(target, ignore_errors=True)
            compact_recording(directory, target, APP_SERVICE)
        note(f"{place}: {summary_line(verdict)}")
        verdicts.append(verdict)
        reading = reading and _say(verdict)
    lock.close()
    text = markdown(verdicts, shlex.join(["python", "-m", "libslo.lab.chaos", *sys.argv[1:]]))
    note(text)
    if table:
        write_file(table, text.encode())
    return EXIT_OK if all(verdict["ok"] for verdict in verdicts) else EXIT_NO


def _say(verdict: dict[str, Any]) -> bool:
    """Print a verdict; False when nobody reads any more: the matrix goes on, for its recordings, its table and its exit code."""
    try:
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (until the end, so that its last flush meets no closed pipe)
        return False
    return True


def _lock(artifacts: Path) -> IO[bytes]:
    """Hold a directory of runs, as long as the file is open. CannotError when another matrix works in it."""
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        lock = (artifacts / ".lock").open("wb")
    except OSError as error:
        raise write_error(error, artifacts, "another directory as --artifacts") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise CannotError("another matrix works in it", source=str(artifacts), hint="wait, or --artifacts") from None
    return lock


def _plans(
    scenarios: Sequence[str], severities: Sequence[str], runs: int | None, profile: str | None, seed: int | None, only_lab: bool
) -> Iterator[tuple[Plan, int]]:
    from libslo.scenarios import SEVERITIES, load_scenario, scenario_names

    for severity in severities:
        if severity not in (*SEVERITIES, "all"):
            raise click.UsageError(f"no severity {severity!r}; one of: {', '.join(SEVERITIES)}, all")
    for name in scenarios or scenario_names():
        harness = load_scenario(name).harness
        assert harness is not None  # noqa: S101 (every scenario has one)
        durations = profile or harness.durations
        if durations not in harness.profiles:
            raise click.UsageError(f"no profile {durations!r}; one of: {', '.join(harness.profiles)}")
        chosen = SEVERITIES if "all" in severities else tuple(severities) or (harness.severity,)
        if not load_scenario(name).steps:
            chosen = (harness.severity,)  # nothing is on: there is nothing to be more severe
        first = harness.seed if seed is None else seed
        for severity in chosen:
            for repetition in range(1, (runs or harness.repetitions) + 1):
                plan = Plan.of_harness(
                    name, harness, severity=severity, seed=first + repetition - 1, durations=durations, only_lab=only_lab
                )
                yield plan, repetition


def _is_there(directory: Path, plan: Plan) -> bool:
    """Whether there is a finished run of this plan. InputError when there is one of another."""
    from libslo.errors import InputError
    from libslo.lab.run import plan_identity
    from libslo.recordings import Recording

    try:
        recorded = Recording(directory).manifest.get("plan")
    except InputError:
        return False
    if recorded != plan_identity(plan):
        hint = "another --artifacts (make: ARGS='--artifacts DIR'), or remove that run"
        raise InputError("a run of another plan is there (scenario file, seed, durations, load)", source=str(directory), hint=hint)
    return True


main = make_main(command, "chaos")

if __name__ == "__main__":
    main(None)
