"""OpenTelemetry for the lab's services: resource from the environment, spans in small batches over OTLP/HTTP protobuf."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["POD_NAMESPACE", "resource_environment", "start_tracing"]

POD_NAMESPACE = "slo-lab"
_SCHEDULE_DELAY_MS = 100  # spans of one request reach the collector within a small part of its lateness


def resource_environment(service: str, otlp_endpoint: str) -> dict[str, str]:
    """Environment of a service process: the SDK reads it for its resource, the agent from ``/proc/<pid>/environ``."""
    node = socket.gethostname()
    attributes = {
        "service.namespace": POD_NAMESPACE,
        "k8s.namespace.name": POD_NAMESPACE,
        "k8s.pod.name": f"{service}-0",
        "k8s.container.name": service,
        "k8s.node.name": node,
        "host.name": node,
    }
    return {
        "OTEL_SERVICE_NAME": service,
        "OTEL_RESOURCE_ATTRIBUTES": ",".join(f"{key}={value}" for key, value in attributes.items()),
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_endpoint,
    }


def start_tracing(scope: str) -> tuple[Any, Callable[[], None]]:
    """A tracer and the function that flushes and ends it. Without OTEL_EXPORTER_OTLP_ENDPOINT spans go nowhere."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"process.pid": os.getpid()}))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        processor = BatchSpanProcessor(OTLPSpanExporter(timeout=2), schedule_delay_millis=_SCHEDULE_DELAY_MS)
        provider.add_span_processor(processor)
    return provider.get_tracer(scope), provider.shutdown
