"""The OTLP/HTTP receiver over a real socket: what it takes, what it refuses, and that it survives."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests
from builders import MS, T0, TRACE, S, lines, one_span, raw_span, span_request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from libslo import otlp
from libslo.errors import CannotError, InputError
from libslo.jsonl import encode
from libslo.otlp import OtlpReceiver, decode_body, gzip_body, parse_address
from libslo.spans import decode_spans, span_line

JSON, PROTOBUF = "application/json", "application/x-protobuf"
BODY = orjson.dumps(span_request(raw_span()))


def protobuf(**values: AnyValue) -> bytes:
    request = ExportTraceServiceRequest()
    found = request.resource_spans.add()
    found.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="rag")))
    span = found.scope_spans.add().spans.add(
        trace_id=bytes.fromhex(TRACE),
        span_id=bytes.fromhex("b7ad6b7169203331"),
        name="x",
        kind=3,
        start_time_unix_nano=T0,
        end_time_unix_nano=T0 + S,
    )
    span.status.code = 2
    for key, value in values.items():
        span.attributes.append(KeyValue(key=key, value=value))
    return request.SerializeToString()


class Sink:
    """Decodes what it gets, as the collector does."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.full = False
        self.receiver = OtlpReceiver("127.0.0.1:0", self.accept)
        self.url = f"http://127.0.0.1:{self.receiver.port}/v1/traces"

    def accept(self, request: dict[str, Any]) -> bool:
        if self.full:
            return False
        self.spans += decode_spans(request)
        return True

    def post(self, body: bytes, kind: str = JSON, **headers: str) -> requests.Response:
        return requests.post(self.url, data=body, headers={"Content-Type": kind, **headers}, timeout=10)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, close the sending side, read to the end."""
        with socket.create_connection(("127.0.0.1", self.receiver.port), timeout=10) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
            return answer

    def is_alive(self) -> bool:
        before = len(self.spans)
        return self.post(BODY).status_code == 200 and len(self.spans) == before + 1


@pytest.fixture
def sink() -> Iterator[Sink]:
    found = Sink()
    yield found
    found.receiver.close()


def test_json_and_protobuf_plain_and_packed(sink: Sink) -> None:
    """Both forms, with and without gzip, arrive as the same kind of span and are answered in the sender's form."""
    for body, kind in ((BODY, JSON), (protobuf(), PROTOBUF)):
        for encoding in ({}, {"Content-Encoding": "gzip"}):
            answer = sink.post(gzip.compress(body) if encoding else body, kind, **encoding)
            assert (answer.status_code, answer.headers["Content-Type"]) == (200, kind)
    assert len(sink.spans) == 4
    assert {(s.trace_id, s.service) for s in sink.spans} == {(TRACE, "rag")}
    assert [s.is_error for s in sink.spans] == [False, False, True, True]


def test_protobuf_values_of_every_type(sink: Sink) -> None:
    """Strings, booleans, integers, doubles, lists and bytes keep their type; NaN does not break the line it is written to."""
    body = protobuf(
        s=AnyValue(string_value="x"),
        b=AnyValue(bool_value=True),
        i=AnyValue(int_value=-(2**62)),
        d=AnyValue(double_value=1.5),
        a=AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)])),
        y=AnyValue(bytes_value=b"\x00\xff"),
        nothing=AnyValue(),
        nan=AnyValue(double_value=float("nan")),
        inf=AnyValue(double_value=float("-inf")),
    )
    assert sink.post(body, PROTOBUF).status_code == 200
    (span,) = sink.spans
    attributes = span.attributes
    assert (attributes["s"], attributes["b"], attributes["i"], attributes["d"], attributes["a"]) == ("x", True, -(2**62), 1.5, [1])
    (again,) = decode_spans(orjson.loads(encode(span_line(span, {"more": 2.5}))))
    assert (
        again.attributes["nan"] != again.attributes["nan"] and again.attributes["inf"] == float("-inf") and again.attributes["more"] == 2.5
    )


def test_an_empty_export_is_fine(sink: Sink) -> None:
    """A request without spans is a success in both forms."""
    assert sink.post(b"{}").status_code == 200
    assert sink.post(b"", PROTOBUF).status_code == 200


def test_chunked_bodies(sink: Sink) -> None:
    """A body whose length is not known beforehand is read piece by piece."""
    answer = requests.post(sink.url, data=iter([BODY[:50], BODY[50:]]), headers={"Content-Type": JSON}, timeout=10)
    assert answer.status_code == 200 and len(sink.spans) == 1


REFUSED = {
    "truncated json": (BODY[:-5], JSON, {}, 400, "not JSON"),
    "truncated protobuf": (protobuf()[:-3], PROTOBUF, {}, 400, "ExportTraceServiceRequest"),
    "json as protobuf": (BODY, PROTOBUF, {}, 400, "ExportTraceServiceRequest"),
    "not gzip": (BODY, JSON, {"Content-Encoding": "gzip"}, 400, "not gzip"),
    "truncated gzip": (gzip.compress(BODY)[:-12], JSON, {"Content-Encoding": "gzip"}, 400, "truncated"),
    "other encoding": (BODY, JSON, {"Content-Encoding": "zstd"}, 415, "zstd"),
    "other content type": (BODY, "text/plain", {}, 415, "text/plain"),
    "a list": (b"[]", JSON, {}, 400, "no resourceSpans"),
    "spans that are none": (orjson.dumps(span_request({"name": "x"})), JSON, {}, 400, "startTimeUnixNano"),
    "not utf-8": (b'{"resourceSpans":"\xff"}', JSON, {}, 400, "not JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_bodies_are_refused_with_the_reason(sink: Sink, case: str) -> None:
    """A body that is not what its headers say is answered with the reason; nothing arrives; the next one does."""
    body, kind, headers, status, reason = REFUSED[case]
    answer = sink.post(body, kind, **headers)
    assert answer.status_code == status and reason in answer.text
    assert sink.spans == [] and sink.receiver.rejected == 1
    assert sink.is_alive()


def test_wrong_path_and_method(sink: Sink) -> None:
    """Other paths are 404, other methods 405 with what is allowed; a query or a trailing slash does not matter."""
    base = sink.url.removesuffix("/v1/traces")
    assert requests.post(base + "/v1/logs", data=BODY, headers={"Content-Type": JSON}, timeout=10).status_code == 404
    answer = requests.get(sink.url, timeout=10)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert requests.put(sink.url, timeout=10).status_code in (405, 501)
    assert requests.post(sink.url + "/?x=1", data=BODY, headers={"Content-Type": JSON}, timeout=10).status_code == 200


HEAD = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Content-Length: 500\r\n\r\n" + BODY[:100],
        HEAD + b"\r\n",
        HEAD + b"Content-Length: many\r\n\r\n",
        HEAD + b"Content-Length: \xb2\r\n\r\n{}",
        HEAD + b"Content-Length: -1\r\n\r\n{}",
        HEAD + b"Content-Length: 99999999999\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + b"x" * 1000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n40\r\nshort",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
    ],
    ids=[
        "short body",
        "no length",
        "length is text",
        "length is a superscript",
        "negative length",
        "too long",
        "chunk size is text",
        "negative chunk",
        "short chunk",
        "huge chunk",
    ],
)
def test_broken_framing_is_answered(sink: Sink, data: bytes) -> None:
    """A body that ends early, lies about its length or is cut into nonsense gets a 4xx answer, and the server goes on."""
    assert sink.raw(data).startswith(b"HTTP/1.1 4")
    assert sink.spans == [] and sink.is_alive()


def test_a_negative_chunk_is_refused_at_once(sink: Sink) -> None:
    """It does not make the server read until the sender goes away."""
    with socket.create_connection(("127.0.0.1", sink.receiver.port), timeout=3) as sock:
        sock.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + b"x" * 1000)
        assert sock.recv(100).startswith(b"HTTP/1.1 400")


def test_garbage_and_early_goodbyes_do_no_harm(sink: Sink) -> None:
    """Bytes that are no HTTP and connections that close at once leave the server alive."""
    sink.raw(b"\x00\x01\x02 nonsense\r\n\r\n")
    for _ in range(5):
        socket.create_connection(("127.0.0.1", sink.receiver.port)).close()
    assert sink.is_alive()


def test_bodies_that_unpack_too_large_are_refused(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for the packed and for the unpacked size."""
    monkeypatch.setattr(otlp, "MAX_BODY_BYTES", 10_000)
    bomb = gzip.compress(b'{"a":"' + b"x" * 1_000_000 + b'"}')
    assert len(bomb) < 10_000
    assert "larger than 10000" in sink.post(bomb, JSON, **{"Content-Encoding": "gzip"}).text
    assert sink.post(b"x" * 10_001).status_code == 400
    assert sink.is_alive()


def test_busy_says_come_again(sink: Sink) -> None:
    """When the reader behind is full the answer is 503 with Retry-After, and the same body is taken later."""
    sink.full = True
    answer = sink.post(BODY)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1") and sink.spans == []
    sink.full = False
    assert sink.is_alive()


def test_a_connection_is_kept(sink: Sink) -> None:
    """Several requests travel over one connection."""
    with requests.Session() as session:
        for _ in range(3):
            assert session.post(sink.url, data=BODY, headers={"Content-Type": JSON}, timeout=10).status_code == 200
        assert sink.post(b"{", JSON).status_code == 400
    assert len(sink.spans) == 3


def test_many_senders_at_once(sink: Sink) -> None:
    """Twenty senders in parallel lose nothing."""
    threads = [threading.Thread(target=sink.post, args=(BODY,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sink.spans) == 20


def test_port_in_use_is_a_cannot(sink: Sink) -> None:
    """A second listener on the port is told so, with a cure."""
    with pytest.raises(CannotError, match="address already in use") as caught:
        OtlpReceiver(f"127.0.0.1:{sink.receiver.port}", lambda _: True)
    assert "another port" in str(caught.value.hint)


def test_an_address_of_nobody_is_a_cannot() -> None:
    """An address that is not this machine's, or a name that does not exist, cannot be listened on."""
    for address in ("192.0.2.1:0", "no-such-host.invalid:0"):
        with pytest.raises(CannotError, match="cannot listen"):
            OtlpReceiver(address, lambda _: True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:4318", ("127.0.0.1", 4318)),
        (":4318", ("0.0.0.0", 4318)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    """HOST:PORT in its forms."""
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "4318", "localhost", "localhost:", "x:70000", "x:-1", "x:1.5", "x:\u0664", "x:\u00b2"])
def test_what_is_no_address_is_bad_input(text: str) -> None:
    """Everything else is an input error with an example."""
    with pytest.raises(InputError) as caught:
        parse_address(text)
    assert "127.0.0.1:4318" in str(caught.value.hint)


def test_ipv6() -> None:
    """An IPv6 address is listened on as well."""
    try:
        receiver = OtlpReceiver("[::1]:0", lambda _: True)
    except CannotError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert (
        requests.post(f"http://[::1]:{receiver.port}/v1/traces", data=BODY, headers={"Content-Type": JSON}, timeout=10).status_code == 200
    )
    receiver.close()


def test_closed_means_closed() -> None:
    """After close nothing listens any more."""
    found = Sink()
    found.receiver.close()
    with pytest.raises(requests.ConnectionError):
        found.post(BODY)


def test_decode_body_is_the_inverse_of_what_is_sent() -> None:
    """A packed JSON body decodes to the object it was made from; its lines are those of the file exporter."""
    request = span_request(raw_span(T0, T0 + 5 * MS, attrs={"a": 1}))
    assert decode_body(gzip_body(lines([request])), JSON + "; charset=utf-8", "gzip") == request
    assert gzip_body(b"x") == gzip_body(b"x")
    assert one_span(T0, T0 + 5 * MS).duration_ms == 5
