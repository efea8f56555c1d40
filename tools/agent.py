"""Measure what the kernel does to processes and write it as probe events.

Reads: the kernel, through eBPF. Writes: probe-event, agent-report and signal-histogram, as they happen. Streams.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from libslo.cli import agent_sink_options, common_options, make_main, note, output_options, reader_has_gone
from libslo.errors import EXIT_CANNOT, EXIT_OK
from libslo.jsonl import JsonlWriter
from libslo.kernel.agent_options import capture_options, settings_from
from libslo.kernel.kube_options import KubeSettings, open_resolver, pod_options

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads would begin before the agent has dropped its capabilities, and keep theirs

if TYPE_CHECKING:
    from libslo.export.outputs import OutputSettings
    from libslo.kernel.identity import IdentityResolver
    from libslo.kernel.settings import CaptureSettings


@click.command(epilog="Example: agent --signals dns_latency_ms,connect_latency_ms --duration 10 | collector")
@capture_options
@click.option("--report-out", metavar="FILE", help="Write agent reports here instead of between the probe events.")
@click.option("--check", is_flag=True, help="Attach, say per signal what worked, and leave.")
@click.option("--json", "as_json", is_flag=True, help="With --check: write an agent report instead of a table.")
@click.option("--strict", is_flag=True, help="Exit 3 when a requested signal cannot be attached.")
@agent_sink_options
@pod_options
@output_options
@common_options
def command(out: str, report_out: str | None, check: bool, as_json: bool, strict: bool, otlp_endpoint: str | None,
            otlp_interval_s: float, metrics_listen: str | None, metrics_max_series: int,
            kube: KubeSettings, **options: Any) -> int:  # fmt: skip
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
    from libslo.export.outputs import OutputSettings
    from libslo.kernel.capture import check_report
    from libslo.kernel.report import check_table

    sinks = OutputSettings(otlp_endpoint, otlp_interval_s, metrics_listen, metrics_max_series)
    with open_resolver(kube, note) as resolver:
        if check:
            report = check_report(settings, resolver, lambda: bool(stop_signals))
            with JsonlWriter(out) as writer:
                if as_json:
                    writer.write(report)
                else:
                    writer.write_line(check_table(report).encode())
        else:
            report = stream(settings, sinks, out, report_out, strict, stop_signals, resolver)
    return EXIT_CANNOT if strict and not (check and stop_signals) and not all(state["attached"] for state in report["signals"]) else EXIT_OK


def stream(settings: CaptureSettings, sinks: OutputSettings, out: str, report_out: str | None, strict: bool,
           stop_signals: list[int], resolver: IdentityResolver) -> dict[str, Any]:  # fmt: skip
    """Write batches until a stop signal, the duration or the count; returns the last report."""
    from libslo.export.outputs import Outputs
    from libslo.kernel.capture import capture
    from libslo.kernel.snapshots import Snapshots

    begun: list[Outputs] = []  # once all is attached

    def stopped() -> bool:
        for outputs in begun:
            outputs.beat()
            if out == "-" and reader_has_gone():
                raise BrokenPipeError
        return bool(stop_signals)

    report: dict[str, Any] = {}
    snapshots = Snapshots(time.time_ns(), histograms=settings.histograms)
    batches = capture(settings, stopped, resolver)
    with ExitStack() as stack:
        # Files while it may still open everything; threads only when capabilities have been dropped, which is before the first batch.
        writer = stack.enter_context(JsonlWriter(out))
        reports = stack.enter_context(JsonlWriter(report_out)) if report_out else writer
        stack.callback(batches.close)
        first = next(batches, None)
        if first is None:  # stopped while attaching
            return {"signals": []}
        outputs = stack.enter_context(Outputs(sinks, note))
        begun.append(outputs)
        for batch in chain([first], batches):
            for event in batch.events:
                writer.write(event)
            for record in batch.histograms:
                writer.write(record)
            for entry in outputs.publish_batch(batch.events, batch.reports, snapshots.add(batch)):
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


main = make_main(command, "agent")
