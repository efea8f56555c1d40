"""Look after the toolkit: fit, show and judge attribution models.

Reads recordings (directories, see `collector --record`) and model files; writes a model (JSON), or what is known of one.
"""

from __future__ import annotations

import sys

import click

from libslo.cli import abstain_option, common_options, make_main, note, seed_option

_recordings = click.option(
    "--recordings", "places", multiple=True, required=True, metavar="DIR", help="A recording, or a directory with some in it (repeatable)."
)
_model = click.option("--model", metavar="FILE", help="Model file (default: the one that travels with the toolkit).")


@click.group()
@common_options
def command() -> None:
    """Look after the toolkit.

    \b
    Examples:
      sloctl model show
      sloctl model fit --recordings testdata/recordings --out model.json
      sloctl model evaluate --recordings testdata/recordings/holdout --model model.json
    """


@command.group()
@common_options
def model() -> None:
    """Attribution models: fit one on recorded runs, show what one knows, judge one on runs that it was not fitted on."""


@model.command()
@_recordings
@click.option("--out", default="-", show_default=True, metavar="FILE", help="Where the model goes.")
@common_options
def fit(places: tuple[str, ...], out: str) -> None:
    """Fit a model on recorded runs of known faults.

    The likelihoods are counted on all runs; the temperature is found on runs that had no part in a fit (one seed at a time).
    Recordings in a directory named holdout are refused: they are for `evaluate`.

    \b
    Example:
      sloctl model fit --recordings testdata/recordings --out model.json
    """
    from libslo.models import fit_file

    fit_file(places, out, note)


@model.command()
@_model
@common_options
def show(model: str | None) -> None:
    """Show where a model comes from and which signals speak for which domain.

    \b
    Example:
      sloctl model show --model model.json
    """
    from libslo.attribution import load_model
    from libslo.models import model_lines

    for line in model_lines(load_model(model)):
        click.echo(line)


@model.command()
@_recordings
@_model
@click.option("--attribution-mode", type=click.Choice(["bayes", "rule"]), default="bayes", show_default=True, help="What to judge.")
@abstain_option
@click.option("--robustness", is_flag=True, help="Also with signals missing, and with everything three times as slow.")
@seed_option
@common_options
def evaluate(places: tuple[str, ...], model: str | None, attribution_mode: str, abstain_below: float, robustness: bool, seed: int) -> None:
    """Judge answers on recorded runs of known faults: a JSON report on stdout, a table of the domains on stderr.

    \b
    Example:
      sloctl model evaluate --recordings testdata/recordings/holdout > report.json
    """
    from libslo.models import EvaluateSettings, evaluate_places

    report = evaluate_places(EvaluateSettings(places, model, attribution_mode == "rule", abstain_below, robustness, seed), note)
    sys.stdout.buffer.write(report)


main = make_main(command, "sloctl")
