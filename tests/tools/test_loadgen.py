"""loadgen: plans to the byte, runs against a real server, verdicts, and clear sentences for what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import lines, objects, run_tool, tool_command
from load_server import NDJSON, LoadServer, only, stream_ok, token

from libslo.contracts import contract
from libslo.load.plans import planned
from libslo.load.profiles import read_loads


def test_same_seed_same_bytes() -> None:
    """Two processes with one seed write the same plan, another seed another; 42 and 30 s are the defaults."""
    runs = [run_tool("loadgen", "--load", "rag_mixed_20rps", *more) for more in ([], ["--duration", "30", "--seed", "42"], ["--seed", "7"])]
    assert [run.returncode for run in runs] == [0, 0, 0] and runs[0].stderr == b""
    assert runs[0].stdout == runs[1].stdout != runs[2].stdout
    plan = planned(read_loads().load("rag_mixed_20rps"), np.random.default_rng(42), 30)
    assert runs[0].stdout == lines(request.as_record() for request in plan)


def test_options_change_the_plan() -> None:
    """Rate, arrivals, count and prefix; a load of a file of one's own."""
    done = run_tool("loadgen", "--load", "chat_short", "--rate", "100", "--arrival", "poisson", "--count", "50", "--prefix", "x")
    plan = objects(done.stdout)
    assert len(plan) == 50 and plan[0]["request_id"] == "x-000000" and plan[-1]["offset_ns"] == pytest.approx(0.5e9, rel=0.5)
    ramp = objects(run_tool("loadgen", "--load", "chat_short", "--rate", "10", "--rate-to", "30", "--duration", "10").stdout)
    assert len(ramp) == pytest.approx(200, abs=2)


def test_list_names_all_loads() -> None:
    """One line a load."""
    out = run_tool("loadgen", "--list").stdout.decode().splitlines()
    assert {"chat_short", "rag_medium", "context_long", "rag_mixed_20rps"} <= {each.split()[0] for each in out}


def test_a_trace_becomes_a_plan(tmp_path: Path) -> None:
    """From a file or from stdin, cut by --duration."""
    text = b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + b"".join(b"%d,10,5\n" % second for second in range(20))
    (tmp_path / "t.csv").write_bytes(text)
    from_file = run_tool("loadgen", "--trace", str(tmp_path / "t.csv"), "--duration", "5")
    from_stdin = run_tool("loadgen", "--trace", "-", "--duration", "5", data=text)
    assert len(objects(from_file.stdout)) == 5 and from_file.stdout == from_stdin.stdout
    other = objects(run_tool("loadgen", "--trace", "-", "--profile", "chat_short", data=text).stdout)
    assert {each["profile"] for each in other} == {"chat_short"} and objects(from_file.stdout)[0]["profile"] == "rag_medium"


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ([], "one of --load"),
        (["--load", "chat_short", "--trace", "x"], "one of --load"),
        (["--load", "nobody"], "no load 'nobody'"),
        (["--load", "chat_short", "--rate", "0"], "--rate"),
        (["--load", "chat_short", "--rate", "nan"], "--rate"),
        (["--load", "chat_short", "--arrival", "ramp"], "rate_to"),
        (["--load", "chat_short", "--duration", "0"], "--duration"),
        (["--load", "chat_short", "--slo", "ttft"], "--slo"),
        (["--load", "chat_short", "--slo", "speed=5"], "--slo"),
        (["--load", "chat_short", "--slo", "ttft=nan"], "--slo"),
        (["--trace", "x", "--rate", "5"], "go with --load"),
        (["--load", "chat_short", "--url", "rag.lab:8080"], "not an http or https URL"),
        (["--load", "chat_short", "--url", "http://a", "--protocol", "openai"], "--model"),
        (["--load", "chat_short", "--url", "http://a", "--protocol", "http", "--slo", "ttft=5"], "no tokens"),
        (["--load", "chat_short", "--url", "https://a", "--ca", "/no/such.pem"], "/no/such.pem"),
        (["--load", "chat_short", "--loads", "/no/such.yaml"], "/no/such.yaml"),
        (["--load", "chat_short", "--rate", "0.001", "--arrival", "poisson", "--url", "http://127.0.0.1:9"], "the plan holds no request"),
        (["--summarize", "/no/such.jsonl"], "/no/such.jsonl"),
        (["--load", "chat_short", "--slo", "ttft=5"], "--slo goes with --url"),
        (["--load", "chat_short", "--timeout", "5"], "--timeout goes with --url"),
        (["--summarize", "/no/such.jsonl", "--gaps"], "--gaps goes with --url"),
        (["--load", "chat_short", "--speed", "2"], "--speed goes with --trace"),
        (["--load", "chat_short", "--on-bad", "skip"], "--on-bad goes with --trace, --input or --summarize"),
    ],
)
def test_bad_options_are_usage(arguments: list[str], fact: str) -> None:
    """Exit 2, the fact in the first line, a cure in the second, nothing on stdout."""
    done = run_tool("loadgen", *arguments)
    first, cure = done.stderr.decode().splitlines()
    assert done.returncode == 2 and fact in first and cure.startswith("  try: ") and done.stdout == b""


def request(offset_ns: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "request_id": f"r-{offset_ns}",
        "profile": "p",
        "offset_ns": offset_ns,
        "prompt_tokens": 4,
        "max_tokens": 3,
        "prompt": "why",
        **more,
    }


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (lines([request(5), request(4)]), "stdin:2: offset_ns 4 is before that of the line above, 5"),
        (lines([request(), request(max_tokens=0)]), "stdin:2: not a valid load-request: max_tokens"),
        (lines([request()]) + b'{"offset_ns":\n', "stdin:2: not JSON"),
        (lines([request(), {"hello": 1}]), "stdin:2: not a load-request"),
        (b"", "the plan holds no request"),
    ],
)
def test_a_broken_plan_is_named_before_anything_is_sent(data: bytes, fact: str) -> None:
    """Exit 2 with the line; the server never heard of it."""
    with LoadServer(stream_ok) as server:
        done = run_tool("loadgen", "--input", "-", "--url", server.url, data=data)
        assert done.returncode == 2 and fact in done.stderr.decode() and done.stdout == b"" and not server.asked


def test_a_plan_is_driven(tmp_path: Path) -> None:
    """Plan through a pipe, results on stdout, the summary in a file, again from the stored results, the table on stderr."""
    plan = run_tool("loadgen", "--load", "rag_mixed_20rps", "--duration", "2", "--seed", "3").stdout
    out = tmp_path / "new" / "summary.json"
    limits = ("--slo", "ttft=800", "--slo", "e2e=3000", "--warmup", "0.5")
    with LoadServer(stream_ok) as server:
        done = run_tool("loadgen", "--input", "-", "--url", server.url, "--summary-out", str(out), *limits, data=plan)
        asked = {each.body["request_id"]: each.body for each in server.asked}
    assert done.returncode == 0, done.stderr
    results = objects(done.stdout)
    assert all(contract("load-result").is_valid(result) for result in results)
    planned_ids = [each["request_id"] for each in objects(plan)]
    assert sorted(result["request_id"] for result in results) == planned_ids == sorted(asked)
    for each in objects(plan):
        body = asked[each["request_id"]]
        assert (body["profile"], body["max_tokens"]) == (each["profile"], each["max_tokens"])
        assert len(body["prompt"].split()) == each["prompt_tokens"]
    summary = json.loads(out.read_text())
    counts = summary["requests"]
    assert summary["valid"] and counts["answered"] + counts["warmup_left_out"] == len(results) and counts["warmup_left_out"] > 0
    assert summary["goodput"]["good"] == counts["answered"] and summary["clocks"]["send"]["ttft_ms"]["p99.9"] is None
    assert b"TTFT from schedule" in done.stderr and b"keep ttft" in done.stderr
    (tmp_path / "results.jsonl").write_bytes(done.stdout)
    again = run_tool("loadgen", "--summarize", str(tmp_path / "results.jsonl"), "--summary-out", str(out), *limits[:4])
    stored = json.loads(out.read_text())
    assert again.returncode == 0 and stored == {key: value for key, value in summary.items() if key in stored} and len(stored) >= 12


def test_all_refused_is_the_machine_s_fault(tmp_path: Path) -> None:
    """Errors are results, but a run in which nothing was answered says so, exit 3; its results and summary are written."""
    out = tmp_path / "s.json"
    done = run_tool("loadgen", "--load", "chat_short", "--duration", "0.5", "--url", "http://127.0.0.1:9", "--summary-out", str(out))
    fact, cure = done.stderr.decode().splitlines()[-2:]
    assert done.returncode == 3 and fact.startswith("loadgen: http://127.0.0.1:9/chat: no request was answered: connect 5; the last: ")
    assert "service is up" in cure and len(objects(done.stdout)) == 5
    assert json.loads(out.read_text())["errors"] == {"connect": 5}


def test_a_load_that_was_not_what_was_asked_for_is_exit_1() -> None:
    """One request at a time of 50 ms at 100/s: achieved/offered is far below 0.99; with a lower demand it passes."""

    with LoadServer(stream_ok) as server:
        arguments = ("--load", "chat_short", "--rate", "200", "--duration", "1", "--max-in-flight", "1", "--url", server.url)
        done = run_tool("loadgen", *arguments)
        assert done.returncode == 1 and b"INVALID: achieved/offered" in done.stderr
        assert run_tool("loadgen", *arguments, "--min-achieved", "0").returncode == 0


def test_some_errors_are_results() -> None:
    """A server that cuts its answers short: exit 3 when all are cut; nobody's traceback."""
    with LoadServer(only(NDJSON, token("x"), b'{"ind')) as server:
        done = run_tool("loadgen", "--load", "chat_short", "--duration", "0.5", "--url", server.url)
    assert done.returncode == 3 and b"stream_error 5" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("where", ["out", "summary"])
def test_a_full_disk(where: str) -> None:
    """Exit 3 with the reason, soon, wherever it is."""
    option = ("--out", "/dev/full") if where == "out" else ("--summary-out", "/dev/full")
    with LoadServer(stream_ok) as server:
        began = time.monotonic()
        done = run_tool("loadgen", "--load", "chat_short", "--duration", "20" if where == "out" else "0.5", "--url", server.url, *option)
    assert done.returncode == 3 and b"/dev/full: cannot write: no space left on device" in done.stderr and time.monotonic() - began < 10


def test_a_reader_that_goes_ends_the_run() -> None:
    """`loadgen … | head -1` gives one result and stops sending, exit 0 and quiet."""
    with LoadServer(stream_ok) as server:
        script = '"$@" -q | head -1; echo "${PIPESTATUS[0]}"'
        command = ["bash", "-c", script, "bash", *tool_command("loadgen"), "--load", "chat_short", "--duration", "60", "--url", server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    first, code = done.stdout.splitlines()
    assert first.startswith("{") and (code, done.stderr) == ("0", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_answers_with_what_it_has(number: signal.Signals, tmp_path: Path) -> None:
    """What is under way is finished, results and summary are written, exit 0."""
    out = tmp_path / "s.json"
    with LoadServer(stream_ok) as server:
        command = [*tool_command("loadgen"), "--load", "chat_short", "--duration", "60", "--url", server.url, "--summary-out", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout
        first = process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(number)
        rest, err = process.communicate(timeout=10)
    assert process.returncode == 0 and b"Traceback" not in err
    summary = json.loads(out.read_text())
    assert summary["stopped"] and summary["requests"]["answered"] == len(objects(first + rest)) > 0


def test_stopped_before_anything_is_130() -> None:
    """Nothing was due yet, so there is no answer."""
    arguments = ["--load", "chat_short", "--arrival", "poisson", "--rate", "0.001", "--duration", "1000000", "--seed", "1"]
    process = subprocess.Popen([*tool_command("loadgen"), *arguments, "--url", "http://127.0.0.1:9"], stderr=subprocess.PIPE)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, b"loadgen: interrupted\n")


def test_the_key_is_never_printed() -> None:
    """Not in results, not in the summary, not under -v, not when the server repeats it."""
    with LoadServer(only(b"HTTP/1.1 401 X\r\ncontent-length: 17\r\n\r\nnot sk-sesame: no")) as server:
        arguments = ("--load", "chat_short", "--duration", "0.3", "--protocol", "openai", "--model", "m", "--url", server.url, "-v")
        done = run_tool("loadgen", *arguments, env={"OPENAI_API_KEY": "sk-sesame"})
        assert server.asked[0].headers["authorization"] == "Bearer sk-sesame"
    assert b"sesame" not in done.stdout + done.stderr and b"http_4xx" in done.stderr
    assert b"status 401: not ***: no" in done.stdout


def said_on_a_terminal(*arguments: str) -> bytes:
    """What it writes to stderr when that is a terminal."""
    ours, theirs = os.openpty()
    command = [*tool_command("loadgen"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "200"})
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # the other end of a terminal is gone
        pass
    finally:
        os.close(ours)
    assert process.wait(30) == 0
    return said


def test_progress_is_for_terminals() -> None:
    """How far the run is shows on a terminal, not in a file, and not under -q."""
    with LoadServer(stream_ok) as server:
        arguments = ("--load", "chat_short", "--duration", "1", "--url", server.url)
        assert b"under way" in said_on_a_terminal(*arguments)
        assert said_on_a_terminal(*arguments, "-q") == b""
        assert b"under way" not in run_tool("loadgen", *arguments).stderr
