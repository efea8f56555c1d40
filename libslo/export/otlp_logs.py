"""Deliver records as OTLP log records over HTTP (libslo/export/otlp_http.py says how)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from libslo import __version__
from libslo.export.otlp_http import DeliveryStats, OtlpSender, headers_from_environment, signal_url
from libslo.slo import parse_timestamps

__all__ = ["OtlpLogExporter", "log_record", "logs_request"]

_SEVERITY = {"ok": (9, "INFO"), "warning": (13, "WARN"), "breach": (17, "ERROR"), "error": (17, "ERROR")}
_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")
_ANY_VALUE = {str: "stringValue", bool: "boolValue", int: "intValue", float: "doubleValue"}
_NO_ATTRIBUTES = frozenset({"ts_unix_nano", "trace_id", "span_id"})  # fields of the record itself


def log_record(kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """One slo-event, probe-event or incident as an OTLP log record in JSON form."""
    ts = value["ts_unix_nano"] if "ts_unix_nano" in value else int(parse_timestamps([value["timestamp"]])[0])
    number, text = _SEVERITY.get(str(value.get("status", "")), (17, "ERROR") if kind == "incident-attribution" else (9, "INFO"))
    attributes = []
    for key, item in value.items():
        name = _ANY_VALUE.get(type(item))
        if name and key not in _NO_ATTRIBUTES:
            attributes.append({"key": key, "value": {name: str(item) if name == "intValue" else item}})
    record: dict[str, Any] = {
        "timeUnixNano": str(ts),
        "severityNumber": number,
        "severityText": text,
        "eventName": f"llm_slo.{kind}",
        "body": {"stringValue": _dumps(value).decode()},
        "attributes": attributes,
    }
    # An incident is found from the trace of its first bad request. One id that is none would cost the whole batch.
    trace_ids = [value["trace_id"]] if "trace_id" in value else value.get("trace_ids", ())
    trace_id = next((each for each in trace_ids if _TRACE_ID.fullmatch(each)), None)
    if trace_id:
        record["traceId"] = trace_id.lower()
    if value.get("span_id"):
        record["spanId"] = value["span_id"]
    return record


def logs_request(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An ExportLogsServiceRequest in JSON form."""
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "llm-slo-toolkit"}}]}
    return {
        "resourceLogs": [
            {
                "resource": resource,
                "scopeLogs": [{"scope": {"name": "llm-slo-ebpf-toolkit", "version": __version__}, "logRecords": list(records)}],
            }
        ]
    }


def _dumps(value: Any) -> bytes:
    import orjson

    return orjson.dumps(value)


class OtlpLogExporter:
    """Sends records from a thread of its own, so that a slow endpoint never holds up the pipe. options: those of OtlpSender."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        url, headers = signal_url(endpoint, "logs"), headers_from_environment("logs")
        self._sender = OtlpSender(url, _encode, "rejectedLogRecords", headers=headers, **options)

    @property
    def stats(self) -> DeliveryStats:
        """The account so far, as a copy."""
        return self._sender.stats

    def submit(self, kind: str, *values: Mapping[str, Any]) -> None:
        """Queue records of one contract, not to be changed any more; counted as refused when the queue is full."""
        self._sender.submit((str(value.get("signal", "")), (kind, value)) for value in values)

    def close(self, grace_s: float = 10.0) -> DeliveryStats:
        """Send what is queued (for at most `grace_s`), count the rest as given up, and return the account."""
        return self._sender.close(grace_s)


def _encode(payloads: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    return logs_request([log_record(kind, value) for kind, value in payloads])
