"""Delivery of webhooks: which answers are tried again, when, how often, under which id, and how it ends."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from loopback import LoopbackServer, servers
from standardwebhooks import Webhook

from libslo.export.webhook_delivery import Account, Courier, Outcome, RetryRule, Target, WebhookSender
from libslo.export.webhook_http import Answer, Poster
from libslo.export.webhook_payloads import Letter, encode_body
from libslo.export.webhook_signing import parse_secrets, verify

Make = Callable[..., LoopbackServer]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105
KEYS = parse_secrets(SECRET, "test")
QUICK = RetryRule(timeout_s=1.5, total_s=30, first_pause_s=0.02)


@pytest.fixture
def receiver() -> Iterator[Make]:
    with servers() as make:
        yield make


def letter(number: int = 0, receiver: Any = "generic", path: str = "", **body: Any) -> Letter:
    return Letter(receiver, f"msg_{number}", "trigger", f"inc-{number}", path, body or {"number": number})


class Scripted:
    """Plays poster, clock and sleep: answers in turn, each after `took_s` of a time of its own."""

    def __init__(self, *answers: Answer, took_s: float = 0.0) -> None:
        self.answers, self.took_s = answers, took_s
        self.now_s = 1000.0
        self.timeouts_s: list[float] = []
        self.pauses_s: list[float] = []
        self.ids: list[str] = []

    def post(self, _url: str, headers: Any, _body: bytes, timeout_s: float) -> Answer:
        self.ids.append(headers["webhook-id"])
        self.timeouts_s.append(timeout_s)
        self.now_s += min(self.took_s, timeout_s)
        return self.answers[min(len(self.ids), len(self.answers)) - 1]

    def sleep(self, seconds: float) -> bool:
        self.pauses_s.append(seconds)
        self.now_s += seconds
        return True

    def courier(self, rule: RetryRule, chance: Callable[[], float] = lambda: 1.0, **options: Any) -> Courier:
        target = Target("generic", "http://h", KEYS)
        return Courier(target, rule, self.post, rng=chance, sleep=self.sleep, mono_s=lambda: self.now_s, **options)


AGAIN = Answer("http_500", "HTTP 500", "hint", again=True)


def asks(seconds: float) -> Answer:
    return Answer("http_429", "HTTP 429", "hint", again=True, retry_after_s=seconds)


def test_at_most_three_attempts_with_growing_pauses() -> None:
    """Exponential backoff; what was tried three times is given up with the last reason; one id for all attempts."""
    scripted = Scripted(AGAIN)
    assert scripted.courier(RetryRule()).deliver(letter()) == Outcome("http_500", 3, "HTTP 500", "hint")
    assert scripted.pauses_s == [1.0, 2.0] and scripted.ids == ["msg_0"] * 3
    scripted = Scripted(AGAIN)
    scripted.courier(RetryRule(attempts=8)).deliver(letter())
    assert scripted.pauses_s == [1, 2, 4, 8, 10, 10, 10], "no backoff is longer than the longest"


def test_the_jitter_is_full() -> None:
    """Pauses are spread evenly from nothing to the backoff: means of 2000 draws lie within 5 % of the half, extremes near the ends."""
    rng = random.Random(7)
    first, second = zip(*(draw(rng.random) for _ in range(2000)), strict=True)
    for pauses, most in ((first, 1.0), (second, 2.0)):
        assert abs(sum(pauses) / len(pauses) - most / 2) < 0.05 * most and min(pauses) < 0.02 * most and max(pauses) > 0.98 * most


def draw(chance: Callable[[], float]) -> list[float]:
    scripted = Scripted(AGAIN)
    scripted.courier(RetryRule(), chance).deliver(letter())
    return scripted.pauses_s


@pytest.mark.parametrize(("asked_s", "pause_s"), [(0.0, 0.0), (7.0, 7.0), (30.0, 30.0), (31.0, 30.0), (1e11, 30.0)])
def test_retry_after_is_kept_within_bounds(asked_s: float, pause_s: float) -> None:
    """It is a lower bound up to half a minute; the jitter comes on top, so that not all senders come back at one moment."""
    for chance in (0.0, 0.5):
        scripted = Scripted(asks(asked_s), Answer(""))
        assert scripted.courier(RetryRule(), lambda chance=chance: chance).deliver(letter()) == Outcome("", 2)  # type: ignore[misc]
        assert scripted.pauses_s == [pause_s + chance]


def test_what_will_not_help_is_not_tried() -> None:
    """A final answer ends it at once, as does a pause that somebody cuts short."""
    scripted = Scripted(Answer("http_400", "HTTP 400", "hint"))
    assert scripted.courier(RetryRule()).deliver(letter()) == Outcome("http_400", 1, "HTTP 400", "hint")
    scripted = Scripted(AGAIN)
    scripted.sleep = lambda _: False  # type: ignore[method-assign]
    assert scripted.courier(RetryRule()).deliver(letter()).attempts == 1


def test_all_attempts_together_have_a_limit() -> None:
    """An attempt gets what is left of the total at most, and a pause that would use it up is not begun."""
    scripted = Scripted(Answer("timeout", again=True), took_s=99)
    assert scripted.courier(RetryRule(timeout_s=5, total_s=12)).deliver(letter()).attempts == 2
    assert scripted.timeouts_s == [5, 5] and scripted.pauses_s == [1.0], "5 + 1 + 5 + 2 is more than 12"
    scripted = Scripted(Answer("timeout", again=True), took_s=99)
    assert scripted.courier(RetryRule(timeout_s=5, total_s=14)).deliver(letter()).attempts == 3
    assert scripted.timeouts_s == [5, 5, 1]
    scripted = Scripted(AGAIN)
    assert scripted.courier(RetryRule(), left_s=lambda: 0.0).deliver(letter()).reason == "closed" and scripted.ids == []


def test_what_is_too_large_is_not_sent() -> None:
    """The size is looked at before anything leaves."""
    scripted = Scripted(Answer(""))
    outcome = scripted.courier(RetryRule()).deliver(letter(text="x" * 600_000))
    assert (outcome.reason, outcome.attempts, scripted.ids) == ("too_large", 0, [])


def courier(url: str, *, receiver: Any = "generic", keys: tuple[bytes, ...] = KEYS, rule: RetryRule = QUICK, **options: Any) -> Courier:
    return Courier(Target(receiver, url, keys), rule, Poster().post, **options)


@pytest.mark.parametrize(
    ("answers", "reason", "requests"),
    [
        ([200], "", 1),
        ([202], "", 1),
        ([500, 200], "", 2),
        ([500, 503, 200], "", 3),
        ([500, 500, 500, 200], "http_500", 3),
        ([400, 200], "http_400", 1),
        ([404, 200], "http_404", 1),
        ([(307, {"Location": "/elsewhere"}, b""), 200], "http_307", 1),
        ([(429, {"Retry-After": "0"}, b""), 200], "", 2),
        ([None, 200], "", 2),
        ([None], "connection", 3),
        ([30.0, 200], "", 2),
        ([30.0], "timeout", 3),
        ([b"garbage\r\n\r\n", 200], "", 2),
        ([500, None, 400, 200], "http_400", 3),
    ],
)
def test_a_server_that_does_not_behave(receiver: Make, answers: list[Any], reason: str, requests: int) -> None:
    """The right number of attempts, the right end, and one id, one body and a fresh, good signature on each of them."""
    server = receiver(*answers)
    outcome = courier(server.url).deliver(letter())
    assert (outcome.reason, outcome.attempts, len(server.got)) == (reason, requests, requests)
    assert {(got.headers["webhook-id"], got.body) for got in server.got} == {("msg_0", b'{"number":0}')}
    for got in server.got:
        assert Webhook(SECRET).verify(got.body, got.headers) == {"number": 0}
        assert verify(KEYS, got.headers, got.body, time.time()) == "msg_0"


def test_retry_after_holds_the_next_attempt_back(receiver: Make) -> None:
    """A real server that asks for a second gets it, and the same id after it."""
    server = receiver((429, {"Retry-After": "1"}, b""), 200)
    assert courier(server.url).deliver(letter()).reason == ""
    assert server.got[1].mono_s - server.got[0].mono_s >= 1.0
    assert server.got[0].headers["webhook-id"] == server.got[1].headers["webhook-id"]


def test_each_attempt_is_signed_at_its_own_time(receiver: Make) -> None:
    """A retry after minutes would be refused as a replay if it carried the time of the first attempt."""
    server, times = receiver(500, 200), iter([1_767_225_600.9, 1_767_226_000.0])
    courier(server.url, unix_s=lambda: next(times)).deliver(letter())
    assert [got.headers["webhook-timestamp"] for got in server.got] == ["1767225600", "1767226000"]
    for got in server.got:
        assert verify(KEYS, got.headers, got.body, int(got.headers["webhook-timestamp"])) == "msg_0"
    assert server.got[0].headers["webhook-signature"] != server.got[1].headers["webhook-signature"]


def test_each_receiver_gets_its_key_where_it_looks_for_it(receiver: Make) -> None:
    """PagerDuty in the body, Opsgenie in a header, a generic one as signatures or not at all; the letter itself never holds it."""
    server = receiver(202)
    courier(server.url, receiver="pagerduty", keys=(b"R" * 32,)).deliver(letter(1, "pagerduty", event_action="resolve"))
    assert server.got[0].value == {"routing_key": "R" * 32, "event_action": "resolve"}
    courier(server.url, receiver="opsgenie", keys=(b"G",)).deliver(letter(2, "opsgenie", "/v2/alerts", message="m"))
    assert (server.got[1].path, server.got[1].headers["authorization"], server.got[1].value) == (
        "/v2/alerts",
        "GenieKey G",
        {"message": "m"},
    )
    courier(server.url, keys=()).deliver(letter(3))
    assert [got.headers["webhook-id"] for got in server.got] == ["msg_1", "msg_2", "msg_3"]
    for got in server.got:
        assert "webhook-signature" not in got.headers and got.headers["content-type"] == "application/json"
        assert got.headers["user-agent"].startswith("llm-slo-toolkit/")


def test_a_target_does_not_show_its_secrets() -> None:
    """Neither repr nor str of a target has them."""
    assert "hunter2" not in f"{Target('generic', 'http://h', (b'hunter2',))!r}"


Outcomes = list[tuple[str, Outcome]]


def sender(url: str, outcomes: Outcomes, capacity: int = 1000, **options: Any) -> WebhookSender:
    return WebhookSender(
        lambda **more: courier(url, **options, **more), lambda each, outcome: outcomes.append((each.webhook_id, outcome)), capacity
    )


def test_letters_go_in_their_order(receiver: Make) -> None:
    """A letter that has to be tried again holds back those after it, so that no resolve overtakes its trigger."""
    server, outcomes = receiver(200, 500, 200), Outcomes()
    sending = sender(server.url, outcomes)
    for number in range(20):
        sending.submit(letter(number))
    account = sending.close(20)
    assert [got.headers["webhook-id"] for got in server.got] == ["msg_0", "msg_1", *(f"msg_{n}" for n in range(1, 20))]
    assert (account.delivered, account.retried, account.failed) == (20, 1, 0)
    assert str(account) == "20 delivered, 1 sent again, 0 failed"


def test_submit_never_waits(receiver: Make) -> None:
    """With a receiver that hangs, what finds no room in the queue has failed at once; every letter is in the account, once."""
    server, outcomes = receiver(30.0), Outcomes()
    sending = sender(server.url, outcomes, capacity=10, rule=RetryRule(timeout_s=30))
    sending.submit(letter(0))
    server.wait_for(1)
    began = time.monotonic()
    for number in range(1, 5001):
        sending.submit(letter(number))
    assert time.monotonic() - began < 2
    assert [name for name, _ in outcomes] == [f"msg_{n}" for n in range(11, 5001)]
    account = sending.close(0.2)
    assert account.reasons == {"queue_full": 4990, "closed": 11} and account.failed == 5001
    assert len({name for name, _ in outcomes}) == len(outcomes) == 5001


@pytest.mark.parametrize("answer", [30.0, (503, {"Retry-After": "20"}, b""), None, [b"H"] * 400, b"x" * 10])
def test_the_end_waits_for_nobody(receiver: Make, answer: Any) -> None:
    """close comes back within its grace whatever the receiver does, and what comes later changes the account no more."""
    outcomes = Outcomes()
    sending = sender(receiver(answer).url, outcomes, rule=RetryRule(timeout_s=10))
    for number in range(25):
        sending.submit(letter(number))
    time.sleep(0.1)
    began = time.monotonic()
    account = sending.close(0.5)
    assert time.monotonic() - began < 3
    assert account.failed == 25 == len(outcomes) and account.delivered == 0
    time.sleep(0.5)
    assert sending.account == account and len(outcomes) == 25


def test_a_pause_longer_than_the_grace_is_not_waited_for(receiver: Make) -> None:
    """A letter that may only be sent again after the end is given up when the end is known, with its own reason."""
    server, outcomes = receiver((503, {"Retry-After": "20"}, b"")), Outcomes()
    sending = sender(server.url, outcomes, rule=RetryRule())
    sending.submit(letter())
    server.wait_for(1)
    time.sleep(0.3)
    began = time.monotonic()
    assert sending.close(15).reasons == {"http_503": 1} and time.monotonic() - began < 3


def test_the_end_delivers_what_it_can(receiver: Make) -> None:
    """Within the grace everything leaves, retries included; after the end nothing is taken."""
    server, outcomes = receiver(500, 200), Outcomes()
    sending = sender(server.url, outcomes)
    for number in range(50):
        sending.submit(letter(number))
    account = sending.close(30)
    assert (account.delivered, account.retried, account.failed) == (50, 1, 0)
    sending.submit(letter(99))
    assert sending.close(1).reasons == {"queue_full": 1} and len(server.got) == 51


def test_the_end_can_be_hurried(receiver: Make) -> None:
    """A long grace becomes a short one when somebody asks meanwhile."""
    hurried, outcomes = threading.Event(), Outcomes()
    sending = sender(receiver(30.0).url, outcomes, rule=RetryRule(timeout_s=30))
    sending.submit(letter())
    threading.Timer(0.3, hurried.set).start()
    began = time.monotonic()
    account = sending.close(30, lambda: 0.5 if hurried.is_set() else float("inf"))
    assert 0.6 < time.monotonic() - began < 3 and account.reasons == {"closed": 1}


def test_a_letter_that_cannot_be_sent_costs_only_itself(receiver: Make) -> None:
    """What no JSON can hold fails with a reason, and the thread goes on."""
    server, outcomes = receiver(200), Outcomes()
    sending = sender(server.url, outcomes)
    for each in (letter(0), letter(1, x=object()), letter(2)):
        sending.submit(each)
    account = sending.close(10)
    assert account.delivered == 2 and account.reasons == {"not_sendable": 1} and len(server.got) == 2


def test_nothing_is_sent_twice_under_a_new_id(receiver: Make) -> None:
    """However often a letter is tried, over answers of every kind, one content has one id, and one id one content."""
    answers = [200, 500, 500, 500, 400, None, 200, (429, {"Retry-After": "0"}, b""), b"garbage", 200, 503, None, 30.0, 307, 500, 200]
    server, outcomes = receiver(*answers), Outcomes()
    sending = sender(server.url, outcomes)
    for number in range(9):
        sending.submit(letter(number))
    account = sending.close(60)
    pairs = [(got.headers["webhook-id"], got.body) for got in server.got]
    assert set(pairs) == {(f"msg_{n}", encode_body({"number": n})) for n in range(9)}
    assert [len([p for p in pairs if p[0] == f"msg_{n}"]) for n in range(9)] == [1, 3, 1, 2, 3, 3, 1, 2, 1]
    assert all(a <= b for a, b in pairwise(int(name[4:]) for name, _ in pairs)), "and no letter overtakes another"
    assert (account.delivered, account.failed) == (5, 4)


def test_the_account_in_words() -> None:
    """Reasons with their counts, in a fixed order."""
    account = Account()
    for outcome in (Outcome("", 1), Outcome("", 3), Outcome("timeout", 3), Outcome("http_500", 3), Outcome("http_500", 3)):
        account.count(outcome)
    assert str(account) == "2 delivered, 8 sent again, 3 failed (http_500 2, timeout 1)"
