"""The RAG service's documents: a file of text on disk, read in passages from places that the request decides.

The file is what makes memory pressure real for the service: healthy, its pages are in the page cache and a read costs microseconds;
under a memory limit they are reclaimed, and reads wait for the disk.
"""

from __future__ import annotations

import mmap
import os
import random
import tempfile
from pathlib import Path

from libslo.errors import CannotError, InputError

__all__ = ["DocumentStore"]

_MB = 1 << 20
_SEED = 11
_WORDS = ("latency", "kernel", "token", "queue", "cache", "socket", "page", "retry", "shard", "index", "vector", "budget", "probe", "span")


class DocumentStore:
    """An open document file.

    path: the file, made when missing with `megabytes` of text that is the same everywhere (an existing one is taken as it is);
    of a directory: a file in it without a name, which is gone with the process, however that ends.
    Raises InputError for a file too small, CannotError when it cannot be made or read.
    """

    def __init__(self, path: Path, megabytes: int) -> None:
        try:
            self._descriptor = _open_nameless(path, megabytes) if path.is_dir() else _open_named(path, megabytes)
            self.size_bytes = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise CannotError(f"cannot make or read the documents: {error.strerror}", source=str(path), hint="--documents FILE") from error
        if self.size_bytes < _MB:
            os.close(self._descriptor)
            raise InputError(f"the documents have {self.size_bytes} bytes", source=str(path), hint="a file of 1 MB or more, or none")
        # a passage is read alone: readahead would bring in its neighbours, which nobody asked for
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def read_into(self, buffer: mmap.mmap, seed: str, passage_bytes: int) -> None:
        """Fill the buffer, whole passages long, with passages from places that `seed` decides: the same bytes for the same seed and file.

        Waits for the disk hold no lock of the interpreter.
        """
        count = len(buffer) // passage_bytes
        places = random.Random(seed.encode(errors="replace")).choices(range(self.size_bytes // passage_bytes), k=count)
        with memoryview(buffer) as view:
            for number, place in enumerate(places):
                with view[number * passage_bytes : (number + 1) * passage_bytes] as into:
                    os.preadv(self._descriptor, [into], place * passage_bytes)


def _open_named(path: Path, megabytes: int) -> int:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            _fill(descriptor, megabytes)
            Path(unfinished).replace(path)
        except BaseException:
            Path(unfinished).unlink()
            raise
        finally:
            os.close(descriptor)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _open_nameless(directory: Path, megabytes: int) -> int:
    with tempfile.TemporaryFile(dir=directory) as file:
        _fill(file.fileno(), megabytes)
        return os.dup(file.fileno())


def _fill(descriptor: int, megabytes: int) -> None:
    """Write the text and wait until the disk has it: written back later, it would disturb what is measured then."""
    words = random.Random(_SEED)
    block = " ".join(words.choices(_WORDS, k=_MB // 5))[:_MB].encode()
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        for number in range(megabytes):
            turn = number * 4099 % _MB
            file.write((f"\ndocument {number}\n".encode() + block[turn:] + block[:turn])[:_MB])
    os.fsync(descriptor)
