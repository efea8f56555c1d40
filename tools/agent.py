"""Measure what the kernel does to processes and write it as probe events.

Reads: the kernel, through eBPF. Writes: probe-event and agent-report, as they happen. Streams.
"""

from __future__ import annotations

import select
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from libslo.cli import FiniteFloat, common_options, make_main, note, output_options
from libslo.errors import EXIT_CANNOT, EXIT_OK
from libslo.jsonl import JsonlWriter

if TYPE_CHECKING:
    from libslo.kernel.settings import CaptureSettings

DEFAULT_SIGNALS = "dns_latency_ms,connect_latency_ms,connect_errors_total,tcp_retransmits_total"
SIGNALS_HELP = """Signals to measure, with commas between them. Further ones, by name only until something sheds them when they
cost too much: mem_reclaim_latency_ms, runqueue_delay_ms (give it a --min-latency), cfs_throttled_ms,
cpu_steal_pct, disk_io_latency_ms, tls_handshake_ms, tls_handshake_fail_total."""


@click.command(epilog="Example: agent --signals dns_latency_ms,connect_latency_ms --duration 10 | collector")
@click.option("--signals", metavar="NAMES", default=DEFAULT_SIGNALS, show_default=True, help=SIGNALS_HELP)
@click.option("--pid", "pids", type=click.IntRange(1, 1 << 22), multiple=True, help="Only this process (repeatable).")
@click.option("--comm", metavar="NAME", default="", help="Only threads with this command name.")
@click.option("--cgroup", "cgroups", metavar="PATH", multiple=True, help="Only this cgroup2 directory and those below it (repeatable).")
@click.option(
    "--min-latency",
    "min_latency_ms",
    metavar="MS",
    type=FiniteFloat(min=0),
    default=0.0,
    show_default=True,
    help="Leave out waits that ended well in less time.",
)
@click.option(
    "--rate-limit",
    metavar="N",
    type=click.IntRange(0, 1 << 40),
    default=0,
    show_default=True,
    help="At most N events a second from each signal and cgroup; 0 is no limit.",
)
@click.option("--duration", "duration_s", metavar="SECONDS", type=FiniteFloat(min=0, min_open=True), help="Stop after this time.")
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="Stop after N probe events.")
@click.option(
    "--ring-bytes", type=click.IntRange(4096, 1 << 30), default=1 << 20, show_default=True, help="Size of each probe's ring buffer."
)
@click.option(
    "--report-interval",
    "report_interval_s",
    metavar="SECONDS",
    type=FiniteFloat(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Write an agent report this often, besides the first and the last.",
)
@click.option("--report-out", metavar="FILE", help="Write agent reports here instead of between the probe events.")
@click.option("--check", is_flag=True, help="Attach, say per signal what worked, and leave.")
@click.option("--json", "as_json", is_flag=True, help="With --check: write an agent report instead of a table.")
@click.option("--strict", is_flag=True, help="Exit 3 when a requested signal cannot be attached.")
@click.option("--btf", metavar="FILE", default="/sys/kernel/btf/vmlinux", show_default=True, help="Types of the running kernel.")
@output_options
@common_options
def command(signals: str, cgroups: tuple[str, ...], btf: str, out: str, report_out: str | None, check: bool, as_json: bool,
            strict: bool, **options: Any) -> int:  # fmt: skip
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
    names = tuple(dict.fromkeys(name.strip() for name in signals.split(",") if name.strip()))
    signal_names = _checked(names)
    from libslo.kernel.capture import check_report
    from libslo.kernel.report import check_table
    from libslo.kernel.settings import CaptureSettings

    settings = CaptureSettings(signals=signal_names, cgroups=tuple(map(Path, cgroups)), btf=Path(btf), **options)
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


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    from libslo.kernel.catalogue import known_signals

    unknown = [name for name in names if name not in known_signals()]
    if unknown or not names:
        raise click.UsageError(
            f"--signals: unknown signal {unknown[0]!r}; known: {', '.join(known_signals())}" if unknown else "--signals: no signal named"
        )
    return names


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
            for entry in batch.reports:
                reports.write(entry)
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
