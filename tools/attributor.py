"""Raise an incident when a service burns its error budget too fast, and name the fault domain.

Reads slo-event, probe-event, OTLP spans, agent-report and stream-time, or fault-sample, each of which is a window by itself that no
episode goes beyond; writes incident-attribution (with --updates again when the answer has changed: the last one of an incident_id
counts), of a stream with --episodes-out incident-episode. Streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from libslo.cli import (
    FiniteFloat,
    abstain_option,
    alarm_bell,
    common_options,
    input_options,
    make_main,
    note,
    note_block,
    output_options,
    pass_through_option,
    report_bad_line,
)
from libslo.errors import EXIT_NO, EXIT_OK
from libslo.export.webhook_options import webhook_options

if TYPE_CHECKING:
    from libslo.explain import Explanation

_OUTPUTS = ("out", "episodes_out", "explain_out", "summary_out", "confusion_out")


@click.command()
@input_options
@click.option(
    "--attribution-mode",
    type=click.Choice(["bayes", "rule"]),
    default="bayes",
    show_default=True,
    help="How evidence becomes a domain.",
)
@click.option("--model", metavar="FILE", help="Model of the bayes mode (default: the one that travels with the toolkit).")
@abstain_option
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
@click.option(
    "--updates",
    is_flag=True,
    help="Write an incident again, under its id, when its answer has changed while the episode lasts or by its end.",
)
@click.option(
    "--update-interval",
    "update_interval_s",
    metavar="SECONDS",
    type=FiniteFloat(min=0),
    default=5.0,
    show_default=True,
    help="With --updates, judge an open episode again this often at most, in event time.",
)
@click.option("--explain", is_flag=True, help="Explain every incident on stderr: what burns, what speaks for and against, where to look.")
@click.option("--explain-out", metavar="FILE", help="Write the explanations here, as plain text.")
@click.option("--episodes-out", metavar="FILE", help="Write an incident-episode when an episode opens and when it is over here.")
@click.option("--summary-out", metavar="FILE", help="Write counts and, for labelled input, accuracy as JSON here.")
@click.option("--confusion-out", metavar="FILE", help="Write actual,predicted,count as CSV here (labelled input).")
@click.option(
    "--otlp-endpoint", metavar="URL", envvar="SLO_OTLP_ENDPOINT", help="Also send incidents as OTLP logs there.  [env: SLO_OTLP_ENDPOINT]"
)
@webhook_options
@pass_through_option(default=False)
@output_options
@common_options
def command(on_bad: str, attribution_mode: str, slo: tuple[str, ...], updates: bool, update_interval_s: float, **options: Any) -> int:
    """Raise an incident when a service burns its error budget too fast, and name the fault domain.

    Labels of injected faults are used for --summary-out and --confusion-out only, never for an answer.

    \b
    Examples:
      faultinject --scenario mixed --count 200 | collector | attributor
      attributor --input joined.jsonl.gz --burn-policy page --slo ttft_ms=1200@0.99
      agent | collector --otlp-listen 127.0.0.1:4318 | attributor --updates --explain
      attributor --input joined.jsonl --webhook-receiver pagerduty --webhook-secret-file key --dead-letter dead.jsonl
      attributor --input joined.jsonl --confusion-out confusion.csv --summary-out summary.json
    """
    from libslo.attribute import AttributeSettings, attribute

    places = [place for name in _OUTPUTS if (place := options[name])]
    if len(set(places)) < len(places):
        raise click.UsageError(f"--{', --'.join(_OUTPUTS).replace('_', '-')} would mix: give each a place of its own")
    settings = AttributeSettings(
        mode="rule" if attribution_mode == "rule" else "bayes",
        objectives=slo,
        update_interval_s=update_interval_s if updates else None,
        on_bad="skip" if on_bad == "skip" else "fail",
        **options,
    )
    return EXIT_OK if attribute(settings, note, report_bad_line, _tell, alarm_bell()) else EXIT_NO


def _tell(explanation: Explanation) -> None:
    from libslo.explain import plain_lines, rich_form

    note_block(plain_lines(explanation), lambda: rich_form(explanation))


main = make_main(command, "attributor")
