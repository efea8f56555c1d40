"""Deliver letters to one receiver: at most three attempts each, in their order, by a thread of its own.

Sent again are 429, 5xx, no answer in time and broken connections, under the same webhook-id, after an exponential backoff with
full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), never before Retry-After has passed,
unless that asks for more than `longest_pause_s`. What is given up is handed to `on_outcome`, and so is what was delivered.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from libslo import __version__
from libslo.export.webhook_http import Answer
from libslo.export.webhook_payloads import Letter, Receiver, encode_body, limit_fault
from libslo.export.webhook_signing import sign

__all__ = ["Account", "Courier", "Outcome", "RetryRule", "Target", "WebhookSender"]

Post = Callable[[str, Mapping[str, str], bytes, float], Answer]


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver, where it is, and the secrets that it knows the sender by (the current one first)."""

    receiver: Receiver
    url: str
    secrets: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How often and how long. timeout_s: of one attempt. total_s: of all attempts and pauses of one letter."""

    attempts: int = 3
    timeout_s: float = 5.0
    total_s: float = 60.0
    first_pause_s: float = 1.0
    longest_backoff_s: float = 10.0
    longest_pause_s: float = 30.0

    def pause_s(self, failures: int, asked_s: float | None, chance: float) -> float:
        """How long to wait after so many failures. asked_s: what Retry-After says. chance: from 0 to 1."""
        backoff_s = chance * min(self.first_pause_s * 2.0 ** (failures - 1), self.longest_backoff_s)
        if asked_s is None:
            return backoff_s
        return min(asked_s, self.longest_pause_s) + chance * self.first_pause_s  # not all senders at one moment


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a letter. reason: "" when it was delivered."""

    reason: str
    attempts: int
    error: str = ""
    hint: str = ""


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


class Courier:
    """Delivers one letter after another and waits for each. rng: 0 to 1. sleep: False when the pause was cut short.

    left_s: how long deliveries may take at most from now on.
    """

    def __init__(
        self,
        target: Target,
        rule: RetryRule,
        post: Post,
        *,
        rng: Callable[[], float] = random.random,
        sleep: Callable[[float], bool] = _sleep,
        left_s: Callable[[], float] = lambda: float("inf"),
        unix_s: Callable[[], float] = time.time,
        mono_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target, self._rule, self._post = target, rule, post
        self._rng, self._sleep, self._left_s, self._unix_s, self._mono_s = rng, sleep, left_s, unix_s, mono_s

    def deliver(self, letter: Letter) -> Outcome:
        """Try until it is delivered, cannot be, or has been tried often or long enough."""
        fault = limit_fault(letter)
        if fault:
            return Outcome("too_large", 0, fault, "shorten the names of services and signals")
        url, body = self._target.url + letter.path, self._body(letter)
        rule, end_s = self._rule, self._mono_s() + self._rule.total_s
        answer = Answer("closed", "there was no time left for an attempt", "send it later: --webhook-replay")
        attempts = 0
        while (left_s := min(end_s - self._mono_s(), self._left_s())) > 0:
            attempts += 1
            answer = self._post(url, self._headers(letter, body), body, min(rule.timeout_s, left_s))
            if not answer.reason or not answer.again or attempts == rule.attempts:
                break
            pause_s = rule.pause_s(attempts, answer.retry_after_s, self._rng())
            if pause_s >= min(end_s - self._mono_s(), self._left_s()) or not self._sleep(pause_s):
                break
        return Outcome(answer.reason, attempts, answer.error, answer.hint)

    def _body(self, letter: Letter) -> bytes:
        if self._target.receiver == "pagerduty":
            return encode_body({"routing_key": self._target.secrets[0].decode(), **letter.body})
        return encode_body(letter.body)

    def _headers(self, letter: Letter, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": f"llm-slo-toolkit/{__version__}", "webhook-id": letter.webhook_id}
        if self._target.receiver == "opsgenie":
            return {**headers, "Authorization": f"GenieKey {self._target.secrets[0].decode()}"}
        if self._target.receiver == "generic" and self._target.secrets:
            return headers | sign(self._target.secrets, letter.webhook_id, int(self._unix_s()), body)
        return headers


@dataclass
class Account:
    """Letters by what became of them. retried: attempts after a letter's first. reasons: why letters failed."""

    delivered: int = 0
    retried: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Letters that were not delivered."""
        return self.reasons.total()

    def count(self, outcome: Outcome) -> None:
        """Take an outcome into the account."""
        self.retried += max(outcome.attempts - 1, 0)
        if outcome.reason:
            self.reasons[outcome.reason] += 1
        else:
            self.delivered += 1

    def __str__(self) -> str:
        why = f" ({', '.join(f'{reason} {count}' for reason, count in sorted(self.reasons.items()))})" if self.reasons else ""
        return f"{self.delivered} delivered, {self.retried} sent again, {self.failed} failed{why}"


class WebhookSender:
    """A courier in a thread, with a bounded queue. `submit` never waits.

    make_courier: gets `sleep` and `left_s` as keyword arguments. on_outcome: called for every letter, once, from the sender's
    thread, or from that of `submit` and `close` for what the queue had no room or no time for.
    """

    def __init__(self, make_courier: Callable[..., Courier], on_outcome: Callable[[Letter, Outcome], None], capacity: int = 1000) -> None:
        self._make_courier, self._on_outcome, self._capacity = make_courier, on_outcome, capacity
        self._account = Account()
        self._queue: deque[Letter] = deque()
        self._in_flight: Letter | None = None
        self._changed = threading.Condition()  # guards all above
        self._closing = threading.Event()
        self._stopped = False
        self._deadline_s = float("inf")  # time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True, name="webhook-sender")
        self._thread.start()

    @property
    def account(self) -> Account:
        """The account so far, as a copy."""
        with self._changed:
            return replace(self._account, reasons=Counter(self._account.reasons))

    def submit(self, letter: Letter) -> None:
        """Queue a letter; one that finds no room has failed."""
        with self._changed:
            refused = self._closing.is_set() or len(self._queue) >= self._capacity
            if not refused:
                self._queue.append(letter)
                self._changed.notify()
            outcome = Outcome("queue_full", 0, f"{self._capacity} letters wait already", "look at the receiver: it is too slow")
            if refused:
                self._account.count(outcome)
        if refused:
            self._on_outcome(letter, outcome)

    def close(self, grace_s: float, hurry: Callable[[], float] = lambda: float("inf")) -> Account:
        """Deliver what is queued for at most `grace_s`, or as soon as it says so for `hurry()` seconds; the rest has failed."""
        with self._changed:
            self._deadline_s = min(self._deadline_s, time.monotonic() + grace_s)
            self._closing.set()
            self._changed.notify()
        while self._thread.is_alive() and time.monotonic() < self._deadline_s:
            self._thread.join(min(0.1, max(self._deadline_s - time.monotonic(), 0.0)))
            with self._changed:
                self._deadline_s = min(self._deadline_s, time.monotonic() + hurry())
                self._changed.notify()
        with self._changed:
            self._stopped = True
            hanging = self._in_flight  # it is left to its thread, whose outcome nobody waits for any more
            rest = [*filter(None, [hanging]), *self._queue]
            self._in_flight = None
            self._queue.clear()
            outcome = Outcome("closed", 0, "the end came before it was delivered", "send it later: --webhook-replay")
            for _ in rest:
                self._account.count(outcome)
            self._changed.notify()
        for letter in rest:
            self._on_outcome(letter, outcome)
        if hanging is None:
            self._thread.join(1.0)  # it may still be writing down what became of the last one
        return self.account

    def _run(self) -> None:
        courier = self._make_courier(sleep=self._pause, left_s=lambda: self._deadline_s - time.monotonic())
        while (letter := self._next()) is not None:
            try:
                outcome = courier.deliver(letter)
            except Exception as error:  # one letter that cannot be sent must not end the thread
                outcome = Outcome("not_sendable", 0, f"{type(error).__name__}: {error}", "please report it")
            with self._changed:
                if self._in_flight is not letter:
                    return
                self._in_flight = None
                self._account.count(outcome)
            self._on_outcome(letter, outcome)

    def _next(self) -> Letter | None:
        """The next letter; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing.is_set())
            self._in_flight = None if self._stopped or not self._queue else self._queue.popleft()
            return self._in_flight

    def _pause(self, seconds: float) -> bool:
        """Wait; False, at once, when the end comes first."""
        until_s = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or until_s >= self._deadline_s, seconds)
            return not self._stopped and until_s < self._deadline_s
