"""Make a fault: synthetic records of a scenario, or, with --real, the fault itself.

Writes raw-sample and probe-event (synthetic), or fault-window while a real fault is on. Streams.
"""

from __future__ import annotations

import click

from libslo.cli import FiniteFloat, common_options, make_main, note, output_options, seed_option


@click.command()
@click.option("--scenario", metavar="NAME", help="Draw synthetic records of this scenario.")
@click.option("--real", metavar="NAME", help="Apply this scenario for real, and undo it in the end (root; see --target).")
@click.option("--list", "list_scenarios", is_flag=True, help="List the scenarios and end.")
@click.option("--count", type=click.IntRange(min=0), default=200, show_default=True, help="Synthetic requests to draw.")
@click.option("--rate", type=FiniteFloat(min=0, min_open=True), help="Synthetic requests per second (default: the profile's).")
@click.option("--truth-out", metavar="FILE", help="Write the fault-windows of a synthetic run here.")
@click.option("--duration", type=FiniteFloat(min=0, min_open=True), default=15.0, show_default=True, help="Seconds a real fault stays on.")
@click.option("--delay-ms", type=FiniteFloat(min=1), default=200.0, show_default=True, help="How much a real delay adds.")
@click.option(
    "--target", metavar="PID|PATH", help="Network namespace of a real fault: a process in it, or its file (default: the running lab)."
)
@click.option("--recover", is_flag=True, help="Only remove what a killed run left behind.")
@seed_option
@output_options
@common_options
def command(
    scenario: str | None,
    real: str | None,
    list_scenarios: bool,
    count: int,
    rate: float | None,
    truth_out: str | None,
    duration: float,
    delay_ms: float,
    target: str | None,
    recover: bool,
    seed: int,
    out: str,
) -> None:
    """Make a fault: synthetic records of a scenario, or, with --real, the fault itself.

    Synthetic records say that they are synthetic; same seed, same bytes. A real fault is undone on exit and on a signal;
    what kill -9 leaves behind is removed by the next start.

    \b
    Examples:
      faultinject --scenario mixed --count 200 --seed 42 | collector | attributor
      faultinject --real dns_latency --delay-ms 200 --duration 15
    """
    from libslo.jsonl import JsonlWriter

    if sum((scenario is not None, real is not None, list_scenarios, recover)) != 1:
        raise click.UsageError("give one of --scenario, --real, --list and --recover")
    if list_scenarios:
        from libslo.scenarios import load_scenario, scenario_names

        for name in scenario_names():
            click.echo(f"{name:20} {load_scenario(name).description}")
        return
    if recover:
        from libslo.lab.injectors import recover_stale
        from libslo.lab.topology import recover as recover_labs

        removed = [*recover_stale(), *(f"lab {ident}" for ident in recover_labs())]
        note(f"removed {len(removed)} left-over(s)" + "".join(f"\n  {what}" for what in removed))
        return
    if real is not None:
        from libslo.lab.injectors import real_fault

        with JsonlWriter(out) as writer:
            for window in real_fault(real, delay_ms=delay_ms, duration_s=duration, target=target):
                writer.write(window)
                writer.flush()
        return
    import numpy as np

    from libslo.scenarios import load_scenario
    from libslo.synthetic import SyntheticSettings, fault_windows, synthetic_records

    settings = SyntheticSettings(load_scenario(scenario or ""), count, rate)
    with JsonlWriter(out) as writer:
        for record in synthetic_records(settings, np.random.default_rng(seed)):
            writer.write(record)
    if truth_out:
        with JsonlWriter(truth_out) as writer:
            for window in fault_windows(settings):
                writer.write(window)


main = make_main(command, "faultinject")
