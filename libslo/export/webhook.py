"""Incidents as webhooks: what the attributor hands over, from the settings to the account.

An incident triggers, the same incident again updates, and the end of its episode resolves; an input that ends before the episode
does resolves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from libslo.errors import InputError, SloError
from libslo.export.webhook_delivery import Account, Courier, Outcome, RetryRule, Target, WebhookSender
from libslo.export.webhook_http import Poster, is_public, place_of
from libslo.export.webhook_letters import DeadLetters, dead_letter, read_letters
from libslo.export.webhook_payloads import Event, Letter, make_letter
from libslo.signals import vocabulary

__all__ = ["IncidentWebhook", "WebhookSettings", "replay_letters"]

HURRIED_S = 5.0  # for what is left when somebody wants the tool to end: well within the ten seconds before Docker kills
_MOST_OPEN = 4000  # more than the engine watches services; incidents without an episode (of samples) never end
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class WebhookSettings:
    """Where to, and how. target.url "": the receiver's own. dead_letter: a file for what could not be delivered.

    replay: a file of dead letters that are to be sent instead of incidents.
    """

    target: Target
    rule: RetryRule = field(default_factory=RetryRule)
    forbid_private: bool = False
    strict: bool = False
    dead_letter: str | None = None
    replay: str | None = None


class IncidentWebhook:
    """Takes incidents and episodes, from one thread, and never waits for the receiver.

    InputError for a URL that is none or unsafe, a key that fits no header, a file that cannot be written.
    note: gets the account. alarm: gets each failure, from several threads.
    """

    def __init__(self, settings: WebhookSettings, note: Callable[[str], None], alarm: Callable[[str], None]) -> None:
        self._settings = replace(settings, target=checked_target(settings.target))
        self._letters = _Letters(self._settings, note, alarm)
        self._open: dict[str, Mapping[str, Any]] = {}  # incidents whose episode is not over, by id
        self._sender = WebhookSender(lambda **options: _courier(self._settings, **options), self._letters.note_outcome)
        if not self._settings.target.secrets:
            note("webhooks are not signed: no secret was given (--webhook-secret-file)")

    def submit_incident(self, incident: Mapping[str, Any]) -> None:
        """An incident-attribution object; it is not to be changed any more."""
        event: Event = "update" if incident["incident_id"] in self._open else "trigger"
        self._open[incident["incident_id"]] = incident
        if len(self._open) > _MOST_OPEN:
            del self._open[next(iter(self._open))]
        self._sender.submit(make_letter(self._settings.target.receiver, event, incident))

    def submit_episode(self, episode: Mapping[str, Any]) -> None:
        """An incident-episode object: one that is closed resolves its incident, if that was told."""
        if episode["state"] == "open":
            return
        incident = self._open.pop(episode["incident_id"], None)
        if incident is not None and episode["state"] == "closed":
            self._sender.submit(make_letter(self._settings.target.receiver, "resolve", incident, episode))

    def close(self, hurried: Callable[[], bool] = lambda: False) -> bool:
        """Deliver what is left, within the time that one letter may take, or HURRIED_S once `hurried`; say what became of all.

        False when a delivery failed and the settings are strict.
        """
        account = self._sender.close(self._settings.rule.total_s, lambda: HURRIED_S if hurried() else float("inf"))
        return self._letters.close(account)


def replay_letters(settings: WebhookSettings, path: str, note: Callable[[str], None], alarm: Callable[[str], None]) -> bool:
    """Send the dead letters of a file again, one after another, under their own ids. What fails again is a dead letter again.

    False when a delivery failed and the settings are strict.
    """
    settings = replace(settings, target=checked_target(settings.target))
    found = list(read_letters(path, settings.target.receiver))  # all of it is good before anything is sent
    letters = _Letters(settings, note, alarm)
    courier, account = _courier(settings), Account()
    for letter in found:
        outcome = courier.deliver(letter)
        account.count(outcome)
        letters.note_outcome(letter, outcome)
    return letters.close(account)


class _Letters:
    """Says what could not be delivered, and keeps it."""

    def __init__(self, settings: WebhookSettings, note: Callable[[str], None], alarm: Callable[[str], None]) -> None:
        self._place, self._strict, self._note, self._alarm = place_of(settings.target.url), settings.strict, note, alarm
        self._file = DeadLetters(settings.dead_letter) if settings.dead_letter else None

    def note_outcome(self, letter: Letter, outcome: Outcome) -> None:
        if not outcome.reason:
            return
        if self._file is not None:
            try:
                self._file.write(dead_letter(letter, outcome, self._place, time.time_ns()))
            except SloError as error:
                self._alarm(f"{error}: the letter is lost\n  try: {error.hint}")
        tried = f" after {outcome.attempts} attempts" if outcome.attempts > 1 else ""
        self._alarm(f"{letter.event} of {letter.incident_id} not delivered to {self._place}: {outcome.error}{tried}\n  try: {outcome.hint}")

    def close(self, account: Account) -> bool:
        kept = self._file.written if self._file else 0
        where = f"; {kept} kept in {self._file.path}" if self._file and kept else ""
        lost = f"; {account.failed - kept} lost (--dead-letter FILE keeps them)" if account.failed > kept else ""
        self._note(f"webhooks to {self._place}: {account}{where}{lost}")
        if self._file:
            self._file.close()
        return not (self._strict and account.failed)


def checked_target(target: Target) -> Target:
    """The target with its URL filled in. InputError, which shows neither URL nor key, for what cannot or should not be sent to."""
    table = vocabulary("webhooks")["receivers"][target.receiver]
    url = target.url or table["url"]
    if not url:
        raise InputError("no URL to deliver to", source="--webhook-url", hint="--webhook-url https://HOST/PATH")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.fragment and url.isprintable()
    except ValueError:  # a port or an address that is none
        good = False
    if not good or "@" in parts.netloc or " " in url:
        raise InputError("not a URL of the form https://HOST/PATH", source="--webhook-url", hint="secrets go into a file, not before an @")
    if target.receiver != "generic":
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise InputError("the key would cross the network in the open", source="--webhook-url", hint="an https URL")
        if parts.query:
            raise InputError("a query has no place in it", source="--webhook-url", hint=str(table["url"]))
        _check_key(target)
        url = url.rstrip("/")
    return replace(target, url=url)


def _check_key(target: Target) -> None:
    if len(target.secrets) != 1:
        fact = f"{target.receiver} takes one key, not {len(target.secrets)}"
        raise InputError(fact, source="--webhook-secret-file", hint="a file with the key alone, or SLO_WEBHOOK_SECRET")
    key = target.secrets[0]
    if not key.isascii() or not key.decode().isprintable():
        raise InputError("the key has characters that none has", source="--webhook-secret-file", hint="copy it again")


def _courier(settings: WebhookSettings, **options: Any) -> Courier:
    target = settings.target
    words = [secret.decode("utf-8", "ignore") for secret in target.secrets]
    hidden = target.url.removeprefix(place_of(target.url)).strip("/")
    poster = Poster(is_public if settings.forbid_private else None, hide=[*words, *([hidden] if len(hidden) > 8 else [])])
    return Courier(target, settings.rule, poster.post, **options)
