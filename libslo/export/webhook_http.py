"""One attempt to deliver a webhook: a POST with a limit on all of its time, and what became of it by name.

No redirection is followed and no login of a .netrc is used. A connection is cut when its time is over, however slowly its bytes
drip; only the look-up of a name takes as long as the resolver lets it. With the guard, a name is looked up once, each of its
addresses must be a public one, and the connection goes to the address that was checked, past any proxy: a name server that
answers otherwise a moment later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from libslo.export.otlp_http import retry_after_s
from libslo.signals import vocabulary

__all__ = ["Answer", "Poster", "is_public", "place_of"]

_MOST_SAID_BYTES = 600
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_COMPATIBLE = IPv6Network("::/96")  # RFC 4291: IPv4 inside IPv6, given up long ago


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an attempt. reason: "" when it was delivered. error, hint: for people. again: whether another may help."""

    reason: str
    error: str = ""
    hint: str = ""
    again: bool = False
    retry_after_s: float | None = None


class ForbiddenAddressError(Exception):
    """A name that leads to an address which must not be asked."""


def place_of(url: str) -> str:
    """Scheme, host and port of a URL: all of it that may be shown, since some receivers have their secret in the path."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].partition('?')[0].rpartition('@')[2]}"


def is_public(address: str) -> bool:
    """Whether an IP address is reachable from everywhere: not loopback, private, link-local, shared, multicast or cloud metadata."""
    ip = ip_address(address.partition("%")[0])
    inside = _embedded(ip) if isinstance(ip, IPv6Address) else None
    if inside is not None:
        return is_public(str(inside))
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _not_public())


@cache
def _not_public() -> list[IPv4Network | IPv6Network]:
    return [ip_network(row["network"]) for row in vocabulary("webhooks")["not_public"]["rows"]]


def _embedded(ip: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that packets to this IPv6 address end at."""
    if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 1):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


class Poster:
    """Sends requests one after another. allowed: with it, only addresses that it says yes to are connected to.

    hide: words that are never shown, should an answer repeat them.
    """

    def __init__(self, allowed: Callable[[str], bool] | None = None, hide: Sequence[str] = ()) -> None:
        self._allowed, self._hide = allowed, [word for word in hide if word]
        self._deadline = _Deadline(0)
        self._session = _Session()
        self._session.trust_env = False  # proxies and authorities of the environment are taken below, logins are not
        pools = _pools(self._connect)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(pools))

    def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> Answer:
        """Send it once; never raises for what a network, a receiver or an address does."""
        proxies = requests.utils.get_environ_proxies(url) if self._allowed is None else {}
        verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        with _Deadline(timeout_s) as self._deadline:
            try:
                with self._session.post(
                    url, data=body, headers={**headers, "Connection": "close"}, timeout=timeout_s, allow_redirects=False,
                    stream=True, proxies=proxies, verify=verify,
                ) as answer:  # fmt: skip
                    # A head that was cut short looks like a whole one.
                    return self._timeout(url, timeout_s) if self._deadline.is_over else self._judge(answer)
            except Exception as error:  # libraries below raise what they like: whatever it is, it is this delivery that failed
                return self._name(error, url, timeout_s)

    def _judge(self, answer: requests.Response) -> Answer:
        status = answer.status_code
        if 200 <= status < 300:
            return Answer("")
        reason, error = f"http_{status}", f"HTTP {status}"
        if 300 <= status < 400:
            location = answer.headers.get("Location", "")
            where = self._shown(place_of(location)) if "://" in location else "another path there"
            return Answer(reason, f"{error}: a redirection to {where}", "give --webhook-url the address it leads to, if it is yours")
        said = self._said(answer)
        error = f"{error}: {said}" if said else error
        again = status == 429 or status >= 500
        asked = retry_after_s(answer.headers.get("Retry-After", ""), time.time()) if again else None
        return Answer(reason, error, _http_hint(status), again, asked)

    def _said(self, answer: requests.Response) -> str:
        try:
            content = answer.raw.read(_MOST_SAID_BYTES, decode_content=True)
        except (OSError, ValueError, urllib3.exceptions.HTTPError):
            return ""
        return self._shown(content.decode("utf-8", "replace"))

    def _shown(self, text: str) -> str:
        for word in self._hide:
            text = text.replace(word, "***")
        return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]

    def _name(self, error: Exception, url: str, timeout_s: float) -> Answer:
        place, cause = place_of(url), _innermost(error)
        why = self._shown((getattr(cause, "strerror", None) or str(cause)).lower())
        if self._deadline.is_over or isinstance(error, requests.Timeout):
            return self._timeout(url, timeout_s)
        if isinstance(error, ForbiddenAddressError):
            return Answer("private_address", why, "give a public URL, or leave out --webhook-forbid-private")
        if isinstance(error, requests.exceptions.SSLError):
            distrust = isinstance(cause, ssl.SSLCertVerificationError)
            return Answer("tls", f"TLS: {why}", "name your certificate authority: REQUESTS_CA_BUNDLE=FILE", again=not distrust)
        if isinstance(cause, socket.gaierror | UnicodeError):
            return Answer("dns", f"no address of that name: {why}", f"check the name in {place}", again=True)
        if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            return Answer("connection", f"connection failed: {why}", f"does a receiver listen at {place}?", again=True)
        return Answer("not_sendable", f"{type(error).__name__}: {why}", "check --webhook-url")

    def _timeout(self, url: str, timeout_s: float) -> Answer:
        hint = f"look at {place_of(url)}, or give it longer: --webhook-timeout"
        return Answer("timeout", f"no answer in {timeout_s:.3g} s", hint, again=True)

    def _connect(self, connection: Any, connect: Callable[[], socket.socket]) -> socket.socket:
        """`connect` to the connection's host, or to an address of it that was checked."""
        if self._allowed is None:
            return self._deadline.watch(connect())
        name = connection._dns_host
        try:
            found = dict.fromkeys(str(row[4][0]) for row in socket.getaddrinfo(name, connection.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            raise urllib3.exceptions.NameResolutionError(name, connection, error) from error  # type: ignore[arg-type]
        for address in found:
            if not self._allowed(address):
                raise ForbiddenAddressError(f"{address} is not a public address")
        failure: Exception = urllib3.exceptions.NewConnectionError(connection, "the name has no address")
        try:
            for address in found:
                connection._dns_host = address  # what is connected to; TLS and the Host header look at it later, as it was
                try:
                    return self._deadline.watch(connect())
                except urllib3.exceptions.NewConnectionError as error:
                    failure = error
            raise failure
        finally:
            connection._dns_host = name


class _Deadline:
    """Cuts the connections of one attempt once its time is over."""

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._lock = threading.Lock()
        self._lines: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for line in self._lines:
                line.close()
            self._lines.clear()

    def watch(self, line: socket.socket) -> socket.socket:
        with self._lock:
            self._lines.append(line.dup())  # TLS takes the descriptor over
        if self.is_over:
            self._cut()
        return line

    def _cut(self) -> None:
        self.is_over = True
        with self._lock:
            for line in self._lines:
                try:
                    line.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the other side was faster


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nowhere: even a redirection that is not followed would be read to its end."""


class _Adapter(HTTPAdapter):
    def __init__(self, pools: Mapping[str, type]) -> None:
        self._pools = pools
        super().__init__(max_retries=0)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _pools(connect: Callable[[Any, Callable[[], socket.socket]], socket.socket]) -> dict[str, type]:
    """Connection pools whose connections are made by `connect`."""

    class Plain(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self, super()._new_conn)

    class Secure(urllib3.connection.HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self, super()._new_conn)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _http_hint(status: int) -> str:
    if status in (401, 403):
        return "check the secret: --webhook-secret-file or SLO_WEBHOOK_SECRET"
    if status in (404, 405, 410):
        return "check --webhook-url and --webhook-receiver"
    if status == 429:
        return "the receiver takes no more for now; send it later: --webhook-replay"
    if status >= 500:
        return "the receiver is in trouble; send it later: --webhook-replay"
    return "the receiver does not take it: see what it answers, and --webhook-receiver"


def _innermost(error: BaseException) -> BaseException:
    """The innermost cause, which says most in fewest words."""
    while True:
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((each for each in error.args if isinstance(each, BaseException)), None) or error.__cause__
        if inner is None or inner is error:
            return error
        error = inner
