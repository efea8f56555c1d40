"""kube_source, kube_http: a kubelet and an API server on loopback, whole and broken; no real cluster is part of this."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from fake_kube import CONTAINER, UID, Answer, FakeServer, pod, pod_list

from libslo.kernel.kube_http import Place
from libslo.kernel.kube_source import ApiSource, KubeletSource, PodSource

QUICK: dict[str, Any] = {"gap_s": 0.02, "answer_s": 0.3, "max_backoff_s": 0.05}


def eventually(condition: Callable[[], object], timeout_s: float = 8) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.01)


@contextmanager
def kubelet(place: Place | str, **options: Any) -> Iterator[KubeletSource]:
    source = KubeletSource(Place(place) if isinstance(place, str) else place, **{"interval_s": 0.05, **QUICK, **options})
    try:
        yield source
    finally:
        source.close()
        assert not source._thread.is_alive()


@contextmanager
def api(place: Place | str, **options: Any) -> Iterator[ApiSource]:
    source = ApiSource(Place(place) if isinstance(place, str) else place, "node-a", **{"watch_s": 1, **QUICK, **options})
    try:
        yield source
    finally:
        source.close()
        assert not source._thread.is_alive()


def named(source: PodSource) -> bool:
    found = source.lookup(UID, CONTAINER)
    return bool(found and found.container == "app")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_a_kubelet_names_pods() -> None:
    """One answer of the kubelet names a container; the status says when and how many."""
    with FakeServer(lambda ask: ask.send(pod_list(pod()))) as server, kubelet(server.url) as source:
        assert source.wait_first(5)
        found = source.lookup(UID, CONTAINER)
        assert found and (found.namespace, found.pod, found.container, found.workload) == ("prod", "chat-7d4b9c-x2x9z", "app", "chat")
        status = source.status()
        assert (status.source, status.pods, status.errors, status.bad_pods) == ("kubelet", 1, {}, 0)
        assert abs(time.time_ns() - status.last_success_unix_ns) < 10 * 10**9
        assert server.asked[0] == ("/pods", {}, "")


def test_the_token_is_read_anew_and_sent_over_tls_only(tmp_path: Path, authority: trustme.CA, tls: ssl.SSLContext) -> None:
    """A token that is rotated is used from the next question on; a plain connection never sees it."""
    token, ca = tmp_path / "token", tmp_path / "ca.pem"
    token.write_text("first\n")
    authority.cert_pem.write_to_path(ca)
    with FakeServer(lambda ask: ask.send(pod_list(pod())), tls) as server:
        with kubelet(Place(server.url, token, ca)) as source:
            eventually(lambda: named(source))
            token.write_text("second\n")
            eventually(lambda: server.asked[-1][2] == "Bearer second")
            assert source.status().errors == {}
        assert server.asked[0][2] == "Bearer first"
    with FakeServer(lambda ask: ask.send(pod_list(pod()))) as server, kubelet(Place(server.url, token)) as source:
        eventually(lambda: named(source))
        assert {authorization for _, _, authorization in server.asked} == {""}


def test_certificates_are_verified_unless_told_otherwise(tmp_path: Path, authority: trustme.CA, tls: ssl.SSLContext) -> None:
    """A server whose authority is not ours is refused before the token goes out; --kube-insecure accepts it."""
    token, other = tmp_path / "token", tmp_path / "other.pem"
    token.write_text("secret")
    trustme.CA().cert_pem.write_to_path(other)
    with FakeServer(lambda ask: ask.send(pod_list(pod())), tls) as server:
        for place in (Place(server.url, token), Place(server.url, token, other)):
            with kubelet(place) as source:
                eventually(lambda source=source: source.status().errors.get("tls", 0) > 1)
                assert "certificate" in source.status().last_error
        assert server.asked == []
        with kubelet(Place(server.url, token, insecure=True)) as source:
            eventually(lambda: named(source))


@pytest.mark.parametrize("content", [None, "", "two words", "\x01", "ü"], ids=["missing", "empty", "blank", "control", "no ascii"])
def test_a_token_that_is_none_is_said(tmp_path: Path, content: str | None, authority: trustme.CA, tls: ssl.SSLContext) -> None:
    """Without its token the question is not sent, the reason names the file and never what is in it; later it works."""
    token, ca = tmp_path / "token", tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    if content is not None:
        token.write_text(content)
    with FakeServer(lambda ask: ask.send(pod_list(pod())), tls) as server, kubelet(Place(server.url, token, ca)) as source:
        eventually(lambda: source.status().errors.get("token", 0) > 1)
        assert str(token) in source.status().last_error and "two words" not in source.status().last_error
        assert server.asked == []
        token.write_text("good")
        eventually(lambda: named(source))


def test_nobody_leads_the_question_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a redirection nor a proxy of the environment gets to see what is asked."""
    with FakeServer(lambda ask: ask.send(pod_list(pod()))) as other:
        with FakeServer(lambda ask: ask.send(b"", 302, to=other.url + "/pods")) as server, kubelet(server.url) as source:
            eventually(lambda: source.status().errors.get("http"))
        monkeypatch.setenv("http_proxy", other.url)
        with FakeServer(lambda ask: ask.send(pod_list(pod()))) as server, kubelet(server.url) as source:
            eventually(lambda: named(source))
            assert server.asked
        assert other.asked == []


def test_a_missing_authority_is_said(tmp_path: Path) -> None:
    """A --kube-ca that is not there is an error of its own."""
    with kubelet(Place("https://127.0.0.1:1", ca=tmp_path / "none.pem")) as source:
        eventually(lambda: source.status().errors.get("ca"))


def hang(ask: Answer) -> None:
    ask.server.over.wait(5)


def drip(ask: Answer) -> None:
    ask.send(b"{", claim=1000)
    while not ask.server.over.wait(0.05):
        ask.wfile.write(b" ")


BROKEN: dict[str, tuple[str, Callable[[Answer], None]]] = {
    "401": ("unauthorized", lambda ask: ask.send({"kind": "Status", "code": 401}, 401)),
    "403": ("forbidden", lambda ask: ask.send({"kind": "Status", "code": 403}, 403)),
    "500": ("http", lambda ask: ask.send(b"oops", 500)),
    "not JSON": ("malformed", lambda ask: ask.send(b"<html>")),
    "empty": ("malformed", lambda ask: ask.send(b"")),
    "cut JSON": ("malformed", lambda ask: ask.send(b'{"kind": "PodList", "items": [')),
    "another shape": ("shape", lambda ask: ask.send({"kind": "Status", "status": "Failure"})),
    "no object": ("shape", lambda ask: ask.send([1, 2])),
    "truncated": ("truncated", lambda ask: ask.send(b'{"kind": "PodList", "items": []}', claim=100)),
    "too large": ("too_large", lambda ask: ask.send(b" " * 100_000)),
    "hanging": ("timeout", hang),
    "dripping": ("timeout", drip),
}


@pytest.mark.parametrize(("kind", "broken"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("open_source", [kubelet, api])
def test_what_goes_wrong_is_counted_and_gets_well_again(open_source: Any, kind: str, broken: Callable[[Answer], None]) -> None:
    """Each failure has its kind, pods known before it keep their names, no lookup waits, and the next good answer counts."""
    state = {"broken": True}

    def answer(ask: Answer) -> None:
        if state["broken"]:
            broken(ask)
        elif ask.query.get("watch"):
            ask.stream()
        else:
            ask.send(pod_list(pod()))

    with FakeServer(answer) as server, open_source(server.url, max_bytes=50_000) as source:
        eventually(lambda: source.status().errors.get(kind, 0) > 1)
        assert set(source.status().errors) == {kind}
        assert source.status().last_error.startswith(f"{kind}: ")
        assert source.status().last_success_unix_ns == 0
        begun_s = time.monotonic()
        assert source.lookup(UID, CONTAINER) is None
        assert time.monotonic() - begun_s < 0.1
        state["broken"] = False
        server.over.set()
        eventually(lambda: named(source))
        state["broken"] = True
        asked = len(server.asked)
        server.over.clear()
        eventually(lambda: len(server.asked) > asked + 2)
        assert named(source)
        server.over.set()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_kubelet_that_comes_later_is_found() -> None:
    """Refused connections are counted as unreachable, less and less often, until somebody listens."""
    port = free_port()
    with kubelet(f"http://127.0.0.1:{port}") as source:
        eventually(lambda: source.status().errors.get("unreachable", 0) > 2)
        assert "refused" in source.status().last_error
        with FakeServer(lambda ask: ask.send(pod_list(pod())), port=port):
            eventually(lambda: named(source))


def test_failures_are_asked_about_less_and_less_often() -> None:
    """The wait after the n-th failure in a row doubles up to its limit, with jitter."""
    with kubelet("http://127.0.0.1:1", max_backoff_s=60.0) as source:
        eventually(lambda: source.status().errors)
        source.close()
        waits = []
        for failures in range(1, 12):
            source._failures = failures
            waits.append([source._backoff_s() for _ in range(50)])
        for failures, spread in enumerate(waits, 1):
            top = min(60.0, 0.5 * 2**failures)
            assert top / 2 <= min(spread) < max(spread) <= top


def test_an_unknown_container_is_asked_for_soon() -> None:
    """A container that nobody knew is asked for at once, not a whole interval later; many at once make few questions."""
    there: list[dict[str, Any]] = []
    with FakeServer(lambda ask: ask.send(pod_list(*there))) as server, kubelet(server.url, interval_s=600, gap_s=0.2) as source:
        assert source.wait_first(5)
        there.append(pod())
        assert source.lookup(UID, CONTAINER) is None
        eventually(lambda: named(source), 2)
        asked = len(server.asked)
        begun_s = time.monotonic()
        for number in range(1000):
            source.lookup("", f"{number:064x}")
            time.sleep(max(0.0, begun_s + number / 1000 - time.monotonic()))
        assert 1 <= len(server.asked) - asked <= 6


def test_a_sandbox_is_not_asked_for_for_ever() -> None:
    """A container that the kubelet never tells of costs five questions."""
    with FakeServer(lambda ask: ask.send(pod_list(pod()))) as server, kubelet(server.url, interval_s=600, gap_s=0.01) as source:
        assert source.wait_first(5)
        found = source.lookup(UID, "f" * 64)
        assert found and (found.pod, found.container) == ("chat-7d4b9c-x2x9z", "")
        eventually(lambda: len(server.asked) == 6)
        time.sleep(0.3)
        source.lookup(UID, "f" * 64)
        time.sleep(0.1)
        assert len(server.asked) == 6


def test_deleted_pods_keep_their_names_and_are_bounded() -> None:
    """A pod that the kubelet tells of no more is named for the time of grace; however many come, only so many are kept."""
    there = [pod()]
    with FakeServer(lambda ask: ask.send(pod_list(*there))) as server, kubelet(server.url, grace_s=0.5, max_pods=10) as source:
        eventually(lambda: named(source))
        there.clear()
        asked = len(server.asked)
        eventually(lambda: len(server.asked) > asked + 1)
        assert named(source)
        eventually(lambda: source.lookup(UID, CONTAINER) is None)
        there += [pod(f"p{number}", f"uid-{number}", containers={"app": f"{number:064x}"}) for number in range(100)]
        eventually(lambda: source.status().pods > 1)
        assert source.status().pods == 10


def test_broken_items_are_counted() -> None:
    """What is no pod among pods is left out and counted."""
    with FakeServer(lambda ask: ask.send(pod_list({"metadata": {}}, pod()))) as server, kubelet(server.url, interval_s=600) as source:
        eventually(lambda: named(source))
        assert source.status().bad_pods == 1


def test_the_api_server_is_asked_for_one_node_and_watched() -> None:
    """A list of this node's pods in pages, then a watch from its version on: pods that come, change and go."""
    more = threading.Event()

    def answer(ask: Answer) -> None:
        if ask.query.get("resourceVersion") == "99":
            ask.stream()
        elif ask.query.get("watch"):
            ask.stream({"type": "ADDED", "object": pod("late", "uid-2", containers={"side": "b" * 64}, version="11")}, end=False)
            more.wait(5)
            ask.stream({"type": "MODIFIED", "object": pod("late", "uid-2", containers={"main": "c" * 64}, version="12")}, end=False)
            ask.stream({"type": "DELETED", "object": pod(version="13")}, end=False)
            ask.stream({"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": "99"}}})
        elif ask.query.get("continue"):
            ask.send(pod_list(pod("second", "uid-3", containers={})))
        else:
            ask.send(pod_list(pod(), more="page-2"))

    with FakeServer(answer) as server, api(server.url, grace_s=0.2) as source:
        eventually(lambda: source.lookup("uid-2", "b" * 64))
        assert named(source) and source.lookup("uid-3", "")
        assert source.lookup("", "c" * 64) is None
        more.set()
        eventually(lambda: source.lookup("", "c" * 64))
        eventually(lambda: source.lookup(UID, CONTAINER) is None)
        eventually(lambda: len(server.asked) >= 4)
        assert source.status().errors == {}
    scope = {"fieldSelector": "spec.nodeName=node-a"}
    assert [query.pop("timeoutSeconds", "") != "" for _, query, _ in server.asked[:4]] == [False, False, True, True]
    watch = {**scope, "watch": "1", "allowWatchBookmarks": "true"}
    assert [(path, query) for path, query, _ in server.asked[:4]] == [
        ("/api/v1/pods", {**scope, "limit": "100"}),
        ("/api/v1/pods", {**scope, "limit": "100", "continue": "page-2"}),
        ("/api/v1/pods", {**watch, "resourceVersion": "10"}),
        ("/api/v1/pods", {**watch, "resourceVersion": "99"}),
    ]


GONE: dict[str, Callable[[Answer], None]] = {
    "as an answer": lambda ask: ask.send({"kind": "Status", "code": 410}, 410),
    "as an event": lambda ask: ask.stream({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}),
}


@pytest.mark.parametrize("gone", GONE.values(), ids=GONE)
def test_a_version_that_is_gone_makes_a_new_list(gone: Callable[[Answer], None]) -> None:
    """410 Gone, as an answer or as an event: what was deleted meanwhile is found out by a new list."""
    lists = [pod_list(pod(), version="10"), pod_list(version="20")]

    def answer(ask: Answer) -> None:
        if not ask.query.get("watch"):
            ask.send(lists.pop(0) if len(lists) > 1 else lists[0])
        elif ask.query["resourceVersion"] == "10":
            gone(ask)
        else:
            ask.stream()

    with FakeServer(answer) as server, api(server.url, grace_s=0.1) as source:
        eventually(lambda: [query["resourceVersion"] for _, query, _ in server.asked if "watch" in query][-1:] == ["20"])
        assert source.status().errors == {"gone": 1}
        eventually(lambda: source.lookup(UID, CONTAINER) is None)


BAD_EVENTS = {
    "not JSON": ("malformed", b"{not json"),
    "too large": ("too_large", b" " * 100_000),
    "no event": ("shape", {"hello": 1}),
    "no object": ("shape", {"type": "ADDED"}),
    "another type": ("shape", {"type": "RENAMED", "object": {}}),
}


@pytest.mark.parametrize(("kind", "event"), BAD_EVENTS.values(), ids=BAD_EVENTS)
def test_a_broken_event_makes_a_new_list(kind: str, event: object) -> None:
    """After an event that cannot be read nobody knows what it said: the list is asked for again."""

    def answer(ask: Answer) -> None:
        if not ask.query.get("watch"):
            ask.send(pod_list(pod()))
        else:
            ask.stream(event)

    with FakeServer(answer) as server, api(server.url, max_bytes=50_000) as source:
        eventually(lambda: source.status().errors.get(kind, 0) > 1)
        assert named(source)
        assert sum("watch" not in query for _, query, _ in server.asked) > 1


def test_a_watch_that_is_cut_or_refused_goes_on_from_its_version() -> None:
    """A watch that breaks off, hangs or is refused loses nothing: the next one starts where it stopped, without a new list."""

    def answer(ask: Answer) -> None:
        if not ask.query.get("watch"):
            ask.send(pod_list(pod()))
            return
        watches = sum("watch" in query for _, query, _ in ask.server.asked)
        if watches == 1:
            ask.stream({"type": "ADDED", "object": pod("late", "uid-2", version="17")}, end=False)
            ask.close_connection = True
        elif watches == 2:
            ask.send({"kind": "Status", "code": 403}, 403)
        elif watches == 3:
            hang(ask)
        else:
            ask.stream()

    with FakeServer(answer) as server, api(server.url) as source:
        eventually(lambda: sum("watch" in query for _, query, _ in server.asked) > 3)
        assert source.status().errors == {"truncated": 1, "forbidden": 1, "timeout": 1}
        assert [query.get("resourceVersion") for _, query, _ in server.asked][:5] == [None, "10", "17", "17", "17"]


def test_pages_without_end_are_refused() -> None:
    """A server that always has one more page is left after a hundred."""
    with FakeServer(lambda ask: ask.send(pod_list(more="again"))) as server, api(server.url, max_backoff_s=5.0) as source:
        eventually(lambda: source.status().errors.get("too_large"))
        assert len(server.asked) == 100


def test_closing_ends_a_watch_at_once() -> None:
    """A source that waits for events ends without waiting for one."""

    def answer(ask: Answer) -> None:
        if ask.query.get("watch"):
            ask.stream(end=False)
            hang(ask)
        else:
            ask.send(pod_list(pod()))

    with FakeServer(answer) as server, api(server.url, watch_s=600, answer_s=5) as source:
        eventually(lambda: len(server.asked) == 2)
        time.sleep(0.1)
        begun_s = time.monotonic()
        source.close()
        assert time.monotonic() - begun_s < 1
        assert source.status().errors == {}


def test_a_thousand_lookups_do_not_wait_for_a_kubelet_that_hangs() -> None:
    """The event path never waits for an answer."""
    with FakeServer(hang) as server, kubelet(server.url, answer_s=2) as source:
        eventually(lambda: server.asked)
        begun_s = time.monotonic()
        for number in range(1000):
            assert source.lookup("", f"{number:064x}") is None
        assert time.monotonic() - begun_s < 0.5
        server.over.set()
