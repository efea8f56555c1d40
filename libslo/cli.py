"""What every console script shares: option stacks, the configuration file, and the runner that turns errors into exit codes.

click alone exits 1 on a traceback, Ctrl-C and a closed pipe; 1 is kept for verdicts here, so the runner handles those itself.
"""

from __future__ import annotations

import math
import os
import select
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from libslo import __version__
from libslo.errors import EXIT_BUG, EXIT_CANNOT, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, InputError, SloError, os_reason

__all__ = [
    "FiniteFloat",
    "abstain_option",
    "agent_sink_options",
    "alarm_bell",
    "common_options",
    "input_options",
    "make_main",
    "note",
    "note_block",
    "output_options",
    "pass_through_option",
    "reader_has_gone",
    "refuse_given",
    "report_bad_line",
    "seed_option",
]

F = TypeVar("F", bound=Callable[..., Any])


class FiniteFloat(click.FloatRange):
    """A number within bounds that is neither NaN nor infinite (click lets both through)."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; a usage error for what is none."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


_VERBOSITY = "libslo.verbosity"  # -1 quiet, 0 plain, 1 verbose; kept in click's context


def _set_verbosity(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.meta[_VERBOSITY] = level

    return callback


def _load_config(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        from libslo.config import load_config, option_defaults

        config = load_config(value)
        context.default_map = option_defaults(config, (parameter.name for parameter in context.command.params))


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def common_options(command: F) -> F:
    """--config, -q, -v, --version, -h: on every tool."""
    return _stack(
        click.option(
            "--config",
            metavar="FILE",
            envvar="SLO_CONFIG",
            is_eager=True,
            expose_value=False,
            callback=_load_config,
            help="Read defaults from this toolkit.yaml.  [env: SLO_CONFIG]",
        ),
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set_verbosity(-1), help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbosity(1), help="Print more, tracebacks too."),
        click.version_option(__version__, message="%(prog)s %(version)s"),
        click.help_option("-h", "--help"),
    )(command)


def input_options(command: F) -> F:
    """--input and --on-bad: for tools that read JSON lines."""
    return _stack(
        click.option(
            "--input",
            "source",
            metavar="FILE",
            default="-",
            show_default=True,
            help="Read JSON lines from here; - is stdin, .gz is unpacked.",
        ),
        click.option(
            "--on-bad",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            show_default=True,
            help="A bad line ends the run with exit 2, or is reported, counted and left out.",
        ),
    )(command)


def output_options(command: F) -> F:
    """--out: for tools that write JSON lines."""
    return click.option("--out", metavar="FILE", default="-", show_default=True, help="Write JSON lines here; - is stdout, .gz is packed.")(
        command
    )


def agent_sink_options(command: F) -> F:
    """--otlp-endpoint, --otlp-interval, --metrics-listen, --metrics-max-series: what the agent gives out besides lines."""
    return _stack(
        click.option(
            "--otlp-endpoint",
            metavar="URL",
            envvar="SLO_OTLP_ENDPOINT",
            help="Also send probe-events as OTLP logs and the agent's metrics there; in a pipe name it here or at the collector,"
            " not at both. Headers come from OTEL_EXPORTER_OTLP_HEADERS.  [env: SLO_OTLP_ENDPOINT]",
        ),
        click.option(
            "--otlp-interval",
            "otlp_interval_s",
            metavar="SECONDS",
            type=FiniteFloat(min=0.1),
            default=15.0,
            show_default=True,
            help="Send metrics to --otlp-endpoint this often.",
        ),
        click.option(
            "--metrics-listen",
            metavar="HOST:PORT",
            envvar="SLO_METRICS_LISTEN",
            help="Serve /metrics for Prometheus, /healthz and /readyz here; port 0 takes a free one.  [env: SLO_METRICS_LISTEN]",
        ),
        click.option(
            "--metrics-max-series",
            metavar="N",
            type=click.IntRange(1, 100_000),
            default=200,
            show_default=True,
            help='Histograms for the first N containers of each signal; the rest are counted as "other".',
        ),
    )(command)


def pass_through_option(default: bool) -> Callable[[F], F]:
    """--pass-through/--no-pass-through: what becomes of records this tool does not consume."""
    return click.option(
        "--pass-through/--no-pass-through",
        default=default,
        show_default=True,
        help="Copy records that this tool does not consume to the output.",
    )


def seed_option(command: F) -> F:
    """--seed: same seed, same bytes."""
    return click.option(
        "--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Seed of all randomness: same seed, same bytes."
    )(command)


def abstain_option(command: F) -> F:
    """--abstain-below: who is not sure enough says so."""
    return click.option(
        "--abstain-below",
        type=FiniteFloat(0, 1),
        default=0.5,
        show_default=True,
        help="In bayes mode, answer `unknown` below this posterior.",
    )(command)


def refuse_given(names: Collection[str], what: str) -> None:
    """UsageError when one of these parameters was given on the command line, where it would do nothing; `what` says why."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} {what}")


def verbosity() -> int:
    """-1 quiet, 0 plain, 1 verbose."""
    context = click.get_current_context(silent=True)
    return int(context.meta.get(_VERBOSITY, 0)) if context else 0


def note(message: str, *, level: int = 0) -> None:
    """Tell the person at the terminal something on stderr, as ``tool: message``; level 1 only under -v."""
    if verbosity() >= level:
        _echo(f"{_tool_name()}: {message}")


def note_block(lines: Iterable[str], rich_form: Callable[[], Any]) -> None:
    """Tell the person at the terminal several lines; there they are shown in the form that rich makes of them, elsewhere as they are."""
    if verbosity() >= 0 and sys.stderr.isatty():
        from rich.console import Console

        with suppress(OSError):  # the terminal has gone
            Console(stderr=True).print(rich_form(), "")
    else:
        note("\n".join(lines))


def report_bad_line(error: InputError) -> None:
    """Report a bad line that ``--on-bad skip`` leaves out (even under -q: nothing is dropped in silence)."""
    _echo(f"{_tool_name()}: {error} (left out)")


def alarm_bell() -> Callable[[str], None]:
    """A function that says what went wrong on stderr as ``tool: message``, even under -q, from whatever thread."""
    name = _tool_name()  # another thread has no context
    return lambda message: _echo(f"{name}: {message}")


def _tool_name() -> str:
    context = click.get_current_context(silent=True)
    return str(context.find_root().info_name) if context else "slo"


def _echo(message: str) -> None:
    with suppress(OSError):  # nobody reads stderr: that ends no stream and changes no verdict
        click.echo(message, err=True)


def reader_has_gone() -> bool:
    """True when stdout is a pipe that nobody reads any more: known before the next line, which may be far away."""
    poller = select.poll()
    poller.register(1, 0)  # errors and hang-ups are reported without being asked for
    return bool(poller.poll(0))


def make_main(command: click.Command, name: str) -> Callable[[Sequence[str] | None], NoReturn]:
    """The console-script entry point of a tool: runs the command and exits with the project's codes."""

    def main(arguments: Sequence[str] | None = None) -> NoReturn:
        sys.exit(_run(command, name, arguments))

    return main


def _run(command: click.Command, name: str, arguments: Sequence[str] | None) -> int:
    code = _exit_code(command, name, arguments)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            _drop(number)  # what could not be written was said already; the interpreter would exit 120 over it
    return code


def _exit_code(command: click.Command, name: str, arguments: Sequence[str] | None) -> int:
    _tune()
    verbose = {"-v", "--verbose"} & set(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not command.main(): that exits 1 on a closed pipe.
        with command.make_context(name, list(sys.argv[1:] if arguments is None else arguments)) as context:
            result = command.invoke(context)
        code = result if isinstance(result, int) else EXIT_OK
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _drop(1)  # nobody reads it: the answer stands
        return code
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except BrokenPipeError:
        _drop(1)
        return EXIT_OK
    except SloError as error:
        _say(name, error, error.hint)
        if verbose:
            _traceback()
        return error.exit_code
    except click.UsageError as error:
        _say(name, error.format_message().rstrip("."), f"{name} --help")
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        _say(name, "interrupted", None)
        return EXIT_INTERRUPTED
    except OSError as error:
        _say(name, f"{error.filename or 'stdout'}: {os_reason(error)}", None)
        return EXIT_CANNOT
    except Exception as error:
        _say(name, f"internal error: {type(error).__name__}: {error}", f"{name} -v … prints where; please report it")
        if verbose:
            _traceback()
        return EXIT_BUG


def _tune() -> None:
    """Let the cycle collector run less often: streams make many short-lived objects and hardly a cycle. No threads for numpy's
    small matrices: to start them costs more than they ever do.
    """
    import gc

    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _say(name: str, fact: object, hint: str | None) -> None:
    _echo(f"{name}: {fact}")
    if hint:
        _echo(f"  try: {hint}")


def _traceback() -> None:
    import traceback

    _echo(traceback.format_exc().rstrip())


def _drop(number: int) -> None:
    """Point stdout (1) or stderr (2) at nothing, so that the interpreter's own flush at exit does not complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
