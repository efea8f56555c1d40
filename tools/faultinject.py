"""Make a fault: synthetic records of a scenario, or, with --real, the fault itself.

Writes raw-sample and probe-event (synthetic), or fault-window while a real fault is on. Streams.
"""

from __future__ import annotations

import click

from libslo.cli import FiniteFloat, common_options, make_main, note, output_options, refuse_given, seed_option


@click.command()
@click.option("--scenario", metavar="NAME", help="Draw synthetic records of this scenario.")
@click.option("--real", metavar="NAME", help="Put the faults of this scenario on for real, and undo them in the end (root; see --target).")
@click.option("--fault", metavar="NAME", help="Put one fault of contracts/vocabulary/faults.json on for real (see --set).")
@click.option("--list", "list_scenarios", is_flag=True, help="List the scenarios, their real faults and what is missing here, and end.")
@click.option("--count", type=click.IntRange(min=0), default=200, show_default=True, help="Synthetic requests to draw.")
@click.option("--rate", type=FiniteFloat(min=0, min_open=True), help="Synthetic requests per second (default: the profile's).")
@click.option("--truth-out", metavar="FILE", help="Write the fault-windows of a synthetic run here.")
@click.option("--severity", metavar="LEVEL", help="Of a real scenario: low, medium or high (default: the harness's).")
@click.option(
    "--set", "settings", metavar="NAME=VALUE", multiple=True, help="A parameter of a real fault: delay_ms=200, dns_delay.delay_ms=200."
)
@click.option(
    "--duration",
    type=FiniteFloat(min=0, min_open=True),
    help="Seconds a real fault stays on (default: of a scenario the harness's; a --fault stays until a signal).",
)
@click.option(
    "--target",
    metavar="TARGET",
    help="Of a real fault: lab, lab:ID, pid:N, cgroup:PATH, netns:PATH, dev:IFACE, url:http://HOST:PORT (default: the running lab).",
)
@click.option("--i-know", is_flag=True, help="Allow a target that is in no lab.")
@click.option("--recover", is_flag=True, help="Only remove what a killed run left behind.")
@seed_option
@output_options
@common_options
def command(
    scenario: str | None,
    real: str | None,
    fault: str | None,
    list_scenarios: bool,
    count: int,
    rate: float | None,
    truth_out: str | None,
    severity: str | None,
    settings: tuple[str, ...],
    duration: float | None,
    target: str | None,
    i_know: bool,
    recover: bool,
    seed: int,
    out: str,
) -> None:
    """Make a fault: synthetic records of a scenario, or, with --real, the fault itself.

    Synthetic records say that they are synthetic; same seed, same bytes. A real fault is undone on exit and on a signal;
    what kill -9 leaves behind is removed by the next start. The faults of a scenario are on together or not at all;
    a scenario of several goes through them, with the durations of scenarios/harness.yaml.

    \b
    Examples:
      faultinject --scenario mixed --count 200 --seed 42 | collector | attributor
      faultinject --real dns_latency --set delay_ms=200 --duration 15    # while a lab runs, which is then its target
      faultinject --fault cpu_quota --set cpus=0.2 --target pid:4242 --i-know
    """
    from libslo.jsonl import JsonlWriter

    if sum((scenario is not None, real is not None, fault is not None, list_scenarios, recover)) != 1:
        raise click.UsageError("give one of --scenario, --real, --fault, --list and --recover")
    if real is None and (severity or (fault is None and (settings or target or i_know or duration))):
        raise click.UsageError("--severity goes with --real; --set, --duration, --target and --i-know with --real or --fault")
    if scenario is None:
        refuse_given(("count", "rate", "truth_out", "seed"), "goes with --scenario")
    if list_scenarios or recover:
        refuse_given(("out",), "goes with what makes a fault")
    if list_scenarios:
        from libslo.lab.injectors import scenario_lines

        for line in scenario_lines():
            click.echo(line)
        return
    if recover:
        from libslo.lab.injectors import recover_stale
        from libslo.lab.topology import recover as recover_labs

        removed = [*recover_stale(), *(f"lab {ident}" for ident in recover_labs())]
        note(f"removed {len(removed)} left-over(s)" + "".join(f"\n  {what}" for what in removed))
        return
    if real is not None or fault is not None:
        from libslo.lab.injectors import parse_settings, plan_fault, plan_scenario, real_faults

        given = parse_settings(settings)
        steps = plan_scenario(real, severity, given, duration) if real is not None else plan_fault(str(fault), given, duration)
        with JsonlWriter(out) as writer:
            for window in real_faults(steps, target, allow_outside=i_know):
                writer.write(window)
                writer.flush()
        return
    import numpy as np

    from libslo.scenarios import load_scenario
    from libslo.synthetic import SyntheticSettings, fault_windows, synthetic_records

    synthetic = SyntheticSettings(load_scenario(scenario or ""), count, rate)
    with JsonlWriter(out) as writer:
        for record in synthetic_records(synthetic, np.random.default_rng(seed)):
            writer.write(record)
    if truth_out:
        with JsonlWriter(truth_out) as writer:
            for window in fault_windows(synthetic):
                writer.write(window)


main = make_main(command, "faultinject")
