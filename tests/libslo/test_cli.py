"""The shared runner: every way a tool can end has its exit code and its sentence."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest

from libslo.cli import FiniteFloat, common_options, make_main, note, report_bad_line, seed_option
from libslo.errors import CannotError, InputError


def tool(body: Callable[[], Any]) -> Callable[[list[str]], Any]:
    @click.command()
    @click.option("--ratio", type=FiniteFloat(0, 1))
    @seed_option
    @common_options
    def command(ratio: float | None, seed: int) -> Any:
        return body()

    return make_main(command, "probe")


def run(body: Callable[[], Any], *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        tool(body)(list(arguments))
    return int(ended.value.code or 0)


def failing(error: BaseException) -> Callable[[], Any]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (InputError("a fact", source="F", line=3, hint="a cure"), 2, "probe: F:3: a fact\n  try: a cure\n"),
        (InputError("a fact"), 2, "probe: a fact\n"),
        (CannotError("no BTF", source="/sys", hint="a newer kernel"), 3, "probe: /sys: no BTF\n  try: a newer kernel\n"),
        (click.UsageError("wrong pair."), 2, "probe: wrong pair\n  try: probe --help\n"),
        (KeyboardInterrupt(), 130, "probe: interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "probe: stdout: no space left on device\n"),
        (ZeroDivisionError("x"), 70, "probe: internal error: ZeroDivisionError: x\n  try: probe -v … prints where; please report it\n"),
        (BrokenPipeError(), 0, ""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, ""),
    ],
)
def test_every_error_has_its_code_and_its_sentence(error: BaseException, code: int, stderr: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The exit code and the exact lines on stderr, without a traceback."""
    assert run(failing(error)) == code
    assert capfd.readouterr() == ("", stderr)


def test_v_prints_where(capfd: pytest.CaptureFixture[str]) -> None:
    """Under -v an error comes with its traceback."""
    assert run(failing(ZeroDivisionError("x")), "-v") == 70
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (3, 3), ("text", 0)])
def test_a_verdict_is_the_return_value(result: Any, code: int) -> None:
    """A command answers by returning a code; anything else is done."""
    assert run(lambda: result) == code


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1.5", "-0.1", "x"])
def test_numbers_are_finite_and_within_bounds(value: str, capfd: pytest.CaptureFixture[str]) -> None:
    """NaN and Infinity are usage errors like any other number out of bounds."""
    assert run(lambda: None, "--ratio", value) == 2
    assert "--ratio" in capfd.readouterr().err


def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    """Both end with 0 and write to stdout."""
    assert run(failing(ZeroDivisionError()), "--version") == 0
    assert run(failing(ZeroDivisionError()), "-h") == 0
    out, err = capfd.readouterr()
    assert out.startswith("probe 0.") and "--seed" in out and err == ""


def test_notes_follow_the_verbosity(capfd: pytest.CaptureFixture[str]) -> None:
    """-q silences notes but not what was left out; -v adds the details."""

    def body() -> None:
        note("plain")
        note("detail", level=1)
        report_bad_line(InputError("broken", source="F", line=2))

    bad = "probe: F:2: broken (left out)\n"
    for arguments, expected in (((), "probe: plain\n" + bad), (("-q",), bad), (("-v",), "probe: plain\nprobe: detail\n" + bad)):
        assert run(body, *arguments) == 0
        assert capfd.readouterr().err == expected


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_reader_that_has_gone_changes_no_answer(number: int, code: int) -> None:
    """What is said to a person, or still to be written, to a pipe that nobody reads: the code is the command's."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    script = f"""
import click
from libslo.cli import alarm_bell, common_options, make_main, note, note_block, report_bad_line
from libslo.errors import InputError

@click.command()
@common_options
def command():
    note("a note")
    note_block(["a block"], list)
    report_bad_line(InputError("broken"))
    alarm_bell()("an alarm")
    print("an answer")
    return {code}

make_main(command, "probe")([])
"""
    streams = {1: {"stdout": write_end, "stderr": subprocess.PIPE}, 2: {"stdout": subprocess.PIPE, "stderr": write_end}}[number]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", script], check=False, env=buffered, **streams)
    os.close(write_end)
    assert done.returncode == code
    assert (done.stdout, done.stderr and b"Error" in done.stderr) == ((None, False) if number == 1 else (b"an answer\n", None))


def test_sigpipe_keeps_python_s_way() -> None:
    """Programs with sockets must not die of SIGPIPE."""
    assert run(lambda: None) == 0
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
