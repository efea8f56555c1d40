"""Traces of other systems as plans: when requests came and how many tokens they had, from CSV or JSON lines."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
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
) -> Iterator[tuple[int, LoadRequest]]:
    """(line number, request) of each line; the first is due at 0, the others after it, `speed` times as fast as recorded.

    profile: what all of them are said to be of. columns: names for time, prompt_tokens and output_tokens.
    A file whose first line begins with { is JSON lines, another CSV.
    Times are seconds, or RFC 3339 to the microsecond. InputError with the line of what cannot be read.
    """
    begin_ns: int | None = None
    for number, (line, row) in enumerate(_rows(source)):
        when, prompt, output = (_value(row, columns, what, source, line) for what in ("time", "prompt_tokens", "output_tokens"))
        at_ns = _time_ns(when, source, line)
        begin_ns = at_ns if begin_ns is None else begin_ns
        if at_ns < begin_ns:
            raise InputError("a time before that of the first line", source=source, line=line, hint="sort the trace by time")
        offset_ns = round((at_ns - begin_ns) / speed)
        tokens = (_count(prompt, source, line), _count(output, source, line))
        yield line, LoadRequest(f"{prefix}-{number:06d}", profile, offset_ns, *tokens, int(rng.integers(0, 1 << 32)))


def _rows(source: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import orjson

    head: list[str] | None = None
    as_json: bool | None = None
    for first_line, lines in LineReader(source).batches():
        for line, raw in enumerate(lines, first_line):
            if raw is None:
                raise InputError("the line is too long", source=source, line=line)
            if not raw.strip():
                continue
            if as_json is None:
                as_json = raw.lstrip().startswith(b"{")
            try:
                if as_json:
                    row = orjson.loads(raw)
                    if not isinstance(row, dict):
                        raise ValueError("no object")
                    yield line, row
                    continue
                cells = next(csv.reader([raw.decode("utf-8-sig").rstrip("\r")]))
            except (ValueError, csv.Error) as error:
                raise InputError(f"not a line of a trace: {str(error).lower()}", source=source, line=line) from error
            if head is None:
                head = [cell.strip() for cell in cells]
            elif len(cells) != len(head):
                raise InputError(f"{len(cells)} cells under {len(head)} columns", source=source, line=line)
            else:
                yield line, dict(zip(head, cells, strict=True))


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
