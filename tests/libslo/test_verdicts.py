"""Verdicts: every line is judged, with its file, its number and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import TESTDATA, lines, probe, raw_sample, raw_span, slo_event, span_request

from libslo.contracts import CONTRACTS
from libslo.errors import InputError
from libslo.verdicts import data_verdicts, schema_verdicts


def judge(tmp_path: Path, data: bytes, only: str | None = None) -> list[tuple[int | None, str, bool, str]]:
    path = tmp_path / "f.jsonl"
    path.write_bytes(data)
    verdicts = list(data_verdicts([str(path)], only))
    assert {verdict.file for verdict in verdicts} <= {str(path)}
    return [(verdict.line, verdict.contract, verdict.valid, verdict.reason) for verdict in verdicts]


def test_every_line_gets_a_verdict_with_its_number(tmp_path: Path) -> None:
    """Good lines, broken ones and strangers, each with the number of its line."""
    data = lines([slo_event(), probe(value="x")]) + b"\n{\n" + lines([{"a": 1}, span_request(raw_span()), raw_sample()])
    found = judge(tmp_path, data)
    assert sorted((line or 0, valid) for line, _, valid, _ in found) == [
        (1, True),
        (2, False),
        (4, False),
        (5, False),
        (6, True),
        (7, True),
    ]
    reasons = {line: reason for line, _, _, reason in found}
    assert "value: 'x' is not of type number" in reasons[2] and "not JSON" in reasons[4] and "no known contract" in reasons[5]


def test_the_contract_can_be_demanded(tmp_path: Path) -> None:
    """Under --contract a line of another contract is invalid."""
    assert [valid for _, _, valid, _ in judge(tmp_path, lines([slo_event()]), "slo-event")] == [True]
    assert [valid for _, _, valid, _ in judge(tmp_path, lines([probe()]), "slo-event")] == [False]
    with pytest.raises(InputError) as caught:
        list(data_verdicts(["-"], "slo-events"))
    assert all(name in str(caught.value.hint) for name in CONTRACTS)


def test_spans_are_checked_too(tmp_path: Path) -> None:
    """An OTLP line whose spans cannot be read is invalid."""
    ((line, _, valid, reason),) = judge(tmp_path, lines([span_request({"name": "x"})]))
    assert (line, valid) == (1, False) and "startTimeUnixNano" in reason


def test_an_empty_file_was_not_checked(tmp_path: Path) -> None:
    """Nothing to check is no success."""
    assert judge(tmp_path, b"") == [(None, "", False, "empty: nothing was checked")]


def test_json_form_leaves_empty_fields_out(tmp_path: Path) -> None:
    """A verdict on the wire has file, line, contract, valid, and a reason where there is one."""
    (tmp_path / "f.jsonl").write_bytes(lines([slo_event()]))
    (verdict,) = data_verdicts([str(tmp_path / "f.jsonl")], None)
    assert verdict.as_json() == {"file": str(tmp_path / "f.jsonl"), "line": 1, "contract": "slo-event", "valid": True}


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_examples_get_their_verdicts(name: str) -> None:
    """All examples under testdata/contracts are judged as their directory says."""
    for kind in ("good", "bad"):
        files = sorted(map(str, (TESTDATA / "contracts" / kind / name).glob("*.jsonl")))
        verdicts = list(data_verdicts(files, None))
        assert len(verdicts) == len(files)
        assert {verdict.valid for verdict in verdicts} == {kind == "good"}


def test_schemas_are_sound() -> None:
    """Every schema, the configuration's too, is a JSON Schema that allows no further property."""
    verdicts = list(schema_verdicts())
    assert {verdict.contract for verdict in verdicts} == {*CONTRACTS, "toolkit"}
    assert all(verdict.valid for verdict in verdicts), verdicts
