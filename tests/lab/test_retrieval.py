"""The retrieval backend alone: answers that its input decides, and the slowness that it can be told to have."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import pytest
from local_services import put_fault, running

from libslo.lab.retrieval import Retrieval


async def _ask(session: aiohttp.ClientSession, url: str, body: Any) -> tuple[int, Any, float]:
    began_s = time.monotonic()
    async with session.post(url, json=body) as response:
        return response.status, await response.json(), (time.monotonic() - began_s) * 1e3


def test_answers_and_slowdown() -> None:
    """Both endpoints answer the same before, during and after the fault; only during it later, by what was asked."""

    async def test() -> None:
        async with running(Retrieval(5, allow_faults=True).application()) as url, aiohttp.ClientSession() as session:

            async def both() -> tuple[Any, list[float]]:
                _, embedded, embed_ms = await _ask(session, url + "/embed", {"text": "why"})
                _, found, search_ms = await _ask(session, url + "/search", {**embedded, "k": 3})
                return found, [embed_ms, search_ms]

            before, before_ms = await both()
            assert len(before["ids"]) == 3
            await put_fault(session, url, "retrieval_slowdown", lease_s=1, delay_ms=300)
            during, during_ms = await both()
            await asyncio.sleep(1)
            after, after_ms = await both()
            assert before == during == after
            assert [ms >= 305 for ms in during_ms] == [True, True]
            assert [ms < 250 for ms in (*before_ms, *after_ms)] == [True] * 4
            async with session.get(url + "/-/faults") as response:
                assert await response.json() == {"active": [], "served": {"retrieval_slowdown": 2}}

    asyncio.run(test())


@pytest.mark.parametrize(
    ("path", "body"), [("/embed", []), ("/embed", {}), ("/search", {"vector": [1, 2]}), ("/search", {"vector": "x"}), ("/search", {"k": 3})]
)
def test_bad_bodies(path: str, body: Any) -> None:
    """What cannot be embedded or searched is 400 with a reason."""

    async def test() -> None:
        async with running(Retrieval(0).application()) as url, aiohttp.ClientSession() as session:
            status, said, _ = await _ask(session, url + path, body)
            assert status == 400
            assert "must be" in said["error"]

    asyncio.run(test())
