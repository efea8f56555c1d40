"""One attempt at a webhook against real servers: what each way to fail is called, how long it may take, and where it may go."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from loopback import LoopbackServer, servers

from libslo.export.webhook_http import Answer, Poster, is_public, place_of

Make = Callable[..., LoopbackServer]
DRIP = [b"HTTP/1.1 200 OK\r\nX-A: ", *[b"a"] * 400]

NOT_PUBLIC = """
127.0.0.1 127.8.8.8 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 169.254.170.2 100.64.0.1 100.100.100.200 192.0.0.192
168.63.129.16 224.0.0.1 240.0.0.1 255.255.255.255 192.0.2.1 198.18.0.1 :: ::1 fe80::1 fe80::1%lo fc00::1 fd00:ec2::254 ff02::1
::ffff:127.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1:: 2002:a9fe:a9fe:: 2001:db8::1
2001::1
"""


@pytest.fixture
def receiver() -> Iterator[Make]:
    with servers() as make:
        yield make


def post(url: str, timeout_s: float = 5.0, **options: Any) -> Answer:
    return Poster(**options).post(url, {"webhook-id": "msg_1"}, b"{}", timeout_s)


@pytest.mark.parametrize("answer", [200, 202, 204, 299, (200, {}, b"whatever")])
def test_every_2xx_is_a_delivery(receiver: Make, answer: Any) -> None:
    """The body and the headers arrive as they were given."""
    server = receiver(answer)
    assert post(f"{server.url}/a/b?c=d") == Answer("")
    assert (server.got[0].path, server.got[0].body, server.got[0].headers["webhook-id"]) == ("/a/b?c=d", b"{}", "msg_1")


@pytest.mark.parametrize(
    ("answer", "reason", "again", "hint"),
    [
        (400, "http_400", False, "--webhook-receiver"),
        (401, "http_401", False, "--webhook-secret-file"),
        (403, "http_403", False, "--webhook-secret-file"),
        (404, "http_404", False, "--webhook-url"),
        (408, "http_408", False, "see what it answers"),
        (410, "http_410", False, "--webhook-url"),
        (422, "http_422", False, "see what it answers"),
        (429, "http_429", True, "--webhook-replay"),
        (500, "http_500", True, "--webhook-replay"),
        (501, "http_501", True, "--webhook-replay"),
        (503, "http_503", True, "--webhook-replay"),
        (301, "http_301", False, "--webhook-url"),
        (b"\x16\x03garbage\r\n\r\n", "connection", True, "does a receiver listen"),
        (b"HTTP/1.1 banana\r\n\r\n", "connection", True, "does a receiver listen"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500, "connection", True, "does a receiver listen"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000, "connection", True, "does a receiver listen"),
        (None, "connection", True, "does a receiver listen"),
    ],
)
def test_each_way_to_fail_has_its_name_and_its_cure(receiver: Make, answer: Any, reason: str, again: bool, hint: str) -> None:
    """Only 429, 5xx and what broke on the way are worth another attempt; each failure says what to do."""
    server = receiver(answer)
    found = post(server.url)
    assert (found.reason, found.again) == (reason, again) and hint in found.hint
    assert len(server.got) == 1, "an attempt is one request"


def test_what_the_receiver_answers_is_shown_without_secrets(receiver: Make) -> None:
    """Its words help, within bounds, on one line, without control characters and without the key, should it repeat it."""
    said = b'{"message":"key 0123456789abcdef is\n\x1b[31m wrong"}' + b"x" * 5000
    found = post(receiver((400, {}, said)).url, hide=["0123456789abcdef"])
    assert found.error.startswith('HTTP 400: {"message":"key *** is [31m wrong"}xxx') and len(found.error) < 220
    assert post(receiver((400, {}, b"")).url).error == "HTTP 400"
    assert post(receiver((400, {"Content-Encoding": "gzip"}, b"no gzip")).url).error == "HTTP 400"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(receiver: Make, status: int) -> None:
    """Where it leads is said without its path, and not asked."""
    target = receiver(200)
    found = post(receiver((status, {"Location": f"{target.url}/secret/path"}, b"")).url)
    assert (found.reason, found.again, target.got) == (f"http_{status}", False, [])
    assert found.error == f"HTTP {status}: a redirection to {target.url}"
    assert post(receiver((status, {"Location": "/secret"}, b"")).url).error == f"HTTP {status}: a redirection to another path there"


@pytest.mark.parametrize("location", ["http://[bad", "", "//", "\xff"])
def test_a_redirection_is_not_read_either(receiver: Make, location: str) -> None:
    """Wherever it says it leads, and however slowly it says the rest, it is what its status is."""
    head = f"HTTP/1.1 307 Elsewhere\r\nLocation: {location}\r\nContent-Length: 4000\r\n\r\n".encode("latin-1")
    began = time.monotonic()
    found = post(receiver([head, *[b"x"] * 400]).url, timeout_s=10)
    assert (found.reason, found.again) == ("http_307", False) and time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0", 0.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("soon", None), ("-1", None), (None, None)]
)
def test_retry_after(receiver: Make, header: str | None, seconds: float | None) -> None:
    """Seconds, a date that has passed, and what is neither; of answers that are worth another attempt only."""
    headers = {"Retry-After": header} if header is not None else {}
    assert post(receiver((429, headers, b"")).url).retry_after_s == seconds
    assert post(receiver((503, headers, b"")).url).retry_after_s == seconds
    assert post(receiver((400, headers, b"")).url).retry_after_s is None


def test_retry_after_as_a_date(receiver: Make) -> None:
    """A date is counted from now."""
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    asked = post(receiver((503, {"Retry-After": date}, b"")).url).retry_after_s
    assert asked is not None and 90 < asked <= 100


@pytest.mark.parametrize("answer", [60.0, DRIP, [b"H"] * 400])
def test_an_attempt_ends_when_its_time_is_over(receiver: Make, answer: Any) -> None:
    """A server that hangs, and one that drips a byte now and then for ever, are cut off."""
    began = time.monotonic()
    found = post(receiver(answer).url, timeout_s=0.5)
    assert (found.reason, found.again) == ("timeout", True) and "--webhook-timeout" in found.hint
    assert 0.4 < time.monotonic() - began < 5


def test_a_success_does_not_wait_for_its_body(receiver: Make) -> None:
    """The status is the answer: a body that never ends changes nothing."""
    began = time.monotonic()
    assert post(receiver([b"HTTP/1.1 202 Accepted\r\nContent-Length: 4000\r\n\r\n", *[b" "] * 400]).url, timeout_s=10).reason == ""
    assert time.monotonic() - began < 5


def test_the_words_of_an_error_are_not_waited_for_long(receiver: Make) -> None:
    """An error whose body drips is that error, within the attempt's time."""
    began = time.monotonic()
    found = post(receiver([b"HTTP/1.1 500 No\r\nContent-Length: 4000\r\n\r\n", *[b"x"] * 400]).url, timeout_s=1.5)
    assert (found.reason, found.again) == ("http_500", True) and time.monotonic() - began < 5


def test_a_silent_tls_handshake_is_cut() -> None:
    """A server that takes the connection and says nothing to a TLS hello costs the attempt's time, no more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        assert post(f"https://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.5).reason == "timeout"
        assert time.monotonic() - began < 5


def test_nobody_there() -> None:
    """A closed port and a name without an address are told apart; both are worth another attempt."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = post(f"http://127.0.0.1:{port}/secret-path")
    assert (found.reason, found.again, found.error) == ("connection", True, "connection failed: connection refused")
    assert f"http://127.0.0.1:{port}?" in found.hint and "secret" not in found.hint


def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up that fails says so, with and without the guard."""

    def fails(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    for allowed in (None, is_public):
        found = post("http://receiver.example/x", allowed=allowed)
        assert (found.reason, found.again) == ("dns", True) and "http://receiver.example" in found.hint


@pytest.mark.parametrize("url", ["http://a..b/", f"http://{'a' * 70}.example/", "http://\u2603.\u0301/"])
def test_a_name_that_can_be_none(url: str) -> None:
    """What no name can be is a failure with a name of its own, not a bug."""
    assert post(url).reason in ("dns", "not_sendable") and post(url, allowed=is_public).reason in ("dns", "not_sendable")


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def tls_server(make: Make, authority: trustme.CA, name: str, answer: Any = 200) -> LoopbackServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return make(answer, tls=context)


def test_a_tls_connection_that_drips_is_cut(receiver: Make, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside TLS, too, an attempt ends when its time is over."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    began = time.monotonic()
    assert post(tls_server(receiver, authority, "127.0.0.1", DRIP).url, timeout_s=1).reason == "timeout"
    assert time.monotonic() - began < 5


def test_a_certificate_that_nobody_knows(receiver: Make, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown authority and another name are final and send nothing; REQUESTS_CA_BUNDLE names an authority of one's own."""
    server, other = tls_server(receiver, authority, "127.0.0.1"), tls_server(receiver, authority, "other.example")
    found = post(server.url)
    assert (found.reason, found.again, server.got) == ("tls", False, []) and "REQUESTS_CA_BUNDLE" in found.hint
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    assert post(server.url).reason == "" and len(server.got) == 1
    assert post(other.url).reason == "tls" and other.got == []
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    assert post(server.url).reason == "not_sendable"


def test_plain_http_where_tls_is_expected(receiver: Make) -> None:
    """A handshake with a server that speaks no TLS is called TLS."""
    found = post(receiver(200).url.replace("http:", "https:"))
    assert found.reason == "tls"


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_addresses_that_are_not_public(address: str) -> None:
    """Loopback, private, link-local, shared, multicast, documentation, cloud metadata, and all of it wrapped in IPv6."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::"])
def test_addresses_that_are_public(address: str) -> None:
    """Others are, wrapped or not."""
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "2130706433", "127.1", "[::1]", "0"])
def test_the_guard_refuses_this_machine_however_it_is_written(receiver: Make, host: str) -> None:
    """Nothing is connected to, and it is no use to try again."""
    server = receiver(200)
    found = post(f"http://{host}:{server.port}/", allowed=is_public)
    assert (found.reason, found.again, server.got) == ("private_address", False, []) and "--webhook-forbid-private" in found.hint


def answers_of(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """A name server that gives these addresses for receiver.example, one list a question; returns the questions as they come."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != "receiver.example":
            return real(host, port, *arguments, **options)
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_a_name_that_changes_its_mind_gains_nothing(receiver: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was checked is the one that is connected to: a second answer is not asked for (127.0.0.2 plays the public one)."""
    good, bad = receiver(200, host="127.0.0.2"), receiver(200)
    asked = answers_of(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
    for server in (good, bad):
        post(f"http://receiver.example:{server.port}/", allowed=lambda address: address != "127.0.0.1")
        del asked[1:]
    assert len(good.got) == 1 and good.got[0].headers["host"] == f"receiver.example:{good.port}" and bad.got == []
    asked.clear()
    post(f"http://receiver.example:{good.port}/", allowed=lambda address: address != "127.0.0.1")
    assert len(asked) == 1 and len(good.got) == 2


def test_one_private_address_among_others_is_enough(receiver: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads here as well as elsewhere is refused as a whole."""
    server = receiver(200, host="127.0.0.2")
    answers_of(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    found = post(f"http://receiver.example:{server.port}/", allowed=lambda address: address != "127.0.0.1")
    assert (found.reason, server.got) == ("private_address", []) and "127.0.0.1" in found.error


def test_the_next_address_is_tried(receiver: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several good addresses one that answers is enough."""
    server = receiver(200, host="127.0.0.2")
    answers_of(monkeypatch, ["127.0.0.3", "127.0.0.2"])
    assert post(f"http://receiver.example:{server.port}/", allowed=lambda _: True).reason == ""
    answers_of(monkeypatch, [])
    assert post(f"http://receiver.example:{server.port}/", allowed=lambda _: True).reason in ("dns", "connection")


def test_the_guard_checks_certificates_by_name(
    receiver: Make, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connected to by address, the server is still known by its name."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    answers_of(monkeypatch, ["127.0.0.1"])
    right, wrong = tls_server(receiver, authority, "receiver.example"), tls_server(receiver, authority, "127.0.0.1")
    assert post(f"https://receiver.example:{right.port}/", allowed=lambda _: True).reason == "" and len(right.got) == 1
    assert post(f"https://receiver.example:{wrong.port}/", allowed=lambda _: True).reason == "tls" and wrong.got == []


def test_proxies_of_the_environment_are_used_but_not_past_the_guard(receiver: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect to wherever it likes, so the guard goes without."""
    proxy = receiver(200)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    answers_of(monkeypatch, ["127.0.0.2"])
    assert post("http://receiver.example/x").reason == "" and proxy.got[0].path == "http://receiver.example/x"
    assert post("http://receiver.example:1/x", allowed=lambda _: True).reason == "connection" and len(proxy.got) == 1


def test_a_netrc_adds_nothing(receiver: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login for the host in ~/.netrc is not sent."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = receiver(200)
    post(server.url)
    assert "authorization" not in server.got[0].headers


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://h/T0/B0/secret", "https://h"),
        ("https://h:8443?key=secret", "https://h:8443"),
        ("http://user:secret@h/x", "http://h"),
        ("http://[::1]:80/secret", "http://[::1]:80"),
    ],
)
def test_what_may_be_shown_of_a_url(url: str, place: str) -> None:
    """Scheme, host and port: the rest may be a secret."""
    assert place_of(url) == place
