"""Verdicts on data and schemas: what schemavalidate answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from libslo.contracts import CONTRACTS, OTLP_SPANS, contract, schema_path
from libslo.errors import InputError
from libslo.jsonl import JsonlWriter, ReadStats, read_jsonl
from libslo.spans import decode_spans

_CHECKS = {OTLP_SPANS: lambda value: list(decode_spans(value))}

__all__ = ["Verdict", "data_verdicts", "schema_verdicts", "write_verdicts"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one line (or one schema file) is valid, and why not."""

    file: str
    line: int | None
    contract: str
    valid: bool
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The verdict without its empty fields."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def data_verdicts(files: Iterable[str], only: str | None) -> Iterator[Verdict]:
    """One verdict for each line of the files. InputError when a file cannot be read or the contract is unknown."""
    if only is not None and only not in CONTRACTS:
        raise InputError(f"no contract {only!r}", hint=f"one of: {', '.join(CONTRACTS)}")
    names = [only] if only else [*CONTRACTS, OTLP_SPANS]
    for file in files:
        errors: list[InputError] = []
        stats = ReadStats()
        for records in read_jsonl(file, names, on_bad="skip", report=errors.append, stats=stats, convert=_CHECKS):
            verdicts = [_verdict(file, only, *record) for record in records] + _bad(file, errors)
            yield from sorted(verdicts, key=lambda verdict: verdict.line or 0)
            errors.clear()
        yield from _bad(file, errors)
        if not stats.lines:
            yield Verdict(file, None, "", False, "empty: nothing was checked")


def _verdict(file: str, only: str | None, kind: str, _: Any, raw: bytes, line: int) -> Verdict:
    if kind:
        return Verdict(file, line, kind, True)
    shown = raw[:80].decode(errors="replace")
    return Verdict(file, line, "", False, f"not a {only}: {shown}" if only else f"an object of no known contract: {shown}")


def _bad(file: str, errors: list[InputError]) -> list[Verdict]:
    return [Verdict(file, error.line, "", False, error.fact) for error in errors]


def schema_verdicts() -> Iterator[Verdict]:
    """One verdict for each contract's schema: is it a JSON Schema of draft 2020-12 that allows no further property?"""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    from libslo.config import config_schema
    from libslo.resources import data_path

    schemas = {str(schema_path(name)): (name, contract(name).schema) for name in CONTRACTS}
    schemas[str(data_path("contracts/config/v1alpha1/toolkit.schema.json"))] = ("toolkit", config_schema())
    for path, (name, schema) in schemas.items():
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            yield Verdict(path, None, name, False, error.message)
            continue
        closed = schema.get("additionalProperties") is False
        yield Verdict(path, None, name, closed, "" if closed else "allows unknown properties")


def write_verdicts(verdicts: Iterable[Mapping[str, Any]], out: str, inputs: Iterable[str] = (), *, every: bool = True) -> tuple[int, int]:
    """Write verdicts (every one, or those of what is invalid); how many were valid, and how many not.

    When the reader of stdout has gone nothing more is written, and the rest is judged up to the first that is invalid: its leaving
    must not make a success of what is none.
    """
    verdicts = iter(verdicts)
    valid = invalid = 0
    try:
        with JsonlWriter(out, inputs) as writer:
            for verdict in verdicts:
                valid, invalid = valid + verdict["valid"], invalid + (not verdict["valid"])
                if every or not verdict["valid"]:
                    writer.write(dict(verdict))
    except BrokenPipeError:
        while not invalid and (left := next(verdicts, None)) is not None:
            valid, invalid = valid + left["valid"], invalid + (not left["valid"])
    return valid, invalid
