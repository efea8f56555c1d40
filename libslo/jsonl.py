"""JSON lines in and out: fast, with a policy for bad lines, and nothing dropped in silence.

Input comes in batches: whatever one read returned, so that a live pipe is served at once and a file at full speed.
Each record is a tuple ``(contract name or "", object, raw line)``; "" means an object of no contract asked for.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Literal

from libslo.contracts import Contract, contract, explain, nearest
from libslo.errors import CannotError, InputError

__all__ = ["MAX_LINE_BYTES", "JsonlWriter", "LineReader", "OnBad", "ReadStats", "Record", "decode_lines", "encode", "read_jsonl"]

MAX_LINE_BYTES = 16 << 20
_READ_BYTES = 1 << 20
_WRITE_BYTES = 1 << 18

OnBad = Literal["fail", "skip"]


# One input line: the contract it keeps ("" for none of those asked for), the object, the line as it came.
# A bare tuple: a named one costs more to make than the JSON costs to decode.
Record = tuple[str, dict[str, Any], bytes]


@dataclass
class ReadStats:
    """What a reader saw, for the account at the end."""

    lines: int = 0
    bad: int = 0
    unknown: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)


class LineReader:
    """Lines of one source ("-" is stdin; ``.gz`` is unpacked) in batches ``(number of the first line, lines)``.

    A line longer than `max_line_bytes` is returned as None and its bytes are never held.
    Raises InputError for a file that cannot be read or unpacked.
    """

    def __init__(self, source: str, *, max_line_bytes: int = MAX_LINE_BYTES, stream: BinaryIO | None = None) -> None:
        self.name = "stdin" if source == "-" else source
        self._max = max_line_bytes
        self._source = source
        self._stream = stream

    def _open(self) -> Callable[[int], bytes]:
        if self._stream is not None:
            return self._stream.read1 if hasattr(self._stream, "read1") else self._stream.read
        try:
            if self._source == "-":
                stdin = sys.stdin.buffer
                return getattr(stdin, "read1", stdin.read)
            if self._source.endswith(".gz"):
                import gzip

                return gzip.open(self._source, "rb").read1
            return Path(self._source).open("rb", buffering=0).read
        except OSError as error:
            raise InputError(_os_reason(error), source=self.name, hint="check the path and its permissions") from error

    def batches(self) -> Iterator[tuple[int, list[bytes | None]]]:
        read = self._open()
        tail: list[bytes] = []  # pieces of a line whose end has not come yet
        tail_bytes = 0
        oversize = False
        line_number = 1
        while True:
            try:
                chunk = read(_READ_BYTES)
            except (OSError, EOFError) as error:
                reason = _os_reason(error) if isinstance(error, OSError) and error.errno else f"cannot unpack: {error}"
                raise InputError(reason, source=self.name, line=line_number, hint="check that the file is whole") from error
            if not chunk:
                break
            pieces: list[bytes | None] = list(chunk.split(b"\n"))
            last = pieces.pop() or b""
            if pieces:
                if oversize:
                    pieces[0] = None
                elif tail:
                    pieces[0] = b"".join([*tail, pieces[0] or b""])
                if pieces[0] is not None and len(pieces[0]) > self._max:
                    pieces[0] = None
                tail, tail_bytes, oversize = [], 0, False
                yield line_number, pieces
                line_number += len(pieces)
            if last and not oversize:
                tail.append(last)
                tail_bytes += len(last)
                if tail_bytes > self._max:
                    tail, tail_bytes, oversize = [], 0, True
        if oversize:
            yield line_number, [None]
        elif tail:
            yield line_number, [b"".join(tail)]


def read_jsonl(
    source: str,
    contracts: Sequence[str],
    *,
    on_bad: OnBad = "fail",
    report: Callable[[InputError], None] | None = None,
    stats: ReadStats | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
    stream: BinaryIO | None = None,
) -> Iterator[list[Record]]:
    """Batches of checked records of `source`.

    contracts: names of the contracts the caller consumes; an object of another kind comes with kind "".
    on_bad: "fail" raises InputError at the first bad line (after yielding the records before it);
    "skip" calls `report` with the error, counts it, and goes on.
    """
    reader = LineReader(source, max_line_bytes=max_line_bytes, stream=stream)
    stats = stats if stats is not None else ReadStats()
    decode = _Decoder(reader.name, contracts, max_line_bytes)
    for first_line, lines in reader.batches():
        records, errors = decode.lines(first_line, lines, stop_at_error=on_bad == "fail")
        stats.lines += len(lines)
        stats.by_kind.update(decode.counts)
        stats.unknown += decode.counts[""]
        stats.bad += len(errors)
        if records:
            yield records
        for error in errors:
            if on_bad == "fail":
                raise error
            if report:
                report(error)


def decode_lines(lines: Iterable[bytes], contracts: Sequence[str], source: str = "input") -> list[Record]:
    """Decode and check lines that are in memory; InputError at the first bad one."""
    records, errors = _Decoder(source, contracts, MAX_LINE_BYTES).lines(1, list(lines), stop_at_error=True)
    if errors:
        raise errors[0]
    return records


class _Decoder:
    def __init__(self, source: str, contracts: Sequence[str], max_line_bytes: int) -> None:
        import orjson

        self._loads = orjson.loads
        self._source = source
        self._max = max_line_bytes
        self._contracts = [contract(name) for name in contracts]
        self._names = list(contracts)
        self._last = self._contracts[0]
        self.counts: Counter[str] = Counter()

    def lines(self, first_line: int, lines: Sequence[bytes | None], *, stop_at_error: bool) -> tuple[list[Record], list[InputError]]:
        loads = self._loads
        current = self._last
        marker, is_valid, kind = current.marker, current.is_valid, current.name
        records: list[Record] = []
        errors: list[InputError] = []
        for offset, line in enumerate(lines):
            try:
                value = loads(line)  # type: ignore[arg-type]
                if type(value) is not dict or marker not in value:
                    value = self._unwrap(value)
                    found = self._detect(value)
                    if found is None:
                        records.append(("", value, line))  # type: ignore[arg-type]
                        continue
                    self._last = current = found
                    marker, is_valid, kind = current.marker, current.is_valid, current.name
                if not is_valid(value):
                    raise InputError(f"not a valid {kind}: {explain(value, current.schema) or 'the schema refuses it'}")
                records.append((kind, value, line))  # type: ignore[arg-type]
            except (ValueError, TypeError, InputError) as error:
                if line is not None and (not line or line.isspace()):
                    continue  # an empty line is no record and no error
                errors.append(self._bad(error, line, first_line + offset))
                if stop_at_error:
                    break
        self.counts = Counter(map(itemgetter(0), records))
        return records, errors

    def _unwrap(self, value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise InputError(f"a {_json_type(value)} where an object belongs")
        if value.keys() == {"kind", "payload"} and type(value["payload"]) is dict:
            payload: dict[str, Any] = value["payload"]
            return payload
        return value

    def _detect(self, value: dict[str, Any]) -> Contract | None:
        for candidate in self._contracts:
            if candidate.marker in value:
                return candidate
        close = nearest(value, self._names)
        if close is not None:
            raise InputError(f"not a valid {close}: {explain(value, contract(close).schema)}")
        return None

    def _bad(self, error: Exception, line: bytes | None, number: int) -> InputError:
        hint = "fix the line, or go on without it: --on-bad skip"
        if line is None:
            return InputError(f"line longer than {self._max} bytes", source=self._source, line=number, hint=hint)
        if isinstance(error, InputError):
            fact = error.fact
        else:
            position = getattr(error, "pos", None)
            message = str(getattr(error, "msg", error)).lower()
            fact = f"not JSON: {message}" + (f" at column {position + 1}" if position is not None else "")
        return InputError(fact, source=self._source, line=number, hint=hint)


def _json_type(value: Any) -> str:
    names: dict[type, str] = {list: "list", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def encode(value: dict[str, Any]) -> bytes:
    """One JSON line with its newline. InputError when a number is NaN or infinite (orjson would write null)."""
    import orjson

    line = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    if b"null" in line:
        _refuse_non_finite(value, "")
    return line


def _refuse_non_finite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path.lstrip('.')} is {value}, which JSON cannot carry")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{path}[{index}]")


class JsonlWriter:
    """Writes JSON lines to a path ("-" is stdout; ``.gz`` packs; parents are created).

    Raises BrokenPipeError when the reader has gone (the runner ends the tool quietly) and CannotError when the disk is full.
    """

    def __init__(self, path: str = "-") -> None:
        self.path = path
        self.lines = 0
        self._buffer: list[bytes] = []
        self._size = 0
        try:
            if path == "-":
                self._stream: Any = sys.stdout.buffer
            else:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                if path.endswith(".gz"):
                    import gzip

                    self._stream = gzip.GzipFile(path, "wb", mtime=0)  # mtime 0: same records, same bytes
                else:
                    self._stream = Path(path).open("wb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise InputError(f"cannot write: {_os_reason(error)}", source=path, hint="check the path and its permissions") from error

    def write(self, value: dict[str, Any]) -> None:
        """Write one object."""
        self.write_line(encode(value))

    def write_line(self, line: bytes) -> None:
        """Write one encoded line (with its newline)."""
        self._buffer.append(line)
        self._size += len(line)
        self.lines += 1
        if self._size >= _WRITE_BYTES:
            self._drain()

    def write_block(self, block: bytes, lines: int) -> None:
        """Write many encoded lines at once."""
        self._buffer.append(block)
        self._size += len(block)
        self.lines += lines
        if self._size >= _WRITE_BYTES:
            self._drain()

    def _drain(self) -> None:
        if self._buffer:
            block, self._buffer, self._size = b"".join(self._buffer), [], 0
            self._guard(lambda: self._stream.write(block))

    def flush(self) -> None:
        """Hand everything written so far to the reader."""
        self._drain()
        self._guard(self._stream.flush)

    def close(self) -> None:
        """Flush, and close what is not stdout."""
        self.flush()
        if self.path != "-":
            self._guard(self._stream.close)

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except BrokenPipeError:
            raise
        except OSError as error:
            name = "stdout" if self.path == "-" else self.path
            raise CannotError(
                f"cannot write: {_os_reason(error)}", source=name, hint="free some space or write elsewhere with --out"
            ) from error

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.close()
        elif kind is not BrokenPipeError:
            try:
                self.close()  # what was answered before the error is not lost
            except (OSError, CannotError):
                pass


def _os_reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error).lower()
