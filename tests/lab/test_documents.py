"""The document store: a file made once and the same everywhere, read in passages that a seed decides."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

import pytest

from libslo.errors import CannotError, InputError
from libslo.lab.documents import DocumentStore


def test_made_when_missing_and_the_same_everywhere(tmp_path: Path) -> None:
    """Its size is what was asked, its text the same in every file; one that exists is left as it is, and nothing else is left."""
    path = tmp_path / "sub" / "d.txt"
    DocumentStore(path, 2).close()
    DocumentStore(tmp_path / "e.txt", 3).close()
    assert path.stat().st_size == 2 << 20
    assert (tmp_path / "e.txt").read_bytes()[: 2 << 20] == path.read_bytes()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    assert path.read_bytes().isascii()
    store = DocumentStore(path, 9)
    assert store.size_bytes == 2 << 20
    store.close()
    assert sorted(each.name for each in path.parent.iterdir()) == ["d.txt"]


SHA256 = "7ee657e4be5815668014b095d96c84a3b436669436a181866e7e135a37f39859"  # of the first 2 MB, on any machine


def read(store: DocumentStore, seed: str, size_bytes: int = 256 * 1024) -> bytes:
    with mmap.mmap(-1, size_bytes) as buffer:
        store.read_into(buffer, seed, 4096)
        return buffer[:]


def test_passages(tmp_path: Path) -> None:
    """They lie in the file where the seed says: the same for the same seed, others for another, all over the file."""
    path = tmp_path / "d.txt"
    store = DocumentStore(path, 1)
    text = path.read_bytes()
    found = read(store, "a")
    places = [text.index(found[begin : begin + 4096]) for begin in range(0, len(found), 4096)]
    assert len(places) == 64
    assert all(place % 4096 == 0 for place in places)
    assert len(set(places)) > 40
    assert max(places) - min(places) > len(text) / 2
    assert read(store, "a") == found
    assert read(store, "b") != found
    store.close()


def test_in_a_directory_it_has_no_name(tmp_path: Path) -> None:
    """Nothing is left to remove, however the process ends; the text is the same."""
    store = DocumentStore(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
    named = DocumentStore(tmp_path / "d.txt", 1)
    assert read(store, "a") == read(named, "a")
    store.close()
    named.close()


def test_too_small(tmp_path: Path) -> None:
    """A file that is not worth the name is refused, and closed."""
    path = tmp_path / "d.txt"
    path.write_text("short")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(InputError, match="the documents have 5 bytes"):
        DocumentStore(path, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_unfinished_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle leaves no half file that the next start would take."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotError, match="No space left"):
        DocumentStore(tmp_path / "d.txt", 1)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
