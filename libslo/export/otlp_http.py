"""Deliver things by OTLP/HTTP from a bounded queue and a thread of its own, with an honest account.

Sent again are 429, 502, 503, 504 and broken connections (Retry-After honoured, at most `attempts` times); a partial success
is never sent again: what it rejects is counted. What could not be delivered is counted with the reason.
Source of the rules: the OTLP specification, sections "OTLP/HTTP Response" and "Failures".
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from libslo.errors import InputError
from libslo.otlp import gzip_body

__all__ = ["DeliveryStats", "OtlpSender", "headers_from_environment", "retry_after_s", "signal_url"]

_RETRY = {429, 502, 503, 504}
_LONGEST_PAUSE_S = 300.0  # whoever asks for a longer one is asked again after this
_LONGEST_BACKOFF_S = 30.0
_MOST_ANSWER_BYTES = 4096
_SIGNALS = ("logs", "metrics", "traces")

Item = tuple[str, Any]  # what it belongs to (a signal's name, or ""), and what `encode` understands


@dataclass
class DeliveryStats:
    """Items by what became of them. refused: did not fit into the queue. reasons: why the rest was given up.

    lost: items by (what they belong to, export_queue_full, export_rejected or export_given_up).
    """

    delivered: int = 0
    rejected: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    last_error: str = ""

    @property
    def given_up(self) -> int:
        """Items that were queued and neither delivered nor rejected."""
        return self.reasons.total()

    def all_reasons(self) -> dict[str, int]:
        """Everything that was not delivered, by reason."""
        found = {"queue_full": self.refused, "rejected": self.rejected, **self.reasons}
        return {reason: count for reason, count in found.items() if count}

    def __str__(self) -> str:
        counts = f"{self.delivered} delivered, {self.rejected} rejected, {self.given_up} given up, {self.refused} refused (queue full)"
        return f"{counts}; last error: {self.last_error}" if self.last_error else counts


def signal_url(endpoint: str, signal: str) -> str:
    """The URL for "logs" or "metrics" at a base endpoint such as http://host:4318; a full URL is turned into that signal's."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        shown = endpoint if "@" not in endpoint else "the endpoint"  # what is before an @ is a password
        raise InputError(f"{shown!r} is not an HTTP URL", hint="for example http://127.0.0.1:4318")
    path = parts.path.rstrip("/")
    for each in _SIGNALS:
        path = path.removesuffix(f"/v1/{each}")
    return parts._replace(path=f"{path}/v1/{signal}").geturl()


def headers_from_environment(signal: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The headers of OTEL_EXPORTER_OTLP_HEADERS and, before them, OTEL_EXPORTER_OTLP_<SIGNAL>_HEADERS: ``name=value,…``, percent-encoded.

    InputError names the variable and never shows what is in it.
    Source: the OpenTelemetry specification, "OTLP Exporter Configuration", "Specifying headers via environment variables".
    """
    import re
    from urllib.parse import unquote

    environment = os.environ if environment is None else environment
    found: dict[str, str] = {}
    for variable in ("OTEL_EXPORTER_OTLP_HEADERS", f"OTEL_EXPORTER_OTLP_{signal.upper()}_HEADERS"):
        for number, pair in enumerate(filter(str.strip, environment.get(variable, "").split(",")), 1):
            name, equals, value = (unquote(part).strip() for part in pair.partition("="))
            # RFC 9110: a token, and visible characters; a line break would let a value write headers of its own.
            if not equals or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[\t\x20-\x7e]*", value):
                raise InputError(f"entry {number} is not a header", source=variable, hint="NAME=VALUE,NAME=VALUE, values percent-encoded")
            found[name] = value
    return found


def retry_after_s(text: str, now_unix_s: float) -> float | None:
    """The seconds that a Retry-After header asks for, at least 0; None when it holds neither a number nor an HTTP date.

    Source: RFC 9110 section 10.2.3.
    """
    from datetime import UTC
    from email.utils import parsedate_to_datetime

    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError):
        return None
    return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now_unix_s)


class OtlpSender:
    """Sends items to one URL. `submit` never waits; a full queue refuses and counts.

    encode: a batch of payloads -> the request in JSON form, called in the sender's thread. rejected_field: how an answer's
    partialSuccess names what it left out. headers: added to each request, never shown.
    """

    def __init__(
        self,
        url: str,
        encode: Callable[[Sequence[Any]], Mapping[str, Any]],
        rejected_field: str,
        *,
        headers: Mapping[str, str] | None = None,
        capacity: int = 20_000,
        batch: int = 500,
        linger_s: float = 0.2,
        attempts: int = 5,
        timeout_s: float = 10.0,
        first_wait_s: float = 0.5,
    ) -> None:
        self._url, self._encode, self._rejected_field = url, encode, rejected_field
        self._headers = {**(headers or {}), "Content-Type": "application/json", "Content-Encoding": "gzip"}
        self._capacity, self._batch, self._linger_s = capacity, batch, linger_s
        self._attempts, self._timeout_s, self._first_wait_s = attempts, timeout_s, first_wait_s
        self._stats = DeliveryStats()
        self._queue: deque[Item] = deque()
        self._in_flight: list[Item] = []
        self._changed = threading.Condition()  # also guards the account
        self._closing, self._stopped = threading.Event(), threading.Event()
        self._deadline = float("inf")  # time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True, name="otlp-sender")
        self._thread.start()

    @property
    def stats(self) -> DeliveryStats:
        """The account so far, as a copy."""
        with self._changed:
            return deepcopy(self._stats)

    def submit(self, items: Iterable[Item]) -> None:
        """Queue items, in order; what does not fit is counted as refused."""
        items = list(items)
        with self._changed:
            room = 0 if self._closing.is_set() else max(self._capacity - len(self._queue), 0)
            self._queue.extend(items[:room])
            self._stats.refused += len(items[room:])
            self._stats.lost.update((key, "export_queue_full") for key, _ in items[room:])
            self._changed.notify()

    def close(self, grace_s: float = 10.0) -> DeliveryStats:
        """Send what is queued for at most `grace_s`, count the rest as given up ("closed"), and return the account."""
        with self._changed:
            if not self._closing.is_set():
                self._deadline = time.monotonic() + grace_s
                self._closing.set()
            self._changed.notify()
        self._thread.join(max(self._deadline - time.monotonic(), 0.0))
        with self._changed:
            self._stopped.set()
            # A request that hangs is left to its thread, which finds that its batch has been counted already.
            self._give_up([*self._in_flight, *self._queue], "closed")
            self._in_flight = []
            self._queue.clear()
            self._changed.notify()
        return self.stats

    def _give_up(self, items: Sequence[Item], reason: str) -> None:
        if items:
            self._stats.reasons[reason] += len(items)
            why = "export_rejected" if reason.startswith("http_4") and reason != "http_429" else "export_given_up"
            self._stats.lost.update((key, why) for key, _ in items)

    def _run(self) -> None:
        session = _session()
        while batch := self._next():
            try:
                reason, rejected, error = self._send(session, [payload for _, payload in batch])
            except Exception as failure:  # one batch that cannot be written or sent must not end the thread
                reason, rejected, error = "not_sendable", 0, type(failure).__name__
            with self._changed:
                if self._in_flight is not batch:
                    return
                self._in_flight = []
                self._stats.last_error = error or self._stats.last_error
                if reason:
                    self._give_up(batch, reason)
                    continue
                rejected = min(max(rejected, 0), len(batch))
                self._stats.rejected += rejected
                self._stats.delivered += len(batch) - rejected
                if rejected:
                    keys = {key for key, _ in batch}
                    # The answer does not say which items it means.
                    self._stats.lost[keys.pop() if len(keys) == 1 else "", "export_rejected"] += rejected

    def _next(self) -> list[Item]:
        """The next batch; empty when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing.is_set())
            self._changed.wait_for(lambda: len(self._queue) >= self._batch or self._closing.is_set(), self._linger_s)
            if self._stopped.is_set():
                return []
            self._in_flight = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
            return self._in_flight

    def _send(self, session: Any, payloads: Sequence[Any]) -> tuple[str, int, str]:
        """(why it was given up, or ""; how many the endpoint rejected; the last error for people)."""
        import random

        import orjson
        import requests

        body = gzip_body(orjson.dumps(self._encode(payloads)))
        wait_s, reason, error = self._first_wait_s, "", ""
        for attempt in range(1, self._attempts + 1):
            asked = None
            timeout_s = max(min(self._timeout_s, self._deadline - time.monotonic()), 0.05)
            try:
                with session.post(
                    self._url, data=body, headers=self._headers, timeout=timeout_s, allow_redirects=False, stream=True
                ) as answer:
                    if answer.status_code < 300:
                        return "", *self._partial_success(answer, timeout_s)
                    reason, error = f"http_{answer.status_code}", f"HTTP {answer.status_code}"
                    if answer.status_code not in _RETRY:
                        return reason, 0, error
                    asked = retry_after_s(answer.headers.get("Retry-After", ""), time.time())
            except requests.Timeout as failure:
                reason, error = "timeout", type(failure).__name__
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as failure:
                reason, error = "connection", type(failure).__name__
            # Retry-After is a lower bound; a little more keeps many agents from coming back at one moment.
            pause_s = wait_s * random.uniform(0.5, 1.5) if asked is None else asked + random.uniform(0, self._first_wait_s)
            wait_s = min(wait_s * 2, _LONGEST_BACKOFF_S)
            if attempt == self._attempts or not self._pause(min(pause_s, _LONGEST_PAUSE_S)):
                break
        return reason, 0, error

    def _pause(self, seconds: float) -> bool:
        """Wait; False, at once, when the end comes first."""
        until = time.monotonic() + seconds
        if self._closing.wait(seconds):
            return until < self._deadline and not self._stopped.wait(max(until - time.monotonic(), 0.0))
        return True

    def _partial_success(self, answer: Any, timeout_s: float) -> tuple[int, str]:
        """How many the endpoint says it rejected, and why; 0 when it says nothing of the kind. Never raises."""
        import orjson

        end, content = time.monotonic() + timeout_s, bytearray()
        try:
            for byte in answer.iter_content(1):  # larger pieces would wait for the last byte of a piece, however slow
                content += byte
                if len(content) >= _MOST_ANSWER_BYTES or time.monotonic() > end:
                    break
            partial = orjson.loads(bytes(content) or b"{}").get("partialSuccess") or {}
            rejected = int(partial.get(self._rejected_field) or 0)
        except Exception:  # it was accepted: nothing that the answer says after that may have it sent again
            return 0, ""
        text = "".join(letter for letter in str(partial.get("errorMessage") or "") if letter.isprintable())[:200]
        return rejected, f"rejected: {text}" if rejected > 0 and text else ""


def _session() -> Any:
    """Proxies of the environment are used; logins of a .netrc are not, they would replace the header that was asked for."""
    import requests

    session = requests.Session()
    session.auth = lambda request: request
    return session
