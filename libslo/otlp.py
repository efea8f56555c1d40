"""The receiving end of OTLP/HTTP: protobuf or JSON, plain or gzip, on ``/v1/traces``.

Requests are handed on in the JSON form that libslo.spans reads. A body that cannot be read is answered with 400 and
the reason; when the reader behind is too slow the answer is 503 with Retry-After, so that the sender keeps its spans.
"""

from __future__ import annotations

import gzip
import math
import socket
import threading
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from libslo.errors import CannotError, InputError, os_reason

__all__ = ["MAX_BODY_BYTES", "OtlpReceiver", "decode_body", "gzip_body", "parse_address"]

MAX_BODY_BYTES = 20 << 20  # the OpenTelemetry Collector's own default limit
_MOST_AT_ONCE = 8  # requests that are read and decoded at the same time; more are told to come again
_JSON, _PROTOBUF = "application/json", "application/x-protobuf"


def decode_body(body: bytes, content_type: str, encoding: str) -> dict[str, Any]:
    """An ExportTraceServiceRequest in JSON form. InputError when the body is not what its headers say."""
    if encoding == "gzip":
        body = _gunzip(body)
    elif encoding not in ("", "identity"):
        raise InputError(f"content-encoding {encoding!r} is not understood", hint="gzip or none")
    kind = content_type.split(";")[0].strip().lower()
    if kind == _JSON:
        import orjson

        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InputError(f"body is not JSON: {error}") from error
        if not isinstance(request, dict) or not isinstance(request.get("resourceSpans", []), list):
            raise InputError("body is not an ExportTraceServiceRequest: no resourceSpans list")
        return request
    if kind == _PROTOBUF:
        return _from_protobuf(body)
    raise InputError(f"content-type {content_type!r} is not understood", hint=f"{_PROTOBUF} or {_JSON}")


def _gunzip(body: bytes) -> bytes:
    try:
        unpacker = zlib.decompressobj(wbits=31)
        plain = unpacker.decompress(body, MAX_BODY_BYTES)
        if unpacker.unconsumed_tail:
            raise InputError(f"body is larger than {MAX_BODY_BYTES} bytes unpacked")
        if not unpacker.eof:
            raise InputError("gzip body is truncated")
        return plain
    except zlib.error as error:
        raise InputError(f"body is not gzip: {error}") from error


def _from_protobuf(body: bytes) -> dict[str, Any]:
    try:
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ImportError as error:
        raise CannotError("OTLP in protobuf form needs opentelemetry-proto", hint="pip install 'llm-slo-ebpf-toolkit[otel]'") from error
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise InputError(f"body is not an ExportTraceServiceRequest: {error}") from error
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [_pair(each) for each in rs.resource.attributes]},
                "scopeSpans": [
                    {"scope": {"name": ss.scope.name, "version": ss.scope.version}, "spans": [_span(span) for span in ss.spans]}
                    for ss in rs.scope_spans
                ],
            }
            for rs in request.resource_spans
        ]
    }


def _span(span: Any) -> dict[str, Any]:
    out: dict[str, Any] = {
        "traceId": span.trace_id.hex(),
        "spanId": span.span_id.hex(),
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(span.start_time_unix_nano),
        "endTimeUnixNano": str(span.end_time_unix_nano),
    }
    if span.parent_span_id:
        out["parentSpanId"] = span.parent_span_id.hex()
    if span.attributes:
        out["attributes"] = [_pair(each) for each in span.attributes]
    if span.events:
        out["events"] = [
            {"timeUnixNano": str(event.time_unix_nano), "name": event.name, "attributes": [_pair(each) for each in event.attributes]}
            for event in span.events
        ]
    if span.status.code or span.status.message:
        out["status"] = {"code": int(span.status.code), **({"message": span.status.message} if span.status.message else {})}
    return out


def _pair(pair: Any) -> dict[str, Any]:
    return {"key": pair.key, "value": _any_value(pair.value)}


def _any_value(value: Any) -> dict[str, Any]:
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return {}
        case "string_value":
            return {"stringValue": value.string_value}
        case "bool_value":
            return {"boolValue": value.bool_value}
        case "int_value":
            return {"intValue": str(value.int_value)}
        case "double_value":
            number = value.double_value
            if math.isfinite(number):
                return {"doubleValue": number}
            return {"doubleValue": "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"}  # as OTLP's JSON says
        case "array_value":
            return {"arrayValue": {"values": [_any_value(each) for each in value.array_value.values]}}
        case "kvlist_value":
            return {"kvlistValue": {"values": [_pair(each) for each in value.kvlist_value.values]}}
        case _:
            import base64

            return {"bytesValue": base64.b64encode(value.bytes_value).decode()}


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` (or ``:PORT``, ``[::1]:PORT``). InputError when it is not that."""
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InputError(f"{text!r} is not HOST:PORT", hint="for example 127.0.0.1:4318")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - ":4318" asks for every address


class OtlpReceiver:
    """An HTTP server in its own thread. `accept` gets each request and its spans' count stays with it;
    it returns False when it cannot take more now (the sender is told to come again).

    Raises CannotError when the address cannot be listened on.
    """

    def __init__(self, address: str, accept: Callable[[dict[str, Any]], bool]) -> None:
        self.rejected = 0
        self._slots = threading.BoundedSemaphore(_MOST_AT_ONCE)
        host, port = parse_address(address)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:
                if not receiver._slots.acquire(timeout=1):
                    self.close_connection = True  # its body was not read
                    receiver._refuse(self, 503, _JSON, "busy", {"Retry-After": "1"})
                    return
                try:
                    receiver._post(self, accept)
                finally:
                    receiver._slots.release()

            def do_GET(self) -> None:
                receiver._answer(self, 405, _JSON, b'{"code":12,"message":"POST spans to /v1/traces"}', {"Allow": "POST"})

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def handle_error(self, *_: Any) -> None:
                pass  # a sender that went away in the middle of a request is no news

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            hint = "use another port, or end what listens there" if error.errno == 98 else "check the address"
            raise CannotError(f"cannot listen: {os_reason(error)}", source=address, hint=hint) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True, name="otlp")
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def _post(self, handler: BaseHTTPRequestHandler, accept: Callable[[dict[str, Any]], bool]) -> None:
        kind = (handler.headers.get("Content-Type") or "").split(";")[0].strip().lower()
        if handler.path.split("?")[0].rstrip("/") != "/v1/traces":
            handler.close_connection = True
            return self._refuse(handler, 404, kind, "only /v1/traces is served here")
        try:
            body = self._body(handler)
            request = decode_body(body, handler.headers.get("Content-Type") or "", (handler.headers.get("Content-Encoding") or "").lower())
        except CannotError as error:
            return self._refuse(handler, 501, kind, error.fact)
        except InputError as error:
            handler.close_connection = True
            return self._refuse(handler, 415 if "not understood" in error.fact else 400, kind, error.fact)
        try:
            taken = accept(request)
        except InputError as error:
            return self._refuse(handler, 400, kind, error.fact)
        if not taken:
            return self._refuse(handler, 503, kind, "busy", {"Retry-After": "1"})
        if kind == _PROTOBUF:
            return self._answer(handler, 200, _PROTOBUF, b"")
        return self._answer(handler, 200, _JSON, b"{}")

    def _body(self, handler: BaseHTTPRequestHandler) -> bytes:
        if "chunked" in (handler.headers.get("Transfer-Encoding") or "").lower():
            return self._chunks(handler)
        length = handler.headers.get("Content-Length") or ""
        if not (length.isascii() and length.isdigit()):
            raise InputError("no content-length")
        if int(length) > MAX_BODY_BYTES:
            raise InputError(f"body is larger than {MAX_BODY_BYTES} bytes")
        body = handler.rfile.read(int(length))
        if len(body) != int(length):
            raise InputError(f"body is truncated: {len(body)} of {length} bytes")
        return body

    def _chunks(self, handler: BaseHTTPRequestHandler) -> bytes:
        parts, total = [], 0
        while True:
            size_text = handler.rfile.readline(64).split(b";")[0].strip()
            try:
                size = int(size_text, 16)
                if size < 0:
                    raise ValueError
            except ValueError as error:
                raise InputError("chunked body is malformed") from error
            total += size
            if total > MAX_BODY_BYTES:
                raise InputError(f"body is larger than {MAX_BODY_BYTES} bytes")
            parts.append(handler.rfile.read(size))
            handler.rfile.readline(8)
            if size == 0:
                return b"".join(parts)

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.rejected += 1
        if kind == _PROTOBUF:
            text = message.encode()[:120]
            body = b"\x12" + bytes([len(text)]) + text  # google.rpc.Status: field 2, message
            self._answer(handler, status, _PROTOBUF, body, headers)
        else:
            import orjson

            self._answer(handler, status, _JSON, orjson.dumps({"message": message}), headers)

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            handler.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:
            handler.close_connection = True


def gzip_body(body: bytes) -> bytes:
    """A body packed for sending. Level 3: on probe events half the time of 6 for a fifth more bytes."""
    return gzip.compress(body, 3, mtime=0)
