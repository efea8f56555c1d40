"""The driver against a real server: times on both clocks, phases of connections, and every way an answer can fail."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from load_server import NDJSON, SSE, Asked, Handler, LoadServer, Writer, line, one_at_a_time, only, say, stream_ok, token

from libslo.contracts import contract
from libslo.errors import InputError
from libslo.load.driver import Drive, drive_load
from libslo.load.plans import LoadRequest
from libslo.load.protocols import target_url
from libslo.load.results import ResultColumns
from libslo.load.summary import summarize
from libslo.load.target import Counts, Target


def plan(count: int, rate: float = 20) -> Iterator[LoadRequest]:
    return iter([LoadRequest(f"r-{k}", "p", round(k * 1e9 / rate), 5, 3, k) for k in range(count)])


def drive(url: str, requests: Iterator[LoadRequest], **more: Any) -> tuple[list[dict[str, Any]], Drive]:
    target = Target(target_url(url, more.get("protocol", "ndjson")), **{"timeout_s": 5.0, **more})
    results: list[dict[str, Any]] = []
    ended = drive_load(requests, target, results.append, lambda _: None)
    for each in results:
        assert contract("load-result").is_valid(each), each
    return results, ended


def one(handler: Handler, **more: Any) -> dict[str, Any]:
    with LoadServer(handler) as server:
        (result,), _ = drive(server.url, plan(1), **more)
    return result


def summary_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    columns = ResultColumns()
    for each in results:
        columns.add(each)
    return summarize(columns)


@pytest.mark.parametrize("max_in_flight", [0, 1], ids=["open loop", "one under way"])
def test_the_case_with_an_exact_answer(max_in_flight: int) -> None:
    """Eight requests at 10/s, a server that takes 500 ms for one at a time: request k ends 500 + 400k ms after it was due.

    The mean is 1900 ms and the most 3300 ms, within 2 %, also when the generator itself holds the requests back; only then the clock of
    sending shows 500 ms, which hides it, and the run is not valid.
    """
    with LoadServer(one_at_a_time(0.5)) as server:
        results, _ = drive(server.url, plan(8, rate=10), timeout_s=20.0, max_in_flight=max_in_flight)
    summary = summary_of(results)
    by_schedule, by_send = (summary["clocks"][clock]["e2e_ms"] for clock in ("schedule", "send"))
    assert summary["requests"]["answered"] == 8
    assert by_schedule["mean"] == pytest.approx(1900, rel=0.02)
    assert by_schedule["max"] == pytest.approx(3300, rel=0.02)
    assert by_send["mean"] == pytest.approx(500 if max_in_flight else 1900, rel=0.02)
    assert summary["valid"] == (not max_in_flight)
    assert summary["held_ms"]["n"] == (7 if max_in_flight else 0)


def test_a_stream_has_its_times_in_order() -> None:
    """Scheduled, sent, first byte, first token, last token, end; three tokens 10 ms apart, and the gaps when asked for."""
    with LoadServer(stream_ok) as server:
        results, ended = drive(server.url, plan(10), gaps=True)
        assert server.connections == 10
    names = ("scheduled_unix_ns", "sent_unix_ns", "first_byte_unix_ns", "first_token_unix_ns", "last_token_unix_ns", "end_unix_ns")
    for each in results:
        times = [each[name] for name in names]
        assert times == sorted(times)
        assert (each["status"], each["tokens"], each["tokens_from"]) == (200, 3, "chunks") and "error" not in each
        assert len(each["gaps_ms"]) == 2 and sum(each["gaps_ms"]) == pytest.approx(20, abs=15)
        assert each["connect_ms"] < 100 and "tls_ms" not in each and "dns_ms" not in each
    assert not ended.stopped and ended.cpu_s > 0
    assert abs(results[0]["end_unix_ns"] - time.time_ns()) < 5e9
    gaps = [after["scheduled_unix_ns"] - before["scheduled_unix_ns"] for before, after in pairwise(results)]
    assert set(gaps) == {50_000_000}


def test_first_token_is_the_first_that_is_not_empty() -> None:
    """A token event without content, 100 ms before one with, is not what TTFT counts to."""

    async def handler(_: Asked, writer: Writer) -> None:
        await say(writer, NDJSON, token(""))
        await asyncio.sleep(0.1)
        await say(writer, token("x", 1), line(done=True))

    result = one(handler)
    assert result["tokens"] == 1
    assert result["first_token_unix_ns"] - result["first_byte_unix_ns"] > 90e6


def test_sse_and_openai() -> None:
    """Both streams are read; OpenAI's usage is the number of tokens, and the key goes along but is in no result."""

    async def sse(asked: Asked, writer: Writer) -> None:
        assert asked.headers["accept"] == "text/event-stream"
        await say(writer, SSE, b'data: {"index":0,"token":"a"}\n\n', b'data: {"done":true}\n\n')

    assert one(sse, protocol="sse")["tokens"] == 1

    async def openai(asked: Asked, writer: Writer) -> None:
        assert asked.line.startswith("POST /v1/chat/completions ") and asked.headers["authorization"] == "Bearer sesame"
        chunk = b'data: {"choices":[{"delta":{"content":"a b c"},"finish_reason":null}]}\n\n'
        await say(writer, SSE, chunk, b'data: {"choices":[],"usage":{"completion_tokens":9}}\n\n', b"data: [DONE]\n\n")

    os.environ["OPENAI_API_KEY"] = "sesame"
    try:
        result = one(openai, protocol="openai", model="m")
    finally:
        del os.environ["OPENAI_API_KEY"]
    assert (result["tokens"], result["tokens_from"]) == (9, "usage") and "sesame" not in str(result)


def test_plain_http() -> None:
    """A GET of the URL as it is; no tokens; any 2xx is an answer."""

    async def handler(asked: Asked, writer: Writer) -> None:
        assert asked.line == "GET /some/where?x=1 HTTP/1.1" and asked.body is None
        await say(writer, b"HTTP/1.1 204 No Content\r\n\r\n")

    with LoadServer(handler) as server:
        (result,), _ = drive(f"{server.url}/some/where?x=1", plan(1), protocol="http")
    assert (result["status"], result["tokens"]) == (204, 0) and "error" not in result and "first_token_unix_ns" not in result


def status(code: int, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n%s\r\n{}" % (code, more)


async def broken_chunk(_: Asked, writer: Writer) -> None:
    """A token in a good chunk, then, in another segment, a chunk that has no length."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
    await say(writer, head, b"%x\r\n%b\r\n" % (len(token("x")), token("x")))
    await asyncio.sleep(0.05)
    await say(writer, b"zz\r\n")
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("handler", "kind", "detail"),
    [
        (only(status(429, b"retry-after: 1\r\n")), "http_429", "status 429"),
        (only(status(404)), "http_4xx", "status 404: {}"),
        (only(status(502)), "http_5xx", "502"),
        (only(status(302, b"location: /\r\n")), "http_3xx", "302"),
        (only(status(201)), "bad_response", "201"),
        (only(b"SSH-2.0-x\r\n\r\n"), "bad_response", ""),
        (only(), "reset", ""),
        (only(reset=True), "reset", ""),
        (only(NDJSON, token("x"), reset=True), "stream_error", ""),
        (only(NDJSON, token("x")), "stream_error", "before it said that it was done"),
        (only(NDJSON, token("x"), b'{"index":1,"tok'), "stream_error", "middle of a line"),
        (only(NDJSON, token("x"), line(error="http_429")), "stream_error", "http_429"),
        (only(NDJSON, b"<html>\n"), "stream_error", "not JSON"),
        (only(NDJSON, line(done=True)), "stream_error", "no token"),
        (broken_chunk, "stream_error", "in the middle of"),
        (only(NDJSON, hang=True), "timeout", ""),
        (only(hang=True), "timeout", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_way_to_fail_has_its_kind(handler: Handler, kind: str, detail: str) -> None:
    """The kind, some words, when it was over; a head that came keeps its status."""
    began = time.monotonic()
    result = one(handler, timeout_s=0.4)
    assert result["error"] == kind and detail in result["detail"]
    assert time.monotonic() - began < 3
    if kind == "timeout":
        assert (result["end_unix_ns"] - result["sent_unix_ns"]) / 1e6 == pytest.approx(400, abs=100)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_nobody_there() -> None:
    """A port that nobody listens on is connect; a name that does not exist is dns, with the time the look-up took."""
    (refused,), _ = drive(f"http://127.0.0.1:{closed_port()}", plan(1))
    assert (refused["error"], refused["status"]) == ("connect", 0)
    (unknown,), _ = drive("http://no-such-name.invalid", plan(1))
    assert unknown["error"] == "dns"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path, Path]:
    """A server's context, its authority's certificate, and that of a stranger."""
    trustme = pytest.importorskip("trustme")
    directory = tmp_path_factory.mktemp("tls")
    mine, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    mine.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    for name, authority in (("mine.pem", mine), ("other.pem", other)):
        authority.cert_pem.write_to_path(str(directory / name))
    return context, directory / "mine.pem", directory / "other.pem"


def test_phases_of_a_tls_connection(certificates: tuple[ssl.SSLContext, Path, Path]) -> None:
    """Look-up once for all requests, connect and TLS for each connection; their sum is within the time to the first byte."""
    context, mine, _ = certificates
    with LoadServer(stream_ok, tls=context) as server:
        results, _ = drive(f"https://localhost:{server.port}", plan(5), ca=str(mine))
        each, _ = drive(f"https://localhost:{server.port}", plan(5), ca=str(mine), look_up_each=True)
    assert ["dns_ms" in result for result in results] == [True, False, False, False, False]
    assert all("dns_ms" in result for result in each)
    for result in [*results, *each]:
        assert "error" not in result, result
        assert result["tls_ms"] > 0.1 and result["connect_ms"] >= 0
        phases_ms = result["tls_ms"] + result["connect_ms"] + result.get("dns_ms", 0)
        assert phases_ms < (result["first_byte_unix_ns"] - result["sent_unix_ns"]) / 1e6


def test_a_slow_handshake_is_tls_and_not_connect(certificates: tuple[ssl.SSLContext, Path, Path]) -> None:
    """A listener that lets 150 ms pass before it shakes hands: TCP is quick, TLS is not."""
    context, mine, _ = certificates
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        time.sleep(0.15)
        try:
            with context.wrap_socket(connection, server_side=True) as secured:
                secured.recv(65536)
                secured.sendall(NDJSON + token("x") + line(done=True))
        except OSError:
            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    (result,), _ = drive(f"https://127.0.0.1:{listener.getsockname()[1]}", plan(1), ca=str(mine))
    thread.join(5)
    listener.close()
    assert result["tls_ms"] == pytest.approx(150, abs=60) and result["connect_ms"] < 50


def test_a_certificate_of_a_stranger_is_tls(certificates: tuple[ssl.SSLContext, Path, Path]) -> None:
    """The wrong authority, and the system's; a file that holds no certificate is bad input."""
    context, mine, other = certificates
    with LoadServer(stream_ok, tls=context) as server:
        for ca in (str(other), None):
            (result,), _ = drive(server.url, plan(1), ca=ca)
            assert result["error"] == "tls" and "certificate" in result["detail"]
        empty = mine.with_name("empty.pem")
        empty.write_text("")
        for path, fact in ((empty, "no certificates"), (mine.with_name("none.pem"), "no such file")):
            with pytest.raises(InputError, match=fact):
                drive(server.url, plan(1), ca=str(path))


def test_connections_are_used_again_when_asked() -> None:
    """Five requests over one connection: only the first has a connect phase."""

    async def handler(_: Asked, writer: Writer) -> None:
        await say(writer, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with LoadServer(handler, keep_alive=True) as server:
        results, _ = drive(server.url, plan(5), protocol="http", keep_alive=True)
        assert server.connections == 1
    assert ["connect_ms" in result for result in results] == [True, False, False, False, False]


def test_trace_contexts() -> None:
    """None, or a new one for each request, its id in the result, with the flag that says whether to record."""
    for choice, flag in (("none", None), ("unsampled", "00"), ("sampled", "01")):
        with LoadServer(stream_ok) as server:
            results, _ = drive(server.url, plan(3), traceparent=choice)
            sent = [asked.headers.get("traceparent") for asked in server.asked]
        if flag is None:
            assert sent == [None] * 3 and "trace_id" not in results[0]
            continue
        assert all(each and each.startswith("00-") and each.endswith(f"-{flag}") for each in sent)
        assert {each.split("-")[1] for each in sent if each} == {result["trace_id"] for result in results} and len(set(sent)) == 3


def test_warm_up_is_marked() -> None:
    """Requests due before its end, whenever they end."""
    with LoadServer(stream_ok) as server:
        results, _ = drive(server.url, plan(6), warmup_s=0.15)
    assert [result["warmup"] for result in sorted(results, key=lambda each: each["scheduled_unix_ns"])] == [True] * 3 + [False] * 3


def test_requests_leave_on_time() -> None:
    """Whatever answers take: half of 60 requests at 100/s to a server that needs 200 ms leave within 3 ms of their time."""

    async def slow(_: Asked, writer: Writer) -> None:
        await asyncio.sleep(0.2)
        await say(writer, NDJSON, token("x"), line(done=True))

    with LoadServer(slow) as server:
        results, _ = drive(server.url, plan(60, rate=100))
    late_ms = [(each["sent_unix_ns"] - each["scheduled_unix_ns"]) / 1e6 for each in results]
    assert min(late_ms) >= 0 and statistics.median(late_ms) < 3


def stop_after(seconds: float, times: int = 1) -> None:
    def send() -> None:
        for _ in range(times):
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()


def test_a_stop_waits_for_what_is_under_way() -> None:
    """SIGTERM at 0.3 s of a 50 s plan: nothing further is sent, what was sent is answered."""

    async def slow(_: Asked, writer: Writer) -> None:
        await asyncio.sleep(0.3)
        await say(writer, NDJSON, token("x"), line(done=True))

    with LoadServer(slow) as server:
        stop_after(0.3)
        results, ended = drive(server.url, plan(1000))
    assert ended.stopped and 4 <= len(results) <= 9 and not any("error" in result for result in results)


def test_a_second_stop_does_not_wait() -> None:
    """What is under way then is cancelled, and said to be."""
    with LoadServer(only(NDJSON, token("x"), hang=True)) as server:
        stop_after(0.3, times=2)
        began = time.monotonic()
        results, ended = drive(server.url, plan(1000), timeout_s=30.0)
    assert time.monotonic() - began < 3 and ended.stopped
    assert results and {result["error"] for result in results} == {"cancelled"}


def test_what_was_held_back_at_a_stop_is_said_not_to_be_sent() -> None:
    """With one at a time allowed and 500 ms each, most requests due in 0.3 s never left."""
    with LoadServer(one_at_a_time(0.5)) as server:
        stop_after(0.3)
        results, _ = drive(server.url, plan(1000), max_in_flight=1)
    sent = [result for result in results if "sent_unix_ns" in result]
    left = [result for result in results if result.get("error") == "not_sent"]
    assert len(sent) == 1 and 3 <= len(left) <= 8 and len(sent) + len(left) == len(results)


@pytest.mark.parametrize("where", ["result", "tick"])
def test_an_output_that_fails_ends_the_run(where: str) -> None:
    """A full disk is raised at once, not after the plan."""

    def full(_: Counts | dict[str, Any]) -> None:
        raise OSError("no space")

    def fine(_: Any) -> None:
        return

    with LoadServer(stream_ok) as server:
        began = time.monotonic()
        with pytest.raises(OSError, match="no space"):
            drive_load(plan(1000), Target(f"{server.url}/chat"), full if where == "result" else fine, full if where == "tick" else fine)
    assert time.monotonic() - began < 3
