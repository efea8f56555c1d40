"""Measure what the kernel does to processes and write it as probe events.

Reads: the kernel, through eBPF. Writes: probe-event and agent-report, as they happen. Streams.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from libslo.cli import common_options, make_main, note, output_options
from libslo.errors import EXIT_CANNOT, EXIT_OK
from libslo.jsonl import JsonlWriter
from libslo.kernel.agent_options import capture_options, settings_from

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no threads beside those that the agent starts, and less memory

if TYPE_CHECKING:
    from libslo.kernel.settings import CaptureSettings


@click.command(epilog="Example: agent --signals dns_latency_ms,connect_latency_ms --duration 10 | collector")
@capture_options
@click.option("--report-out", metavar="FILE", help="Write agent reports here instead of between the probe events.")
@click.option("--check", is_flag=True, help="Attach, say per signal what worked, and leave.")
@click.option("--json", "as_json", is_flag=True, help="With --check: write an agent report instead of a table.")
@click.option("--strict", is_flag=True, help="Exit 3 when a requested signal cannot be attached.")
@output_options
@common_options
def command(out: str, report_out: str | None, check: bool, as_json: bool, strict: bool, **options: Any) -> int:
    """Measure network, memory, CPU and disk signals of all processes, or of those named, with eBPF.

    One probe-event a line on stdout, charged to the process, container and pod that waited; agent-report lines say what
    attached, what it cannot see, and account for every event. Stops with SIGINT or SIGTERM after a last read of what the
    kernel holds; a wait that is still open then is no event. Needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.
    """
    stop_signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stop_signals.append(received))
    if as_json and not check:
        raise click.UsageError("--json goes with --check")
    settings = settings_from(**options)
    from libslo.kernel.capture import check_report
    from libslo.kernel.report import check_table

    if check:
        report = check_report(settings)
        with JsonlWriter(out) as writer:
            if as_json:
                writer.write(report)
            else:
                writer.write_line(check_table(report).encode())
    else:
        report = stream(settings, out, report_out, strict, stop_signals)
    return EXIT_CANNOT if strict and not all(state["attached"] for state in report["signals"]) else EXIT_OK


def stream(settings: CaptureSettings, out: str, report_out: str | None, strict: bool, stop_signals: list[int]) -> dict[str, Any]:
    """Write batches until a stop signal, the duration or the count; returns the last report."""
    from libslo.kernel.capture import capture

    def stopped() -> bool:
        if out == "-" and _reader_has_gone():
            raise BrokenPipeError
        return bool(stop_signals)

    report: dict[str, Any] = {}
    with JsonlWriter(out) as writer, JsonlWriter(report_out) if report_out else nullcontext(writer) as reports:
        for batch in capture(settings, stopped):
            for event in batch.events:
                writer.write(event)
            for record in batch.histograms:
                writer.write(record)
            for entry in batch.reports:
                reports.write(entry)
                for decision in entry.get("decisions", []):
                    note("overhead {overhead_pct} % of CPU, ceiling {ceiling_pct} %: {action} ".format(**decision)
                         + f"{', '.join(decision['signals'])} ({decision['how']}; it cost {decision['cost_pct']} %)")  # fmt: skip
            if not report:
                report = batch.reports[0]
                missing = [state for state in report["signals"] if not state["attached"]]
                for state in missing:
                    note(f"{state['signal']}: not attached: {state.get('reason', '')}")
                if missing and strict:
                    break
            report = batch.reports[-1] if batch.reports else report
            writer.flush()
            reports.flush()
    return report


def _reader_has_gone() -> bool:
    """True when stdout is a pipe that nobody reads any more: known before the next event, which may be far away."""
    poller = select.poll()
    poller.register(1, 0)  # errors and hang-ups are reported without being asked for
    return bool(poller.poll(0))


main = make_main(command, "agent")
