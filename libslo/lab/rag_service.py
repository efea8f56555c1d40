"""A RAG service: retrieval, context, generation, streamed from ``POST /chat``. Alone, it answers itself.

``python -m libslo.lab.rag_service --backend stub``
``curl -N http://127.0.0.1:8080/chat -d '{"prompt": "why is it slow"}'``
"""

from __future__ import annotations

import argparse
import math
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from libslo.errors import InputError
from libslo.lab.backends import Backend, LlamaCppBackend, OpenAIBackend, StubBackend
from libslo.lab.documents import DocumentStore
from libslo.lab.model import MAX_TOKENS, Pace
from libslo.lab.programs import spoken_errors
from libslo.lab.rag_app import RagService
from libslo.lab.rag_retrieval import RetrievalClient
from libslo.lab.telemetry import start_tracing
from libslo.lab.upstream import Upstream
from libslo.lab.web import add_fault_option, serve

__all__ = ["API_KEY_VARIABLE", "build_service", "main", "service_parser"]

API_KEY_VARIABLE = "SLO_PROVIDER_API_KEY"
_BACKENDS = ("stub", "openai", "llamacpp")
_ABOUT = f"""\
A RAG service with streaming answers, spans and metrics; for the laboratory, and alone for trying things out.

POST /chat    {{"prompt": TEXT}}, and as you like "profile" (chat_short, rag_medium, context_long), "max_tokens" (of the stub at
              most {MAX_TOKENS}), "model", "request_id", "stream_format" ("ndjson" or "sse"; or Accept: text/event-stream)
              each line {{"index": N, "token": TEXT}}, the last {{"done": true, "request_id": ID, "tokens": N}};
              429 when the provider throttles, 502 with {{"error": KIND}} when something behind the service fails
GET /metrics  for Prometheus
GET /healthz  ok

Spans go to OTEL_EXPORTER_OTLP_ENDPOINT where that is set. {API_KEY_VARIABLE} is sent to the provider as bearer token.
"""
_EXAMPLES = """\
examples:
  python -m libslo.lab.rag_service --backend stub
  python -m libslo.lab.rag_service --provider http://127.0.0.1:8000 --port 8081
  python -m libslo.lab.rag_service --backend llamacpp --provider http://127.0.0.1:8082 --documents /var/tmp
"""


def _number(least: float, most: float = math.inf) -> Any:
    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text} is not {least:g} or more" + ("" if math.isinf(most) else f" and at most {most:g}"))
        return value

    return number


def service_parser() -> argparse.ArgumentParser:
    """The options of the service."""
    parser = argparse.ArgumentParser(
        "rag_service", description=_ABOUT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--backend", choices=_BACKENDS, help="who answers; llamacpp: its /completion (default: openai with --provider, else stub)"
    )
    group.add_argument("--provider", metavar="URL", help="of the model server, without a path (or with /v1)")
    group.add_argument("--ca", metavar="FILE", help="certificate authority to trust instead of the system's, PEM")
    group.add_argument("--timeout", type=_number(0.1), default=30.0, metavar="SECONDS", help="of one call behind (default: %(default)g)")
    group.add_argument("--ttft-ms", type=_number(0), default=200.0, help="of the stub, to the first token (default: %(default)g)")
    group.add_argument("--itl-ms", type=_number(0), default=8.0, help="of the stub, between tokens (default: %(default)g)")
    group.add_argument("--tokens", type=int, default=16, help="of the stub, when the request does not say (default: %(default)s)")
    group = parser.add_argument_group("retrieval")
    group.add_argument("--embeddings", metavar="URL", help="service with POST /embed, as libslo.lab.retrieval (default: none)")
    group.add_argument("--vectordb", metavar="URL", help="service with POST /search; both or none")
    group.add_argument(
        "--documents", metavar="FILE", help="text read for every request; made when missing; a directory: a nameless file in it"
    )
    group.add_argument("--documents-mb", type=int, default=64, metavar="N", help="size of one that is made (default: %(default)s)")
    parser.add_argument("--drain", type=_number(0), default=10.0, metavar="SECONDS",
                        help="how long requests under way may go on after SIGTERM (default: %(default)g)")  # fmt: skip
    add_fault_option(parser)
    return parser


def _check(options: argparse.Namespace, kind: str) -> None:
    if (kind == "stub") == bool(options.provider):
        wants = "answers itself" if options.provider else "needs a server"
        raise InputError(f"the backend {kind} {wants}", source="--provider", hint="--backend stub, or --provider URL")
    if bool(options.embeddings) != bool(options.vectordb):
        raise InputError("retrieval needs both services", source="--embeddings, --vectordb", hint="name both, or none")
    for option in ("provider", "embeddings", "vectordb"):
        if url := getattr(options, option):
            _check_url(url, f"--{option}")
    if not 1 <= options.tokens <= MAX_TOKENS or options.documents_mb < 1:
        raise InputError("out of range", source="--tokens, --documents-mb", hint=f"tokens from 1 to {MAX_TOKENS}, at least 1 MB")


def _check_url(url: str, option: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InputError(f"{url!r} is not a URL", source=option, hint="http://HOST:PORT")
    if parts.username or parts.password:  # not repeated: it would be in every span as well
        raise InputError("a URL with a user name or password", source=option, hint=f"the key goes into the environment, {API_KEY_VARIABLE}")


def build_service(options: argparse.Namespace) -> RagService:
    """The service that the options ask for. InputError or CannotError with the option that is wrong."""
    kind = options.backend or ("openai" if options.provider else "stub")
    _check(options, kind)
    try:
        tls = ssl.create_default_context(cafile=options.ca)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"no certificate authority: {error.strerror}", source=options.ca, hint="a file in PEM form") from error
    documents = DocumentStore(Path(options.documents), options.documents_mb) if options.documents else None
    tracer, stop_tracing = start_tracing("libslo.lab.rag_service")
    upstream = Upstream(tracer, tls, options.timeout)
    backend: Backend
    if kind == "stub":
        backend = StubBackend(tracer, Pace(options.ttft_ms, options.itl_ms), options.tokens)
    else:
        key = os.environ.get(API_KEY_VARIABLE)
        backend = (OpenAIBackend if kind == "openai" else LlamaCppBackend)(upstream, options.provider, key)
    retrieval = RetrievalClient(upstream, options.embeddings, options.vectordb) if options.vectordb else None
    return RagService(upstream, backend, retrieval, documents, stop_tracing, allow_faults=options.allow_faults)


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM."""
    options = service_parser().parse_args(arguments)
    with spoken_errors("rag_service"):
        service = build_service(options)
        serve(service.application(), options.host, options.port, service.stop_tracing, drain_s=options.drain)


if __name__ == "__main__":
    main()
