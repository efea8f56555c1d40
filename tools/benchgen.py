"""Make a benchmark bundle: tables, summary, provenance and a report of how the attributor fared on known faults.

Reads recordings (directories, see `collector --record`) or fault-sample; writes a directory. Buffers its input.
"""

from __future__ import annotations

from typing import Literal

import click

from libslo.cli import abstain_option, common_options, make_main, note, seed_option


@click.command()
@click.option(
    "--recordings",
    "places",
    multiple=True,
    metavar="DIR",
    help="A recording, or a directory with some in it (repeatable); instead of --input.",
)
@click.option("--input", "source", metavar="FILE", default="-", show_default=True, help="Read fault-samples from here; - is stdin.")
@click.option("--out", required=True, metavar="DIR", help="The bundle's directory, which must be new or empty.")
@click.option("--force", is_flag=True, help="Replace the directory if it is there: everything in it goes.")
@click.option("--model", metavar="FILE", help="Model file (default: the one that travels with the toolkit).")
@click.option("--attribution-mode", type=click.Choice(["bayes", "rule"]), default="bayes", show_default=True, help="How answers are found.")
@abstain_option
@seed_option
@common_options
def command(
    places: tuple[str, ...],
    source: str,
    out: str,
    force: bool,
    model: str | None,
    attribution_mode: Literal["bayes", "rule"],
    abstain_below: float,
    seed: int,
) -> None:
    """Make a benchmark bundle: tables, summary, provenance and a report of how the attributor fared on known faults.

    Recordings are replayed through collector and incident engine; fault-samples are judged window by window. Labels are set
    beside the answers afterwards. All of the summary can be computed again from the CSV files. With fewer than ten runs of
    a domain the bundle calls itself exploratory. The report's plots need the extra [report].

    \b
    Examples:
      benchgen --recordings testdata/recordings --out artifacts/bench
      faultreplay --scenario mixed --count 400 | benchgen --out artifacts/bench-synthetic
    """
    from libslo.bench.bundle import BenchSettings, bench

    if places and source != "-":
        raise click.UsageError("give --recordings, or --input")
    bench(
        BenchSettings(
            out=out, recordings=places, source=source, mode=attribution_mode, model=model, abstain_below=abstain_below,
            seed=seed, force=force,
        ),
        note,
    )  # fmt: skip


main = make_main(command, "benchgen")
