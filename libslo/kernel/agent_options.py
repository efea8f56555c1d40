"""The agent's options for what is measured, how much of it, and at what price; and the settings that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from libslo.cli import FiniteFloat

if TYPE_CHECKING:
    from libslo.kernel.settings import CaptureSettings

__all__ = ["capture_options", "settings_from", "signal_names"]

F = TypeVar("F", bound=Callable[..., Any])

_MODES = ("auto", "core_full", "no_btf", "bcc_degraded", "min_capability")


class _Thresholds(click.ParamType[Any]):
    """MS, or SIGNAL=MS."""

    name = "threshold"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        signal, separator, text = str(value).rpartition("=")
        return signal if separator else "", FiniteFloat(min=0).convert(text, param, ctx)


class _Choice(click.ParamType[Any]):
    """SIGNAL=VARIANT."""

    name = "variant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        signal, _, variant = str(value).partition("=")
        if not signal or not variant:
            self.fail(f"{value!r} is not SIGNAL=VARIANT", param, ctx)
        return signal, variant


_CAPTURE_OPTIONS = (
    click.option("--signals",
                 envvar="SLO_SIGNALS", show_envvar=True,
                 metavar="NAMES", help="Signals to measure, with commas between them, instead of a set."),
    click.option("--signal-set",
                 envvar="SLO_SIGNAL_SET", show_envvar=True,
                 metavar="SET", default="default", show_default=True,
                 help="Signals to measure by the name of a set: default, all, network, counters."),
    click.option("--disable-signals",
                 envvar="SLO_DISABLE_SIGNALS", show_envvar=True,
                 metavar="NAMES", default="", help="Leave these out of what was asked for."),
    click.option("--pid", "pids", type=click.IntRange(1, 1 << 22), multiple=True, help="Only this process (repeatable)."),
    click.option("--comm", metavar="NAME", default="", help="Only threads with this command name."),
    click.option("--cgroup", "cgroups", metavar="PATH", multiple=True,
                 help="Only this cgroup2 directory and those below it (repeatable)."),
    click.option("--min-latency", "min_latency_ms",
                 envvar="SLO_MIN_LATENCY", show_envvar=True,
                 metavar="[SIGNAL=]MS", type=_Thresholds(), multiple=True,
                 help="Write no event for waits that ended well in less time; histograms count them. Of one signal, or of all "
                      "(repeatable). Without it: 5 for the run queue and disks, 10 for system calls, 0 for others."),
    click.option("--rate-limit",
                 envvar="SLO_RATE_LIMIT", show_envvar=True,
                 metavar="N", type=click.IntRange(0, 10**9), default=1000, show_default=True,
                 help="At most N events a second from each signal and cgroup; 0 is no limit."),
    click.option("--burst-limit",
                 envvar="SLO_BURST_LIMIT", show_envvar=True,
                 metavar="N", type=click.IntRange(0, 10**9), default=2000, show_default=True,
                 help="Of these, at most N at once; 0 is one second's."),
    click.option("--signal-rate-limit",
                 envvar="SLO_SIGNAL_RATE_LIMIT", show_envvar=True,
                 metavar="N", type=click.IntRange(0, 10**9), default=10000, show_default=True,
                 help="At most N events a second from each signal, all cgroups together; 0 is no limit."),
    click.option("--histograms/--no-histograms", default=True, show_default=True,
                 help="Count waits of every length in the kernel, for each signal and cgroup."),
    click.option("--histogram-interval", "histogram_interval_s",
                 envvar="SLO_HISTOGRAM_INTERVAL", show_envvar=True,
                 metavar="SECONDS", type=FiniteFloat(min=0), default=0.0,
                 show_default=True, help="Write these counts as signal-histogram records this often; 0 writes none."),
    click.option("--names/--no-names",
                 envvar="SLO_NAMES", show_envvar=True,
                 default=False, show_default=True,
                 help="Record what name a DNS query asks for (dns.question.name). Nothing else that a packet carries is ever "
                      "recorded."),
    click.option("--max-overhead-pct",
                 envvar="SLO_MAX_OVERHEAD_PCT", show_envvar=True,
                 metavar="PCT", type=FiniteFloat(min=0, max=100), default=3.0, show_default=True,
                 help="Ceiling of what the agent and its programs may take of the machine's CPU time; above it the dearest signal is "
                      "shed until there is room again. 0 sheds nothing."),
    click.option("--overhead-interval", "overhead_interval_s", metavar="SECONDS", type=FiniteFloat(min=0.2), default=5.0,
                 show_default=True, help="Measure this often what the agent takes; two readings in a row above the ceiling shed a signal."),
    click.option("--capability-mode", "mode",
                 envvar="SLO_CAPABILITY_MODE", show_envvar=True,
                 type=click.Choice(_MODES), default="auto", show_default=True,
                 help="Which variants to try: all in order; the first ones only; those without BTF; those of BCC; none that load a "
                      "program."),
    click.option("--variant", "variants", metavar="SIGNAL=NAME", type=_Choice(), multiple=True,
                 help="Try only this variant of a signal (repeatable)."),
    click.option("--drop-capabilities/--keep-capabilities", "drop_capabilities",
                 envvar="SLO_DROP_CAPABILITIES", show_envvar=True,
                 default=True, show_default=True,
                 help="Give up every capability once all is attached. What is shed afterwards is muted, not detached, and the "
                      "environment of new processes of other users cannot be read."),
    click.option("--duration", "duration_s", metavar="SECONDS", type=FiniteFloat(min=0, min_open=True), help="Stop after this time."),
    click.option("--count", metavar="N", type=click.IntRange(min=1), help="Stop after N probe events."),
    click.option("--ring-bytes", type=click.IntRange(4096, 1 << 30), default=1 << 20, show_default=True,
                 help="Size of each probe's ring buffer."),
    click.option("--report-interval", "report_interval_s", metavar="SECONDS", type=FiniteFloat(min=0, min_open=True), default=60.0,
                 show_default=True, help="Write an agent report this often, besides the first and the last."),
    click.option("--btf", metavar="FILE", default="/sys/kernel/btf/vmlinux", show_default=True, help="Types of the running kernel."),
)  # fmt: skip


def capture_options(command: F) -> F:
    """The options that `settings_from` reads."""
    for option in reversed(_CAPTURE_OPTIONS):
        command = option(command)
    return command


def signal_names(signals: str | None, signal_set: str, disabled: str) -> tuple[str, ...]:
    """The signals that were asked for, each once. Raises UsageError for a name that is none, and when nothing is left."""
    from libslo.signals import vocabulary

    sets = vocabulary("signal-sets")["sets"]
    if signal_set not in sets:
        raise click.UsageError(f"--signal-set: unknown set {signal_set!r}; known: {', '.join(sets)}")
    without = _checked("--disable-signals", disabled.split(","))
    asked = sets[signal_set] if signals is None else _checked("--signals", signals.split(","))
    names = tuple(name for name in dict.fromkeys(asked) if name not in without)
    if not names:
        raise click.UsageError("--signals: no signal named" if signals is not None else "--disable-signals: no signal is left")
    return names


def _closer(name: str, other: str) -> bool:
    """Whether one parameter was given at a place that wins over the other's: command line, environment, toolkit.yaml."""
    context = click.get_current_context(silent=True)
    places = [ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP]
    ranks = [places.index(source) if context and (source := context.get_parameter_source(each)) in places else 9 for each in (name, other)]
    return ranks[0] < ranks[1]


def _checked(option: str, names: Sequence[str]) -> list[str]:
    from libslo.kernel.catalogue import known_signals

    found = [name.strip() for name in names if name.strip()]
    for name in found:
        if name not in known_signals():
            raise click.UsageError(f"{option}: unknown signal {name!r}; known: {', '.join(known_signals())}")
    return found


def settings_from(
    *, signals: str | None, signal_set: str, disable_signals: str, cgroups: tuple[str, ...], btf: str,
    min_latency_ms: tuple[tuple[str, float], ...], variants: tuple[tuple[str, str], ...], **options: Any,
) -> CaptureSettings:  # fmt: skip
    """Settings from the values of `capture_options`. Raises UsageError."""
    from libslo.kernel.settings import CaptureSettings
    from libslo.signals import signal

    if signals is not None and _closer("signal_set", "signals"):
        signals = None  # a set that is named on the command line is no less asked for than a list in toolkit.yaml
    names = signal_names(signals, signal_set, disable_signals)
    general = [value for name, value in min_latency_ms if not name]
    thresholds = {name: value for name, value in min_latency_ms if name}
    _checked("--min-latency", list(thresholds))
    _checked("--variant", [name for name, _ in variants])
    least = {name: general[-1] if general else signal(name).min_latency_ms for name in names}
    return CaptureSettings(
        signals=names, cgroups=tuple(map(Path, cgroups)), btf=Path(btf), min_latencies_ms=least | thresholds,
        variants=dict(variants), **options,
    )  # fmt: skip
