"""schemavalidate: exit 1 is a verdict, and every verdict has a file, a line and a reason."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from builders import TESTDATA, lines, objects, probe, raw_sample, raw_span, run_tool, slo_event, span_request, tool_command

from libslo.contracts import CONTRACTS

DATA = lines([slo_event(), probe(value="x")]) + b"{\n" + lines([{"a": 1}, raw_sample(), span_request(raw_span())])


def test_bad_lines_are_listed_and_counted() -> None:
    """One verdict for each bad line on stdout, the counts on stderr, exit 1."""
    done = run_tool("schemavalidate", data=DATA)
    found = {o["line"]: o for o in objects(done.stdout)}
    assert done.returncode == 1 and sorted(found) == [2, 3, 4]
    assert not any(o["valid"] for o in found.values()) and "value: 'x'" in found[2]["reason"]
    assert done.stderr.decode() == "schemavalidate: 3 valid, 3 invalid\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("arguments", "data", "code"),
    [
        ([], DATA, 1),
        (["--all"], lines([slo_event()]) * 2000 + b"{\n", 1),  # the reader has gone long before the bad line
        (["--all"], lines([slo_event()]) * 2000, 0),
    ],
)
def test_a_reader_that_has_gone_changes_no_verdict(stream: str, arguments: list[str], data: bytes, code: int) -> None:
    """stdout or stderr is a pipe that nobody reads: the exit code is the verdict on the whole input."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write_end}
    done = subprocess.run([*tool_command("schemavalidate"), *arguments], input=data, check=False, **streams)
    os.close(write_end)
    assert done.returncode == code and b"rror" not in (done.stderr or b"")


def test_all_lists_the_good_too() -> None:
    """--all gives a verdict for every line, with its contract."""
    done = run_tool("schemavalidate", "--all", data=DATA)
    assert {o["line"]: o.get("contract") for o in objects(done.stdout) if o["valid"]} == {1: "slo-event", 5: "raw-sample", 6: "otlp-spans"}


def test_good_input_is_exit_0() -> None:
    """Nothing invalid: exit 0 and no line."""
    done = run_tool("schemavalidate", data=lines([slo_event(), raw_sample()]))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"schemavalidate: 2 valid, 0 invalid\n")


def test_empty_input_was_not_checked() -> None:
    """Too few to judge is never a success: exit 1 with the reason."""
    done = run_tool("schemavalidate")
    assert done.returncode == 1 and objects(done.stdout)[0]["reason"] == "empty: nothing was checked"


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_the_examples(kind: str) -> None:
    """All of testdata/contracts at once: good ones pass, each bad file has its verdict."""
    files = sorted(str(path) for path in (TESTDATA / "contracts" / kind).glob("*/*.jsonl"))
    done = run_tool("schemavalidate", *files)
    assert done.returncode == (1 if kind == "bad" else 0)
    assert [o["file"] for o in objects(done.stdout)] == (files if kind == "bad" else [])


def test_schemas() -> None:
    """--schemas checks the contracts themselves."""
    done = run_tool("schemavalidate", "--schemas", "--all")
    assert done.returncode == 0 and {o["contract"] for o in objects(done.stdout)} == {*CONTRACTS, "toolkit"}


def test_a_demanded_contract() -> None:
    """--contract makes a line of another contract invalid; an unknown name lists the known."""
    assert run_tool("schemavalidate", "--contract", "probe-event", data=lines([slo_event()])).returncode == 1
    assert run_tool("schemavalidate", "--contract", "slo-event", data=lines([slo_event()])).returncode == 0
    done = run_tool("schemavalidate", "--contract", "events")
    assert done.returncode == 2 and "raw-sample" in done.stderr.decode()


def test_a_missing_file_is_usage_not_a_verdict(tmp_path: Path) -> None:
    """What cannot be read is exit 2."""
    done = run_tool("schemavalidate", str(tmp_path / "none.jsonl"))
    assert done.returncode == 2 and "no such file" in done.stderr.decode()
