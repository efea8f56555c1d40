"""The attributor's run: settings by name, incidents at once, an account, and labels for the evaluation only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import MS, T0, lines, objects, raw_sample, slo_event
from runs import incidents, joined, without_labels

from libslo.attribute import AttributeSettings, attribute, incident_settings
from libslo.attribution import UNKNOWN
from libslo.errors import InputError
from libslo.signals import Objective
from libslo.slo import format_timestamp


def run(tmp_path: Path, data: bytes, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    (tmp_path / "in.jsonl").write_bytes(data)
    notes: list[str] = []
    attribute(
        AttributeSettings(source=str(tmp_path / "in.jsonl"), out=str(tmp_path / "out.jsonl"), **options), notes.append, lambda _: None
    )
    return objects((tmp_path / "out.jsonl").read_bytes()), notes


def test_it_writes_what_the_engine_raises(tmp_path: Path) -> None:
    """The lines are the engine's incidents; the account names each and counts the lines."""
    out, notes = run(tmp_path, joined("mixed", 42))
    assert lines(out) == lines(each.value for each in incidents("mixed", 42))
    assert sum("network_dns" in text for text in notes) >= 1 and notes[5].endswith("5 incidents")


def test_summary_and_confusion(tmp_path: Path) -> None:
    """For labelled input: accuracy with n and interval as JSON, the confusion matrix as CSV; parents are created."""
    summary, confusion = tmp_path / "a" / "s.json", tmp_path / "b" / "c.csv"
    run(tmp_path, joined("mixed", 42), summary_out=str(summary), confusion_out=str(confusion))
    value = orjson.loads(summary.read_bytes())
    assert (value["accuracy"]["right"], value["accuracy"]["n"], value["false_accusations"]["n"], value["synthetic"]) == (5, 5, 0, 5)
    assert value["baselines"]["largest_z"]["accuracy"]["n"] == 5
    rows = confusion.read_text().splitlines()
    assert rows[0] == "actual,predicted,count" and rows[1:] == [f"{d},{d},1" for d in sorted(row.split(",")[0] for row in rows[1:])]
    assert len(rows) == 6


def test_unlabelled_input_has_no_accuracy(tmp_path: Path) -> None:
    """Without labels the summary says so, and a confusion matrix is refused with the cure, after the incidents were written."""
    data = without_labels(joined("mixed", 42), lambda _: None)
    out, _ = run(tmp_path, data, summary_out=str(tmp_path / "s.json"))
    assert orjson.loads((tmp_path / "s.json").read_bytes()) == {"incidents": 5, "labelled": False}
    with pytest.raises(InputError, match="no fault labels"):
        run(tmp_path, data, confusion_out=str(tmp_path / "c.csv"))
    assert objects((tmp_path / "out.jsonl").read_bytes()) == out


def test_strangers_are_left_out_or_copied(tmp_path: Path) -> None:
    """What the attributor does not consume is counted, and copied where asked for."""
    data = lines([raw_sample(), {"x": 1}, slo_event()])
    assert run(tmp_path, data)[0] == []
    out, notes = run(tmp_path, data, pass_through=True)
    assert out == [raw_sample(), {"x": 1}]
    assert notes[-1] == "3 lines in, 0 bad, 2 not for us; 0 incidents"


def test_a_bad_line_ends_the_run_after_what_came_before(tmp_path: Path) -> None:
    """The good lines before the bad one are answered."""
    data = joined("dns_latency", 1)
    with pytest.raises(InputError) as caught:
        run(tmp_path, data + b"{\n")
    assert caught.value.line == data.count(b"\n") + 1
    assert [o["predicted_fault_domain"] for o in objects((tmp_path / "out.jsonl").read_bytes())] == ["network_dns"]


def test_trouble_that_a_bad_line_cuts_short_is_answered(tmp_path: Path) -> None:
    """An episode that was still settling when the bad line came is decided, as at the end of the input."""
    times = [(T0 + i * 50 * MS, 1500 if i >= 200 else 300) for i in range(224)]
    data = lines(slo_event(timestamp=format_timestamp(ts), sli_value=value) for ts, value in times)
    with pytest.raises(InputError):
        run(tmp_path, data + b"{\n" + data)
    assert [o["predicted_fault_domain"] for o in objects((tmp_path / "out.jsonl").read_bytes())] == ["unknown"]


def test_settings_by_name() -> None:
    """Objectives come from the vocabulary and from --slo; policy, mode and model by name; errors say what there is."""
    settings = incident_settings(
        AttributeSettings(objectives=("ttft_ms=1200@0.99", "retrieval_latency_ms=500@0.9"), lateness_ms=250, settle_ms=1)
    )
    assert settings.objectives["ttft_ms"] == Objective(1200, 0.99)
    assert set(settings.objectives) == {"ttft_ms", "error_rate", "retrieval_latency_ms"}
    assert (settings.lateness_ns, settings.settle_ns, settings.policy.name) == (250_000_000, 1_000_000, "lab")
    assert incident_settings(AttributeSettings(mode="rule")).attribute([]).domain == UNKNOWN
    for wrong in ({"burn_policy": "x"}, {"objectives": ("x",)}, {"model": "/nonexistent"}):
        with pytest.raises(InputError):
            incident_settings(AttributeSettings(**wrong))


def test_a_summary_that_cannot_be_written_is_usage(tmp_path: Path) -> None:
    """A directory in place of the file is said with its name."""
    with pytest.raises(InputError) as caught:
        run(tmp_path, b"", summary_out=str(tmp_path))
    assert caught.value.source == str(tmp_path)
