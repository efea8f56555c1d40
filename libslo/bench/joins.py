"""How often the collector joins a kernel event with the right request, where that is known. Pure.

Known is it for TCP events: a span that writes down the local port of its connection (`network.local.port`) is the one that made every
event of that connection. Events of a connection that no span wrote down, or more than one did, are left out and counted. The join
reads the port too, so as it is it shows what services get that write it down; what others get is shown by a join that was not
told of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libslo.signals import vocabulary
from libslo.spans import KIND_SERVER, Span

__all__ = ["JoinCounts", "judge_joins"]


@dataclass(frozen=True)
class JoinCounts:
    """Of one run: events whose span is known, those joined with a confidence that enriches, those joined with the right trace and span.

    latest_right: as many as would be right if each went to the request of its pod that began last. unknown: events left out.
    """

    known: int
    joined: int
    right_trace: int
    right_span: int
    latest_right: int
    unknown: int


def judge_joins(events: Iterable[Mapping[str, Any]], spans: Sequence[Span]) -> JoinCounts:
    """Set the joins of probe-events against the connections that spans wrote down."""
    owners: dict[tuple[Any, ...], list[Span]] = {}
    for span in spans:
        ends = tuple(span.read(role) for role in ("local_address", "local_port", "peer_address", "peer_port"))
        if None not in ends:
            owners.setdefault((span.pod, *ends), []).append(span)
    requests = sorted((span for span in spans if span.kind == KIND_SERVER), key=lambda span: span.start_unix_ns)
    begins = [span.start_unix_ns for span in requests]
    enrich_at = vocabulary("correlation-tiers")["enrich_at"]
    known = joined = right_trace = right_span = latest_right = unknown = 0
    for event in events:
        conn = event.get("conn_tuple")
        if not conn or conn["protocol"] != "tcp":
            continue
        mine = owners.get((event["pod"], conn["src_ip"], conn["src_port"], conn["dst_ip"], conn["dst_port"]), [])
        if len(mine) != 1:
            unknown += 1
            continue
        known += 1
        before = bisect_right(begins, event["ts_unix_nano"])
        latest_right += bool(before) and requests[before - 1].trace_id == mine[0].trace_id
        if event.get("confidence", 0.0) >= enrich_at:
            joined += 1
            right_trace += event.get("trace_id") == mine[0].trace_id
            right_span += event.get("span_id") == mine[0].span_id
    return JoinCounts(known, joined, right_trace, right_span, latest_right, unknown)
