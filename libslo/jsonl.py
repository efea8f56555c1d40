"""JSON lines in and out: fast, with a policy for bad lines, and nothing dropped in silence.

Input comes in batches: whatever one read returned, so that a live pipe is served at once and a file at full speed.
Each record is a tuple ``(contract name or "", object, raw line, line number)``; "" means an object of no contract asked for.
"""

from __future__ import annotations

import math
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Literal

from libslo.contracts import CONTRACTS, OTLP_SPANS, Contract, batch_check, contract, explain, nearest
from libslo.errors import CannotError, InputError, os_reason, write_error

__all__ = [
    "MAX_LINE_BYTES",
    "JsonlWriter",
    "LineReader",
    "OnBad",
    "ReadStats",
    "Record",
    "Stopper",
    "decode_lines",
    "encode",
    "read_jsonl",
]

MAX_LINE_BYTES = 16 << 20
_READ_BYTES = 1 << 16  # larger blocks make the allocator return memory to the kernel and fault it in again for every batch
_WRITE_BYTES = 1 << 18

OnBad = Literal["fail", "skip"]


# One input line: the contract it keeps ("" for none of those asked for), the object (or what `convert` made of it), the line
# as it came, its number. A bare tuple: a named one costs more to make than the JSON costs to decode.
Record = tuple[str, Any, bytes, int]
Convert = Mapping[str, Callable[[dict[str, Any]], Any]]


@dataclass
class ReadStats:
    """What a reader saw, for the account at the end."""

    lines: int = 0
    bad: int = 0
    unknown: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)


class _StoppedError(Exception):
    pass


class Stopper:
    """Ends an input early, so that what was read can still be answered.

    `on_signals` makes the first SIGINT or SIGTERM give the writers before us `grace_s` to end by themselves (Ctrl-C reaches
    a whole pipeline at once); after that, or on a second signal, the input counts as ended.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._reading = False

    def on_signals(self, grace_s: float = 2.0) -> None:
        """Handle SIGINT and SIGTERM (main thread only)."""
        import signal

        def first(*_: object) -> None:
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
                signal.signal(each, lambda *_: self.stop())
            signal.setitimer(signal.ITIMER_REAL, grace_s)

        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, first)

    def stop(self) -> None:
        """The input ends here; called from a signal handler it interrupts a read that waits."""
        self.stopped = True
        if self._reading:
            raise _StoppedError

    def read(self, read: Callable[[int], bytes], size: int) -> bytes:
        """`read(size)`, or nothing once stopped."""
        try:
            self._reading = True
            return b"" if self.stopped else read(size)
        except _StoppedError:
            return b""
        finally:
            self._reading = False


class LineReader:
    """Lines of one source ("-" is stdin; ``.gz`` is unpacked) in batches ``(number of the first line, lines)``.

    A line longer than `max_line_bytes` is returned as None and its bytes are never held.
    Raises InputError for a file that cannot be read or unpacked.
    """

    def __init__(
        self, source: str, *, max_line_bytes: int = MAX_LINE_BYTES, stream: BinaryIO | None = None, stop: Stopper | None = None
    ) -> None:
        self.name = "stdin" if source == "-" else source
        self._max = max_line_bytes
        self._source = source
        self._stream = stream
        self._stop = stop or Stopper()

    def _open(self) -> Callable[[int], bytes]:
        if self._stream is not None:
            return self._stream.read1 if hasattr(self._stream, "read1") else self._stream.read
        try:
            if self._source == "-":
                stdin = sys.stdin.buffer
                try:
                    # Past the buffer: a thread that waits in it holds its lock, and the interpreter could not end.
                    return partial(os.read, stdin.fileno())
                except OSError:
                    return getattr(stdin, "read1", stdin.read)  # a stand-in without a descriptor
            if self._source.endswith(".gz"):
                import gzip

                return gzip.open(self._source, "rb").read1
            return Path(self._source).open("rb", buffering=0).read
        except OSError as error:
            raise InputError(os_reason(error), source=self.name, hint="check the path and its permissions") from error

    def batches(self) -> Iterator[tuple[int, list[bytes | None]]]:
        read = self._open()
        tail: list[bytes] = []  # pieces of a line whose end has not come yet
        tail_bytes = 0
        oversize = False
        line_number = 1
        while True:
            try:
                chunk = self._stop.read(read, _READ_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                reason = os_reason(error) if isinstance(error, OSError) and error.errno else f"cannot unpack: {error}"
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
                checked = len(pieces) if self._max < _READ_BYTES else 1  # only the first can be longer than what one read returns
                pieces[:checked] = [None if piece is None or len(piece) > self._max else piece for piece in pieces[:checked]]
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
    convert: Convert | None = None,
    stop: Stopper | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
    stream: BinaryIO | None = None,
) -> Iterator[list[Record]]:
    """Batches of checked records of `source`.

    contracts: names of the contracts the caller consumes; an object of another kind comes with kind "".
    on_bad: "fail" raises InputError at the first bad line (after yielding the records before it);
    "skip" calls `report` with the error, counts it, and goes on.
    convert: by contract, what to make of an object; an InputError it raises makes the line a bad one.
    stop: ends the input early, see Stopper.
    """
    reader = LineReader(source, max_line_bytes=max_line_bytes, stream=stream, stop=stop)
    stats = stats if stats is not None else ReadStats()
    decode = _Decoder(reader.name, contracts, max_line_bytes, convert)
    for first_line, lines in reader.batches():
        records, errors = decode.lines(first_line, lines, stop_at_error=on_bad == "fail")
        stats.lines += len(lines)
        for kind, number in decode.counts.items():
            stats.by_kind[kind] += number
        stats.unknown += decode.counts.get("", 0)
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
    records, errors = _Decoder(source, contracts, MAX_LINE_BYTES, None).lines(1, list(lines), stop_at_error=True)
    if errors:
        raise errors[0]
    return records


class _Decoder:
    def __init__(self, source: str, contracts: Sequence[str], max_line_bytes: int, convert: Convert | None) -> None:
        import orjson

        self._loads = orjson.loads
        self._source = source
        self._max = max_line_bytes
        self._contracts = [contract(name) for name in contracts]
        self._names = list(contracts)
        self._convert = convert or {}
        self._last = self._contracts[0]
        self._uniform = True  # the last batch was of one kind, so the next one probably is
        self.counts: dict[str, int] = {}

    def lines(self, first_line: int, lines: Sequence[bytes | None], *, stop_at_error: bool) -> tuple[list[Record], list[InputError]]:
        if self._uniform:
            records = self._all_alike(first_line, lines)
            if records:
                return records, []
        return self._one_by_one(first_line, lines, stop_at_error=stop_at_error)

    def _all_alike(self, first_line: int, lines: Sequence[bytes | None]) -> list[Record]:
        """The records when every line keeps the contract seen last, without a loop of ours; else nothing."""
        kind = self._last.name
        if kind in self._convert:
            return []
        try:
            values = list(map(self._loads, lines))  # type: ignore[arg-type]
        except (ValueError, TypeError):
            return []
        if not batch_check(kind)(values):
            return []
        self.counts = {kind: len(values)}
        return list(zip(repeat(kind), values, lines, count(first_line)))  # type: ignore[arg-type]

    def _one_by_one(self, first_line: int, lines: Sequence[bytes | None], *, stop_at_error: bool) -> tuple[list[Record], list[InputError]]:
        loads, convert = self._loads, self._convert
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
                        records.append(("", value, line, first_line + offset))  # type: ignore[arg-type]
                        continue
                    self._last = current = found
                    marker, is_valid, kind = current.marker, current.is_valid, current.name
                if not is_valid(value):
                    raise InputError(f"not a valid {kind}: {explain(value, current.schema) or 'the schema refuses it'}")
                if kind in convert:
                    value = convert[kind](value)
                records.append((kind, value, line, first_line + offset))  # type: ignore[arg-type]
            except (ValueError, TypeError, InputError) as error:
                if line is not None and (not line or line.isspace()):
                    continue  # an empty line is no record and no error
                errors.append(self._bad(error, line, first_line + offset))
                if stop_at_error:
                    break
        self.counts = Counter(map(itemgetter(0), records))
        self._uniform = len(self.counts) == 1 and not errors
        return records, errors

    def _unwrap(self, value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise InputError(f"a {_json_type(value)} where an object belongs")
        if value.keys() == {"kind", "payload"} and type(value["payload"]) is dict:
            payload: dict[str, Any] = value["payload"]
            return payload
        return value

    def _detect(self, value: dict[str, Any]) -> Contract | None:
        """The contract asked for that the object is of; None for an object of another contract, or of none."""
        for candidate in self._contracts:
            if candidate.marker in value:
                return candidate
        others = [name for name in (*CONTRACTS, OTLP_SPANS) if name not in self._names]
        if any(contract(name).marker in value for name in others):
            return None
        close = nearest(value, (*self._names, *others))
        if close in self._names:
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
    """One JSON line with its newline. InputError when a number is NaN or infinite (orjson would write null), or it is nested too deep."""
    dumps, newline = _dumps()
    try:
        line = dumps(value, None, newline)
    except TypeError as error:
        if "ecursion" not in str(error):
            raise
        raise InputError("nested deeper than can be written", hint="fewer levels") from error  # it reads deeper than it writes
    if b"null" in line:
        _refuse_non_finite(value, "")
    return line


@cache
def _dumps() -> tuple[Callable[..., bytes], int]:
    import orjson  # an import statement costs as much as encoding a line: once is enough

    return orjson.dumps, orjson.OPT_APPEND_NEWLINE


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

    def __init__(self, path: str = "-", inputs: Iterable[str] = ()) -> None:
        """inputs: files that are read meanwhile; InputError when `path` is one of them, since it would be emptied first."""
        self.path = path
        if path != "-" and any(_same_file(path, source) for source in inputs):
            raise InputError("output and input are the same file", source=path, hint="write to another file, then move it")
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
            raise write_error(error, path) from error

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
            raise write_error(error, name, "free some space or write elsewhere with --out") from error

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


def _same_file(path: str, source: str) -> bool:
    try:
        return Path(path).samefile(source)
    except OSError:
        return False
