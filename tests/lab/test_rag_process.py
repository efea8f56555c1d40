"""The RAG service as a process of its own, outside any lab: it just works, drains, and says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from libslo.lab.model import completion_tokens
from libslo.lab.rag_service import API_KEY_VARIABLE
from libslo.lab.topology import importable

_COMMAND = [sys.executable, "-m", "libslo.lab.rag_service"]


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
        return number


@contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[str]]:
    """The service, ready."""
    environment = {**os.environ, **importable(), API_KEY_VARIABLE: "s3cret"}
    process = subprocess.Popen(
        [*_COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(port: int, **more: object) -> Iterator[dict[str, Any]]:
    """Objects of a streamed answer, as they come."""
    url = f"http://127.0.0.1:{port}/chat"
    with requests.post(url, json={"prompt": "why slow", **more}, stream=True, timeout=10) as response:
        assert response.status_code == 200
        yield from map(json.loads, response.iter_lines(chunk_size=1))


def test_alone_it_just_works_and_drains(port: int) -> None:
    """No certificate, no other service. Told to stop in the middle of an answer, it finishes that, takes no other, and ends with 0."""
    with started("--backend", "stub", "--port", str(port), "--itl-ms", "60") as process:
        assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=5).text == "ok\n"
        answer = ask(port, max_tokens=50)
        first = next(answer)
        process.send_signal(signal.SIGTERM)
        rest = list(answer)
        assert [first["token"], *(each["token"] for each in rest[:-1])] == completion_tokens("why slow", 50)
        assert rest[-1]["done"]
        said = process.communicate(timeout=10)
        assert process.returncode == 0
        assert said == ("", f"listening on http://127.0.0.1:{port}\n")
        with pytest.raises(requests.ConnectionError, match="refused"):
            next(ask(port))


def test_what_takes_longer_than_the_drain_is_cut(port: int) -> None:
    """An answer that would go on for a minute does not keep the service: after the drain it is cut off, and the exit is still orderly."""
    with started("--backend", "stub", "--port", str(port), "--itl-ms", "1000", "--drain", "0.3") as process:
        answer = ask(port, max_tokens=60)
        next(answer)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
        answer.close()


def test_port_in_use() -> None:
    """Exit 3, with the place and what to do, and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*_COMMAND, "--port", str(port)], capture_output=True, text=True, check=False,
                              env={**os.environ, **importable()}, timeout=20)  # fmt: skip
    assert done.returncode == 3
    assert done.stdout == ""
    fact, cure = done.stderr.splitlines()
    assert fact.startswith(f"rag_service: 127.0.0.1:{port}: cannot listen: ")
    assert cure.startswith("  try: name another --port")


@pytest.mark.parametrize("options", [["--provider", "nonsense"], ["--timeout", "nan"], ["--port", "x"], ["--backend", "gpt"]])
def test_bad_options(options: list[str]) -> None:
    """Exit 2, with the option that is wrong, and no traceback."""
    done = subprocess.run([*_COMMAND, *options], capture_output=True, text=True, check=False,
                          env={**os.environ, **importable()}, timeout=20)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert options[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_help() -> None:
    """It says how to ask, where the key comes from, and gives commands that can be pasted."""
    done = subprocess.run([*_COMMAND, "--help"], capture_output=True, text=True, check=True, env={**os.environ, **importable()})
    for word in ("POST /chat", API_KEY_VARIABLE, "--backend stub", "rag_medium", "/metrics"):
        assert word in done.stdout, word
