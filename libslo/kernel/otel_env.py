"""What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, in a process's environment or in a pod's description. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

__all__ = ["UNKNOWN", "parse_environ", "resource_attributes"]

UNKNOWN = "\0"  # stands for a part of a value that is not known; no environment can hold it


def parse_environ(block: bytes) -> dict[str, str]:
    """Resource attributes from the bytes of ``/proc/<pid>/environ``: see resource_attributes."""
    wanted = {}
    for entry in block.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name in (b"OTEL_SERVICE_NAME", b"OTEL_RESOURCE_ATTRIBUTES"):
            wanted[name.decode()] = value
    return resource_attributes(wanted)


def resource_attributes(environ: Mapping[str, bytes]) -> dict[str, str]:
    """Resource attributes of an environment.

    OTEL_SERVICE_NAME wins over service.name; values of OTEL_RESOURCE_ATTRIBUTES are percent-decoded
    (OpenTelemetry resource SDK specification); a malformed pair is left out.
    """
    attributes = {}
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", b"").decode("utf-8", "replace").split(","):
        key, separator, value_text = pair.partition("=")
        if separator and key.strip():
            attributes[unquote(key.strip())] = unquote(value_text.strip())
    if environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = environ["OTEL_SERVICE_NAME"].decode("utf-8", "replace")
    return attributes
