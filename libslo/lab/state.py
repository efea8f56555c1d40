"""Owner-stamped records of what must be undone: written before a thing is made, removed after it is gone.

A record is one JSON file below the state directory (``/run/slo-toolkit``, or ``SLO_STATE_DIR``).
It names its owner by pid, start time and boot, so that a record whose owner was killed is recognised at the next start,
even when the pid has been given to another process since.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libslo.errors import CannotError, InputError
from libslo.host import process_start_ticks

__all__ = ["STATE_VARIABLE", "Owner", "Record", "current_owner", "read_records", "remove_scratch", "state_dir", "write_record"]

STATE_VARIABLE = "SLO_STATE_DIR"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class Owner:
    """A process that cannot be confused with a later one: start_ticks is field 22 of ``/proc/<pid>/stat``."""

    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: int


@dataclass(frozen=True)
class Record:
    """One state file: ``kind`` and ``ident`` name it, ``data`` is what its kind needs in order to undo."""

    path: Path
    kind: str
    ident: str
    owner: Owner
    data: dict[str, Any]

    def is_foreign(self) -> bool:
        """Whether the owner lives in another pid namespace of this boot: nothing can be said about it from here."""
        here = current_owner()
        return self.owner.boot_id == here.boot_id and self.owner.pid_namespace != here.pid_namespace

    def is_stale(self) -> bool:
        """Whether the owner is gone (ended, its pid reused, or the machine restarted)."""
        if self.is_foreign():
            return False
        if self.owner.boot_id != _boot_id():
            return True
        return process_start_ticks(self.owner.pid) != self.owner.start_ticks

    def remove(self) -> None:
        """Delete the file; one that is gone already is no error."""
        self.path.unlink(missing_ok=True)


def state_dir() -> Path:
    """The directory of the records, created with mode 0700 when missing; CannotError when it cannot be written."""
    path = Path(os.environ.get(STATE_VARIABLE) or "/run/slo-toolkit")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotError(
            f"cannot make the state directory: {error.strerror}", source=str(path), hint="run as root, or set SLO_STATE_DIR"
        ) from error
    about = path.lstat()
    if about.st_uid == 0 != os.geteuid():
        raise CannotError("the state directory is root's", source=str(path), hint="run as root, or set SLO_STATE_DIR")
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
        # What lies in it is undone by root: nobody else may have written it.
        raise CannotError("the state directory is not ours alone", source=str(path), hint=f"chown root, chmod 700, or remove: {path}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise CannotError("the state directory cannot be written", source=str(path), hint="run as root, or set SLO_STATE_DIR")
    return path


def current_owner() -> Owner:
    """This process as an owner."""
    ticks = process_start_ticks(os.getpid())
    assert ticks is not None, "a running process has a start time"  # noqa: S101 (an invariant, not input)
    return Owner(os.getpid(), ticks, _boot_id(), Path("/proc/self/ns/pid").stat().st_ino)


def write_record(kind: str, ident: str, data: Mapping[str, Any], *, new: bool = False) -> Record:
    """Write or replace the record ``<kind>-<ident>.json`` of this process, on disk when this returns (atomic, fsync).

    new: FileExistsError when there is one of that name, whoever wrote it.
    """
    if not _NAME.fullmatch(kind) or not _NAME.fullmatch(ident):
        raise ValueError(f"a record is named by lower-case words: {kind!r} {ident!r}")
    owner = current_owner()
    path = state_dir() / f"{kind}-{ident}.json"
    body = json.dumps({"kind": kind, "ident": ident, "owner": vars(owner), "data": dict(data)}, indent=1) + "\n"
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with scratch.open("w") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(scratch, path)  # unlike a rename it replaces nothing
            scratch.unlink()
        else:
            scratch.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        scratch.unlink()
        raise
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise CannotError(f"cannot write the undo record: {error.strerror}", source=str(path)) from error
    return Record(path, kind, ident, owner, dict(data))


def read_records(kind: str) -> Iterator[Record]:
    """All records of a kind, by name.

    Raises InputError at one that this module did not write: it may stand for something that is still on,
    so it is never skipped and never deleted unread.
    """
    for path in sorted(state_dir().glob(f"{kind}-*.json")):
        try:
            body = json.loads(path.read_text())
            record = Record(path, body["kind"], body["ident"], Owner(**body["owner"]), dict(body["data"]))
            if path.name != f"{record.kind}-{record.ident}.json":
                raise ValueError("the name of the file does not fit its content")
        except FileNotFoundError:
            continue  # its owner removed it between the listing and the reading
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"not a state record of this toolkit ({type(error).__name__}: {error})",
                source=str(path),
                hint=f"look at it, undo by hand what it names, then: rm {path}",
            ) from error
        yield record


def remove_scratch() -> None:
    """Remove what was left of records whose writers were killed while they wrote."""
    for path in state_dir().glob("*.tmp"):
        pid = path.name.rsplit(".", 2)[-2]
        if pid.isdigit() and process_start_ticks(int(pid)) is None:
            path.unlink(missing_ok=True)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
