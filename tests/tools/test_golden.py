"""Golden cases: testdata/golden/<tool>/<case>/ holds cmd, in.jsonl and out.jsonl; GOLDEN=1 rewrites out.jsonl, reviewed as a diff.

The first line of cmd is the command, run with in.jsonl on its standard input; a second line `exit N` is its exit code (0 when absent).
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from builders import TESTDATA, run_tool

CASES = sorted(path.parent for path in (TESTDATA / "golden").glob("*/*/cmd"))


def test_there_are_cases() -> None:
    """Collector, attributor, faultreplay, m5gate and schemavalidate have at least one."""
    assert {"collector", "attributor", "faultreplay", "m5gate", "schemavalidate"} <= {case.parent.name for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_golden(case: Path) -> None:
    """The command's output is the recorded one, to the byte."""
    command, *rest = (case / "cmd").read_text().splitlines()
    tool, *arguments = shlex.split(command)
    assert tool == case.parent.name
    done = run_tool(tool, *arguments, data=(case / "in.jsonl").read_bytes(), cwd=case)
    assert done.returncode == int(rest[0].removeprefix("exit ") if rest else 0), done.stderr
    if os.environ.get("GOLDEN"):
        (case / "out.jsonl").write_bytes(done.stdout)
    assert done.stdout == (case / "out.jsonl").read_bytes()
