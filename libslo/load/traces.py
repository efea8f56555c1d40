"""Traces of other systems as plans: when requests came and how many tokens they had, from CSV or JSON lines."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from libslo.errors import InputError
from libslo.jsonl import LineReader
from libslo.load.plans import LoadRequest

__all__ = ["trace_requests"]

_MOST_TOKENS = 10_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def trace_requests(
    source: str,
    columns: Mapping[str, Sequence[str]],
    rng: np.random.Generator,
    *,
    speed: float = 1.0,
    profile: str = "rag_medium",
    prefix: str = "r",
    skip: Callable[[InputError], None] | None = None,
) -> Iterator[tuple[int, LoadRequest]]:
    """(line number, request) of each line; the first is due at 0, the others after it, `speed` times as fast as recorded.

    profile: what all of them are said to be of. columns: names for time, prompt_tokens and output_tokens.
    A file whose first line begins with { is JSON lines, another CSV.
    Times are seconds, or RFC 3339 to the microsecond. skip: gets the fault of each line that cannot be read, which is then left out.
    InputError with the line of what cannot be read, of the first where there is no `skip`; always for a heading without a needed column.
    """
    begin_ns: int | None = None
    number = 0
    lines = _lines(source)
    source = "stdin" if source == "-" else source
    rows = _Rows(source, columns)
    for line, raw in lines:
        if rows.is_heading(line, raw):
            continue
        try:
            row = rows.row(line, raw)
            when, prompt, output = (_value(row, columns, what, source, line) for what in ("time", "prompt_tokens", "output_tokens"))
            at_ns = _time_ns(when, source, line)
            tokens = (_count(prompt, source, line), _count(output, source, line))
            if begin_ns is not None and at_ns < begin_ns:
                raise InputError("a time before that of the first line", source=source, line=line, hint="sort the trace by time")
        except InputError as error:
            if skip is None:
                raise
            skip(error)
            continue
        begin_ns = at_ns if begin_ns is None else begin_ns
        offset_ns = round((at_ns - begin_ns) / speed)
        yield line, LoadRequest(f"{prefix}-{number:06d}", profile, offset_ns, *tokens, int(rng.integers(0, 1 << 32)))
        number += 1


def _lines(source: str) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line) of what is not empty; None is one that is too long."""
    for first_line, lines in LineReader(source).batches():
        for line, raw in enumerate(lines, first_line):
            if raw is None or raw.strip():
                yield line, raw


class _Rows:
    """Lines as rows by column: of JSON each by itself, of CSV by a heading, which is the first line."""

    def __init__(self, source: str, columns: Mapping[str, Sequence[str]]) -> None:
        self._source = source
        self._columns = columns
        self._as_json: bool | None = None
        self._head: list[str] | None = None

    def is_heading(self, line: int, raw: bytes | None) -> bool:
        """Whether the line is the heading, which is then taken. InputError when it is none, or lacks a needed column."""
        if self._as_json is None:
            self._as_json = raw is not None and raw.lstrip().startswith(b"{")
        if self._as_json or self._head is not None:
            return False
        self._head = [cell.strip() for cell in self._cells(line, raw)]
        for what in self._columns:
            _value(dict.fromkeys(self._head), self._columns, what, self._source, line)
        return True

    def row(self, line: int, raw: bytes | None) -> Mapping[str, Any]:
        """InputError for what is none."""
        import orjson

        if self._head is not None:
            cells = self._cells(line, raw)
            if len(cells) != len(self._head):
                raise InputError(f"{len(cells)} cells under {len(self._head)} columns", source=self._source, line=line)
            return dict(zip(self._head, cells, strict=True))
        try:
            row = orjson.loads(self._short(line, raw))
        except ValueError as error:
            raise self._no_row(line, error) from error
        if not isinstance(row, dict):
            raise self._no_row(line, "no object")
        return row

    def _cells(self, line: int, raw: bytes | None) -> list[str]:
        try:
            return next(csv.reader([self._short(line, raw).decode("utf-8-sig").rstrip("\r")]))
        except (ValueError, csv.Error) as error:
            raise self._no_row(line, error) from error

    def _short(self, line: int, raw: bytes | None) -> bytes:
        if raw is None:
            raise InputError("the line is too long", source=self._source, line=line)
        return raw

    def _no_row(self, line: int, why: object) -> InputError:
        return InputError(f"not a line of a trace: {str(why).lower()}", source=self._source, line=line)


def _value(row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], what: str, source: str, line: int) -> Any:
    for name in columns[what]:
        if name in row:
            return row[name]
    hint = f"a column for {what} is one of: {', '.join(columns[what])}"
    raise InputError(f"no column for {what} among {', '.join(map(str, row))}", source=source, line=line, hint=hint)


def _time_ns(value: Any, source: str, line: int) -> int:
    try:
        return round(float(value) * 1e9)
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        when = datetime.fromisoformat(str(value).strip())
    except ValueError as error:
        hint = "seconds, or RFC 3339 such as 2023-11-16 18:15:46.680"
        raise InputError(f"{value!r} is not a time", source=source, line=line, hint=hint) from error
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1) * 1000


def _count(value: Any, source: str, line: int) -> int:
    """A number of tokens; 0 counts as 1, since a request has at least one."""
    try:
        count = float(value)
    except (TypeError, ValueError):
        count = math.nan
    if not (0 <= count <= _MOST_TOKENS and count == int(count)):
        raise InputError(f"{value!r} is not a number of tokens", source=source, line=line, hint=f"a whole number from 0 to {_MOST_TOKENS}")
    return max(1, int(count))
