"""collector: samples and spans to slo-events, signals joined with spans, by file, pipe and OTLP/HTTP."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
import requests
from builders import MS, T0, TESTDATA, S, lines, objects, probe, raw_sample, raw_span, run_tool, slo_event, span_request, tool_command

from libslo.spans import decode_spans


@contextmanager
def listening(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    process = subprocess.Popen(
        [*tool_command("collector"), "--otlp-listen", "127.0.0.1:0", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr
        found = re.search(rb"listening for OTLP spans on port (\d+)", process.stderr.readline())
        assert found
        yield process, f"http://127.0.0.1:{int(found[1])}/v1/traces"
    finally:
        process.kill()
        process.wait()


def post(url: str, *spans: dict[str, object]) -> None:
    answer = requests.post(url, data=orjson.dumps(span_request(*spans)), headers={"Content-Type": "application/json"}, timeout=10)
    assert answer.status_code == 200


def test_samples_become_events() -> None:
    """One raw-sample gives four slo-events, with status by threshold and the fault label among the labels."""
    done = run_tool("collector", data=lines([raw_sample(ttft_ms=1200, fault_label="dns_latency")]))
    events = {o["sli_name"]: o for o in objects(done.stdout)}
    assert done.returncode == 0
    assert {name: (o["sli_value"], o["unit"], o["status"]) for name, o in events.items()} == {
        "ttft_ms": (1200, "ms", "breach"),
        "request_latency_ms": (650.5, "ms", "ok"),
        "token_throughput_tps": (60, "tokens/s", "ok"),
        "error_rate": (0, "ratio", "ok"),
    }
    assert events["ttft_ms"]["event_id"] == "req-1/ttft_ms" and events["ttft_ms"]["labels"] == {"fault_label": "dns_latency"}
    assert done.stderr.decode() == "collector: 1 lines in, 0 bad, 0 not for us and left out; 4 slo-events\n"


def test_signals_and_spans_are_joined_and_the_account_says_how() -> None:
    """The signal gets ids and confidence, the span its attributes, stderr the links by tier."""
    data = lines([probe(T0 + 500 * MS, value=450), span_request(raw_span(T0, T0 + 1180 * MS, name="chat.retrieval", kind=1)), slo_event()])
    done = run_tool("collector", data=data)
    event = next(o for o in objects(done.stdout) if "signal" in o)
    assert (event["span_id"], event["confidence"]) == ("b7ad6b7169203331", 0.9)
    (span,) = decode_spans(next(o for o in objects(done.stdout) if "resourceSpans" in o))
    assert span.attributes["llm.ebpf.retrieval.kernel_attributed_ms"] == 450
    assert "1 signals, 1 spans (1 enriched); links by tier: pod_pid_100ms 1" in done.stderr.decode()
    assert slo_event() in objects(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [(["--emit", "spans"], {"resourceSpans"}), (["--emit", "probe-event, slo-event"], {"signal", "sli_name"}), (["--emit", ""], set())],
)
def test_emit(arguments: list[str], keys: set[str]) -> None:
    """--emit writes what is named."""
    done = run_tool("collector", *arguments, data=lines([raw_sample(), probe(T0), span_request(raw_span())]))
    assert {key for o in objects(done.stdout) for key in ("signal", "sli_name", "resourceSpans") if key in o} == keys


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--emit", "slo-event,metrics"], "metrics"),
        (["--no-input"], "--no-input"),
        (["--window-ms", "0"], "--window-ms"),
        (["--window-ms", "nan"], "--window-ms"),
        (["--lateness-ms", "inf"], "--lateness-ms"),
        (["--lateness-ms", "-1"], "--lateness-ms"),
        (["--otlp-listen", "here"], "HOST:PORT"),
        (["--otlp-endpoint", "x"], "HTTP URL"),
        (["--on-bad", "ignore"], "--on-bad"),
    ],
)
def test_bad_options_are_usage(arguments: list[str], fact: str) -> None:
    """Exit 2 and the option or value in the first line."""
    done = run_tool("collector", *arguments)
    assert done.returncode == 2 and fact in done.stderr.decode().splitlines()[0] and done.stdout == b""


def test_window_bounds_the_trace_tier() -> None:
    """A signal with a trace id a second away is joined at the default window, not at 100 ms."""
    data = lines([probe(T0 + 2 * S, pid=0, trace_id="0af7651916cd43dd8448eb211c80319c"), span_request(raw_span())])
    for window, linked in (("2000", True), ("100", False)):
        done = run_tool("collector", "--window-ms", window, "--emit", "probe-event", data=data)
        assert ("span_id" in objects(done.stdout)[0]) is linked


def test_no_pass_through_leaves_strangers_out_and_counts_them() -> None:
    """Nothing is dropped in silence."""
    done = run_tool("collector", "--no-pass-through", data=lines([slo_event(), {"x": 1}]))
    assert done.stdout == b"" and "2 not for us and left out" in done.stderr.decode()


def test_spans_from_a_file_beside_the_input(tmp_path: Path) -> None:
    """--spans FILE is read in step with the input; an unreadable one is named."""
    (tmp_path / "s.jsonl").write_bytes(lines([span_request(raw_span())]))
    done = run_tool("collector", "--spans", str(tmp_path / "s.jsonl"), "--emit", "probe-event", data=lines([probe(T0 + S)]))
    assert objects(done.stdout)[0]["confidence"] == 0.9
    missing = run_tool("collector", "--spans", str(tmp_path / "none"), data=lines([probe(T0)]))
    assert missing.returncode == 2 and f"{tmp_path / 'none'}: no such file" in missing.stderr.decode()
    alone = run_tool("collector", "--no-input", "--spans", str(tmp_path / "s.jsonl"))
    assert alone.returncode == 0 and len(objects(alone.stdout)) == 3


def test_a_late_record_is_reported() -> None:
    """A record past its lateness is joined with what was left and said in the account."""
    done = run_tool("collector", data=lines([probe(T0 + 100 * S), probe(T0)]))
    assert "1 records came later than --lateness-ms allows" in done.stderr.decode()
    assert len(objects(done.stdout)) == 2


def test_live_spans_meet_signals_from_stdin() -> None:
    """Spans by OTLP/HTTP and signals by stdin are joined; the end of the input ends the run after the lateness."""
    with listening() as (process, url):
        now = time.time_ns()
        assert process.stdin
        process.stdin.write(lines([probe(now - 300 * MS, value=100.0)]))
        process.stdin.flush()
        post(url, raw_span(now - 500 * MS, now, name="chat.retrieval", kind=1))
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        event = next(o for o in objects(out) if "signal" in o)
        assert event["span_id"] == "b7ad6b7169203331"
        assert {"retrieval_latency_ms"} == {o["sli_name"] for o in objects(out) if "sli_name" in o}
        assert b"1 signals, 1 spans (1 enriched)" in err


def test_live_results_come_without_waiting_for_the_end() -> None:
    """An slo-event of a span is written as soon as the span is there."""
    with listening("--no-input") as (process, url):
        post(url, raw_span(time.time_ns() - S, time.time_ns()))
        assert process.stdout and "sli_name" in orjson.loads(process.stdout.readline())


def test_load_results_become_slo_events(tmp_path: Path) -> None:
    """--load-service, or its place in toolkit.yaml, names whose requests they are."""
    result = (TESTDATA / "contracts/good/load-result/full.jsonl").read_bytes()
    (tmp_path / "t.yaml").write_text("slo: {load_service: chat}\nidentity: {cluster: lab}\n")
    named = run_tool("collector", "--load-service", "chat", "--cluster", "lab", data=result)
    assert named.returncode == 0 and {each["service"] for each in objects(named.stdout)} == {"chat"}
    assert run_tool("collector", "--config", str(tmp_path / "t.yaml"), data=result).stdout == named.stdout
    assert run_tool("collector", data=result).stdout == result


def test_a_live_collector_that_is_quiet_lets_time_go_on() -> None:
    """When nothing comes any more it says how far time has come, once a second: who reads it has no clock."""
    with listening("--no-input") as (process, url):
        now = time.time_ns()
        post(url, raw_span(now - S, now))
        assert process.stdout
        times: list[int] = []
        while len(times) < 2:
            line = orjson.loads(process.stdout.readline())
            times += [line["stream_unix_nano"]] if "stream_unix_nano" in line else []
        assert now + S <= times[0] and times[0] + S <= times[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_live_collector_flushes_on_a_signal(number: signal.Signals) -> None:
    """What was received is written, exit 0."""
    with listening("--no-input") as (process, url):
        post(url, raw_span(time.time_ns() - S, time.time_ns()))
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert [key for o in objects(out) for key in o if key in ("sli_name", "resourceSpans")] == ["sli_name", "sli_name", "resourceSpans"]


def test_a_bad_request_does_not_end_a_live_collector() -> None:
    """The sender is told, the collector goes on."""
    with listening("--no-input") as (process, url):
        assert requests.post(url, data=b"{", headers={"Content-Type": "application/json"}, timeout=10).status_code == 400
        post(url, raw_span(time.time_ns() - S, time.time_ns()))
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and sum("stream_unix_nano" not in each for each in objects(out)) == 3


def test_a_bad_line_ends_a_live_collector_with_its_place() -> None:
    """Broken JSON on stdin is exit 2 with the line, live as well; what came before it is written."""
    with listening() as (process, _):
        out, err = process.communicate(lines([raw_sample()]) + b"{\n", timeout=30)
        assert process.returncode == 2 and b"collector: stdin:2: not JSON" in err
        assert len(objects(out)) == 4


def test_port_in_use() -> None:
    """Exit 3 with the address and the cure."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_tool("collector", "--otlp-listen", address, "--no-input")
    assert done.returncode == 3
    assert done.stderr.decode().splitlines()[0] == f"collector: {address}: cannot listen: address already in use"
    assert "  try: use another port" in done.stderr.decode()


def test_delivery_is_accounted_for() -> None:
    """With an endpoint that is down the lines are still written, and what could not be delivered is said."""
    done = run_tool("collector", "--otlp-endpoint", "http://127.0.0.1:9", data=lines([raw_sample()]), timeout=120)
    assert done.returncode == 0 and len(objects(done.stdout)) == 4
    assert "otlp logs: 0 delivered, 0 rejected, 4 given up" in done.stderr.decode()


def test_the_end_of_the_input_ends_it_however_busy_the_receiver_is() -> None:
    """When the agent before it ends, the collector ends too, although spans keep coming without a pause."""
    stop = threading.Event()
    with listening("--lateness-ms", "200") as (process, url):

        def keep_posting() -> None:
            while not stop.is_set():
                try:
                    requests.post(url, json={"resourceSpans": []}, timeout=2)
                except requests.RequestException:
                    return

        posting = threading.Thread(target=keep_posting, daemon=True)
        posting.start()
        assert process.stdin
        process.stdin.close()
        try:
            assert process.wait(timeout=10) == 0
        finally:
            stop.set()
            posting.join()


def test_spans_held_back_by_their_exporter_are_enriched() -> None:
    """A span that comes two seconds after its signal was handed out gains the signal's attributes."""
    with listening() as (process, url):
        assert process.stdin and process.stdout
        now = time.time_ns()
        process.stdin.write(lines([probe(now, value=50)]))
        process.stdin.flush()
        handed_out = orjson.loads(process.stdout.readline())
        assert handed_out["signal"] == "dns_latency_ms" and "trace_id" not in handed_out
        post(url, raw_span(now - 100 * MS, now + 100 * MS))
        process.stdin.close()
        rest = process.stdout.read()
        assert b"llm.ebpf.dns.latency_ms" in rest
