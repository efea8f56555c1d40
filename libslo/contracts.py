"""Contracts: which one a JSON object is of, and whether it keeps it.

The schemas in ``contracts/`` are the only definition. Every line of a stream is checked with jsonschema-rs;
the sentence about a line that fails is made with jsonschema, which explains better and is needed rarely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from libslo.resources import data_path

__all__ = ["CONTRACTS", "OTLP_SPANS", "Contract", "batch_check", "contract", "explain", "nearest", "schema_path", "schema_validator"]

# Contract name -> schema file below contracts/. A new contract is a line here, a schema, and its good/ and bad/ examples.
CONTRACTS = {
    "slo-event": "v1/slo-event",
    "incident-attribution": "v1/incident-attribution",
    "probe-event": "v1alpha1/probe-event",
    "raw-sample": "v1alpha1/raw-sample",
    "fault-window": "v1alpha1/fault-window",
    "load-request": "v1alpha1/load-request",
    "load-result": "v1alpha1/load-result",
    "agent-report": "v1alpha1/agent-report",
    "signal-histogram": "v1alpha1/signal-histogram",
    "incident-episode": "v1alpha1/incident-episode",
    "fault-sample": "v1alpha1/fault-sample",
    "recording-manifest": "v1alpha1/recording-manifest",
    "benchmark-manifest": "v1alpha1/benchmark-manifest",
    "overhead-sample": "v1alpha1/overhead-sample",
    "incident-arrival": "v1alpha1/incident-arrival",
    "recording-arrival": "v1alpha1/recording-arrival",
    "stream-time": "v1alpha1/stream-time",
    "webhook-dead-letter": "v1alpha1/webhook-dead-letter",
}
OTLP_SPANS = "otlp-spans"  # not ours: an OTLP ExportTraceServiceRequest in JSON, one a line; libslo.spans checks it
_OTLP_SCHEMA = {"type": "object", "required": ["resourceSpans"], "properties": {"resourceSpans": {"type": "array"}}}


_VALUES = ("const", "enum", "default", "examples")  # keywords that hold values, not schemas


@dataclass(frozen=True, slots=True)
class Contract:
    """One contract, ready to check objects."""

    name: str
    schema: dict[str, Any]
    marker: str  # the key that only this contract has
    required: frozenset[str]
    is_valid: Callable[[Any], bool]


def schema_validator(schema: dict[str, Any]) -> Callable[[Any], bool]:
    """A fast yes/no check of objects against a JSON schema, formats included."""
    import jsonschema_rs

    return jsonschema_rs.validator_for(_counted(schema), validate_formats=True).is_valid


def _counted(schema: Any) -> Any:
    """The same schema, cheaper to check: where all keys that are allowed are required, it is enough to count them."""
    if isinstance(schema, list):
        return [_counted(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    counted = {key: value if key in _VALUES else _counted(value) for key, value in schema.items()}
    required, allowed = schema.get("required"), schema.get("properties")
    if (
        schema.get("additionalProperties") is False
        and isinstance(required, list)
        and isinstance(allowed, dict)
        and set(required) == set(allowed)
        and not {"patternProperties", "minProperties"} & schema.keys()
    ):
        del counted["required"]
        counted["minProperties"] = len(required)
    return counted


@cache
def contract(name: str) -> Contract:
    """The contract of that name; KeyError when there is none."""
    import orjson

    if name == OTLP_SPANS:
        return Contract(name, _OTLP_SCHEMA, "resourceSpans", frozenset({"resourceSpans"}), schema_validator(_OTLP_SCHEMA))
    schema = orjson.loads(data_path(f"contracts/{CONTRACTS[name]}.schema.json").read_bytes())
    return Contract(name, schema, schema["x-detect"][0], frozenset(schema["required"]), schema_validator(schema))


@cache
def batch_check(name: str) -> Callable[[list[Any]], bool]:
    """A yes/no check of many objects at once: a seventh faster than one by one."""
    return schema_validator({"type": "array", "items": contract(name).schema})


def nearest(value: dict[str, Any], names: Iterable[str]) -> str | None:
    """The contract this object was probably meant to keep: most required keys present, and at least half of them."""
    scored = [(len(c.required & value.keys()) / len(c.required), c.name) for c in map(contract, names)]
    share, name = max(scored, default=(0.0, None), key=lambda pair: pair[0])
    return name if share >= 0.5 else None


def explain(value: Any, schema: dict[str, Any]) -> str:
    """One sentence on what breaks the schema, with the path of the key.

    Lower case, no full stop; "" when nothing does.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(schema, format_checker=_formats()).iter_errors(value))
    if error is None:
        return ""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    what = {
        "required": lambda: f"{error.message.split(' ')[0]} is missing",
        "additionalProperties": lambda: "unknown key " + ", ".join(sorted(_unknown_keys(error.instance, error.schema))),
        "type": lambda: f"{_short(error.instance)} is not of type {_words(error.validator_value)}",
        "enum": lambda: f"{_short(error.instance)} is none of {_words(error.validator_value)}",
        "const": lambda: f"{_short(error.instance)} is not {_short(error.validator_value)}",
        "pattern": lambda: f"{_short(error.instance)} is not of the form {error.validator_value}",
        "format": lambda: f"{_short(error.instance)} is not a {error.validator_value}",
    }.get(str(error.validator), lambda: str(error.message)[:160])()
    return f"{path}: {what}" if path else what


def schema_path(name: str) -> Path:
    """Where the schema of a contract lies."""
    return data_path(f"contracts/{CONTRACTS[name]}.schema.json")


def _unknown_keys(instance: Any, schema: Any) -> set[str]:
    return set(instance) - set(schema.get("properties", {}))


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _short(value: Any, limit: int = 120) -> str:
    text = value if isinstance(value, str) else repr(value)
    quoted = repr(text) if isinstance(value, str) else text
    return quoted if len(quoted) <= limit else quoted[: limit - 3] + "..."


@cache
def _formats() -> Any:
    from datetime import datetime

    from jsonschema import FormatChecker

    checker = FormatChecker(formats=())

    def is_date_time(value: object) -> bool:
        if not isinstance(value, str):
            return True
        try:
            return datetime.fromisoformat(value).tzinfo is not None and "T" in value.upper()
        except ValueError:
            return False

    checker.checks("date-time")(is_date_time)
    return checker
