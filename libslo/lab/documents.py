"""The RAG service's documents: a file of text on disk, read in passages from places that the request decides.

The file is what makes memory pressure real for the service: healthy, its pages are in the page cache and a read costs microseconds;
under a memory limit they are reclaimed, and reads wait for the disk.
"""

from __future__ import annotations

import mmap
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from libslo.errors import CannotError, InputError

__all__ = ["READS", "DocumentStore", "build_context"]

READS = ("buffered", "mmap")
_MB = 1 << 20
_SEED = 11
_WORDS = ("latency", "kernel", "token", "queue", "cache", "socket", "page", "retry", "shard", "index", "vector", "budget", "probe", "span")


class DocumentStore:
    """An open document file.

    path: the file, made when missing with `megabytes` of text that is the same everywhere (an existing one is taken as it is);
    of a directory: a file in it without a name, which is gone with the process, however that ends.
    read: "buffered" (pread) or "mmap". Raises InputError for a file too small, CannotError when it cannot be made or read.
    """

    def __init__(self, path: Path, megabytes: int, read: str = "buffered") -> None:
        self._source = str(path)
        try:
            self._descriptor = _open_nameless(path, megabytes) if path.is_dir() else _open_named(path, megabytes)
            self.size_bytes = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise CannotError(
                f"cannot make or read the documents: {error.strerror}", source=self._source, hint="--documents FILE"
            ) from error
        if self.size_bytes < _MB:
            os.close(self._descriptor)
            raise InputError(f"the documents have {self.size_bytes} bytes", source=self._source, hint="a file of 1 MB or more, or none")
        # a passage is read alone: readahead would bring in its neighbours, which nobody asked for
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._map: mmap.mmap | None = None
        if read == "mmap":
            self._map = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)
            self._map.madvise(mmap.MADV_RANDOM)

    def close(self) -> None:
        """Let go of the file."""
        if self._map is not None:
            self._map.close()
        os.close(self._descriptor)

    def read(self, seed: str, total_bytes: int, passage_bytes: int) -> list[bytes]:
        """`total_bytes` of text in passages from places that `seed` decides; the same passages for the same seed and file."""
        places = random.Random(seed.encode(errors="replace"))
        count, last = total_bytes // passage_bytes, self.size_bytes // passage_bytes - 1
        offsets = [places.randint(0, last) * passage_bytes for _ in range(count)]
        if self._map is not None:
            return [self._map[offset : offset + passage_bytes] for offset in offsets]
        return [os.pread(self._descriptor, passage_bytes, offset) for offset in offsets]


def build_context(passages: Sequence[bytes], size_bytes: int) -> bytes:
    """The passages joined, over and over until `size_bytes` are filled: memory that is really touched."""
    text = b"\n".join(passages) or b"\n"
    return b"".join([text] * (size_bytes // len(text) + 1))


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
