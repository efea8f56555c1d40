"""Incidents as webhooks, from the engine's records to the receiver: lifecycles, settings, dead letters and their second life."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import EPISODE, incident, objects
from loopback import LoopbackServer, servers
from runs import joined
from standardwebhooks import Webhook

from libslo.attribute import AttributeSettings, attribute
from libslo.contracts import contract
from libslo.errors import CannotError, InputError
from libslo.export.webhook import IncidentWebhook, WebhookSettings, checked_target, replay_letters
from libslo.export.webhook_delivery import Outcome, RetryRule, Target
from libslo.export.webhook_letters import DeadLetters, dead_letter, read_letters
from libslo.export.webhook_payloads import RECEIVERS, make_letter
from libslo.export.webhook_signing import parse_secrets

Make = Callable[..., LoopbackServer]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105
KEYS = parse_secrets(SECRET, "test")
QUICK = RetryRule(timeout_s=2, total_s=20, first_pause_s=0.02)


@pytest.fixture
def receiver() -> Iterator[Make]:
    with servers() as make:
        yield make


def settings(url: str, receiver: Any = "generic", keys: tuple[bytes, ...] = KEYS, **more: Any) -> WebhookSettings:
    return WebhookSettings(Target(receiver, url, keys), QUICK, **more)


class Said(list[str]):
    """What people are told."""

    def about(self, part: str) -> list[str]:
        return [text for text in self if part in text]


def opened(url: str, **more: Any) -> tuple[IncidentWebhook, Said, Said]:
    notes, alarms = Said(), Said()
    return IncidentWebhook(settings(url, **more), notes.append, alarms.append), notes, alarms


def run(tmp_path: Path, data: bytes, webhook: WebhookSettings, **options: Any) -> tuple[list[dict[str, Any]], bool, Said, Said]:
    (tmp_path / "in.jsonl").write_bytes(data)
    notes, alarms = Said(), Said()
    wanted = AttributeSettings(source=str(tmp_path / "in.jsonl"), out=str(tmp_path / "out.jsonl"), webhook=webhook, **options)
    good = attribute(wanted, notes.append, lambda _: None, alarms.append)
    return objects((tmp_path / "out.jsonl").read_bytes()), good, notes, alarms


def test_a_stream_triggers_and_resolves(receiver: Make, tmp_path: Path) -> None:
    """Each incident that is written triggers, the end of its episode resolves, signed, in order, under one key."""
    server = receiver(200)
    incidents, good, notes, alarms = run(tmp_path, joined("mixed", 44), settings(server.url), episodes_out=str(tmp_path / "e.jsonl"))
    bodies = [Webhook(SECRET).verify(got.body, got.headers) for got in server.got]
    assert good and not alarms and len(incidents) == 5
    assert [body["type"] for body in bodies] == ["incident.triggered", "incident.resolved"] * 5
    assert [body["data"]["incident"] for body in bodies[::2]] == incidents == [body["data"]["incident"] for body in bodies[1::2]]
    closed = [value for value in objects((tmp_path / "e.jsonl").read_bytes()) if value["state"] == "closed"]
    assert [body["data"]["episode"] for body in bodies[1::2]] == closed
    assert [body["data"]["dedup_key"] for body in bodies] == [each["incident_id"] for each in incidents for _ in range(2)]
    assert notes.about("webhooks to") == [f"webhooks to {server.url}: 10 delivered, 0 sent again, 0 failed"]


@pytest.mark.parametrize("kind", ["pagerduty", "opsgenie"])
def test_pagerduty_and_opsgenie_get_theirs(receiver: Make, tmp_path: Path, kind: Any) -> None:
    """Trigger and resolve, or create and close, of the same five keys."""
    server = receiver(202)
    incidents, good, *_ = run(tmp_path, joined("mixed", 44), settings(server.url, kind, (b"k" * 32,)))
    names = [each["incident_id"] for each in incidents]
    assert good and len(names) == 5
    if kind == "pagerduty":
        found = [(got.value["event_action"], got.value["dedup_key"]) for got in server.got]
        assert found == [(action, name) for name in names for action in ("trigger", "resolve")]
    else:
        closed = [f"/v2/alerts/{name}/close?identifierType=alias" for name in names]
        assert [got.path for got in server.got] == [path for each in closed for path in ("/v2/alerts", each)]
        assert [got.value["alias"] for got in server.got[::2]] == names


def test_the_same_stream_sends_the_same_ids(receiver: Make, tmp_path: Path) -> None:
    """A restart that reads its input again sends what a receiver can tell to be the same."""
    server = receiver(200)
    for _ in range(2):
        run(tmp_path, joined("mixed", 44), settings(server.url))
    ids = [got.headers["webhook-id"] for got in server.got]
    assert len(set(ids)) == 10 and ids[:10] == ids[10:]


def test_an_input_that_ends_resolves_nothing(receiver: Make, tmp_path: Path) -> None:
    """An episode that is open when the input ends is not over."""
    server, lines = receiver(200), joined("dns_latency", 1).splitlines(keepends=True)
    whole = run(tmp_path, b"".join(lines), settings(server.url))[0]
    assert [got.value["type"] for got in server.got] == ["incident.triggered", "incident.resolved"]
    server.got.clear()
    until = next(n for n, line in enumerate(lines) if whole[0]["request_ids"][-1].encode() in line) + 40
    incidents, *_ = run(tmp_path, b"".join(lines[:until]), settings(server.url))
    assert len(incidents) == 1 and [got.value["type"] for got in server.got] == ["incident.triggered"]


def test_a_bad_line_does_not_keep_webhooks_back(receiver: Make, tmp_path: Path) -> None:
    """What was found before the bad line is delivered, and the account is given."""
    server = receiver(200)
    with pytest.raises(InputError):
        run(tmp_path, joined("dns_latency", 1) + b"{\n", settings(server.url))
    assert [got.value["type"] for got in server.got] == ["incident.triggered", "incident.resolved"]


def test_the_stream_does_not_wait(receiver: Make, tmp_path: Path) -> None:
    """With a receiver that hangs, the incidents are all written while it still does; the end is bounded."""
    server = receiver(60.0)
    (tmp_path / "in.jsonl").write_bytes(joined("mixed", 44))
    hanging = replace(settings(server.url), rule=RetryRule(timeout_s=60, total_s=1))
    notes, written = Said(), []

    def note(text: str) -> None:
        notes.append(text)
        if "network_egress" in text:
            written.append((tmp_path / "out.jsonl").read_bytes().count(b"\n"))

    began = time.monotonic()
    wanted = AttributeSettings(source=str(tmp_path / "in.jsonl"), out=str(tmp_path / "out.jsonl"), webhook=hanging)
    assert attribute(wanted, note, lambda _: None)
    assert written == [5] and time.monotonic() - began < 10
    assert server.got and notes.about("webhooks to")[0].startswith(f"webhooks to {server.url}: 0 delivered")


def test_an_incident_that_is_written_again_is_an_update(receiver: Make) -> None:
    """The same id again updates until its episode is over; after that it would be a new one."""
    server = receiver(200)
    webhook, *_ = opened(server.url)
    webhook.submit_episode({**EPISODE, "state": "open"})
    for confidence in (0.6, 0.9):
        webhook.submit_incident(incident(confidence=confidence))
    webhook.submit_incident(incident(incident_id="inc-2"))
    webhook.submit_episode(EPISODE)
    webhook.submit_episode({**EPISODE, "incident_id": "inc-2", "state": "open_at_end"})
    webhook.submit_episode({**EPISODE, "incident_id": "inc-3"})
    webhook.submit_episode(EPISODE)
    webhook.submit_incident(incident(confidence=0.7))
    assert webhook.close()
    found = [
        (got.value["type"], got.value["data"]["incident"]["incident_id"], got.value["data"]["incident"]["confidence"]) for got in server.got
    ]
    assert found == [
        ("incident.triggered", "inc-1", 0.6),
        ("incident.updated", "inc-1", 0.9),
        ("incident.triggered", "inc-2", 0.974),
        ("incident.resolved", "inc-1", 0.9),
        ("incident.triggered", "inc-1", 0.7),
    ], "what was never told is not resolved, what only ended with the input neither, and nothing twice"


def test_a_verdict_that_changes_is_an_update(receiver: Make, tmp_path: Path) -> None:
    """With updates on, each line about an incident is one delivery: the first triggers, the others update, all under one key."""
    server = receiver(200)
    incidents, *_ = run(tmp_path, joined("mixed_multi", 42), settings(server.url), update_interval_s=0.5)
    told = [got.value for got in server.got if got.value["type"] != "incident.resolved"]
    assert [body["data"]["incident"] for body in told] == incidents and len(incidents) > len({each["incident_id"] for each in incidents})
    seen: set[str] = set()
    for body in told:
        assert body["type"] == ("incident.updated" if body["data"]["dedup_key"] in seen else "incident.triggered")
        seen.add(body["data"]["dedup_key"])


def test_incidents_that_never_end_are_not_kept_for_ever(receiver: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of incidents without an episode the last ones are known; all were delivered."""
    monkeypatch.setattr("libslo.export.webhook._MOST_OPEN", 40)
    server = receiver(200)
    webhook, *_ = opened(server.url)
    for number in range(60):
        webhook.submit_incident(incident(incident_id=f"inc-{number}"))
    assert len(webhook._open) == 40 and "inc-59" in webhook._open
    assert webhook.close() and len(server.got) == 60


def test_what_fails_is_said_at_once_with_its_cure(receiver: Make) -> None:
    """Each failure names incident, place, reason and cure; without a file for them the account says what is lost."""
    server = receiver((401, {}, b'{"error":"bad signature"}'))
    webhook, notes, alarms = opened(server.url + "/T0/secret-path", strict=True)
    webhook.submit_incident(incident())
    assert not webhook.close()
    (alarm,) = alarms
    assert alarm == (
        f'trigger of inc-1 not delivered to {server.url}: HTTP 401: {{"error":"bad signature"}}\n'
        "  try: check the secret: --webhook-secret-file or SLO_WEBHOOK_SECRET"
    )
    assert notes == [f"webhooks to {server.url}: 0 delivered, 0 sent again, 1 failed (http_401 1); 1 lost (--dead-letter FILE keeps them)"]


def test_only_strict_deliveries_count(receiver: Make) -> None:
    """A failure changes the end under strict alone; a retry that succeeds is no failure."""
    for answers, strict, good in (([400], False, True), ([400], True, False), ([500, 200], True, True)):
        webhook, *_ = opened(receiver(*answers).url, strict=strict)
        webhook.submit_incident(incident())
        assert webhook.close() is good


def test_unsigned_deliveries_are_said(receiver: Make) -> None:
    """Without a secret there is no signature, and whoever starts it is told."""
    server = receiver(200)
    webhook, notes, _ = opened(server.url, keys=())
    webhook.submit_incident(incident())
    webhook.close()
    assert notes.about("not signed") and "webhook-signature" not in server.got[0].headers


@pytest.mark.parametrize("kind", RECEIVERS)
def test_dead_letters_come_to_life(receiver: Make, tmp_path: Path, kind: Any) -> None:
    """What failed is kept as valid lines without the key, and sent again byte for byte under the same ids, in the same order."""
    down, up, path = receiver(500), receiver(200), tmp_path / "new" / "dead.jsonl"
    key = b"0123456789abcdef0123456789abcdef"
    webhook, notes, alarms = opened(down.url, receiver=kind, keys=(key,), dead_letter=str(path))
    webhook.submit_incident(incident(service="räg 😀"))
    webhook.submit_episode(EPISODE)
    webhook.close()
    lines = objects(path.read_bytes())
    assert all(contract("webhook-dead-letter").is_valid(line) for line in lines) and key not in path.read_bytes()
    assert [(line["event"], line["reason"], line["attempts"], line["place"]) for line in lines] == [
        ("trigger", "http_500", 3, down.url),
        ("resolve", "http_500", 3, down.url),
    ]
    assert len(alarms) == 2 and notes[-1].endswith(f"2 failed (http_500 2); 2 kept in {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert replay_letters(settings(up.url, kind, (key,), strict=True), str(path), notes.append, alarms.append)
    assert [(got.headers["webhook-id"], got.path, got.body) for got in up.got] == [
        (got.headers["webhook-id"], got.path, got.body) for got in down.got[::3]
    ]


def test_a_second_life_can_end_as_well(receiver: Make, tmp_path: Path) -> None:
    """A letter that fails again is a dead letter again; strict says so; a file that is appended to keeps what it had."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    second.write_text('{"x":1}\n')
    server = receiver(400)
    webhook, *_ = opened(server.url, dead_letter=str(first))
    webhook.submit_incident(incident())
    webhook.close()
    alarms = Said()
    again = settings(server.url, strict=True, dead_letter=str(second))
    assert not replay_letters(again, str(first), Said().append, alarms.append) and len(alarms) == 1
    kept, (had, new) = objects(first.read_bytes()), objects(second.read_bytes())
    assert had == {"x": 1} and {**new, "failed_unix_nano": 0} == {**kept[0], "failed_unix_nano": 0}


def test_what_is_left_at_the_end_is_kept(receiver: Make, tmp_path: Path) -> None:
    """A receiver that hangs until the end costs no letter: the one under way and those behind it are in the file."""
    path = tmp_path / "dead.jsonl"
    quick = replace(settings(receiver(60.0).url, dead_letter=str(path)), rule=RetryRule(timeout_s=60, total_s=0.5))
    webhook = IncidentWebhook(quick, Said().append, Said().append)
    for number in range(5):
        webhook.submit_incident(incident(incident_id=f"inc-{number}"))
    webhook.close()
    lines = objects(path.read_bytes())
    assert {line["incident_id"] for line in lines} == {f"inc-{n}" for n in range(5)} and len(lines) == 5
    assert {line["reason"] for line in lines} <= {"closed", "timeout"}


def test_a_full_disk_loses_letters_aloud(tmp_path: Path, receiver: Make) -> None:
    """A dead letter that cannot be written is said; nothing breaks."""
    webhook, notes, alarms = opened(receiver(400).url, dead_letter="/dev/full")
    webhook.submit_incident(incident())
    webhook.close()
    assert alarms.about("the letter is lost") and notes[-1].endswith("; 1 lost (--dead-letter FILE keeps them)")


def letter_line(**more: Any) -> bytes:
    letter = make_letter("generic", "trigger", incident())
    return orjson.dumps({**dead_letter(letter, Outcome("http_500", 3, "HTTP 500"), "http://h", 1), **more}) + b"\n"


@pytest.mark.parametrize(
    ("data", "line", "fact"),
    [
        (letter_line() + b"{\n", 2, "not JSON"),
        (letter_line() + b'{"x":1}\n', 2, "not a dead letter"),
        (letter_line(receiver="opsgenie"), 1, "a letter for opsgenie, not for generic"),
        (letter_line(path="@evil.example/"), 1, "path"),
        (letter_line(webhook_id="a\r\nb: c"), 1, "webhook_id"),
        (letter_line(body=None), 1, "body"),
        (letter_line(routing_key="k"), 1, "routing_key"),
    ],
)
def test_a_file_that_holds_anything_else_is_refused(receiver: Make, tmp_path: Path, data: bytes, line: int, fact: str) -> None:
    """The line is named, and nothing of the file is sent."""
    (tmp_path / "dead.jsonl").write_bytes(data)
    server = receiver(200)
    with pytest.raises(InputError, match=fact) as caught:
        replay_letters(settings(server.url), str(tmp_path / "dead.jsonl"), Said().append, Said().append)
    assert (caught.value.source, caught.value.line) == (str(tmp_path / "dead.jsonl"), line) and caught.value.hint and server.got == []


def test_a_letter_read_back_is_the_letter(tmp_path: Path) -> None:
    """Written and read, a letter is equal to itself, for every receiver and event."""
    for number, kind in enumerate(RECEIVERS):
        path = tmp_path / f"{number}.jsonl"
        letters = [make_letter(kind, "trigger", incident()), make_letter(kind, "resolve", incident(), EPISODE)]
        file = DeadLetters(str(path))
        for each in letters:
            file.write(dead_letter(each, Outcome("timeout", 3, "no answer in 5 s"), "https://h", 1))
        file.close()
        assert list(read_letters(str(path), kind)) == letters and file.written == 2


def test_half_a_dead_letter_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not fit is taken back; what an earlier run left torn has its own line."""
    letter = make_letter("generic", "trigger", incident())
    path = tmp_path / "dead.jsonl"
    path.write_bytes(b'{"torn')
    file = DeadLetters(str(path))
    value = dead_letter(letter, Outcome("timeout", 3, "no answer in 5 s"), "https://h", 1)
    file.write(value)
    whole = file._stream

    class Full:
        def write(self, line: bytes) -> int:
            return whole.write(line[:10])

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

    file._stream = Full()  # type: ignore[assignment]
    with pytest.raises(CannotError, match="cut short"):
        file.write(value)
    file._stream = whole
    file.write(value)
    file.close()
    torn, *lines = path.read_bytes().splitlines()
    assert torn == b'{"torn' and [orjson.loads(line) for line in lines] == [value] * 2


def test_a_dead_letter_file_that_cannot_be_opened_is_bad_input(tmp_path: Path) -> None:
    """A directory is named before anything runs."""
    with pytest.raises(InputError, match="cannot write: is a directory") as caught:
        opened("http://h", dead_letter=str(tmp_path))
    assert caught.value.source == str(tmp_path)


@pytest.mark.parametrize(
    "url",
    ["h:80", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://u:hunter2@h", "http://h#x", "http://[::1", "http://h/a b", "x"],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    """Before anything runs, and without showing what may be a password."""
    with pytest.raises(InputError, match="not a URL") as caught:
        checked_target(Target("generic", url))
    assert caught.value.source == "--webhook-url" and "hunter2" not in f"{caught.value}{caught.value.hint}"


def test_targets_by_receiver() -> None:
    """PagerDuty and Opsgenie have URLs of their own, need one key that fits a header, and never get it in the open."""
    key = (b"k" * 32,)
    assert checked_target(Target("pagerduty", "", key)).url == "https://events.pagerduty.com/v2/enqueue"
    assert checked_target(Target("opsgenie", "", key)).url == "https://api.opsgenie.com"
    assert checked_target(Target("opsgenie", "https://api.eu.opsgenie.com/", key)).url == "https://api.eu.opsgenie.com"
    assert checked_target(Target("generic", "http://h/x?y=z", ())).url == "http://h/x?y=z"
    assert checked_target(Target("pagerduty", "http://127.0.0.1:1", key)).url == "http://127.0.0.1:1"
    for target, fact in (
        (Target("generic", "", key), "no URL"),
        (Target("pagerduty", "", ()), "takes one key, not 0"),
        (Target("opsgenie", "", (b"a", b"b")), "takes one key, not 2"),
        (Target("opsgenie", "", ("hünter2".encode(),)), "characters that none has"),
        (Target("opsgenie", "", (b"hunter2\r\nEvil:1",)), "characters that none has"),
        (Target("pagerduty", "http://events.pagerduty.com/v2/enqueue", key), "in the open"),
        (Target("opsgenie", "https://h/?a=b", key), "a query"),
    ):
        with pytest.raises(InputError, match=fact) as caught:
            checked_target(target)
        assert caught.value.hint and "nter2" not in str(caught.value)


def test_the_guard_reaches_the_receiver(receiver: Make) -> None:
    """With forbid_private a receiver on this machine gets nothing, after one attempt."""
    server = receiver(200)
    webhook, _, alarms = opened(server.url, forbid_private=True, strict=True)
    webhook.submit_incident(incident())
    assert not webhook.close() and server.got == [] and "127.0.0.1 is not a public address\n" in alarms[0]


def test_a_key_that_the_receiver_repeats_is_not_shown(receiver: Make, tmp_path: Path) -> None:
    """Neither on the screen nor in the dead letter."""
    key = b"0123456789abcdef0123456789abcdef"
    path = tmp_path / "dead.jsonl"
    webhook, notes, alarms = opened(receiver((400, {}, b"no key " + key)).url, receiver="pagerduty", keys=(key,), dead_letter=str(path))
    webhook.submit_incident(incident())
    webhook.close()
    assert "no key ***" in alarms[0] and key.decode() not in "".join([*notes, *alarms, path.read_text()])
