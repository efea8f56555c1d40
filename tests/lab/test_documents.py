"""The document store: a file made once and the same everywhere, read in the same passages by either way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from libslo.errors import CannotError, InputError
from libslo.lab.documents import DocumentStore, build_context


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


@pytest.mark.parametrize("read", ["buffered", "mmap"])
def test_passages(read: str, tmp_path: Path) -> None:
    """They lie in the file where the seed says: the same for the same seed, others for another, all over the file."""
    path = tmp_path / "d.txt"
    store = DocumentStore(path, 1, read)
    text = path.read_bytes()
    passages = store.read("a", 256 * 1024, 4096)
    assert [len(passage) for passage in passages] == [4096] * 64
    places = [text.index(passage) for passage in passages]
    assert all(place % 4096 == 0 for place in places)
    assert len(set(places)) > 40
    assert max(places) - min(places) > len(text) / 2
    assert store.read("a", 256 * 1024, 4096) == passages
    assert store.read("b", 256 * 1024, 4096) != passages
    store.close()
    other = DocumentStore(path, 1, "mmap" if read == "buffered" else "buffered")
    assert other.read("a", 256 * 1024, 4096) == passages
    other.close()


def test_in_a_directory_it_has_no_name(tmp_path: Path) -> None:
    """Nothing is left to remove, however the process ends; the text is the same."""
    store = DocumentStore(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
    named = DocumentStore(tmp_path / "d.txt", 1)
    assert store.read("a", 8192, 4096) == named.read("a", 8192, 4096)
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


def test_context_has_its_size() -> None:
    """The passages in their order, over and over, at least as many bytes as asked; also of none."""
    context = build_context([b"ab", b"cd"], 12)
    assert context.startswith(b"ab\ncdab\ncd")
    assert 12 <= len(context) <= 12 + 5
    assert len(build_context([], 7)) >= 7
    assert build_context([b"abc"], 0) == b"abc"
