"""The provider alone: its pace, and each fault that it can be told to make."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from local_services import certified, put_fault, running

from libslo.lab.control import CONTROL_PATH, is_drawn
from libslo.lab.model import Pace, completion_tokens
from libslo.lab.provider import Provider

_TTFT_MS, _ITL_MS, _TOKENS = 20.0, 4.0, 8


@dataclass
class Answer:
    status: int = 0
    took_ms: float = 0.0
    tokens: list[str] = field(default_factory=list)
    token_ms: list[float] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    failure: BaseException | None = None


Ask = Callable[..., Awaitable[Answer]]


def with_provider(test: Callable[[aiohttp.ClientSession, str, Ask], Awaitable[None]]) -> None:
    """Run a test against a provider over TLS; `ask` streams one completion."""

    async def run() -> None:
        server_tls, client_tls = certified()
        application = Provider(Pace(_TTFT_MS, _ITL_MS), _TOKENS, allow_faults=True).application()
        connector = aiohttp.TCPConnector(ssl=client_tls, force_close=True)
        async with running(application, server_tls) as url, aiohttp.ClientSession(connector=connector) as session:

            async def ask(prompt: str = "why slow", **more: Any) -> Answer:
                answer, began_s = Answer(), time.monotonic()
                asked = {"messages": [{"role": "user", "content": prompt}], "stream": True, **more}
                try:
                    async with session.post(url + "/v1/chat/completions", json=asked) as response:
                        answer.status, answer.headers = response.status, dict(response.headers)
                        if response.content_type == "application/json":
                            answer.body = await response.json()
                        async for line in response.content:
                            for choice in json.loads(line[6:])["choices"] if line.startswith(b"data: {") else []:
                                if token := choice["delta"].get("content"):
                                    answer.tokens.append(token)
                                    answer.token_ms.append((time.monotonic() - began_s) * 1e3)
                except (aiohttp.ClientError, OSError) as error:
                    answer.failure = error
                answer.took_ms = (time.monotonic() - began_s) * 1e3
                return answer

            await test(session, url, ask)

    asyncio.run(run())


async def served(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    async with session.get(url + CONTROL_PATH) as response:
        counts: dict[str, int] = (await response.json())["served"]
        return counts


def test_throttle() -> None:
    """The drawn share gets 429 with Retry-After in whole seconds and OpenAI's error body, after the asked delay; others are as ever."""

    async def test(session: aiohttp.ClientSession, url: str, ask: Ask) -> None:
        await put_fault(session, url, "provider_throttle", ratio=0.5, retry_after_s=1.5, delay_ms=60)
        answers = [await ask(max_tokens=2) for _ in range(12)]
        assert [answer.status == 429 for answer in answers] == [is_drawn(1, number, 0.5) for number in range(12)]
        throttled = [answer for answer in answers if answer.status == 429]
        assert await served(session, url) == {"provider_throttle": len(throttled)}
        for answer in throttled:
            assert answer.headers["Retry-After"] == "2"
            assert set(answer.body["error"]) == {"message", "type", "param", "code"}
            assert answer.body["error"]["code"] == "rate_limit_exceeded"
            assert answer.took_ms >= 60
        assert all(answer.tokens == completion_tokens("why slow", 2) for answer in answers if answer.status == 200)

    with_provider(test)


def test_error() -> None:
    """The drawn share gets the asked status, at once."""

    async def test(session: aiohttp.ClientSession, url: str, ask: Ask) -> None:
        await put_fault(session, url, "provider_error", ratio=0.4, status=500)
        answers = [await ask(max_tokens=1) for _ in range(12)]
        assert [answer.status for answer in answers] == [500 if is_drawn(1, number, 0.4) else 200 for number in range(12)]
        assert {answer.body["error"]["type"] for answer in answers if answer.status == 500} == {"server_error"}

    with_provider(test)


@pytest.mark.parametrize(("ttft_factor", "itl_factor"), [(20, 1), (1, 15)])
def test_slow(ttft_factor: float, itl_factor: float) -> None:
    """Each factor moves its own time and not the other; the tokens stay the same."""
    ttft_ms, spread_ms = _TTFT_MS * ttft_factor, _ITL_MS * (_TOKENS - 1) * itl_factor

    async def test(session: aiohttp.ClientSession, url: str, ask: Ask) -> None:
        await put_fault(session, url, "provider_slow", ttft_factor=ttft_factor, itl_factor=itl_factor)
        answer = await ask()
        assert answer.tokens == completion_tokens("why slow", _TOKENS)
        assert ttft_ms * 0.9 <= answer.token_ms[0] < ttft_ms * 1.1 + 200
        assert spread_ms * 0.9 <= answer.token_ms[-1] - answer.token_ms[0] < spread_ms + 200

    with_provider(test)


@pytest.mark.parametrize("stream", [True, False])
def test_reset(stream: bool) -> None:
    """The client sees ECONNRESET: in the middle of a stream, half of the tokens read, or before an answer in one piece."""

    async def test(session: aiohttp.ClientSession, url: str, ask: Ask) -> None:
        await put_fault(session, url, "provider_reset", ratio=1)
        answer = await ask(stream=stream)
        assert answer.tokens == (completion_tokens("why slow", _TOKENS)[: _TOKENS // 2] if stream else [])
        assert "Connection reset by peer" in str(answer.failure)  # after a FIN it would only miss the end
        assert await served(session, url) == {"provider_reset": 1}

    with_provider(test)


def test_faults_stay_with_their_lease() -> None:
    """Two faults at once both act; when their real leases are over, everything is as before."""

    async def test(session: aiohttp.ClientSession, url: str, ask: Ask) -> None:
        await put_fault(session, url, "provider_error", lease_s=0.3, ratio=1)
        await put_fault(session, url, "provider_throttle", lease_s=0.1, ratio=1)
        assert (await ask()).status == 429  # throttled before failed
        await asyncio.sleep(0.1)
        assert (await ask()).status == 503
        await asyncio.sleep(0.2)
        answer = await ask()
        assert (answer.status, answer.tokens) == (200, completion_tokens("why slow", _TOKENS))
        assert await served(session, url) == {"provider_error": 1, "provider_throttle": 1}

    with_provider(test)


def test_one_piece() -> None:
    """Without stream the answer is the same text, with its usage, when the last token would have come."""

    async def test(session: aiohttp.ClientSession, url: str, ask: Ask) -> None:
        answer = await ask(stream=False)
        assert answer.body["choices"][0]["message"]["content"] == "".join(completion_tokens("why slow", _TOKENS))
        assert answer.body["usage"]["completion_tokens"] == _TOKENS
        assert answer.took_ms >= _TTFT_MS * 0.9 + _ITL_MS * (_TOKENS - 1)

    with_provider(test)


@pytest.mark.parametrize("asked", [{"messages": []}, {"messages": "no"}, {"max_tokens": "many"}, {"max_tokens": None}])
def test_bad_requests(asked: dict[str, Any]) -> None:
    """What is no chat completion request is 400 in OpenAI's form."""

    async def test(_: aiohttp.ClientSession, __: str, ask: Ask) -> None:
        answer = await ask(**asked)
        assert (answer.status, answer.body["error"]["type"]) == (400, "invalid_request_error")

    with_provider(test)
