"""The handlers of the RAG service: one request from its body to its last token, with its span and its metrics."""

from __future__ import annotations

import asyncio
import json
import mmap
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind

from libslo.errors import InputError
from libslo.lab.backends import Backend, Generation
from libslo.lab.control import FaultBoard, add_control
from libslo.lab.documents import DocumentStore
from libslo.lab.rag_retrieval import RetrievalClient, RetrievalTimes
from libslo.lab.service_metrics import BROKEN, CLIENT_GONE, ServiceMetrics
from libslo.lab.upstream import Upstream, UpstreamError, mark_failed
from libslo.lab.web import read_json, said_error
from libslo.signals import vocabulary

__all__ = ["ChatRequest", "RagService", "parse_request"]

_CONTENT_TYPES = {"ndjson": "application/x-ndjson", "sse": "text/event-stream"}
_EXCERPT_BYTES = 1024  # of the context, sent to the model; the rest stays here
_LONGEST_NAME = 256
_MOST_TOKENS = 1_000_000  # that may be asked for; a model server has its own limit
_READERS = 8
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class ChatRequest:
    """One request as it was understood. profile: of contracts/vocabulary/request-profiles.json. form: "ndjson" or "sse"."""

    prompt: str
    request_id: str
    profile: str
    model: str
    max_tokens: int | None
    form: str


def parse_request(body: Any, accept: str) -> ChatRequest:
    """The request in a JSON body. InputError says what is wrong with it."""
    if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
        raise InputError("the body must be a JSON object with a prompt")
    profiles = vocabulary("request-profiles")
    profile = body.get("profile", profiles["default"])
    if not isinstance(profile, str) or profile not in profiles["profiles"]:
        raise InputError(f"no profile {profile!r}", hint=", ".join(profiles["profiles"]))
    form = body.get("stream_format", "sse" if "text/event-stream" in accept.lower() else "ndjson")
    if not isinstance(form, str) or form not in _CONTENT_TYPES:
        raise InputError(f"no stream_format {form!r}", hint=", ".join(_CONTENT_TYPES))
    max_tokens = body.get("max_tokens")
    if max_tokens is not None and (not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or not 1 <= max_tokens <= _MOST_TOKENS):
        raise InputError(f"max_tokens cannot be {max_tokens!r}", hint=f"a whole number from 1 to {_MOST_TOKENS}")
    request_id, model = str(body.get("request_id") or uuid.uuid4()), str(body.get("model", "lab-small"))
    for name, text in (("request_id", request_id), ("model", model)):
        if len(text) > _LONGEST_NAME or not text.isprintable():
            raise InputError(f"{name} must be at most {_LONGEST_NAME} characters that can be printed")
    return ChatRequest(body["prompt"], request_id, profile, model, max_tokens, form)


class _Answer:
    """The streamed answer: its head goes out with the first token."""

    def __init__(self, request: web.Request, asked: ChatRequest) -> None:
        self._request = request
        self._sse = asked.form == "sse"
        headers = {"content-type": _CONTENT_TYPES[asked.form], "x-request-id": asked.request_id, "cache-control": "no-cache"}
        self.response = web.StreamResponse(headers=headers)
        self.token_mono_ns: list[int] = []

    async def token(self, token: str) -> None:
        if not self.token_mono_ns:
            await self.response.prepare(self._request)
        await self._write({"index": len(self.token_mono_ns), "token": token})
        self.token_mono_ns.append(time.monotonic_ns())

    async def end(self, about: Mapping[str, Any]) -> None:
        await self._write(about)
        await self.response.write_eof()

    async def _write(self, value: Mapping[str, Any]) -> None:
        text = json.dumps(value).encode()
        await self.response.write(b"data: " + text + b"\n\n" if self._sse else text + b"\n")


class RagService:
    """Handlers. retrieval, documents: None leaves that step out. allow_faults: let it be told to misbehave."""

    def __init__(
        self,
        upstream: Upstream,
        backend: Backend,
        retrieval: RetrievalClient | None,
        documents: DocumentStore | None,
        stop_tracing: Callable[[], None],
        *,
        allow_faults: bool = False,
    ) -> None:
        self._upstream = upstream
        self._backend = backend
        self._retrieval = retrieval
        self._documents = documents
        self.stop_tracing = stop_tracing
        self._allow_faults = allow_faults
        self._faults = FaultBoard("app")
        self._metrics = ServiceMetrics()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="documents")  # not the resolver's: each may be slow alone

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application()
        application.router.add_post("/chat", self._chat)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/metrics", self._exposition)
        if self._allow_faults:
            add_control(application, self._faults)
        application.cleanup_ctx.append(self._upstream.session)
        application.on_cleanup.append(self._close)
        return application

    async def _close(self, _: web.Application) -> None:
        self._readers.shutdown()
        if self._documents is not None:
            self._documents.close()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _exposition(self, request: web.Request) -> web.Response:
        kind, body = self._metrics.exposition(request.headers.get("accept", ""))
        return web.Response(body=body, headers={"content-type": kind})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        came_ns = time.monotonic_ns()
        try:
            asked = parse_request(await read_json(request), request.headers.get("accept", ""))
        except InputError as error:
            self._metrics.request("400", _UNKNOWN, None, None)
            return web.json_response({"error": said_error(error)}, status=400)
        attributes = {
            "llm.request_id": asked.request_id,
            "llm.session.profile": asked.profile,
            "http.request.method": "POST",
            "http.route": "/chat",
            "url.path": "/chat",
        }
        parent = propagate.extract(dict(request.headers))
        with self._upstream.tracer.start_as_current_span(
            "chat.request", context=parent, kind=SpanKind.SERVER, attributes=attributes, record_exception=False
        ) as span:
            answer, outcome = _Answer(request, asked), "500"
            try:
                response, outcome = await self._answer(asked, answer, span)
                return response
            finally:
                measured = _stream_measures(came_ns, answer.token_mono_ns)
                span.set_attributes({"gen_ai.usage.output_tokens": len(answer.token_mono_ns), **measured})
                self._metrics.request(outcome, asked.profile, measured.get("llm.slo.ttft_ms"), measured.get("llm.slo.tokens_per_sec"))

    async def _answer(self, asked: ChatRequest, answer: _Answer, span: trace.Span) -> tuple[web.StreamResponse, str]:
        """The response and how it ended, as the metrics say it."""
        try:
            response, outcome = await self._attempt(asked, answer, span)
        except ConnectionResetError:
            span.set_attribute("error.type", "client_disconnected")
            response, outcome = answer.response, CLIENT_GONE
        span.set_attribute("http.response.status_code", 200 if outcome == BROKEN else int(outcome))
        return response, outcome

    async def _attempt(self, asked: ChatRequest, answer: _Answer, span: trace.Span) -> tuple[web.StreamResponse, str]:
        try:
            context = await self._context(asked, await self._retrieve(asked))
            await asyncio.sleep(self._faults.request().total("app_stall", "delay_ms") / 1e3)  # in no span but the request's
            generation = Generation(asked.prompt, context, asked.model, asked.max_tokens)
            async with aclosing(self._backend.generate(generation)) as tokens:
                async for token in tokens:
                    await answer.token(token)
            if not answer.token_mono_ns:
                raise UpstreamError("empty_completion")
            await answer.end({"done": True, "request_id": asked.request_id, "tokens": len(answer.token_mono_ns)})
            return answer.response, "200"
        except UpstreamError as error:
            mark_failed(span, error)
            said = {"error": error.kind, "request_id": asked.request_id}
            if answer.token_mono_ns:  # the head is on its way: say it in the stream
                await answer.end(said)
                return answer.response, BROKEN
            return web.json_response(said, status=error.client_status), str(error.client_status)

    async def _retrieve(self, asked: ChatRequest) -> list[int]:
        """Ids of the documents that the prompt is closest to; none without a retrieval backend. Raises UpstreamError."""
        if self._retrieval is None:
            return []
        times: list[RetrievalTimes] = []
        try:
            return await self._retrieval.retrieve(asked.prompt, _profile(asked)["documents"], times)
        finally:
            for each in times:
                self._metrics.retrieval(each)

    async def _context(self, asked: ChatRequest, ids: list[int]) -> str:
        """Build the context from the documents' text, as much as the profile says; what of it the model is sent."""
        documents = self._documents
        if documents is None:
            return ""
        read_bytes, passage_bytes = _profile(asked)["read_kb"] * 1024, vocabulary("request-profiles")["passage_kb"] * 1024

        def build() -> str:
            with mmap.mmap(-1, read_bytes) as buffer:  # memory of its own, given back when the model has been sent its part
                documents.read_into(buffer, f"{asked.prompt}:{ids}", passage_bytes)
                return buffer[:_EXCERPT_BYTES].decode(errors="replace")

        with self._upstream.tracer.start_as_current_span("chat.context") as span:
            span.set_attribute("llm.retrieval.read_bytes", read_bytes)
            return await asyncio.get_running_loop().run_in_executor(self._readers, build)


def _profile(asked: ChatRequest) -> dict[str, Any]:
    profile: dict[str, Any] = vocabulary("request-profiles")["profiles"][asked.profile]
    return profile


def _stream_measures(came_mono_ns: int, token_mono_ns: list[int]) -> dict[str, float]:
    """ttft_ms: request in to first token out. tokens_per_sec: pace after the first token, so that waits before it do not count twice."""
    measures: dict[str, float] = {}
    if token_mono_ns:
        measures["llm.slo.ttft_ms"] = (token_mono_ns[0] - came_mono_ns) / 1e6
    if len(token_mono_ns) > 1 and token_mono_ns[-1] > token_mono_ns[0]:
        measures["llm.slo.tokens_per_sec"] = (len(token_mono_ns) - 1) / ((token_mono_ns[-1] - token_mono_ns[0]) / 1e9)
    return measures
