"""The RAG service: forms of streaming, profiles, metrics, trace context, backends, and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from local_services import put_fault, running
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rag_ground import Ground, llama_imitation, rag, scripted

from libslo.errors import CannotError, InputError
from libslo.lab.documents import DocumentStore
from libslo.lab.model import MAX_TOKENS, Pace, completion_tokens
from libslo.lab.provider import Provider
from libslo.lab.rag_service import API_KEY_VARIABLE, build_service, service_parser
from libslo.signals import vocabulary

_TRACE = "0af7651916cd43dd8448eb211c80319c"


def on(ground: Any, test: Callable[[Ground], Awaitable[None]]) -> None:
    """Run a test on a ground."""

    async def run() -> None:
        async with ground as made:
            await test(made)

    asyncio.run(run())


def chunks(*objects: Any) -> list[bytes]:
    return [b"data: " + json.dumps(each).encode() + b"\n\n" for each in objects]


def test_both_forms_say_the_same() -> None:
    """NDJSON and SSE carry the same objects: every token by its index, then the end; asked for by header or by body."""

    async def test(ground: Ground) -> None:
        answers = [
            await ground.ask(request_id="r"),
            await ground.ask(request_id="r", headers={"accept": "text/event-stream"}),
            await ground.ask(request_id="r", stream_format="sse"),
            await ground.ask(request_id="r", stream_format="ndjson", headers={"accept": "text/event-stream"}),
        ]
        expected = [{"index": index, "token": token} for index, token in enumerate(completion_tokens("why slow", 4))]
        for answer in answers:
            assert answer.status == 200
            assert answer.objects == [*expected, {"done": True, "request_id": "r", "tokens": 4}]
            assert answer.headers["x-request-id"] == "r"
        forms = ["application/x-ndjson", "text/event-stream", "text/event-stream", "application/x-ndjson"]
        assert [answer.content_type for answer in answers] == forms

    on(rag("--backend", "stub", "--tokens", "4", "--ttft-ms", "5", alone=True), test)


def test_stub_answers_as_the_provider_does() -> None:
    """The stub and the lab's provider have the same answer to a prompt, and max_tokens counts for both."""
    said: list[list[str]] = []

    async def test(ground: Ground) -> None:
        said.append((await ground.ask(max_tokens=9)).tokens)
        assert (await ground.ask(max_tokens=1_000_000)).objects[-1]["tokens"] == MAX_TOKENS

    on(rag("--backend", "stub", "--ttft-ms", "5", "--itl-ms", "0", alone=True), test)
    on(rag(provider=Provider(Pace(5, 0), 4).application()), test)
    assert said == [completion_tokens("why slow", 9)] * 2


@pytest.mark.parametrize("profile", [None, "chat_short", "rag_medium", "context_long"])
def test_profile_decides_how_much_is_read(profile: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents asked for and text read are those of the profile; without one, of the default."""
    table = vocabulary("request-profiles")
    about = table["profiles"][profile or table["default"]]
    read: list[bytes] = []
    whole = DocumentStore.read_into

    def read_and_note(self: DocumentStore, buffer: Any, *given: Any) -> None:
        whole(self, buffer, *given)
        read.append(buffer[:])

    monkeypatch.setattr(DocumentStore, "read_into", read_and_note)

    async def test(ground: Ground) -> None:
        answer = await ground.ask(**({"profile": profile} if profile else {}))
        assert answer.tokens == completion_tokens("why slow", 4)
        assert [body["k"] for body in ground.seen.of("/search")] == [about["documents"]]
        assert [len(text) for text in read] == [about["read_kb"] * 1024]
        (asked,) = ground.seen.of("/v1/chat/completions")
        assert [message["role"] for message in asked["messages"]] == ["system", "user"]
        assert read[0][:1024].decode() == asked["messages"][0]["content"]

    on(rag("--documents", str(tmp_path / "d.txt"), "--documents-mb", "1"), test)


def test_metrics_count_every_request_once() -> None:
    """Requests by status and profile, first tokens, paces and retrievals: exactly those that happened."""

    async def test(ground: Ground) -> None:
        for _ in range(3):
            await ground.ask()
        for _ in range(2):
            await ground.ask(profile="chat_short", stream_format="sse")
        await ground.ask(max_tokens=1)  # has a first token and no pace
        await ground.ask(b"[]")
        await ground.ask(model="lab-status-429")
        await ground.ask(model="lab-status-500", profile="context_long")
        await put_fault(ground.session, ground.provider, "provider_reset", lease_s=0.5, ratio=1)
        broken = await ground.ask()
        assert [len(broken.tokens), "error" in broken.objects[-1], broken.status] == [2, True, 200]
        metrics = await ground.metrics()
        counted = {key[1:]: value for key, value in metrics.items() if key[0] == "llm_slo_requests_total"}
        assert counted == {
            ("rag_medium", "200"): 4,
            ("chat_short", "200"): 2,
            ("unknown", "400"): 1,
            ("rag_medium", "429"): 1,
            ("context_long", "502"): 1,
            ("rag_medium", "broken"): 1,
        }
        assert metrics["llm_slo_ttft_ms_count",] == 7
        assert 7 * (5 * 0.9 + 2 * 2) <= metrics["llm_slo_ttft_ms_sum",] < 7 * 500
        assert metrics["llm_slo_tokens_per_sec_count",] == 6
        assert [metrics[f"llm_slo_retrieval_{part}_ms_count",] for part in ("vectordb", "network")] == [9, 9]
        assert metrics["llm_slo_retrieval_vectordb_ms_sum",] >= 9 * 2
        assert metrics["llm_slo_retrieval_dns_ms_count",] == 0  # an address needs no look-up, so there is nothing to measure

    on(rag(), test)


def test_name_lookups_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a name in the URL each retrieval has its look-ups' time, and that is no time of the network or the vector database."""
    quick = socket.getaddrinfo

    def slow(*given: Any, **more: Any) -> Any:
        time.sleep(0.06)
        return quick(*given, **more)

    async def test(ground: Ground) -> None:
        by_name = ground.retrieval.replace("127.0.0.1", "localhost")
        options = service_parser().parse_args(["--backend", "stub", "--embeddings", by_name, "--vectordb", by_name])
        async with running(build_service(options).application()) as url:
            monkeypatch.setattr(socket, "getaddrinfo", slow)
            named = Ground(ground.session, url, ground.provider, ground.retrieval, ground.seen)
            assert (await named.ask(max_tokens=1)).status == 200
            metrics = await named.metrics()
            assert metrics["llm_slo_retrieval_dns_ms_count",] == 1
            assert 120 <= metrics["llm_slo_retrieval_dns_ms_sum",] < 1000
            assert metrics["llm_slo_retrieval_network_ms_sum",] < 60
            assert 2 <= metrics["llm_slo_retrieval_vectordb_ms_sum",] < 60

    on(rag(), test)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Spans of the service by name, once they have ended."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("libslo.lab.rag_service.start_tracing", lambda scope: (provider.get_tracer(scope), provider.shutdown))
    return lambda: {span.name: span for span in exporter.get_finished_spans()}


def test_trace_context_goes_on(spans: Callable[[], dict[str, Any]]) -> None:
    """Provider and both retrieval calls get the caller's trace, each under the span of its own call."""
    names = {"/embed": "retrieval.embedding", "/search": "retrieval.vector_search", "/v1/chat/completions": "chat.generation"}
    parents: dict[str, list[str]] = {}

    async def test(ground: Ground) -> None:
        await ground.ask(headers={"traceparent": f"00-{_TRACE}-00f067aa0ba902b7-01"})
        parents.update({path: headers["traceparent"].split("-") for path, headers, _ in ground.seen.calls})

    on(rag(), test)
    found = spans()
    assert parents.keys() == names.keys()
    for path, (_, trace, span, _) in parents.items():
        assert (trace, span) == (_TRACE, f"{found[names[path]].context.span_id:016x}")
    assert found["chat.request"].parent.span_id == int("00f067aa0ba902b7", 16)


def test_spans_of_a_good_request(spans: Callable[[], dict[str, Any]]) -> None:
    """TTFT and pace are on the request, parts of the retrieval on its span as far as they were measured, counts on the generation."""

    async def test(ground: Ground) -> None:
        await ground.ask(profile="chat_short")

    on(rag(), test)
    found = spans()
    assert found["chat.request"].attributes["llm.session.profile"] == "chat_short"
    assert found["chat.request"].attributes["llm.slo.ttft_ms"] >= 5 * 0.9 + 2 * 2
    assert found["chat.request"].attributes["llm.slo.tokens_per_sec"] > 0
    parts = {key for key in found["chat.retrieval"].attributes if key.startswith("llm.slo.retrieval.")}
    assert parts == {"llm.slo.retrieval.network_ms", "llm.slo.retrieval.vectordb_ms"}  # an address is not looked up
    assert found["chat.retrieval"].attributes["llm.slo.retrieval.vectordb_ms"] >= 2
    usage = {key: value for key, value in found["chat.generation"].attributes.items() if key.startswith("gen_ai.usage")}
    assert usage == {"gen_ai.usage.input_tokens": 2, "gen_ai.usage.output_tokens": 4}
    assert not any(span.status.is_ok is False for span in found.values())


@pytest.mark.parametrize(
    ("fault", "parameters", "status", "kind"),
    [
        ("provider_throttle", {"ratio": 1}, 429, "http_429"),
        ("provider_error", {"ratio": 1, "status": 500}, 502, "http_500"),
        ("provider_reset", {"ratio": 1}, 200, "ClientPayloadError"),
    ],
)
def test_spans_of_a_failure(spans: Callable[[], dict[str, Any]], fault: str, parameters: Any, status: int, kind: str) -> None:
    """Request and generation are errors of that kind; retrieval is not."""

    async def test(ground: Ground) -> None:
        await put_fault(ground.session, ground.provider, fault, **parameters)
        await ground.ask()

    on(rag(), test)
    found = spans()
    for name in ("chat.request", "chat.generation"):
        assert not found[name].status.is_ok
        assert found[name].attributes["error.type"] == kind
    assert found["chat.request"].attributes["http.response.status_code"] == status
    assert found["chat.generation"].attributes["http.response.status_code"] == int(kind[5:] if kind.startswith("http_") else 200)
    assert "error.type" not in found["chat.retrieval"].attributes


def test_stall_is_in_the_time_to_first_token() -> None:
    """app_stall delays the first token by what was asked while its lease lasts, and counts the requests."""

    async def test(ground: Ground) -> None:
        await put_fault(ground.session, ground.url, "app_stall", lease_s=0.4, delay_ms=120)
        await ground.ask(max_tokens=1)
        stalled = (await ground.metrics())["llm_slo_ttft_ms_sum",]
        assert stalled >= 120 + 5 * 0.9
        await asyncio.sleep(0.4)
        await ground.ask(max_tokens=1)
        assert (await ground.metrics())["llm_slo_ttft_ms_sum",] - stalled < 120
        async with ground.session.get(ground.url + "/-/faults") as response:
            assert await response.json() == {"active": [], "served": {"app_stall": 1}}

    on(rag("--allow-faults"), test)


def test_llamacpp_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of an imitation of llama.cpp's /completion; max_tokens is n_predict; the key travels as bearer token only."""
    monkeypatch.setenv(API_KEY_VARIABLE, "s3cret")

    async def test(ground: Ground) -> None:
        service = ["--backend", "llamacpp", "--provider", ground.provider + "/"]
        async with running(build_service(service_parser().parse_args(service)).application()) as url:
            llama = Ground(ground.session, url, ground.provider, ground.retrieval, ground.seen)
            assert (await llama.ask()).tokens == ["so ", "it ", "is"]
            answer = await llama.ask(max_tokens=2)
            assert answer.tokens == ["so ", "it "]
        first, second = ground.seen.calls
        assert first[2] == {"prompt": "why slow", "stream": True}
        assert second[2] == {"prompt": "why slow", "stream": True, "n_predict": 2}
        assert first[1]["Authorization"] == "Bearer s3cret"
        assert "s3cret" not in str(answer)

    on(rag(provider=llama_imitation(["so ", "it ", "is"])), test)


_DELTA = {"choices": [{"delta": {"content": "so"}}]}


@pytest.mark.parametrize(
    ("backend", "lines", "tokens", "error"),
    [
        ("openai", chunks(_DELTA, {"choices": []}), ["so"], None),
        ("openai", [b": comment\n\n", *chunks(_DELTA), b"data: [DONE]\n\n"], ["so"], None),
        ("openai", [b"data:" + json.dumps(_DELTA).encode() + b"\n\n"], ["so"], None),
        ("openai", [], [], "empty_completion"),
        ("openai", [b"data: {nonsense\n\n"], [], "malformed_stream"),
        ("openai", chunks({"object": "x"}), [], "malformed_stream"),
        ("openai", chunks({"choices": [{"delta": None}]}), [], "malformed_stream"),
        ("openai", chunks({"choices": 5}), [], "malformed_stream"),
        ("openai", chunks({"error": {"message": "out of memory"}}), [], "error_in_stream"),
        ("openai", chunks(_DELTA, {"error": {}}), ["so"], "error_in_stream"),
        ("llamacpp", [b'{"content": "so", "stop": false}\n', b'{"content": "", "stop": true}\n'], ["so"], None),
        ("llamacpp", chunks({"content": "so"}), [], "malformed_stream"),
        ("llamacpp", [b'error: {"code": 500}\n\n'], [], "error_in_stream"),
    ],
)
def test_streams_of_model_servers(backend: str, lines: list[bytes], tokens: list[str], error: str | None) -> None:
    """Variants of the stream are read, and what is broken in it is named: 502 before the first token, in the stream after it."""

    async def test(ground: Ground) -> None:
        answer = await ground.ask()
        assert answer.tokens == tokens
        assert answer.objects[-1].get("error") == error
        assert answer.status == (502 if error and not tokens else 200)

    path = "/completion" if backend == "llamacpp" else "/v1/chat/completions"
    on(rag("--backend", backend, provider=scripted(path, lines)), test)


@pytest.mark.parametrize(("status", "client_status"), [(429, 429), (401, 502), (404, 502), (302, 502), (503, 502)])
def test_refusals_of_the_provider(status: int, client_status: int) -> None:
    """429 stays 429, everything else that is not 200 is 502 with the provider's status; a redirect is not followed."""

    async def test(ground: Ground) -> None:
        answer = await ground.ask(request_id="r")
        assert (answer.status, answer.objects) == (client_status, [{"error": f"http_{status}", "request_id": "r"}])

    on(rag(provider=scripted("/v1/chat/completions", [b"{}"], status)), test)


def test_provider_and_retrieval_down() -> None:
    """Nobody listens: 502 with the kind, whichever it is."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"

    async def test(ground: Ground) -> None:
        answer = await ground.ask(request_id="r")
        assert (answer.status, answer.objects) == (502, [{"error": "connect_error", "request_id": "r"}])

    on(rag("--provider", nowhere), test)
    on(rag("--vectordb", nowhere), test)


def test_slow_provider_times_out() -> None:
    """A provider that does not answer in time is 502 with "timeout"."""

    async def test(ground: Ground) -> None:
        await put_fault(ground.session, ground.provider, "provider_throttle", ratio=1, delay_ms=5000)
        assert (await ground.ask()).objects[0]["error"] == "timeout"

    on(rag("--timeout", "0.2"), test)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "with a prompt"),
        (b'"prompt"', "with a prompt"),
        (b'{"prompt": 5}', "with a prompt"),
        (b'{"prompt": null}', "with a prompt"),
        (b'{"prompt": "x", "profile": "rag"}', "no profile 'rag' .*rag_medium"),
        (b'{"prompt": "x", "profile": ["rag_medium"]}', "no profile"),
        (b'{"prompt": "x", "stream_format": "xml"}', "no stream_format 'xml'"),
        (b'{"prompt": "x", "max_tokens": "5"}', "max_tokens cannot be '5'"),
        (b'{"prompt": "x", "max_tokens": 0}', "max_tokens cannot be 0"),
        (b'{"prompt": "x", "max_tokens": 1000001}', "max_tokens cannot be 1000001"),
        (b'{"prompt": "x", "max_tokens": true}', "max_tokens cannot be True"),
        (b'{"prompt": "x", "request_id": "a\\r\\nb: c"}', "request_id must be"),
        (b'{"prompt": "x", "model": "\\ud800"}', "model must be"),
    ],
)
def test_bad_bodies(body: bytes, said: str) -> None:
    """What cannot be answered is the client's mistake, and says which."""

    async def test(ground: Ground) -> None:
        answer = await ground.ask(body)
        assert answer.status == 400
        assert re.search(said, answer.objects[0]["error"]), answer.objects
        assert ground.seen.calls == []

    on(rag("--allow-faults"), test)


def test_any_text_is_a_prompt(tmp_path: Path) -> None:
    """Half a surrogate pair, or nothing at all, is answered as well."""

    async def test(ground: Ground) -> None:
        assert (await ground.ask(b'{"prompt": "\\ud800"}')).status == 200
        assert (await ground.ask(b'{"prompt": ""}')).status == 200

    on(rag("--backend", "stub", "--documents", str(tmp_path / "d.txt"), "--documents-mb", "1", "--ttft-ms", "1", alone=True), test)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "openai"], "openai needs a server"),
        (["--backend", "stub", "--provider", "http://x"], "stub answers itself"),
        (["--vectordb", "http://x"], "retrieval needs both"),
        (["--provider", "localhost:8000"], "'localhost:8000' is not a URL"),
        (["--provider", "http://x:99999"], "is not a URL"),
        (["--provider", "https://"], "is not a URL"),
        (["--provider", "https://me:pw@x"], "a URL with a user name"),
        (["--tokens", "0"], "out of range"),
        (["--ca", "/nowhere.pem"], "no certificate authority"),
        (["--ca", __file__], "no certificate authority"),
    ],
)
def test_options_that_do_not_fit(options: list[str], said: str) -> None:
    """Refused at the start, with a cure."""
    with pytest.raises(InputError, match=said) as caught:
        build_service(service_parser().parse_args(options))
    assert caught.value.hint
    assert "pw" not in str(caught.value)


def test_documents_that_cannot_be_made() -> None:
    """A place where no file can be made is said."""
    with pytest.raises(CannotError, match="cannot make or read the documents"):
        build_service(service_parser().parse_args(["--documents", "/proc/none/d.txt"]))
