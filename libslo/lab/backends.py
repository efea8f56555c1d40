"""Where the RAG service's tokens come from: a deterministic stub, an OpenAI-compatible server, or llama.cpp's own endpoint."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from libslo.lab.model import MAX_TOKENS, Pace, paced_tokens
from libslo.lab.upstream import Upstream, UpstreamError, mark_failed, server_attributes

__all__ = ["Backend", "Generation", "LlamaCppBackend", "OpenAIBackend", "StubBackend"]

_DATA = b"data:"


@dataclass(frozen=True)
class Generation:
    """What is asked of a model. context: text that was retrieved, may be empty. max_tokens: None leaves it to the backend."""

    prompt: str
    context: str
    model: str
    max_tokens: int | None


class Backend(Protocol):
    """Something that answers. `generate` yields tokens, in a span called chat.generation, and raises UpstreamError."""

    def generate(self, asked: Generation) -> AsyncGenerator[str, None]:
        """The answer's tokens as they come."""
        ...


class StubBackend:
    """Answers itself, the same for the same prompt. tokens: of an answer when the request does not say; never more than MAX_TOKENS."""

    def __init__(self, tracer: Any, pace: Pace, tokens: int) -> None:
        self._tracer = tracer
        self._pace = pace
        self._tokens = tokens

    async def generate(self, asked: Generation) -> AsyncGenerator[str, None]:
        """The answer's tokens at the stub's pace; the span is internal, because nobody is called."""
        span = self._tracer.start_span("chat.generation", attributes=_generation_attributes(asked.model, "stub"))
        count = min(asked.max_tokens or self._tokens, MAX_TOKENS)
        try:
            async with aclosing(paced_tokens(asked.prompt, count, self._pace, time.monotonic())) as tokens:
                async for token in tokens:
                    yield token
        finally:
            span.end()


class _HttpBackend(ABC):
    """A server that streams lines: subclasses say what is sent and how a line is read."""

    provider = "lab"
    path = ""

    def __init__(self, upstream: Upstream, url: str, api_key: str | None = None) -> None:
        self._upstream = upstream
        self._url = url.rstrip("/").removesuffix("/v1") + self.path
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    @abstractmethod
    def body(self, asked: Generation) -> dict[str, Any]:
        """What is posted."""

    @abstractmethod
    def tokens(self, chunk: Any, note: Callable[[str, int], None]) -> Iterator[str]:
        """The tokens in one object of the stream; `note` takes counts for the span."""

    async def generate(self, asked: Generation) -> AsyncGenerator[str, None]:
        """The answer's tokens as the server streams them."""
        attributes = {**_generation_attributes(asked.model, self.provider), **server_attributes(self._url)}
        # not made current: a generator must not leave a span current in its caller between two tokens
        span = self._upstream.tracer.start_span("chat.generation", kind=SpanKind.CLIENT, attributes=attributes)
        try:
            async with aclosing(self._upstream.lines(span, self._url, self.body(asked), self._headers)) as lines:
                async for line in lines:
                    if (chunk := _chunk(line)) is not None:
                        for token in self._read(chunk, span):
                            yield token
        except UpstreamError as error:
            mark_failed(span, error)
            raise
        finally:
            span.end()

    def _read(self, chunk: Any, span: trace.Span) -> list[str]:
        if isinstance(chunk, Mapping) and "error" in chunk:
            raise UpstreamError("error_in_stream")
        try:
            return list(self.tokens(chunk, span.set_attribute))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UpstreamError("malformed_stream") from error


class OpenAIBackend(_HttpBackend):
    """POST /v1/chat/completions with stream. The prompt is the last message, retrieved text the one before."""

    path = "/v1/chat/completions"

    def body(self, asked: Generation) -> dict[str, Any]:
        """A chat completion request."""
        messages = [{"role": "user", "content": asked.prompt}]
        if asked.context:
            messages.insert(0, {"role": "system", "content": asked.context})
        limit = {} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}
        return {"model": asked.model, "stream": True, "messages": messages, **limit}

    def tokens(self, chunk: Any, note: Callable[[str, int], None]) -> Iterator[str]:
        """The content of each choice's delta; usage where the server sends it."""
        if usage := chunk.get("usage"):
            _note_counts(usage, "prompt_tokens", "completion_tokens", note)
        for choice in chunk["choices"]:
            if token := choice["delta"].get("content"):
                yield token


class LlamaCppBackend(_HttpBackend):
    """POST /completion with stream, as llama.cpp's server has it: objects with content and stop, the last with the counts."""

    provider = "llama.cpp"
    path = "/completion"

    def body(self, asked: Generation) -> dict[str, Any]:
        """A completion request."""
        prompt = f"{asked.context}\n\n{asked.prompt}" if asked.context else asked.prompt
        limit = {} if asked.max_tokens is None else {"n_predict": asked.max_tokens}
        return {"prompt": prompt, "stream": True, **limit}

    def tokens(self, chunk: Any, note: Callable[[str, int], None]) -> Iterator[str]:
        """The content of each object."""
        if chunk["stop"]:
            _note_counts(chunk, "tokens_evaluated", "tokens_predicted", note)
        if chunk["content"]:
            yield chunk["content"]


def _note_counts(holder: Mapping[str, Any], read_key: str, written_key: str, note: Callable[[str, int], None]) -> None:
    for key, name in ((read_key, "gen_ai.usage.input_tokens"), (written_key, "gen_ai.usage.output_tokens")):
        if isinstance(count := holder.get(key), int):
            note(name, count)


def _chunk(line: bytes) -> Any:
    """The object of a line, with or without ``data:`` before it; None for blank lines, comments and the end mark."""
    text = line.strip()
    text = text.removeprefix(_DATA).strip()
    if not text.startswith(b"{"):
        return {"error": text} if line.startswith(b"error:") else None
    try:
        return json.loads(text)
    except ValueError as error:
        raise UpstreamError("malformed_stream") from error


def _generation_attributes(model: str, provider: str) -> dict[str, str | int]:
    return {"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "gen_ai.provider.name": provider}
