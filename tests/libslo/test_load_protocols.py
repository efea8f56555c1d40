"""Requests and streams by protocol: what counts as a token, and what is no whole answer."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.errors import InputError
from libslo.load.plans import LoadRequest
from libslo.load.protocols import PROTOCOLS, StreamError, TokenStream, request_body, request_headers, target_url

NDJSON = b'{"index":0,"token":"a "}\n{"index":1,"token":"b"}\n{"done":true,"tokens":2}\n'
SSE = (
    b': hello\n\nevent: token\ndata: {"index":0,"token":"a "}\n\n'
    b'data:{"index":1,\ndata:"token":"b"}\r\n\r\ndata: {"done":true}\n\ndata: [DONE]\n\n'
)


def delta(finish: str | None = None, **parts: str) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"delta": parts, "finish_reason": finish}]}) + b"\n\n"


OPENAI = (
    delta(role="assistant", content="")
    + delta(content="a ")
    + delta(content="b")
    + delta("stop")
    + b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":7}}\n\ndata: [DONE]\n\n'
)
STREAMS = {"ndjson": NDJSON, "sse": SSE, "openai": OPENAI}


def read(protocol: str, data: bytes, sizes: list[int] | None = None) -> TokenStream:
    stream = TokenStream(protocol)
    at = 0
    for size in [*(sizes or []), len(data)]:
        stream.feed(data[at : at + size])
        at += size
    stream.end()
    return stream


@pytest.mark.parametrize("protocol", STREAMS)
@given(sizes=st.lists(st.integers(1, 30), max_size=40))
def test_streams_are_read_however_they_are_cut(protocol: str, sizes: list[int]) -> None:
    """Two tokens, whatever the pieces the network makes of them; roles, comments and the end are no tokens."""
    stream = read(protocol, STREAMS[protocol], sizes)
    assert (stream.tokens, stream.done) == (2, True)
    assert stream.usage_tokens == (7 if protocol == "openai" else None)


@pytest.mark.parametrize("said", [1 << 63, -1, 0, True, 1.5, "7", None])
def test_a_count_that_is_none_is_not_believed(said: object) -> None:
    """What a server says of its tokens is taken when it can be one; otherwise the chunks are the count."""
    last = orjson.dumps({"choices": [], "usage": {"completion_tokens": said}})
    stream = read("openai", delta(content="a") + delta("stop") + b"data: " + last + b"\n\n")
    assert (stream.tokens, stream.usage_tokens, stream.done) == (1, None, True)


def test_a_token_without_content_is_none() -> None:
    """Empty, missing or null text does not stop the clock of the first token."""
    stream = TokenStream("ndjson")
    assert stream.feed(b'{"index":0,"token":""}\n{"index":1}\n{"index":2,"token":null}\n') == 0
    assert stream.feed(b'{"index":3,"token":"x"}\n') == 1


@pytest.mark.parametrize(
    ("protocol", "data", "fact"),
    [
        ("ndjson", b"", "before it said that it was done"),
        ("ndjson", b'{"index":0,"token":"a"}\n', "before it said that it was done"),
        ("ndjson", b'{"index":0,"token":"a"}\n{"done":tr', "middle of a line"),
        ("ndjson", b'{"done":true}\n', "no token"),
        ("ndjson", b'{"index":0,"token":"a"}\n{"error":"http_500"}\n', "http_500"),
        ("ndjson", b"<html>\n", "not JSON"),
        ("ndjson", b"[1]\n", "no object"),
        ("sse", b'data: {"token":"a"}\n\n', "before it said that it was done"),
        ("sse", b'data: {"token":"a"}\n\ndata: {"do', "middle of a line"),
        ("openai", delta(content="a") + b'data: {"error":{"type":"rate_limit_exceeded"}}\n\n', "rate_limit_exceeded"),
        ("openai", delta(content="a"), "before it said that it was done"),
        ("openai", b"data: nonsense\n\n", "not JSON"),
    ],
)
def test_what_is_no_whole_answer_is_an_error(protocol: str, data: bytes, fact: str) -> None:
    """Cut short, broken, empty, or saying so itself."""
    with pytest.raises(StreamError, match=fact):
        read(protocol, data)


@pytest.mark.parametrize("protocol", STREAMS)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(protocol: str, data: bytes) -> None:
    """No input makes the parser fail in another way."""
    try:
        read(protocol, data)
    except StreamError:
        pass


def test_a_line_without_an_end_is_not_held_for_ever() -> None:
    """Beyond a mebibyte the answer is given up."""
    stream = TokenStream("ndjson")
    with pytest.raises(StreamError, match="longer than"):
        for _ in range(100):
            stream.feed(b"x" * 65536)


def test_bodies_carry_what_the_plan_says() -> None:
    """Prompt, id, profile and tokens in the lab's form; messages and usage in OpenAI's; nothing in a GET."""
    request = LoadRequest("r-1", "chat_short", 0, 12, 24, 5)
    lab = orjson.loads(request_body(request, "ndjson", None) or b"")
    assert lab == {"prompt": request.text(), "request_id": "r-1", "profile": "chat_short", "max_tokens": 24}
    asked = orjson.loads(request_body(request, "openai", "m") or b"")
    assert (asked["model"], asked["max_tokens"], asked["stream"]) == ("m", 24, True)
    assert asked["messages"][0]["content"] == request.text() and asked["stream_options"] == {"include_usage": True}
    assert request_body(request, "http", None) is None


def test_the_key_goes_to_openai_only() -> None:
    """No other protocol sends it."""
    keys = {protocol: request_headers(protocol, "secret").get("authorization") for protocol in PROTOCOLS}
    assert keys == {"ndjson": None, "sse": None, "http": None, "openai": "Bearer secret"}


@pytest.mark.parametrize(
    ("url", "protocol", "whole"),
    [
        ("http://a:1", "ndjson", "http://a:1/chat"),
        ("http://a:1/", "sse", "http://a:1/chat"),
        ("https://a/v1", "openai", "https://a/v1/chat/completions"),
        ("https://a", "openai", "https://a/v1/chat/completions"),
        ("http://a/other?x=1", "ndjson", "http://a/other?x=1"),
        ("http://a:1", "http", "http://a:1/"),
        ("http://[::1]:8080/healthz", "http", "http://[::1]:8080/healthz"),
    ],
)
def test_urls_get_the_protocol_s_path(url: str, protocol: str, whole: str) -> None:
    """A URL with a path is left as it is."""
    assert target_url(url, protocol) == whole


@pytest.mark.parametrize("url", ["", "rag.lab:8080", "ftp://a", "http://", "http://a:99999", "http://[::1", "http://me:secret@a"])
def test_what_is_no_url_is_refused(url: str) -> None:
    """And a password in one is not printed."""
    with pytest.raises(InputError) as caught:
        target_url(url, "ndjson")
    assert "secret" not in str(caught.value)
