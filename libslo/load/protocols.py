"""What is sent and what comes back, by protocol: bodies of requests, and parsers of streams of tokens. Pure.

ndjson: ``POST /chat``, lines ``{"index", "token"}``, ``{"done": true}`` or ``{"error"}``. sse: the same objects as server-sent
events. openai: ``POST /v1/chat/completions`` with ``stream``. http: a plain GET, whose answer has no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson

from libslo.errors import InputError
from libslo.load.plans import LoadRequest

__all__ = ["PROTOCOLS", "StreamError", "TokenStream", "request_body", "request_headers", "target_url"]

PROTOCOLS = ("ndjson", "sse", "openai", "http")
_PATHS = {"ndjson": "/chat", "sse": "/chat", "openai": "/v1/chat/completions", "http": "/"}
_ACCEPT = {"ndjson": "application/x-ndjson", "sse": "text/event-stream", "openai": "text/event-stream"}
_MAX_LINE_BYTES = 1 << 20
_MOST_TOKENS = 10_000_000


class StreamError(Exception):
    """The answer says that it failed, or is no stream of the protocol."""


def target_url(url: str, protocol: str) -> str:
    """The URL that requests go to: one without a path gets that of the protocol. InputError for what is no http or https URL."""
    hint = "a URL such as http://127.0.0.1:8080"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # the port is checked when it is read
    except ValueError as error:
        raise InputError(f"not a URL: {str(error).lower()}", source=url, hint=hint) from error
    if parts.scheme not in ("http", "https") or not host:
        raise InputError("not an http or https URL", source=url, hint=hint)
    if parts.username is not None:
        raise InputError("a URL with a password in it", source=f"{parts.scheme}://{host}", hint="OPENAI_API_KEY in the environment")
    path = parts.path
    if path in ("", "/"):
        path = _PATHS[protocol]
    elif protocol == "openai" and path.rstrip("/").endswith("/v1"):
        path = path.rstrip("/") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def request_headers(protocol: str, api_key: str | None) -> dict[str, str]:
    """Headers that all requests have. api_key: for openai."""
    headers = {"accept": _ACCEPT.get(protocol, "*/*"), "accept-encoding": "identity"}
    if protocol != "http":
        headers["content-type"] = "application/json"
    if protocol == "openai" and api_key:
        headers["authorization"] = f"Bearer {api_key}"
    return headers


def request_body(request: LoadRequest, protocol: str, model: str | None) -> bytes | None:
    """What a request sends; None for a GET."""
    if protocol == "http":
        return None
    if protocol == "openai":
        messages = [{"role": "user", "content": request.text()}]
        options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": request.max_tokens}
        return orjson.dumps({"model": model, "messages": messages, **options})
    body: dict[str, Any] = {"prompt": request.text(), "request_id": request.request_id, "profile": request.profile}
    return orjson.dumps({**body, "max_tokens": request.max_tokens, **({"model": model} if model else {})})


class TokenStream:
    """Reads one answer, in pieces as they come. done: whether it said that it was whole. usage_tokens: as the server counts."""

    def __init__(self, protocol: str) -> None:
        self._events = protocol != "ndjson"
        self._tail = b""
        self._data: list[bytes] = []  # of the server-sent event that has begun
        self.tokens = 0
        self.usage_tokens: int | None = None
        self.done = False

    def feed(self, piece: bytes) -> int:
        """The number of tokens that this piece completed; one without content is none. StreamError for what is wrong in it."""
        before = self.tokens
        *lines, self._tail = (self._tail + piece).split(b"\n")
        if len(self._tail) > _MAX_LINE_BYTES:
            raise StreamError(f"a line longer than {_MAX_LINE_BYTES} bytes")
        for line in lines:
            self._line(line.removesuffix(b"\r"))
        return self.tokens - before

    def end(self) -> None:
        """The connection has ended: StreamError when the answer has not."""
        if self._events and self._data and not self._tail:
            self._event()  # a last event without the empty line after it
        if self._tail.strip():
            raise StreamError("the stream ended in the middle of a line")
        if not self.done:
            raise StreamError("the stream ended before it said that it was done")
        if not self.tokens:
            raise StreamError("the answer has no token")

    def _line(self, line: bytes) -> None:
        if not self._events:
            if line.strip():
                self._object(line)
        elif not line:
            self._event()
        elif line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))

    def _event(self) -> None:
        data, self._data = b"\n".join(self._data), []
        if data == b"[DONE]":
            self.done = True
        elif data:
            self._object(data)

    def _object(self, text: bytes) -> None:
        try:
            value = orjson.loads(text)
        except ValueError as error:
            raise StreamError(f"not JSON: {text[:80].decode(errors='replace')!r}") from error
        if not isinstance(value, dict):
            raise StreamError(f"no object: {text[:80].decode(errors='replace')!r}")
        if value.get("error"):
            raise StreamError(_error_text(value["error"]))
        if value.get("done") is True:
            self.done = True
        if token := value.get("token"):
            self.tokens += isinstance(token, str)
        self._chunk(value)

    def _chunk(self, value: Mapping[str, Any]) -> None:
        """The parts of an OpenAI chunk; text that a model thinks aloud counts as the tokens it is."""
        usage, choices = value.get("usage"), value.get("choices")
        if isinstance(usage, dict) and type(said := usage.get("completion_tokens")) is int and 0 < said <= _MOST_TOKENS:
            self.usage_tokens = said
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            delta = choice.get("delta")
            if isinstance(delta, dict) and (delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")):
                self.tokens += 1
            if choice.get("finish_reason"):
                self.done = True


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("type") or error.get("message") or "error"
    return str(error)[:200]
