"""The matrix without its guests: what is skipped, what fails, what is written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matrix
import pytest
from test_compatibility import RUN, refused, row

from libslo.errors import CannotError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to write to instead of the checkout."""
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "KEPT", tmp_path / "testdata" / "kept.jsonl")
    monkeypatch.setattr(matrix, "PAGE", tmp_path / "docs" / "page.md")
    monkeypatch.delenv("SLO_REQUIRE_MATRIX", raising=False)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, answer: Any, *words: str) -> int:
    """main() with these words, every machine answering the same."""

    def tried(version: str, options: argparse.Namespace, artifacts: Path) -> Any:
        return answer(version)

    monkeypatch.setattr(matrix, "try_machine", tried)
    monkeypatch.setattr(sys, "argv", ["matrix.py", *words])
    return matrix.main()


def test_what_is_skipped_is_told_and_fails_only_when_required(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without network or qemu the run ends well, says why, and the page keeps a line of it; SLO_REQUIRE_MATRIX=1 wants more."""

    def answer(version: str) -> Any:
        return {"version": version, "skipped": "no network"}, []

    assert run(monkeypatch, answer, "--kernels", "6.1,6.12") == 0
    assert "kernel-matrix: skipped 6.1: no network\nkernel-matrix: skipped 6.12: no network\n" in capsys.readouterr().err
    assert "### Linux 6.12\n\nNot tried: no network\n" in matrix.PAGE.read_text()
    monkeypatch.setenv("SLO_REQUIRE_MATRIX", "1")
    assert run(monkeypatch, answer, "--kernels", "6.1") == 3


def test_a_quick_run_compares_and_keeps_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured and is not any more is exit status 1 and a line; the kept results and the page stay as they are."""
    matrix.write(matrix.KEPT, RUN, [row()])
    kept = matrix.KEPT.read_text()
    machine = {"version": "6.1", "kernel": "6.1.0-2-amd64"}
    assert run(monkeypatch, lambda version: (machine, [row()]), "--quick", "--kernels", "6.1") == 0
    assert run(monkeypatch, lambda version: (machine, [refused(errno=1, reason="no")]), "--quick", "--kernels", "6.1") == 1
    assert "was measured, is not: 6.1 none all dns_latency_ms cgroup_skb: refused" in capsys.readouterr().err
    assert matrix.KEPT.read_text() == kept and not matrix.PAGE.exists()
    assert (home / "artifacts" / "compatibility.md").is_file()


def test_the_kept_results_are_rendered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--render writes the page of the results that are kept, and tries nothing."""
    matrix.write(matrix.KEPT, RUN, [row()])
    matrix.PAGE.parent.mkdir()
    assert run(monkeypatch, None, "--render") == 0
    assert "cgroup_skb 23/23" in matrix.PAGE.read_text()


def test_a_guest_that_cannot_be_had_is_skipped_with_its_cure(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stops a guest is the reason in the table; what the run itself could not do is never taken for a result."""

    def nothing(version: str) -> Any:
        raise CannotError("no index of bookworm", source="apt-get", hint="a network")

    monkeypatch.setattr(matrix, "guest_kernel", nothing)
    monkeypatch.setattr(matrix.guest, "require", lambda: None)
    options = argparse.Namespace(sets="all", signals="", lockdown="none")
    assert matrix.try_machine("6.1", options, home) == ({"version": "6.1", "skipped": "apt-get: no index of bookworm (try: a network)"}, [])


def test_a_run_that_goes_wrong_is_a_failure(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A runner or a guest that ends badly is no skipped kernel: exit status 1, and the place of its log."""
    monkeypatch.setattr(matrix, "host_obstacle", lambda: "")
    monkeypatch.setattr(matrix, "RUNNER", home / "no-such-runner.py")
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--kernels", "host"])
    assert matrix.main() == 1
    assert "kernel-matrix: failed host: the run ended with status 2; see " in capsys.readouterr().err
    assert "### This machine" in matrix.PAGE.read_text() and "Not tried: the run ended with status 2" in matrix.PAGE.read_text()
