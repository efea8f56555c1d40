"""The load generator's options: what is sent when, where it goes, and how it is judged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from libslo.cli import FiniteFloat, verbosity

__all__ = ["plan_options", "progress_on_terminal", "target_options", "verdict_options"]

F = TypeVar("F", bound=Callable[..., Any])

_ABOVE_0 = FiniteFloat(min=0, min_open=True)
_LIMITS = ("ttft", "e2e", "tpot")


class _Limit(click.ParamType[Any]):
    """NAME=MS."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        name, separator, text = str(value).partition("=")
        if not separator or name not in _LIMITS:
            self.fail(f"{value!r} is not NAME=MS with a name of {', '.join(_LIMITS)}", param, ctx)
        return name, FiniteFloat(min=0, min_open=True).convert(text, param, ctx)


# fmt: off
_PLAN = (
    click.option("--load", metavar="NAME", help="Draw the requests of this load (--list names them)."),
    click.option("--trace", metavar="FILE",
                 help="Replay the times and token counts of this trace, CSV or JSON lines; columns TIMESTAMP, ContextTokens,"
                      " GeneratedTokens, or timestamp, prompt_tokens, output_tokens; - is stdin."),
    click.option("--input", "source", metavar="FILE", help="Take the requests from these load-request lines; - is stdin, .gz is unpacked."),
    click.option("--on-bad", type=click.Choice(["fail", "skip"]), default="fail", show_default=True,
                 help="A bad line ends the run with exit 2, or is reported, counted and left out."),
    click.option("--loads", "loads_file", metavar="FILE", help="Read loads and profiles from here instead of those of the toolkit."),
    click.option("--list", "list_loads", is_flag=True, help="List the loads and end."),
    click.option("--duration", "duration_s", type=_ABOVE_0, metavar="SECONDS",
                 help="How long requests are due (default: 30 of a load, all of a trace or plan)."),
    click.option("--count", type=click.IntRange(min=1), metavar="N", help="At most so many requests."),
    click.option("--rate", type=_ABOVE_0, help="Requests a second instead of the load's."),
    click.option("--arrival", type=click.Choice(["constant", "poisson", "gamma", "ramp"]), help="Arrivals instead of the load's."),
    click.option("--rate-to", type=_ABOVE_0, help="Requests a second at the end of a ramp."),
    click.option("--shape", type=_ABOVE_0, help="Of gamma arrivals: below 1 is burstier than Poisson."),
    click.option("--speed", type=_ABOVE_0, default=1.0, show_default=True, help="Replay a trace so many times as fast."),
    click.option("--profile", metavar="NAME", default="rag_medium", show_default=True, help="What a trace's requests are said to be of."),
    click.option("--prefix", metavar="TEXT", default="r", show_default=True, help="What request ids begin with."),
)
_TARGET = (
    click.option("--url", metavar="URL", help="Send the requests there; without it the plan is written."),
    click.option("--protocol", type=click.Choice(["ndjson", "sse", "openai", "http"]), default="ndjson", show_default=True,
                 help="POST /chat streamed as NDJSON or SSE, POST /v1/chat/completions, or a plain GET."
                      " The key of openai comes from OPENAI_API_KEY."),
    click.option("--model", metavar="NAME", help="Model to ask for; openai needs one."),
    click.option("--ca", metavar="FILE", help="Trust the certificate authorities of this PEM file instead of the system's."),
    click.option("--timeout", "timeout_s", type=_ABOVE_0, default=20.0, show_default=True, metavar="SECONDS", help="Of one request."),
    click.option("--keep-alive", is_flag=True, help="Use connections again instead of a new one for each request."),
    click.option("--look-up", type=click.Choice(["once", "each"]), default="once", show_default=True,
                 help="Look the name up once, or for each connection."),
    click.option("--max-in-flight", type=click.IntRange(min=0), default=0, metavar="N",
                 help="Hold requests back while N are under way; how long is in the results.  [default: no bound]"),
    click.option("--traceparent", type=click.Choice(["none", "unsampled", "sampled"]), default="none", show_default=True,
                 help="Send a trace context, asking services to record the trace or not to."),
    click.option("--gaps", is_flag=True, help="Keep the times between tokens."),
    click.option("--warmup", "warmup_s", type=FiniteFloat(min=0), default=0.0, metavar="SECONDS",
                 help="Leave the requests of the first seconds out of all figures."),
)
_VERDICT = (
    click.option("--slo", "limits", type=_Limit(), multiple=True, metavar="NAME=MS",
                 help="A limit that good requests keep: ttft, e2e or tpot (repeatable)."),
    click.option("--min-achieved", type=FiniteFloat(min=0, max=1), default=0.99, show_default=True,
                 help="A run whose requests left at less than this share of the planned rate is invalid: exit 1."),
    click.option("--summary-out", metavar="FILE", help="Write the summary there as JSON."),
    click.option("--summarize", metavar="FILE", help="Only sum up the load-results of this file; - is stdin."),
)
# fmt: on


def _stacked(options: tuple[Callable[[Any], Any], ...]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


plan_options = _stacked(_PLAN)
target_options = _stacked(_TARGET)
verdict_options = _stacked(_VERDICT)


@contextmanager
def progress_on_terminal() -> Iterator[Callable[[Any], None]]:
    """A function that shows driver.Counts on stderr, when that is a terminal and nobody asked for quiet."""
    if verbosity() < 0 or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda counts: status.update(
            f"{counts.elapsed_s:.0f} s: {counts.sent} sent, {counts.in_flight} under way, {counts.answered} answered,"
            f" {counts.failed} failed, the last left {1e3 * counts.late_s:.1f} ms late"
        )
