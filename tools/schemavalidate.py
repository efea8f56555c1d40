"""Check JSON lines against the contracts, and the contracts against JSON Schema.

Reads JSON lines of any contract, writes one verdict a line. Streams.
"""

from __future__ import annotations

import click

from libslo.cli import common_options, make_main, note, output_options
from libslo.errors import EXIT_NO, EXIT_OK


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--contract", "only", metavar="NAME", help="Expect this contract on every line (default: told by its keys).")
@click.option("--schemas", is_flag=True, help="Check the contracts' own schemas instead of data.")
@click.option("--all", "every", is_flag=True, help="Write a verdict for good lines too, not only for bad ones.")
@output_options
@common_options
def command(files: tuple[str, ...], only: str | None, schemas: bool, every: bool, out: str) -> int:
    """Check JSON lines against the contracts.

    Writes one JSON verdict for each bad line (file, line, contract, valid, reason) and a count on stderr.
    Exit 1 when anything is invalid; a closed pipe does not change that.

    \b
    Examples:
      faultinject --scenario mixed --count 200 | schemavalidate
      schemavalidate --contract slo-event events.jsonl.gz
      schemavalidate --schemas
    """
    from libslo.verdicts import data_verdicts, schema_verdicts, write_verdicts

    verdicts = schema_verdicts() if schemas else data_verdicts(files or ("-",), only)
    good, bad = write_verdicts((verdict.as_json() for verdict in verdicts), out, files, every=every)
    note(f"{good} valid, {bad} invalid")
    return EXIT_NO if bad else EXIT_OK


main = make_main(command, "schemavalidate")
