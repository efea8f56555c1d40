"""The lab's services as they run: names, streaming, spans and what happens when the provider fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import numpy as np
import pytest

from libslo.lab.dns_server import answer
from libslo.lab.netns import call_in_netns, netns_of
from libslo.lab.provider import completion_tokens
from libslo.lab.stack import APP_SERVICE, Lab
from libslo.lab.topology import ADDRESSES, NAMES
from libslo.load.plans import planned
from libslo.load.profiles import read_loads
from libslo.spans import KIND_CLIENT, KIND_SERVER, Span, decode_spans

_ASK = """
import json, sys, time, urllib.request, urllib.error
request = urllib.request.Request("http://rag.lab:8080/chat", json.dumps(json.loads(sys.argv[1])).encode())
try:
    with urllib.request.urlopen(request, timeout=20) as response:
        for line in response:
            print(json.dumps({"at": time.monotonic(), "status": response.status, "line": json.loads(line)}))
except urllib.error.HTTPError as error:
    print(json.dumps({"status": error.code, "line": json.loads(error.read())}))
"""


class RunningStack:
    """A lab with a sink for its spans."""

    def __init__(self, lab: Lab, spans_file: Path) -> None:
        self.lab = lab
        self._spans_file = spans_file

    def in_role(self, role: str, *command: str) -> str:
        process = self.lab.topology.spawn(role, command, stdout=subprocess.PIPE)
        return process.communicate(timeout=30)[0].decode()

    def ask(self, **body: Any) -> list[dict[str, Any]]:
        said = self.in_role("client", sys.executable, "-c", _ASK, json.dumps({"prompt": "why slow", **body}))
        return [json.loads(line) for line in said.splitlines()]

    def spans_of(self, request_id: str, count: int) -> dict[str, Span]:
        """The spans of a request's trace by name, waited for until there are as many as expected."""
        deadline = time.monotonic() + 5
        while True:
            spans = [span for line in self._spans_file.read_text().splitlines() for span in decode_spans(json.loads(line))]
            traces = {span.trace_id for span in spans if span.attributes.get("llm.request_id") == request_id}
            found = {span.name: span for span in spans if span.trace_id in traces}
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


@pytest.fixture(scope="module")
def stack(lab_ground: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One lab for all tests of this file, its provider quick."""
    directory = tmp_path_factory.mktemp("stack")
    os.environ["SLO_STATE_DIR"] = str(directory / "state")
    try:
        with Lab(provider_options=["--ttft-ms", "60"], retrieval_options=["--service-ms", "5"]) as lab:
            spans_file = directory / "spans.jsonl"
            with spans_file.open("wb") as out:
                sink = [sys.executable, str(Path(__file__).with_name("otlp_sink.py")), ADDRESSES["obs"]]
                process = lab.topology.spawn("obs", sink, stdout=out, stderr=subprocess.PIPE)
            assert process.stderr is not None
            assert process.stderr.readline() == b"ready\n"
            yield RunningStack(lab, spans_file)
            process.stderr.close()
    finally:
        del os.environ["SLO_STATE_DIR"]


def test_every_name_resolves_through_the_labs_server(stack: RunningStack) -> None:
    """From every role, the C library's resolver gives each name of the lab its address, and nothing for another name."""
    code = (
        "import json, socket, sys\n"
        "def look(name):\n"
        "    try: return sorted({row[4][0] for row in socket.getaddrinfo(name, 1, type=socket.SOCK_STREAM)})\n"
        "    except socket.gaierror as error: return error.errno == socket.EAI_NONAME\n"
        "print(json.dumps({name: look(name) for name in sys.argv[1:]}))"
    )
    for role in ("client", "app", "obs"):
        found = json.loads(stack.in_role(role, sys.executable, "-c", code, *NAMES, "absent.lab", "example.com"))
        assert found == {**{name: [ADDRESSES[of]] for name, of in NAMES.items()}, "absent.lab": True, "example.com": True}


def test_dns_over_tcp(stack: RunningStack) -> None:
    """The name server answers over TCP as well."""
    import dns.query

    query = dns.message.make_query("provider.lab", "A")
    namespace = netns_of(stack.lab.topology.pids["client"])
    response = call_in_netns(namespace, lambda: dns.query.tcp(query, ADDRESSES["dns"], timeout=5))
    assert [str(item) for item in response.answer[0]] == [ADDRESSES["llm"]]


def test_tokens_stream_one_by_one(stack: RunningStack) -> None:
    """The answer is the prompt's own tokens, spread over the provider's pace and not held back to the end."""
    lines = stack.ask(request_id="stream-1")
    assert [line["line"]["token"] for line in lines[:-1]] == completion_tokens("why slow", 16)
    assert lines[-1]["line"] == {"done": True, "request_id": "stream-1", "tokens": 16}
    assert lines[-1]["at"] - lines[0]["at"] == pytest.approx(15 * 0.008, abs=0.1)


def test_spans_have_parents_and_attributes(stack: RunningStack) -> None:
    """One request makes one trace: request over retrieval with two calls, context, and generation; backends below their calls."""
    (*_, last) = stack.ask(request_id="spans-1", profile="rag_medium")
    spans = stack.spans_of("spans-1", 9)
    parent = {name: next((n for n, s in spans.items() if s.span_id == span.parent_span_id), None) for name, span in spans.items()}
    assert parent == {
        "chat.request": None,
        "chat.retrieval": "chat.request",
        "retrieval.embedding": "chat.retrieval",
        "retrieval.vector_search": "chat.retrieval",
        "chat.context": "chat.request",
        "chat.generation": "chat.request",
        "embed": "retrieval.embedding",
        "search": "retrieval.vector_search",
        "provider.chat_completions": "chat.generation",
    }
    request, generation, search = spans["chat.request"], spans["chat.generation"], spans["retrieval.vector_search"]
    assert (request.kind, generation.kind, search.kind) == (KIND_SERVER, KIND_CLIENT, KIND_CLIENT)
    assert (request.service, request.pod, request.namespace) == (APP_SERVICE, "rag-service-0", "slo-lab")
    assert request.pid == stack.lab.services[APP_SERVICE].pid
    ttft_ms = request.number("ttft_ms")
    assert ttft_ms is not None
    assert 60 * 0.9 + 2 * 5 <= ttft_ms <= request.duration_ms
    assert request.number("token_throughput_tps") == pytest.approx(1e3 / 8, rel=0.5)
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["llm.session.profile"] == "rag_medium"
    parts_ms = [spans["chat.retrieval"].attributes[f"llm.slo.retrieval.{part}_ms"] for part in ("dns", "network", "vectordb")]
    assert all(part > 0 for part in parts_ms)
    assert 5 < sum(parts_ms) < spans["chat.retrieval"].duration_ms
    assert generation.is_generation
    assert spans["chat.retrieval"].is_retrieval
    assert generation.attributes["gen_ai.request.model"] == "lab-small"
    assert generation.attributes["gen_ai.usage.output_tokens"] == last["line"]["tokens"]
    assert generation.attributes["gen_ai.usage.input_tokens"] == 2
    for span, role, port, name in ((generation, "llm", 8443, "provider.lab"), (search, "retrieval", 8080, "vectordb.lab")):
        assert span.attributes["server.address"] == name
        assert (span.read("peer_address"), span.read("peer_port")) == (ADDRESSES[role], port)
        assert span.read("local_address") == ADDRESSES["app"]
        assert span.read("local_port") > 1024


@pytest.mark.parametrize(("provider_status", "client_status"), [(429, 429), (500, 502), (503, 502)])
def test_provider_failure_reaches_client_and_span(stack: RunningStack, provider_status: int, client_status: int) -> None:
    """A throttling provider makes 429, a failing one 502; both spans are errors and name the provider's status."""
    request_id = f"failure-{provider_status}"
    (said,) = stack.ask(request_id=request_id, model=f"lab-status-{provider_status}")
    assert said == {"status": client_status, "line": {"error": f"http_{provider_status}", "request_id": request_id}}
    spans = stack.spans_of(request_id, 9)
    assert spans["chat.request"].is_error
    assert spans["chat.request"].attributes["http.response.status_code"] == client_status
    assert spans["chat.generation"].is_error
    assert spans["chat.generation"].attributes["http.response.status_code"] == provider_status
    assert spans["chat.generation"].attributes["error.type"] == f"http_{provider_status}"
    assert not spans["chat.retrieval"].is_error


def test_broken_body_is_refused(stack: RunningStack) -> None:
    """A body without a prompt is the client's mistake: 400."""
    assert [line["status"] for line in stack.ask(prompt=None)] == [400]
    code = "import urllib.request as u\ntry: u.urlopen('http://rag.lab:8080/chat', b'[]')\nexcept u.HTTPError as e: print(e.code)"
    assert stack.in_role("client", sys.executable, "-c", code) == "400\n"


def test_client_keeps_its_schedule(stack: RunningStack, tmp_path: Path) -> None:
    """The load generator sends what its seed says, once, at its time, and records it all."""
    path = tmp_path / "requests.jsonl"
    with path.open("wb") as out:
        process = stack.lab.load(["--load", "rag_mixed_20rps", "--seed", "5", "--duration", "2"], out)
    assert process.wait(30) == 0
    rows = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["request_id"])
    plan = list(planned(read_loads().load("rag_mixed_20rps"), np.random.default_rng(5), 2))
    offsets_ns = [row["scheduled_unix_ns"] - rows[0]["scheduled_unix_ns"] + plan[0].offset_ns for row in rows]
    assert offsets_ns == [request.offset_ns for request in plan]
    for row, request in zip(rows, plan, strict=True):
        assert (row["request_id"], row["status"], row["tokens"]) == (request.request_id, 200, request.max_tokens)
        assert row["scheduled_unix_ns"] <= row["sent_unix_ns"] < row["first_token_unix_ns"] < row["last_token_unix_ns"]


def test_client_stops_at_sigterm_with_its_requests_finished(stack: RunningStack, tmp_path: Path) -> None:
    """SIGTERM ends the load early, and what was under way is finished and recorded."""
    path = tmp_path / "requests.jsonl"
    with path.open("wb") as out:
        process = stack.lab.load(["--load", "chat_short", "--rate", "50", "--duration", "60"], out)
    while not path.stat().st_size:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(10) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["status"] for row in rows} == {200}
    assert sorted(row["request_id"] for row in rows) == [f"r-{number:06d}" for number in range(len(rows))]


def test_unsampled_load_leaves_no_spans(stack: RunningStack, tmp_path: Path) -> None:
    """Warm-up requests are answered like others and traced by no service."""
    path = tmp_path / "requests.jsonl"
    with path.open("wb") as out:
        process = stack.lab.load(["--load", "chat_short", "--traceparent", "unsampled", "--prefix", "warm", "--count", "3"], out)
    assert process.wait(30) == 0
    assert [json.loads(line)["status"] for line in path.read_text().splitlines()] == [200] * 3
    stack.ask(request_id="after-warm")
    assert len(stack.spans_of("after-warm", 9)) == 9
    assert stack.spans_of("warm-000000", 0) == {}


@pytest.mark.parametrize(
    ("name", "kind", "code", "answers"),
    [("Rag.LAB", "A", "NOERROR", ["1.2.3.4"]), ("rag.lab", "AAAA", "NOERROR", []), ("x.lab", "A", "NXDOMAIN", [])],
)
def test_zone(name: str, kind: str, code: str, answers: list[str]) -> None:
    """A record: its address; other types of a known name: empty; unknown names: NXDOMAIN. Case does not matter."""
    query = dns.message.make_query(name, kind)
    wire = answer(query.to_wire(), {"rag.lab": "1.2.3.4"})
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    assert dns.rcode.to_text(response.rcode()) == code
    assert [str(item) for rrset in response.answer for item in rrset] == answers


def test_what_is_no_query_gets_no_answer() -> None:
    """Noise is ignored, and an answer is not answered, so that two servers never talk to each other for ever."""
    query = dns.message.make_query("rag.lab", "A")
    assert answer(b"\x00\x01noise", {}) is None
    assert answer(dns.message.make_response(query).to_wire(), {}) is None
