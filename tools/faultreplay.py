"""Replay a recording as the stream that it was, or turn it, or a synthetic scenario, into labelled samples.

Reads a recording (a directory, see `collector --record`) or a scenario; writes the lines that the collector consumed, or
fault-sample. Streams.
"""

from __future__ import annotations

import click

from libslo.cli import FiniteFloat, common_options, make_main, note, output_options, reader_has_gone, refuse_given, seed_option


@click.command()
@click.argument("directory", required=False, metavar="[DIR]")
@click.option(
    "--pace", type=FiniteFloat(min=0, min_open=True), help="Keep this many times the recorded pace: 1 is its own (default: at once)."
)
@click.option(
    "--kinds", metavar="LIST", help="Replay these files only, for example probe-event,spans (default: all that the collector got)."
)
@click.option("--verify", is_flag=True, help="Replay nothing: compare every file with the manifest's sha256; exit 1 when one differs.")
@click.option("--samples", is_flag=True, help="Write fault-samples of the recording, labelled by its fault-windows, instead of its lines.")
@click.option("--window-s", type=FiniteFloat(min=0.1), default=5.0, show_default=True, help="Length of a sample's window.")
@click.option("--scenario", metavar="NAME", help="Write fault-samples of this synthetic scenario.")
@click.option("--count", type=click.IntRange(min=0), default=200, show_default=True, help="Synthetic requests to draw.")
@click.option("--rate", type=FiniteFloat(min=0, min_open=True), help="Synthetic requests per second (default: the profile's).")
@seed_option
@output_options
@common_options
def command(
    directory: str | None,
    pace: float | None,
    kinds: str | None,
    verify: bool,
    samples: bool,
    window_s: float,
    scenario: str | None,
    count: int,
    rate: float | None,
    seed: int,
    out: str,
) -> int:
    """Replay a recording as the stream that it was, or turn it, or a synthetic scenario, into labelled samples.

    Lines come in the order in which they arrived. Where a live collector let time pass, a stream-time record makes the next
    one do the same, so that collector and attributor say the same bytes again. Windows in which a fault came on or went off
    give no sample; they are counted.

    \b
    Examples:
      faultreplay recording | collector | attributor
      faultreplay recording --pace 10 | collector | attributor
      faultreplay recording --verify
      faultreplay recording --samples --window-s 5 > samples.jsonl
      faultreplay --scenario mixed --count 400 --seed 7 > samples.jsonl
    """
    from libslo.replay import ReplaySettings, replay

    if (directory is None) == (scenario is None):
        raise click.UsageError("give a recording's directory, or --scenario")
    if scenario is not None and (pace is not None or kinds is not None or verify or samples):
        raise click.UsageError("--pace, --kinds, --verify and --samples are for recordings; a scenario gives samples")
    if ((samples or verify) and (pace is not None or kinds is not None)) or (samples and verify):
        raise click.UsageError("--verify, --samples, and --pace with --kinds exclude one another")
    if scenario is None:
        refuse_given(("count", "rate", "seed"), "goes with --scenario")
        refuse_given(() if samples else ("window_s",), "goes with --samples and --scenario")
    settings = ReplaySettings(
        directory=directory,
        scenario=scenario,
        seed=seed,
        count=count,
        rate=rate,
        pace=pace,
        kinds=frozenset(word.strip() for word in kinds.split(",") if word.strip()) if kinds is not None else None,
        samples=samples,
        window_s=window_s,
        verify=verify,
        out=out,
    )
    return 0 if replay(settings, note, reader_has_gone) else 1


main = make_main(command, "faultreplay")
