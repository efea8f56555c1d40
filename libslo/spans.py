"""OpenTelemetry spans: OTLP JSON lines as the OpenTelemetry Collector's file exporter writes them.

A line is an ExportTraceServiceRequest: hex ids, lowerCamelCase keys, 64-bit integers as strings.
Pure: objects in, spans out; the receiver is libslo.otlp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from libslo.errors import InputError
from libslo.signals import vocabulary

__all__ = ["KIND_CLIENT", "KIND_SERVER", "Span", "decode_spans", "finite", "otlp_value", "span_line"]

KIND_SERVER = 2
KIND_CLIENT = 3
_KINDS = {
    "SPAN_KIND_UNSPECIFIED": 0,
    "SPAN_KIND_INTERNAL": 1,
    "SPAN_KIND_SERVER": 2,
    "SPAN_KIND_CLIENT": 3,
    "SPAN_KIND_PRODUCER": 4,
    "SPAN_KIND_CONSUMER": 5,
}
_LARGEST = 1.797e308
_STATUS_ERROR = (2, "STATUS_CODE_ERROR")


@dataclass(slots=True, eq=False)
class Span:
    """One span. Times are nanoseconds since the Unix epoch; a span without an end is a point at its start."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: int
    start_unix_ns: int
    end_unix_ns: int
    is_error: bool
    attributes: dict[str, Any]
    service: str
    namespace: str
    node: str
    pod: str
    workload: str
    container: str
    pid: int
    raw: dict[str, Any] = field(repr=False)
    resource: dict[str, Any] = field(repr=False)
    scope: dict[str, Any] = field(repr=False)
    join_keys: tuple[Any, ...] | None = field(default=None, repr=False)  # kept by libslo.correlation

    @property
    def duration_ms(self) -> float:
        """How long it lasted, in ms."""
        return (self.end_unix_ns - self.start_unix_ns) / 1e6

    def read(self, role: str) -> Any:
        """An attribute by what it means (``ttft_ms``, ``status_code``, …; see vocabulary/span-attributes.json), or None."""
        for name, scale in _aliases()[role]:
            value = self.attributes.get(name)
            if value is not None and value != "":
                return value * scale if scale != 1 and isinstance(value, int | float) else value
        return None

    def forget(self, role: str) -> None:
        """Take away what was said of that meaning, under any name."""
        for name, _ in _aliases()[role]:
            self.attributes.pop(name, None)

    def number(self, role: str) -> float | None:
        """The attribute of that meaning as a finite number, or None."""
        return finite(self.read(role))

    @property
    def is_retrieval(self) -> bool:
        """True for the span around a request's retrieval."""
        words = vocabulary("span-attributes")["retrieval"]
        return self.name in words["names"] or self.read("operation") in words["operations"]

    @property
    def is_generation(self) -> bool:
        """True for the client span around a call of the model provider."""
        return self.kind == KIND_CLIENT and self.read("operation") in vocabulary("span-attributes")["generation"]["operations"]

    @property
    def does_network_work(self) -> bool:
        """True when the span itself talks to somebody: a client span, or the span around retrieval."""
        return self.kind == KIND_CLIENT or self.is_retrieval


@cache
def _aliases() -> dict[str, list[tuple[str, float]]]:
    return {role: [(name, scale) for name, scale in rows] for role, rows in vocabulary("span-attributes")["aliases"].items()}


def decode_spans(request: dict[str, Any]) -> Iterator[Span]:
    """The spans of one OTLP ExportTraceServiceRequest in JSON form. InputError names what is missing or of a wrong type."""
    try:
        for resource_spans in request.get("resourceSpans") or []:
            resource = resource_spans.get("resource") or {}
            about = _attributes(resource.get("attributes") or [])
            node = _text(about, "k8s.node.name", "host.name")
            for scope_spans in resource_spans.get("scopeSpans") or []:
                scope = scope_spans.get("scope") or {}
                for raw in scope_spans.get("spans") or []:
                    yield _span(raw, resource, scope, about, node)
    except (TypeError, AttributeError, ValueError, KeyError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"not OTLP spans: {what}", hint="OTLP JSON as the OpenTelemetry Collector's file exporter writes it") from error


def _span(raw: dict[str, Any], resource: dict[str, Any], scope: dict[str, Any], about: dict[str, Any], node: str) -> Span:
    kind = raw.get("kind", 0)
    start = _nanoseconds(raw["startTimeUnixNano"])
    end = _nanoseconds(raw.get("endTimeUnixNano") or 0)
    pid = about.get("process.pid")
    return Span(
        trace_id=_hex(raw["traceId"], 32),
        span_id=_hex(raw["spanId"], 16),
        parent_span_id=str(raw.get("parentSpanId") or "").lower(),
        name=str(raw.get("name", "")),
        kind=_KINDS[kind] if isinstance(kind, str) else int(kind),
        start_unix_ns=start,
        end_unix_ns=max(end, start),
        is_error=(raw.get("status") or {}).get("code") in _STATUS_ERROR,
        attributes=_attributes(raw.get("attributes") or []),
        service=_text(about, "service.name"),
        namespace=_text(about, "k8s.namespace.name", "service.namespace"),
        node=node,
        pod=_text(about, "k8s.pod.name", "k8s.pod.uid"),
        workload=_text(about, "k8s.deployment.name", "k8s.statefulset.name", "service.name"),
        container=_text(about, "k8s.container.name", "container.name"),
        pid=pid if isinstance(pid, int) else 0,
        raw=raw,
        resource=resource,
        scope=scope,
    )


def _nanoseconds(value: Any) -> int:
    number = int(value)
    if not 0 <= number < 1 << 62:  # the year 2116; leaves room for windows to be added
        raise ValueError(f"time {value} is out of range")
    return number


def _hex(value: Any, digits: int) -> str:
    text = str(value).lower()
    if len(text) != digits or not set(text) <= set("0123456789abcdef"):
        raise ValueError(f"id {value!r} is not {digits} hexadecimal digits")
    return text


def _text(about: dict[str, Any], *names: str) -> str:
    return next((str(about[name]) for name in names if about.get(name)), "")


def _attributes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {row["key"]: _value(row.get("value") or {}) for row in rows}


def _value(value: dict[str, Any]) -> Any:
    for kind, item in value.items():
        match kind:
            case "stringValue" | "boolValue" | "bytesValue":
                return item
            case "intValue":
                number = int(item)
                if not -(1 << 63) <= number < 1 << 63:
                    raise ValueError("an intValue of more than 64 bits")
                return number
            case "doubleValue":
                return float(item)
            case "arrayValue":
                return [_value(each) for each in item.get("values") or []]
            case "kvlistValue":
                return _attributes(item.get("values") or [])
    return None


def finite(value: Any) -> float | None:
    """What an attribute holds as a finite number, or None: what somebody else computed may be none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        return None
    return float(value)


def otlp_value(value: Any) -> dict[str, Any]:
    """A Python scalar as an OTLP AnyValue in JSON form."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": str(value)}


def span_line(span: Span, extra: dict[str, Any]) -> dict[str, Any]:
    """The span as an OTLP request of one span, with `extra` attributes added (an attribute that it already has is replaced)."""
    raw = span.raw
    if extra:
        kept = [row for row in raw.get("attributes") or [] if row.get("key") not in extra]
        raw = {**raw, "attributes": kept + [{"key": key, "value": otlp_value(value)} for key, value in extra.items()]}
    return {"resourceSpans": [{"resource": span.resource, "scopeSpans": [{"scope": span.scope, "spans": [raw]}]}]}
