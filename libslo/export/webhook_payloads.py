"""What each receiver of webhooks is sent about an incident: a generic one, PagerDuty (Events API v2), Opsgenie.

How urgent an incident is, what a receiver takes at most and where that is written is data in ``vocabulary/webhooks.json``. A letter
holds no secret: routing keys and signatures are added on sending, so that a letter can be kept in a file. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from libslo.signals import vocabulary
from libslo.slo import format_timestamp

__all__ = ["RECEIVERS", "Event", "Letter", "Receiver", "clip", "encode_body", "fit_key", "limit_fault", "make_letter", "urgency"]

Event = Literal["trigger", "update", "resolve"]  # PagerDuty's words
Receiver = Literal["generic", "pagerduty", "opsgenie"]
RECEIVERS: tuple[Receiver, ...] = ("generic", "pagerduty", "opsgenie")

_SENDER = "llm-slo-toolkit"
_TYPES = {"trigger": "incident.triggered", "update": "incident.updated", "resolve": "incident.resolved"}
_SPARE = ("request_ids", "trace_ids", "fault_hypotheses", "evidence")  # lists that a body which is too large does without, in this order
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_OVER = {
    "recovery": "its requests keep the objectives again",
    "silence": "there was no request for long, which is no proof of health",
    "clock_step": "the service's clock went back, so its history was dropped",
    "forgotten": "too many services: this one is not watched any more",
}


@dataclass(frozen=True, slots=True)
class Letter:
    """One delivery. webhook_id: the same for the same content, whenever it is sent. path: what follows the receiver's URL."""

    receiver: Receiver
    webhook_id: str
    event: Event
    incident_id: str
    path: str
    body: Mapping[str, Any]


def urgency(burn_rate: float) -> tuple[str, str]:
    """(PagerDuty's severity, Opsgenie's priority) of a burn rate."""
    row = next(row for row in vocabulary("webhooks")["urgency"]["rows"] if burn_rate >= row["at_least"])
    return row["severity"], row["priority"]


def clip(text: str, characters: int | None = None, most_bytes: int | None = None) -> str:
    """The text within both limits, with an ellipsis where it was cut; no code point is cut. characters: UTF-16 code units."""
    units = text.encode("utf-16-le")
    if (characters is None or len(units) <= 2 * characters) and (most_bytes is None or len(text.encode()) <= most_bytes):
        return text
    if characters is not None:
        text = units[: 2 * max(characters - 1, 0)].decode("utf-16-le", "ignore")
    if most_bytes is not None:
        text = text.encode()[: max(most_bytes - 3, 0)].decode("utf-8", "ignore")
    return text + "…"


def fit_key(key: str, most: int) -> str:
    """A key of at most so many characters and bytes (receivers do not say which they count for a key).

    As it is, or its beginning and a digest of all of it, so that two keys never become one.
    """
    if clip(key, most, most) == key:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()
    room = most - len(digest)
    return clip(key, room, room).removesuffix("…") + digest


def encode_body(body: Mapping[str, Any]) -> bytes:
    """The bytes of a body; the same body gives the same bytes."""
    import orjson

    return orjson.dumps(body)


def make_letter(receiver: Receiver, event: Event, incident: Mapping[str, Any], episode: Mapping[str, Any] | None = None) -> Letter:
    """The letter about an incident-attribution object, with the incident-episode that is over when `event` is resolve.

    What a receiver limits is cut; lists that make the body too large are left out, and named. The letter may still be too
    large (a service's name has no bound): who sends it looks at `limit_fault`.
    """
    table = vocabulary("webhooks")["receivers"][receiver]
    limits = {name: row["characters"] for name, row in table["limits"].items()}
    key = fit_key(incident["incident_id"], limits.get("dedup_key") or limits.get("alias") or 1 << 30)
    spare = {name: incident[name] for name in _SPARE if name in incident}
    left_out: list[str] = []
    while True:
        body = _BODIES[receiver](event, {**incident, **spare}, episode or {}, key, limits, left_out)
        full = next((name for name in _SPARE if spare.get(name)), None)
        if full is None or len(encode_body(body)) <= table["body_bytes"]:
            break
        spare[full] = []
        left_out.append(full)
    path = table["path"][event].replace("{alias}", _in_path(key))
    digest = hashlib.sha256(f"{receiver}\0{event}\0{path}\0".encode() + encode_body(body)).hexdigest()[:32]
    return Letter(receiver, f"msg_{digest}", event, incident["incident_id"], path, body)


def limit_fault(letter: Letter) -> str:
    """What is wrong with the size of a letter, or nothing."""
    size, most = len(encode_body(letter.body)), vocabulary("webhooks")["receivers"][letter.receiver]["body_bytes"]
    return f"{size} bytes, more than the {most} that {letter.receiver} takes" if size > most else ""


def _generic(
    event: Event, incident: Mapping[str, Any], episode: Mapping[str, Any], key: str, limits: Mapping[str, int], left_out: list[str]
) -> dict[str, Any]:
    severity, priority = urgency(incident["slo_impact"]["burn_rate"])
    data: dict[str, Any] = {
        "event": event, "dedup_key": key, "severity": severity, "priority": priority,
        "summary": clip(_summary(event, incident, episode), limits["summary"]), "incident": incident,
    }  # fmt: skip
    if episode:
        data["episode"] = episode
    if left_out:
        data["left_out"] = left_out
    return {"type": _TYPES[event], "timestamp": _timestamp(incident, episode), "data": data}


def _pagerduty(
    event: Event, incident: Mapping[str, Any], episode: Mapping[str, Any], key: str, limits: Mapping[str, int], left_out: list[str]
) -> dict[str, Any]:
    if event == "resolve":
        return {"event_action": "resolve", "dedup_key": key}
    impact = incident["slo_impact"]
    details: dict[str, Any] = {
        "cause": f"{incident['predicted_fault_domain']} ({incident['confidence']:.2f})",
        "hypotheses": _hypotheses(incident),
        "slo": _impact(incident),
        "evidence": _evidence(incident),
        "request_ids": list(incident.get("request_ids", ())),
        "trace_ids": list(incident.get("trace_ids", ())),
        "incident_id": key,
    }
    if left_out:
        details["left_out"] = left_out
    payload = {
        "summary": clip(_summary(event, incident, episode), limits["summary"]),
        "source": clip(_place(incident), limits["source"]),
        "severity": urgency(impact["burn_rate"])[0],
        "timestamp": incident["timestamp"],
        "component": clip(incident["service"], limits["component"]),
        "group": clip(incident.get("namespace") or incident["cluster"], limits["group"]),
        "class": clip(incident["predicted_fault_domain"], limits["class"]),
        "custom_details": details,
    }
    return {"event_action": "trigger", "dedup_key": key, "client": _SENDER, "payload": payload}


def _opsgenie(
    event: Event, incident: Mapping[str, Any], episode: Mapping[str, Any], key: str, limits: Mapping[str, int], left_out: list[str]
) -> dict[str, Any]:
    text = _text(event, incident, episode, left_out)
    if event != "trigger":
        return {"note": clip(text, limits["note"]), "source": _SENDER}
    impact = incident["slo_impact"]
    details = {
        "incident_id": incident["incident_id"], "cluster": incident["cluster"], "namespace": incident.get("namespace", ""),
        "service": incident["service"], "fault_domain": incident["predicted_fault_domain"], "sli": impact["sli"],
        "burn_rate": f"{impact['burn_rate']:g}", "confidence": f"{incident['confidence']:.2f}",
    }  # fmt: skip
    return {
        "message": clip(_summary(event, incident, episode), limits["message"]),
        "alias": key,
        "description": clip(text, limits["description"]),
        "entity": clip(incident["service"], limits["entity"]),
        "source": _SENDER,
        "priority": urgency(impact["burn_rate"])[1],
        "tags": [clip(tag, limits["tag"]) for tag in (incident["predicted_fault_domain"], impact["sli"], incident["cluster"])],
        "details": {name: clip(value, limits["detail"]) for name, value in details.items() if value},
    }


def _in_path(text: str) -> str:
    """The text as one segment of a path (RFC 3986: percent-encoded but for what is unreserved)."""
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode())


_BODIES = {"generic": _generic, "pagerduty": _pagerduty, "opsgenie": _opsgenie}


def _timestamp(incident: Mapping[str, Any], episode: Mapping[str, Any]) -> str:
    return format_timestamp(episode["closed_unix_nano"]) if "closed_unix_nano" in episode else str(incident["timestamp"])


def _place(incident: Mapping[str, Any]) -> str:
    return "/".join(filter(None, (incident["cluster"], incident.get("namespace"), incident["service"])))


def _impact(incident: Mapping[str, Any]) -> str:
    impact = incident["slo_impact"]
    return f"{impact['sli']} burns its error budget {impact['burn_rate']:g} times too fast (over {impact['window_minutes']:g} min)"


def _summary(event: Event, incident: Mapping[str, Any], episode: Mapping[str, Any]) -> str:
    """One sentence, the cause first: a long name may cost its end."""
    impact, domain = incident["slo_impact"], incident["predicted_fault_domain"]
    cause = "cause unknown" if domain == "unknown" else f"{domain} {incident['confidence']:.2f}"
    if event == "resolve":
        return f"over: {cause}: {incident['service']}: {_OVER.get(episode.get('closed_by', ''), 'it is over')}"
    return f"{cause}: {incident['service']} burns its {impact['sli']} budget {impact['burn_rate']:g} times too fast"


def _hypotheses(incident: Mapping[str, Any]) -> list[str]:
    return [f"{row['domain']} {row['posterior']:.2f}" for row in incident.get("fault_hypotheses", ())]


def _evidence(incident: Mapping[str, Any]) -> list[str]:
    """A line for each signal; the row `<signal>.baseline` after it is what it was before."""
    before = {row["signal"]: f" (before: {row['value']:g})" for row in incident["evidence"]}
    return [
        f"{row['signal']} {row['value']:g}{before.get(row['signal'] + '.baseline', '')}, {row['source']}"
        for row in incident["evidence"]
        if not row["signal"].endswith(".baseline")
    ]


def _text(event: Event, incident: Mapping[str, Any], episode: Mapping[str, Any], left_out: list[str]) -> str:
    """A paragraph and lists for people, what matters first."""
    lines = [_summary(event, incident, episode) + ".", f"Where: {_place(incident)}. {_impact(incident)}."]
    if event == "resolve":
        return "\n".join(lines)
    for title, items in (
        ("Hypotheses", _hypotheses(incident)),
        ("Evidence", _evidence(incident)),
        ("Requests", incident.get("request_ids", ())),
        ("Traces", incident.get("trace_ids", ())),
        ("Left out for want of room", left_out),
    ):
        if items:
            lines += ["", f"{title}:", *(f"- {item}" for item in items)]
    return "\n".join(lines)
