"""Plan a load on an LLM service, or drive it and say what it saw.

Reads a load profile, a trace or load-request lines; writes load-request (the plan), or load-result when driven against a URL. Streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from libslo.cli import common_options, make_main, note, output_options, refuse_given, report_bad_line, seed_option
from libslo.errors import EXIT_NO, EXIT_OK, CannotError
from libslo.load.options import plan_options, progress_on_terminal, target_options, verdict_options

if TYPE_CHECKING:
    from libslo.load.session import PlanSettings


_DRIVES = (
    "protocol", "model", "ca", "timeout_s", "keep_alive", "look_up", "max_in_flight", "traceparent", "gaps", "warmup_s",
)  # fmt: skip
_JUDGES = ("limits", "min_achieved", "summary_out")


@click.command()
@plan_options
@target_options
@verdict_options
@seed_option
@output_options
@common_options
def command(list_loads: bool, loads_file: str | None, url: str | None, summarize: str | None, out: str, **options: Any) -> int:
    """Plan a load, or drive it: requests leave at their times whatever became of those before.

    With --url each request's result is written when it is over, and a summary in the end: from when requests were due and
    from when they left, percentiles that n supports, goodput, errors by kind. Exit 1 when the load was not what was asked
    for (--min-achieved), 3 when no request was answered. SIGINT or SIGTERM stops sending and waits for what is under way.

    \b
    Examples:
      loadgen --load rag_mixed_20rps --duration 30 --seed 42 > plan.jsonl
      loadgen --load chat_short --url http://127.0.0.1:8080 --slo ttft=800 --slo e2e=3000 --summary-out summary.json > results.jsonl
      loadgen --load plain --rate 200 --protocol http --keep-alive --url http://127.0.0.1:8080/healthz --out results.jsonl
      loadgen --summarize results.jsonl --slo ttft=800
    """
    if list_loads:
        from libslo.load.profiles import read_loads

        for name, load in read_loads(loads_file).loads.items():
            mix = ", ".join(f"{weight:g} {profile.name}" for profile, weight in load.mix)
            click.echo(f"{name:20} {load.arrival.kind}, {load.arrival.rate:g}/s: {mix}")
        return EXIT_OK
    limits = dict(options.pop("limits"))
    if summarize is not None:
        from libslo.load.session import stored_summary

        refuse_given(_DRIVES, "goes with --url, not with --summarize")
        judged = {"limits": limits, "min_achieved": options["min_achieved"], "on_bad": options["on_bad"]}
        return _tell(stored_summary(summarize, report_bad_line, **judged), options["summary_out"], [summarize])
    if sum(options[name] is not None for name in ("load", "trace", "source")) != 1:
        raise click.UsageError("give one of --load, --trace, --input, --list and --summarize")
    if url is None:
        refuse_given({*_DRIVES, *_JUDGES}, "goes with --url")
    settings = _plan_settings(loads_file, options)
    return _drive(settings, url, limits, out, options) if url is not None else _write_plan(settings, out)


def _plan_settings(loads_file: str | None, options: dict[str, Any]) -> PlanSettings:
    from libslo.load.session import PlanSettings

    changes = {key: options[name] for key, name in (("kind", "arrival"), ("rate", "rate"), ("rate_to", "rate_to"), ("shape", "shape"))}
    if options["load"] is not None:
        refuse_given(("speed", "profile"), "goes with --trace")
        refuse_given(("on_bad",), "goes with --trace, --input or --summarize")
    if options["load"] is None and any(value is not None for value in changes.values()):
        raise click.UsageError("--rate, --arrival, --rate-to and --shape go with --load")
    names = ("load", "trace", "source", "duration_s", "count", "speed", "profile", "prefix", "seed", "on_bad")
    return PlanSettings(loads_file=loads_file, arrival=changes, **{name: options[name] for name in names})


def _write_plan(settings: PlanSettings, out: str) -> int:
    from libslo.jsonl import JsonlWriter
    from libslo.load.session import requests_of

    plan = requests_of(settings, report_bad_line)
    with JsonlWriter(out, settings.inputs) as writer:
        for request in plan:
            writer.write(request.as_record())
    return EXIT_OK


def _drive(settings: PlanSettings, url: str, limits: Mapping[str, float], out: str, options: dict[str, Any]) -> int:
    from libslo.load.protocols import target_url
    from libslo.load.session import drive_plan, requests_of
    from libslo.load.target import Target

    protocol = options["protocol"]
    if protocol == "openai" and not options["model"]:
        raise click.UsageError("--protocol openai needs --model")
    if protocol == "http" and {"ttft", "tpot"} & set(limits):
        raise click.UsageError("--protocol http has no tokens: limit e2e only")
    names = ("protocol", "model", "ca", "timeout_s", "keep_alive", "max_in_flight", "traceparent", "gaps", "warmup_s")
    chosen = {name: options[name] for name in names}
    target = Target(target_url(url, protocol), look_up_each=options["look_up"] == "each", **chosen)
    plan = requests_of(settings, report_bad_line)
    if settings.load is None:
        plan = iter(list(plan))  # what is wrong in it is said before the first request leaves
    judged = {"limits": limits, "min_achieved": options["min_achieved"]}
    with progress_on_terminal() as progress:
        verdict = drive_plan(plan, target, out, progress, inputs=settings.inputs, **judged)
    if verdict.stopped and not verdict.began:
        raise KeyboardInterrupt
    code = _tell(verdict.summary, options["summary_out"], [*settings.inputs, out])
    if verdict.began and not verdict.answered:
        errors = ", ".join(f"{kind} {count}" for kind, count in verdict.errors.items())
        fact = f"no request was answered: {errors}; the last: {verdict.last_error}"
        raise CannotError(fact, source=target.url, hint="check the URL, and that the service is up")
    return code


def _tell(summary: Mapping[str, Any], summary_out: str | None, inputs: Iterable[str]) -> int:
    from libslo.jsonl import JsonlWriter
    from libslo.load.summary import summary_lines

    note("\n  ".join(summary_lines(summary)))
    if summary_out:
        with JsonlWriter(summary_out, inputs) as writer:
            writer.write(dict(summary))
    return EXIT_OK if summary["valid"] else EXIT_NO


main = make_main(command, "loadgen")
