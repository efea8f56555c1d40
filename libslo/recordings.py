"""Recordings: one run in one directory, as ``<contract>.jsonl.gz`` files and a ``manifest.json`` that is written last.

What the collector consumed can be replayed: its lines by contract, and in ``arrivals.jsonl.gz`` which came when (see `Recorder`).
A directory without a manifest is a run that was cut short, and is refused. Same lines, same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import subprocess
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from libslo import __version__
from libslo.contracts import CONTRACTS, OTLP_SPANS, contract, explain
from libslo.errors import CannotError, InputError, os_reason, write_error
from libslo.jsonl import Record, encode

__all__ = ["ARRIVALS", "FORMAT", "RecordedFile", "Recorder", "Recording", "RecordingWriter", "Role", "git_revision", "kind_of"]

FORMAT = 1  # of recordings that this code writes, and the newest that it reads
ARRIVALS = "arrivals"
TIME = "stream-time"
_MANIFEST = "manifest.json"
_SUFFIX = ".jsonl.gz"
_LEVEL = 6
_READ_BYTES = 1 << 20

# input: what the collector consumed, in the order of `arrivals`; output: what tools made of it; truth: what was injected;
# load: what clients saw; about: reports and measurements beside.
Role = Literal["input", "arrivals", "output", "truth", "load", "about"]


def kind_of(contract_name: str) -> str:
    """The name of a contract's file without its ending; "other" for lines of no contract."""
    return {OTLP_SPANS: "spans", "": "other"}.get(contract_name, contract_name)


class RecordedFile:
    """One file of a recording that is being written: lines in, counted and hashed, packed without names or times."""

    def __init__(self, path: Path, contract_name: str, role: Role) -> None:
        self.path, self.contract, self.role = path, contract_name, role
        self.lines = 0
        self._hash = hashlib.sha256()
        self._file = _guard(path, lambda: path.open("xb"))
        self._packed = gzip.GzipFile("", "wb", _LEVEL, self._file, mtime=0)

    def write(self, block: bytes, lines: int) -> None:
        """Write that many whole lines."""
        self.lines += lines
        self._hash.update(block)
        _guard(self.path, lambda: self._packed.write(block))

    def close(self) -> dict[str, Any]:
        """Close the file; what the manifest says about it."""

        def finish() -> None:
            self._packed.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

        _guard(self.path, finish)
        name = self.path.name
        return {"name": name, "contract": self.contract, "role": self.role, "lines": self.lines, "sha256": self._hash.hexdigest()}


class RecordingWriter:
    """Writes a recording into a directory without one (other files in it are left alone); leaving it without an error writes the manifest.

    extend: take over the finished recording that is there, and add to it; until it is finished anew it counts as unfinished.
    about: scenario, severity, seed, load, scenario_sha256, phases (name, begin_unix_nano, end_unix_nano), host: whatever is known.
    Raises InputError when the directory is in use or a name is taken, CannotError when the disk is full.
    """

    def __init__(self, directory: str | Path, about: Mapping[str, Any] | None = None, *, extend: bool = False) -> None:
        self.directory = Path(directory)
        self.about: dict[str, Any] = dict(about or {})
        self._files: dict[str, RecordedFile] = {}
        self._done: list[dict[str, Any]] = []
        if extend:
            self._take_over(Recording(directory))
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            taken = sorted(path.name for path in self.directory.iterdir() if path.name == _MANIFEST or path.name.endswith(_SUFFIX))
        except OSError as error:
            raise InputError(f"cannot record: {os_reason(error)}", source=str(directory), hint="name a new directory") from error
        if taken:
            raise InputError(f"cannot record: there is a {taken[0]} in it already", source=str(directory), hint="name a new directory")

    def _take_over(self, recording: Recording) -> None:
        own = {"recording_format", "tool_version", "git_revision", "kernel", "machine", "files"}
        self.about = {key: value for key, value in recording.manifest.items() if key not in own} | self.about
        self._done = list(recording.files)
        _guard(self.directory / _MANIFEST, (self.directory / _MANIFEST).unlink)

    def file(self, contract_name: str, role: Role, name: str | None = None) -> RecordedFile:
        """The open file of that name (by default the contract's); made when first asked for."""
        name = name or kind_of(contract_name)
        found = self._files.get(name)
        if found is None:
            if any(row["name"] == name + _SUFFIX for row in self._done):
                raise InputError(f"{name} is recorded already", source=str(self.directory), hint="give it another name")
            found = self._files[name] = RecordedFile(self.directory / (name + _SUFFIX), contract_name, role)
        elif (found.contract, found.role) != (contract_name, role):
            raise InputError(f"{name} holds {found.contract} ({found.role})", source=str(self.directory), hint="give it another name")
        return found

    def add(self, path: str | Path, contract_name: str, role: Role, name: str | None = None, *, remove: bool = False) -> None:
        """Pack a JSONL file (``.gz`` is unpacked first) as one of the recording's; remove: it is gone afterwards."""
        file = self.file(contract_name, role, name)
        for line in _unpacked_lines(Path(path), packed=str(path).endswith(".gz")):
            file.write(line if line.endswith(b"\n") else line + b"\n", 1)
        if remove:
            _guard(Path(path), Path(path).unlink)

    def adopt(self, directory: str | Path) -> None:
        """Move the files of a finished recording (one that the collector made) into this one; that directory is removed."""
        other = Recording(directory)
        for row in other.files:
            if row["name"].removesuffix(_SUFFIX) in self._files or any(row["name"] == own["name"] for own in self._done):
                raise InputError(f"{row['name']} is recorded already", source=str(directory), hint="give it another name")
        for row in other.files:
            _move(other.directory / row["name"], self.directory / row["name"])
            self._done.append(row)
        (other.directory / _MANIFEST).unlink()
        other.directory.rmdir()

    def finish(self) -> dict[str, Any]:
        """Close all files and write the manifest."""
        rows = [*self._done, *(file.close() for file in self._files.values())]
        manifest = {"recording_format": FORMAT, **_machine(), **self.about, "files": sorted(rows, key=lambda row: str(row["name"]))}
        wrong = explain(manifest, contract("recording-manifest").schema)
        if wrong:
            raise InputError(f"not a valid recording-manifest: {wrong}", source=str(self.directory))
        import orjson

        data = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        path, part = self.directory / _MANIFEST, self.directory / f".{_MANIFEST}.part"

        def write() -> None:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)

        _guard(path, write)
        return manifest

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None or issubclass(kind, BrokenPipeError):  # who read the output has gone: what was consumed until then is whole
            self.finish()
            return
        for file in self._files.values():
            try:
                file.close()
            except CannotError:
                pass  # the error that ended the run is the one to tell


class Recorder:
    """Records what a collector consumes: each line in the file of its contract, and in `arrivals` when how many came.

    An arrival is ``{"arrival_unix_nano", "contract", "lines"}``: that many lines of that contract's file came next, at that time.
    On a live stream the moments at which time was let pass are there too, as "stream-time": what the collector said depends on
    them, so a replay has to repeat them.
    """

    def __init__(self, writer: RecordingWriter) -> None:
        self._writer = writer
        self._arrivals = writer.file("recording-arrival", "arrivals", ARRIVALS)

    def records(self, records: Sequence[Record], now_unix_ns: int) -> None:
        """Note the lines of a batch as they came."""
        for name, group in groupby(records, key=lambda record: record[0] or _detect(record[1])):
            lines = [record[2] for record in group]
            self._note(name, b"\n".join(lines) + b"\n", len(lines), now_unix_ns)

    def spans(self, request: dict[str, Any], now_unix_ns: int) -> None:
        """Note an OTLP request as the line it would have been."""
        self._note(OTLP_SPANS, encode(request), 1, now_unix_ns)

    def time(self, now_unix_ns: int) -> None:
        """Note that time was let pass up to now."""
        self._arrivals.write(encode({"arrival_unix_nano": now_unix_ns, "contract": TIME, "lines": 0}), 1)

    def _note(self, name: str, block: bytes, lines: int, now_unix_ns: int) -> None:
        self._writer.file(name or "other", "input", kind_of(name)).write(block, lines)
        self._arrivals.write(encode({"arrival_unix_nano": now_unix_ns, "contract": name or "other", "lines": lines}), 1)


def _detect(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    return next((name for name in (*CONTRACTS, OTLP_SPANS) if contract(name).marker in value), "")


@dataclass(frozen=True)
class Recording:
    """A finished recording. Raises InputError for a directory that is none, was cut short, or is of a newer format."""

    directory: Path

    def __init__(self, directory: str | Path) -> None:
        object.__setattr__(self, "directory", Path(directory))
        _ = self.manifest

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the recording says about itself."""
        import orjson

        path = self.directory / _MANIFEST
        try:
            value = orjson.loads(path.read_bytes())
        except OSError as error:
            self._refuse(error)
        except ValueError as error:
            raise InputError(f"not JSON: {error}", source=str(path), hint="record again") from error
        version = value.get("recording_format") if isinstance(value, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise InputError(
                f"a recording of format {version}, and this toolkit reads up to {FORMAT}", source=str(path), hint="update the toolkit"
            )
        wrong = explain(value, contract("recording-manifest").schema)
        if wrong:
            raise InputError(f"not a valid recording-manifest: {wrong}", source=str(path), hint="record again")
        manifest: dict[str, Any] = value
        return manifest

    @property
    def paths(self) -> list[Path]:
        """All files of it, which nobody who reads it may write to."""
        return [self.directory / name for name in (_MANIFEST, *(row["name"] for row in self.files))]

    def _refuse(self, error: OSError) -> None:
        place = str(self.directory)
        if self.directory.is_dir() and any(self.directory.glob("*" + _SUFFIX)):
            raise InputError(
                "an unfinished recording: it has no manifest.json", source=place, hint="record again; the run was cut short"
            ) from error
        if self.directory.is_dir():
            raise InputError("no recording: it has no manifest.json", source=place, hint="collector --record DIR makes one") from error
        raise InputError(os_reason(error), source=place, hint="check the path: a recording is a directory") from error

    @property
    def files(self) -> list[dict[str, Any]]:
        """name, contract, role, lines and sha256 of every file."""
        rows: list[dict[str, Any]] = self.manifest["files"]
        return rows

    def has(self, kind: str) -> bool:
        """Whether there is a file of that kind (its name without the ending)."""
        return any(row["name"] == kind + _SUFFIX for row in self.files)

    def check_labelled(self) -> None:
        """InputError when nobody knows what was true while it was made."""
        if not self.has("fault-window") and self.manifest.get("scenario") != "baseline":
            hint = "record the injector's fault-windows too, or name the scenario baseline in the manifest"
            raise InputError("no fault-window in it: nobody knows what was true", source=str(self.directory), hint=hint)

    def kinds(self, *roles: Role) -> list[str]:
        """The kinds of those roles (all roles when none is named)."""
        return [row["name"].removesuffix(_SUFFIX) for row in self.files if not roles or row["role"] in roles]

    def lines(self, kind: str) -> Iterator[bytes]:
        """The lines of a file, each with its newline. InputError when it is not there, cannot be unpacked, or is too short or long."""
        row = next((row for row in self.files if row["name"] == kind + _SUFFIX), None)
        if row is None:
            raise InputError(
                f"no {kind} in this recording", source=str(self.directory), hint=f"it has {', '.join(self.kinds()) or 'nothing'}"
            )
        count = 0
        for line in _unpacked_lines(self.directory / row["name"]):
            count += 1
            yield line
        if count != row["lines"]:
            path = str(self.directory / row["name"])
            raise InputError(
                f"{count} lines, where the manifest says {row['lines']}", source=path, hint="faultreplay --verify, record again"
            )

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """For each file: its name, whether it is what the manifest says, and the reason if not."""
        for row in self.files:
            reason = self._wrong(row)
            yield {"file": str(self.directory / row["name"]), "valid": not reason, **({"reason": reason} if reason else {})}

    def _wrong(self, row: Mapping[str, Any]) -> str:
        found, lines = hashlib.sha256(), 0
        try:
            for line in _unpacked_lines(self.directory / str(row["name"])):
                found.update(line)
                lines += 1
        except InputError as error:
            return error.fact
        if lines != row["lines"]:
            return f"{lines} lines, where the manifest says {row['lines']}"
        return "" if found.hexdigest() == row["sha256"] else "other bytes than were recorded: the sha256 differs"

    def input(self, kinds: Iterable[str] | None = None) -> Iterator[tuple[int, bytes]]:
        """(arrival in ns, line) of what the collector consumed, in the order in which it came.

        kinds: those to give out, "stream-time" for the moments at which time was let pass; None is all.
        """
        import orjson

        if not self.has(ARRIVALS):
            raise InputError("nothing to replay: it has no arrivals", source=str(self.directory), hint="record with collector --record DIR")
        wanted = None if kinds is None else frozenset(kinds)
        known = {*self.kinds("input"), TIME}
        if wanted is not None and not wanted <= known:
            unknown = ", ".join(sorted(wanted - known))
            raise InputError(f"no {unknown} in the recorded input", source=str(self.directory), hint=f"it has {', '.join(sorted(known))}")
        streams = {kind: self.lines(kind) for kind in self.kinds("input") if wanted is None or kind in wanted}
        place, hint = str(self.directory / (ARRIVALS + _SUFFIX)), "faultreplay --verify, record again"
        for number, raw in enumerate(self.lines(ARRIVALS), 1):
            try:
                arrival = orjson.loads(raw)
                at_ns, kind, count = int(arrival["arrival_unix_nano"]), kind_of(arrival["contract"]), int(arrival["lines"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError("not a recording-arrival", source=place, line=number, hint=hint) from error
            if wanted is not None and kind not in wanted:
                continue
            if kind == TIME and not count:  # a moment; with lines they are records of the stream, that another collector let pass
                yield at_ns, encode({"stream_unix_nano": at_ns})
                continue
            for _ in range(count):
                line = next(streams.get(kind, iter(())), None)
                if line is None:
                    raise InputError(f"more {kind} arrived than were kept", source=place, line=number, hint=hint)
                yield at_ns, line
        for kind, stream in streams.items():  # to the end, where a file that was cut shows
            if next(stream, None) is not None:
                raise InputError(f"more {kind} were kept than arrived", source=place, hint=hint)


def _unpacked_lines(path: Path, packed: bool = True) -> Iterator[bytes]:
    hint = "check that the file is whole (faultreplay --verify DIR), or record again"
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"cannot unpack: {str(error).lower().rstrip('.')}", source=str(path), hint=hint) from error
    except OSError as error:
        raise InputError(os_reason(error), source=str(path), hint=hint) from error


def _guard(path: Path, action: Any) -> Any:
    try:
        return action()
    except OSError as error:
        raise write_error(error, path) from error


def _move(old: Path, new: Path) -> None:
    import shutil

    _guard(new, lambda: shutil.move(old, new))


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "tool_version": __version__,
        "git_revision": git_revision(),
        "kernel": platform.release(),
        "machine": {"architecture": platform.machine(), "cpus": os.cpu_count() or 1, "memory_bytes": memory},
    }


def git_revision() -> str:
    """The revision of the checkout that this code runs from, with "-dirty" when it was changed; "unknown" elsewhere."""
    place = Path(__file__).resolve().parent.parent
    if not (place / ".git").exists():
        return "unknown"
    try:
        found = subprocess.run(["git", "-C", str(place), "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.decode().strip() if found.returncode == 0 and found.stdout.strip() else "unknown"
