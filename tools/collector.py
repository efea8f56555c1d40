"""Turn samples and spans into slo-events, and join kernel signals with spans.

Reads raw-sample, probe-event, stream-time, OTLP spans (JSON lines, or OTLP/HTTP with --otlp-listen) and, with --load-service,
load-result; writes slo-event, probe-event, OTLP spans and, live, stream-time. Streams, in bounded memory.
"""

from __future__ import annotations

import click

from libslo.cli import FiniteFloat, common_options, input_options, make_main, note, output_options, pass_through_option, report_bad_line


@click.command()
@input_options
@click.option("--spans", multiple=True, metavar="FILE", help="Also read OTLP spans from this file (repeatable), in step with the input.")
@click.option(
    "--otlp-listen",
    metavar="HOST:PORT",
    envvar="SLO_OTLP_LISTEN",
    help="Also receive spans by OTLP/HTTP here; runs until the input ends or a signal.  [env: SLO_OTLP_LISTEN]",
)
@click.option("--no-input", is_flag=True, help="Read no JSON lines at all (with --otlp-listen or --spans).")
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    envvar="SLO_OTLP_ENDPOINT",
    help="Also send slo-events and probe-events as OTLP logs there.  [env: SLO_OTLP_ENDPOINT]",
)
@click.option("--record", metavar="DIR", help="Also keep every line consumed, and when it came, in this directory; see faultreplay.")
@click.option(
    "--emit",
    default="slo-event,probe-event,spans,stream-time",
    show_default=True,
    metavar="LIST",
    help="Which records to write; stream-time: how far time has come, when a live run has nothing else to say for a second.",
)
@click.option(
    "--cluster",
    default="local",
    show_default=True,
    envvar="SLO_CLUSTER",
    help="Cluster name of slo-events made from spans.  [env: SLO_CLUSTER]",
)
@click.option(
    "--load-service",
    metavar="NAME",
    help="Turn load-results into slo-events of this service, which the load was driven against; not beside its own spans, which tell of the"
    " same requests.",
)
@click.option(
    "--window-ms",
    type=FiniteFloat(min=0, min_open=True),
    default=2000.0,
    show_default=True,
    help="How far a signal with a trace id may lie from a span of that trace.",
)
@click.option(
    "--lateness-ms",
    type=FiniteFloat(min=0),
    default=500.0,
    show_default=True,
    help="How much later than its own time a record may come.",
)
@pass_through_option(default=True)
@output_options
@common_options
def command(
    source: str,
    on_bad: str,
    spans: tuple[str, ...],
    otlp_listen: str | None,
    no_input: bool,
    otlp_endpoint: str | None,
    record: str | None,
    emit: str,
    cluster: str,
    load_service: str | None,
    window_ms: float,
    lateness_ms: float,
    pass_through: bool,
    out: str,
) -> None:
    """Turn samples and spans into slo-events, and join kernel signals with spans.

    A signal that finds its span gets trace_id, span_id and confidence; a span gets llm.ebpf.* attributes. Records of
    other contracts are copied (--no-pass-through leaves them out).

    \b
    Examples:
      faultinject --scenario mixed --count 200 | collector | attributor
      agent | collector --otlp-listen 127.0.0.1:4318 | attributor
      collector --input probes.jsonl.gz --spans spans.jsonl --out joined.jsonl
      collector --input results.jsonl --load-service rag | attributor
      agent | collector --otlp-listen 127.0.0.1:4318 --record recording | attributor
    """
    from libslo.collect import EMITS, CollectSettings, collect

    wanted = frozenset(word.strip() for word in emit.split(",") if word.strip())
    if not wanted <= set(EMITS):
        raise click.UsageError(f"--emit knows {', '.join(EMITS)}, not {', '.join(sorted(wanted - set(EMITS)))}")
    if no_input and not (otlp_listen or spans):
        raise click.UsageError("--no-input leaves nothing to read without --otlp-listen or --spans")
    settings = CollectSettings(
        sources=() if no_input else (source,),
        spans=spans,
        out=out,
        record=record,
        otlp_listen=otlp_listen,
        otlp_endpoint=otlp_endpoint,
        cluster=cluster,
        load_service=load_service,
        window_ms=window_ms,
        lateness_ms=lateness_ms,
        emit=wanted,
        pass_through=pass_through,
        on_bad="skip" if on_bad == "skip" else "fail",
    )
    collect(settings, note, report_bad_line)


main = make_main(command, "collector")
