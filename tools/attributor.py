"""Raise an incident when a service burns its error budget too fast, and name the fault domain.

Reads slo-event, probe-event, OTLP spans and agent-report; writes incident-attribution, with --episodes-out incident-episode. Streams.
"""

from __future__ import annotations

import click

from libslo.cli import FiniteFloat, common_options, input_options, make_main, note, output_options, pass_through_option, report_bad_line


@click.command()
@input_options
@click.option(
    "--attribution-mode",
    "mode",
    type=click.Choice(["bayes", "rule"]),
    default="bayes",
    show_default=True,
    help="How evidence becomes a domain.",
)
@click.option("--model", metavar="FILE", help="Model of the bayes mode (default: the one that travels with the toolkit).")
@click.option("--abstain-below", type=FiniteFloat(0, 1), default=0.5, show_default=True, help="Answer `unknown` below this posterior.")
@click.option(
    "--burn-policy",
    type=click.Choice(["lab", "page", "ticket", "all"]),
    default="lab",
    show_default=True,
    help="Burn-rate windows: `lab` works in seconds; in production use `page`.",
)
@click.option("--slo", multiple=True, metavar="SLI=THRESHOLD@RATIO", help="Objective of an SLI (repeatable), for example ttft_ms=800@0.95.")
@click.option(
    "--lateness-ms", type=FiniteFloat(min=0), help="How much later than its own time an slo-event may come (default: the burn policy's)."
)
@click.option(
    "--baseline-s",
    type=FiniteFloat(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="How much of the past evidence is compared with.",
)
@click.option(
    "--settle-ms",
    type=FiniteFloat(min=0),
    default=1500.0,
    show_default=True,
    help="How long an incident may wait for evidence to become clear.",
)
@click.option("--episodes-out", metavar="FILE", help="Write an incident-episode when an episode opens and when it is over here.")
@click.option("--summary-out", metavar="FILE", help="Write counts and, for labelled input, accuracy as JSON here.")
@click.option("--confusion-out", metavar="FILE", help="Write actual,predicted,count as CSV here (labelled input).")
@click.option(
    "--otlp-endpoint", metavar="URL", envvar="SLO_OTLP_ENDPOINT", help="Also send incidents as OTLP logs there.  [env: SLO_OTLP_ENDPOINT]"
)
@pass_through_option(default=False)
@output_options
@common_options
def command(
    source: str,
    on_bad: str,
    mode: str,
    model: str | None,
    abstain_below: float,
    burn_policy: str,
    slo: tuple[str, ...],
    lateness_ms: float | None,
    baseline_s: float,
    settle_ms: float,
    episodes_out: str | None,
    summary_out: str | None,
    confusion_out: str | None,
    otlp_endpoint: str | None,
    pass_through: bool,
    out: str,
) -> None:
    """Raise an incident when a service burns its error budget too fast, and name the fault domain.

    Labels of injected faults are used for --summary-out and --confusion-out only, never for an answer.

    \b
    Examples:
      faultinject --scenario mixed --count 200 | collector | attributor
      attributor --input joined.jsonl.gz --burn-policy page --slo ttft_ms=1200@0.99
      attributor --input joined.jsonl --confusion-out confusion.csv --summary-out summary.json
    """
    from libslo.attribute import AttributeSettings, attribute

    if episodes_out == out == "-":
        raise click.UsageError("--episodes-out - and incidents on stdout would mix: give --out a file, or --episodes-out one")
    settings = AttributeSettings(
        source=source,
        out=out,
        mode="rule" if mode == "rule" else "bayes",
        model=model,
        abstain_below=abstain_below,
        burn_policy=burn_policy,
        objectives=slo,
        lateness_ms=lateness_ms,
        baseline_s=baseline_s,
        settle_ms=settle_ms,
        episodes_out=episodes_out,
        summary_out=summary_out,
        confusion_out=confusion_out,
        otlp_endpoint=otlp_endpoint,
        pass_through=pass_through,
        on_bad="skip" if on_bad == "skip" else "fail",
    )
    attribute(settings, note, report_bad_line)


main = make_main(command, "attributor")
