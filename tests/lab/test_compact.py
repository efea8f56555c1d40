"""A recording cut down to one service: what stays, and that it replays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from libslo.errors import InputError
from libslo.lab.compact import compact_recording
from libslo.recordings import Recorder, Recording, RecordingWriter

_S = 1_000_000_000
_T0 = 1_800_000_000 * _S


def _spans(*services: str) -> dict[str, Any]:
    return {
        "resourceSpans": [
            {"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": name}}]}, "scopeSpans": []} for name in services
        ]
    }


_REPORT = {"agent_version": "1", "signals": []}


def _whole(directory: Path) -> Path:
    phases = [{"name": "baseline", "step": -1, "scenarios": [], "begin_unix_nano": _T0 + 10 * _S, "end_unix_nano": _T0 + 20 * _S}]
    with RecordingWriter(directory, {"scenario": "baseline", "phases": phases}) as writer:
        recorder = Recorder(writer)
        recorder.records([("", _REPORT, json.dumps(_REPORT).encode(), 1)], _T0)
        for second, service in ((1, "app"), (11, "app"), (12, "other")):
            event = {"signal": "dns_latency_ms", "service": service, "value": second}
            recorder.records([("probe-event", event, json.dumps(event).encode(), 1)], _T0 + second * _S)
        recorder.time(_T0 + 13 * _S)
        recorder.spans(_spans("app", "other"), _T0 + 14 * _S)
        recorder.spans(_spans("other"), _T0 + 15 * _S)
        writer.file("slo-event", "output").write(b'{"event_id": "e"}\n', 1)
        writer.file("load-result", "load").write(b'{"request_id": "r"}\n', 1)
    return directory


def test_one_service_since_the_baseline(tmp_path: Path) -> None:
    """Its events, spans and the agent's reports stay, in order and at their times; others, what came long before, slo-events go."""
    compact_recording(_whole(tmp_path / "whole"), tmp_path / "small", "app")
    small = Recording(tmp_path / "small")
    found = [((at_ns - _T0) // _S, json.loads(line)) for at_ns, line in small.input()]
    assert [(second, value.get("value")) for second, value in found] == [(0, None), (11, 11), (13, None), (14, None)]
    assert [value for _, value in found if "value" not in value] == [_REPORT, {"stream_unix_nano": _T0 + 13 * _S}, _spans("app")]
    assert small.manifest["scenario"] == "baseline" and small.has("load-result") and not small.has("slo-event")
    assert all(verdict["valid"] for verdict in small.verdicts())


def test_same_bytes_each_time(tmp_path: Path) -> None:
    """Cutting down the same recording twice gives the same files."""
    whole = _whole(tmp_path / "whole")
    for name in ("a", "b"):
        compact_recording(whole, tmp_path / name, "app")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes() for path in (tmp_path / "a").iterdir())


def test_not_a_recording(tmp_path: Path) -> None:
    """What is no recording is refused, and nothing is made."""
    with pytest.raises(InputError, match="no recording"):
        compact_recording(tmp_path, tmp_path / "small", "app")
    assert not (tmp_path / "small").exists()
