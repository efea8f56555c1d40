"""Show the whole toolkit at work on a real fault: lab, load, agent | collector | attributor, DNS delay, verdict.

Writes incident-attribution lines as they arrive; the account of each run goes to stderr.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path

import click

from libslo.cli import FiniteFloat, common_options, make_main, note
from libslo.errors import EXIT_NO, EXIT_OK
from libslo.scenarios import SEVERITIES, load_scenario


@click.command()
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Runs, one after the other, seeds counted on.")
@click.option("--baseline", type=FiniteFloat(1), default=15.0, show_default=True, help="Seconds before the fault.")
@click.option("--fault", type=FiniteFloat(1), default=15.0, show_default=True, help="Seconds with the fault.")
@click.option("--recovery", type=FiniteFloat(0), default=10.0, show_default=True, help="Seconds after it.")
@click.option("--severity", type=click.Choice(SEVERITIES), default="medium", show_default=True, help="How much DNS answers are delayed.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the load.")
@click.option("--only-lab", is_flag=True, help="Let the agent look at the lab only: for a machine on which another lab runs meanwhile.")
@click.option("--artifacts", metavar="DIR", default="artifacts/slice", show_default=True, help="Keep each run's files below here.")
@click.option("--table", metavar="FILE", help="Write the runs as a Markdown table here.")
@common_options
def command(
    runs: int,
    baseline: float,
    fault: float,
    recovery: float,
    severity: str,
    seed: int,
    only_lab: bool,
    artifacts: str,
    table: str | None,
) -> int:
    """Inject a real DNS delay into a live service and see whether it is named.

    Needs root. Exit 1 unless in every run an incident named the cause while the fault was on and none came before it.

    \b
    Examples:
      python -m libslo.lab.slice
      python -m libslo.lab.slice --runs 10 --table docs/slice.md > incidents.jsonl
    """
    from libslo.lab.account import markdown_table, read_account
    from libslo.lab.run import Plan, run_plan

    def pass_on(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is taken down in order
    harness = load_scenario("dns_latency").harness
    assert harness is not None  # noqa: S101 (every scenario has one)
    accounts = []
    for number in range(runs):
        lasts = {"baseline": baseline, "fault": fault, "recovery": recovery}
        plan = Plan("dns_latency", severity, lasts, harness.load, seed + number, only_lab, harness.objectives)
        directory = Path(artifacts) / f"{time.strftime('%Y%m%dT%H%M%S')}-{number + 1}"
        note(f"run {number + 1} of {runs}")
        run_plan(plan, directory, pass_on, note)
        account = read_account(directory)
        accounts.append(account)
        for line in account.lines():
            note(line)
    if table:
        words = ["python", "-m", "libslo.lab.slice", *sys.argv[1:]]
        Path(table).parent.mkdir(parents=True, exist_ok=True)
        Path(table).write_text(markdown_table(accounts, shlex.join(words)))
    return EXIT_OK if all(account.passed for account in accounts) else EXIT_NO


main = make_main(command, "slice")

if __name__ == "__main__":
    main(None)
