"""The lab's servers as programs: what keeps one from beginning is said in two lines, without a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from libslo.lab.topology import importable


def ended(module: str, *options: str) -> tuple[int, Sequence[str]]:
    """Exit code and lines on stderr of a server that does not get to serve."""
    done = subprocess.run([sys.executable, "-m", f"libslo.lab.{module}", *options], capture_output=True, text=True, check=False,
                          env={**os.environ, **importable()}, timeout=20)  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("record", ["x", "x=", "x=10.77.0", "x=nowhere"])
def test_a_record_that_is_none(record: str) -> None:
    """NAME=ADDRESS, and nothing else."""
    assert ended("dns_server", "--record", "a.lab=1.2.3.4", "--record", record) == (
        2,
        [f"dns_server: --record: no A record: {record!r}", "  try: NAME=ADDRESS such as rag.lab=10.77.0.20"],
    )


@pytest.mark.parametrize("text", [None, "no PEM"])
def test_a_certificate_that_is_none(tmp_path: Path, text: str | None) -> None:
    """Missing or not PEM: bad input."""
    path = tmp_path / "certificate"
    if text is not None:
        path.write_text(text)
    code, (fact, cure) = ended("provider", "--certificate", str(path))
    assert code == 2
    assert fact.startswith(f"provider: {path}: no certificate: ")
    assert "PEM" in cure


def test_an_address_that_is_taken() -> None:
    """The name server needs both kinds of port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, (fact, cure) = ended("dns_server", "--port", str(port))
    assert code == 3
    assert fact.startswith(f"dns_server: 127.0.0.1:{port}: cannot listen: ")
    assert "--port" in cure
