"""Dead letters: webhooks that could not be delivered, kept as lines that people read and that can be sent again.

A line (contract webhook-dead-letter) holds the body as an object and no secret; what is read back gives the same bytes again.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from libslo.errors import CannotError, InputError, write_error
from libslo.export.webhook_delivery import Outcome
from libslo.export.webhook_payloads import Letter
from libslo.jsonl import OnBad, encode, read_jsonl

__all__ = ["DeadLetters", "dead_letter", "read_letters"]

_KIND = "webhook-dead-letter"


def dead_letter(letter: Letter, outcome: Outcome, place: str, now_unix_ns: int) -> dict[str, Any]:
    """A webhook-dead-letter object. place: scheme, host and port of the receiver."""
    return {
        "webhook_id": letter.webhook_id,
        "failed_unix_nano": now_unix_ns,
        "reason": outcome.reason,
        "error": outcome.error,
        "attempts": outcome.attempts,
        "receiver": letter.receiver,
        "place": place,
        "event": letter.event,
        "incident_id": letter.incident_id,
        "path": letter.path,
        "body": dict(letter.body),
    }


class DeadLetters:
    """Appends lines to a file, each at once. Raises InputError when the file cannot be opened; parents are created."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.written = 0
        self._lock = threading.Lock()
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # For its owner only: names of services and requests are nobody else's business.
            self._stream: BinaryIO = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab", buffering=0)
            self._regular = stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode)
            if self._regular and _is_torn(path):
                self._stream.write(b"\n")
        except OSError as error:
            raise write_error(error, path) from error

    def write(self, value: dict[str, Any]) -> None:
        """Append one object; CannotError when the disk is full."""
        line = encode(value)
        with self._lock:
            try:
                size = os.fstat(self._stream.fileno()).st_size
                wrote = self._stream.write(line)
                if wrote != len(line) and self._regular:
                    os.ftruncate(self._stream.fileno(), size)  # half a line would spoil the next one too
            except OSError as error:
                raise write_error(error, self.path) from error
            if wrote != len(line):
                raise CannotError("cannot write: the line was cut short", source=self.path, hint="free some space")
            self.written += 1

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._stream.close()


def _is_torn(path: str) -> bool:
    """Whether a file ends in the middle of a line: somebody was stopped while writing."""
    with Path(path).open("rb") as file:
        return bool(file.seek(0, os.SEEK_END)) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"


def read_letters(path: str, receiver: str, on_bad: OnBad = "fail") -> Iterator[Letter]:
    """The letters of a file, in their order. InputError names the line of one that is none, or is for another receiver."""
    for records in read_jsonl(path, (_KIND,), on_bad=on_bad):
        for kind, value, _, number in records:
            if not kind:
                raise InputError("not a dead letter", source=path, line=number, hint="give --webhook-replay what --dead-letter wrote")
            if value["receiver"] != receiver:
                hint = f"--webhook-receiver {value['receiver']}"
                raise InputError(f"a letter for {value['receiver']}, not for {receiver}", source=path, line=number, hint=hint)
            yield Letter(
                value["receiver"], value["webhook_id"], value["event"], value["incident_id"], value["path"], value["body"]
            )  # fmt: skip
