"""A RAG service in the test's own process with what is behind it, and ways to ask it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from local_services import running
from prometheus_client.parser import text_string_to_metric_families

from libslo.lab.model import Pace
from libslo.lab.provider import Provider
from libslo.lab.rag_service import build_service, service_parser
from libslo.lab.retrieval import Retrieval

__all__ = ["Answer", "Ground", "Seen", "llama_imitation", "rag", "recorded", "scripted"]


@dataclass
class Seen:
    """What a service was asked: path, headers and body of each call."""

    calls: list[tuple[str, Mapping[str, str], Any]] = field(default_factory=list)

    def of(self, path: str) -> list[Any]:
        return [body for each, _, body in self.calls if each == path]


def recorded(application: web.Application, seen: Seen) -> web.Application:
    """The application, noting what it is asked."""

    @web.middleware
    async def note(request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        if request.method == "POST":
            seen.calls.append((request.path, request.headers.copy(), await request.json()))
        response: web.StreamResponse = await handler(request)
        return response

    application.middlewares.append(note)
    return application


def scripted(path: str, lines: list[bytes], status: int = 200) -> web.Application:
    """A server that answers every POST on a path with these bytes, whatever it is asked."""

    async def answer(_: web.Request) -> web.Response:
        elsewhere = {"location": "/elsewhere"} if 300 <= status < 400 else {}
        return web.Response(body=b"".join(lines), status=status, content_type="text/event-stream", headers=elsewhere)

    application = web.Application()
    application.router.add_post(path, answer)
    return application


def llama_imitation(words: list[str]) -> web.Application:
    """NOT llama.cpp: a small imitation of its server's streamed /completion, after the description in its README."""

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, word in enumerate(words[: body.get("n_predict", len(words))]):
            chunk = {"index": 0, "content": word, "tokens": [number], "stop": False, "id_slot": 0, "tokens_predicted": number + 1}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        last = {"content": "", "stop": True, "stop_type": "eos", "tokens_predicted": len(words), "tokens_evaluated": 3}
        await response.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        return response

    application = web.Application()
    application.router.add_post("/completion", complete)
    return application


@dataclass
class Answer:
    status: int
    content_type: str
    objects: list[Any]
    headers: Mapping[str, str]

    @property
    def tokens(self) -> list[str]:
        return [each["token"] for each in self.objects if "token" in each]


@dataclass
class Ground:
    """A running service and a client of it. provider, retrieval: their URLs, and what they were asked."""

    session: aiohttp.ClientSession
    url: str
    provider: str
    retrieval: str
    seen: Seen

    async def ask(self, body: Any = None, headers: dict[str, str] | None = None, **more: Any) -> Answer:
        """POST /chat; the objects of the answer, whichever form it has."""
        asked = json.dumps({"prompt": "why slow", **more}).encode() if body is None else body
        async with self.session.post(self.url + "/chat", data=asked, headers=headers) as response:
            raw = await response.read()
            sse = response.content_type == "text/event-stream"
            parts = raw.split(b"\n\n") if sse else raw.split(b"\n")
            assert not sse or all(part.startswith(b"data: ") for part in parts if part)
            objects = [json.loads(part.removeprefix(b"data: ")) for part in parts if part]
            return Answer(response.status, response.content_type, objects, response.headers)

    async def metrics(self) -> dict[tuple[str, ...], float]:
        """Sample name and its label values, in the order of the labels' names -> value; without buckets."""
        async with self.session.get(self.url + "/metrics") as response:
            assert response.content_type == "text/plain"
            families = list(text_string_to_metric_families(await response.text()))
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
            if not sample.name.endswith(("_bucket", "_created"))
        }


@asynccontextmanager
async def rag(*options: str, provider: web.Application | None = None, alone: bool = False) -> AsyncIterator[Ground]:
    """The service before a quick provider (or the given one) and retrieval; alone: with neither."""
    seen = Seen()
    async with AsyncExitStack() as stack:
        behind = recorded(provider or Provider(Pace(5, 1), 4, allow_faults=True).application(), seen)
        provider_url = await stack.enter_async_context(running(behind))
        retrieval_url = await stack.enter_async_context(running(recorded(Retrieval(2, allow_faults=True).application(), seen)))
        urls = ["--provider", provider_url, "--embeddings", retrieval_url, "--vectordb", retrieval_url]
        service = build_service(service_parser().parse_args([*([] if alone else urls), *options]))
        url = await stack.enter_async_context(running(service.application()))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Ground(session, url, provider_url, retrieval_url, seen)
