"""A recording cut down to what attribution of one service needs, small enough to keep many of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from libslo.jsonl import encode
from libslo.recordings import Recorder, Recording, RecordingWriter

__all__ = ["compact_recording"]

_LEAD_NS = 1_000_000_000  # of what arrived before the baseline, which the collector may still join with
_KEPT = ("agent-report", "fault-window", "load-result", "incident-attribution", "incident-episode", "incident-arrival", "overhead-sample")
_OWN = {"recording_format", "tool_version", "git_revision", "kernel", "machine", "files"}


def compact_recording(source: Path, target: Path, service: str) -> None:
    """Write to a new directory: the input of one service in the order and at the times at which it arrived, truth, load, incidents.

    The agent's reports stay: they say which signals were watched.
    Spans and kernel events of other services are left out, and so is what a replay makes again (slo-events). Replaying the result
    gives the same bytes each time; the same incidents of that service as the whole recording, where no other service decided.
    Raises InputError when the source is no recording or the target is in use.
    """
    recording = Recording(source)
    about = {key: value for key, value in recording.manifest.items() if key not in _OWN}
    phases = recording.manifest.get("phases", [])
    begin_ns = phases[0]["begin_unix_nano"] - _LEAD_NS if phases else 0
    with RecordingWriter(target, about) as writer:
        recorder = Recorder(writer)
        for at_ns, line in recording.input():
            value = orjson.loads(line)
            if at_ns >= begin_ns or "agent_version" in value:
                _record(recorder, at_ns, value, service)
        for kind in _KEPT:
            if recording.has(kind) and kind not in recording.kinds("input"):
                row = next(row for row in recording.files if row["name"] == f"{kind}.jsonl.gz")
                for raw in recording.lines(kind):
                    writer.file(row["contract"], row["role"], kind).write(raw, 1)


def _record(recorder: Recorder, at_ns: int, value: dict[str, Any], service: str) -> None:
    if "stream_unix_nano" in value:
        recorder.time(value["stream_unix_nano"])
    elif "resourceSpans" in value:
        mine = [part for part in value["resourceSpans"] if _service(part) == service]
        if mine:
            recorder.spans({"resourceSpans": mine}, at_ns)
    elif "agent_version" in value:
        recorder.records([("", value, encode(value).rstrip(b"\n"), 0)], at_ns)
    elif value.get("service") == service:
        recorder.records([("probe-event", value, encode(value).rstrip(b"\n"), 0)], at_ns)


def _service(part: dict[str, Any]) -> str:
    attributes = part.get("resource", {}).get("attributes", [])
    return next((str(each["value"].get("stringValue", "")) for each in attributes if each["key"] == "service.name"), "")
