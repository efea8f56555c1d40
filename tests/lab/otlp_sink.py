"""A tiny OTLP/HTTP receiver for tests: protobuf trace requests in, one OTLP JSON line each on stdout."""

from __future__ import annotations

import base64
import gzip
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        request = MessageToDict(ExportTraceServiceRequest.FromString(body))
        for scope in (scope for resource in request["resourceSpans"] for scope in resource["scopeSpans"]):
            for span in scope["spans"]:
                for key in ("traceId", "spanId", "parentSpanId"):  # protobuf's own JSON has base64, OTLP's has hex
                    if key in span:
                        span[key] = base64.b64decode(span[key]).hex()
        sys.stdout.write(json.dumps(request) + "\n")
        sys.stdout.flush()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer((sys.argv[1], 4318), _Handler)
    sys.stderr.write("ready\n")
    server.serve_forever()
