"""Service level indicators as clients saw them: from the results of a load. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libslo.slo import format_timestamp, slo_events

__all__ = ["slo_events_from_load_result"]

_NOT_THE_SERVICES = ("not_sent", "cancelled")  # the generator's own doing


def slo_events_from_load_result(result: Mapping[str, Any], service: str, cluster: str) -> list[dict[str, Any]]:
    """The slo-event objects that one load-result gives, for the service that the load was driven against.

    Counted from when the request left (what was held back in the generator is not the service's), its time is when it was over.
    Throughput is the pace between first and last token, as in the load's own summary. None for the warm-up, and for a request that
    did not leave or was broken off by the generator.
    """
    if result["warmup"] or result.get("error") in _NOT_THE_SERVICES or "sent_unix_ns" not in result or "end_unix_ns" not in result:
        return []
    sent_ns, end_ns = result["sent_unix_ns"], result["end_unix_ns"]
    first_ns, last_ns = result.get("first_token_unix_ns"), result.get("last_token_unix_ns")
    values: dict[str, float] = {}
    if first_ns is not None:
        values["ttft_ms"] = (first_ns - sent_ns) / 1e6
    values["request_latency_ms"] = (end_ns - sent_ns) / 1e6
    if first_ns is not None and last_ns is not None and last_ns > first_ns and result["tokens"] > 1:
        values["token_throughput_tps"] = (result["tokens"] - 1) * 1e9 / (last_ns - first_ns)
    values["error_rate"] = float("error" in result)
    labels = {"http.response.status_code": str(result["status"])} if result["status"] else {}
    if "error" in result:
        labels["error.type"] = result["error"]
    shared = {
        "timestamp": format_timestamp(end_ns),
        "cluster": cluster,
        "namespace": "default",
        "workload": service,
        "service": service,
        "request_id": result["request_id"],
    }
    more = {"trace_id": result["trace_id"]} if "trace_id" in result else {}
    return list(slo_events(result["request_id"], values, shared, {**more, "labels": labels}))
