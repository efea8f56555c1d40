"""cgroups: from the id of a cgroup to its path, cheaply and in bounded memory; the paths themselves are in tests/kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from libslo.kernel.cgroups import CgroupPaths, group_key


class Clock:
    """Each look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        self.now_ns += 10**6
        return self.now_ns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b/c", "b/d/e"):
        (tmp_path / "root" / name).mkdir(parents=True)
    return tmp_path / "root"


def listed(root: Path, **options: object) -> CgroupPaths:
    return CgroupPaths(root, handles=False, clock_ns=Clock(), **options)  # type: ignore[arg-type]


def test_every_level_is_found(root: Path) -> None:
    """Paths start below the mount; the root, what is unknown and what is no cgroup have none."""
    paths = listed(root)
    for name in ("a", "b", "b/c", "b/d/e"):
        assert paths.path((root / name).stat().st_ino) == f"/{name}"
    assert [paths.path(number) for number in (0, 1, 2**60)] == ["", "", ""]


def test_a_path_outlives_its_directory(root: Path) -> None:
    """What was found once is known after it is gone."""
    paths = listed(root)
    number = (root / "a").stat().st_ino
    paths.scan()
    (root / "a").rmdir()
    assert paths.path(number) == "/a"


def test_listing_takes_a_twentieth_of_the_time(root: Path) -> None:
    """A cgroup made right after a listing waits for the next one, which comes after twenty times what the last one took."""
    clock = Clock()
    paths = CgroupPaths(root, handles=False, clock_ns=clock)
    paths.scan()
    (root / "new").mkdir()
    number = (root / "new").stat().st_ino
    assert paths.path(number) == ""
    clock.now_ns += 20 * 10**6
    assert paths.path(number) == "/new"


def test_memory_and_work_are_bounded(root: Path) -> None:
    """Only so many directories are listed and only so many paths kept."""
    for number in range(100):
        (root / f"x{number}" / "y").mkdir(parents=True)
    paths = listed(root, limit=10)
    paths.scan()
    assert len(paths._paths) == 10
    paths = listed(root, max_dirs=1)
    paths.scan()
    assert {path.count("/") for path in paths._paths.values()} == {1}


def test_without_a_hierarchy_nothing_is_known(tmp_path: Path) -> None:
    """A directory that is not there is no error."""
    paths = listed(tmp_path / "none")
    paths.scan()
    assert paths.path(77) == ""


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("0::/a/b\n", "/a/b"),
        ("0::/\n", ""),
        ("", ""),
        ("4:memory:/\n0::/\n", ""),
        ("4:memory:/m\n3:cpu:/c\n0::/\n", "/c\n/m"),
        ("4:memory:/m\n0::/u\n", "/u"),
        ("0::/a/b (deleted)\n", "/a/b"),
        ("nonsense", ""),
    ],
)
def test_what_processes_of_a_cgroup_share(text: str, key: str) -> None:
    """The cgroup2 path, else those of v1; the root is nothing to share."""
    assert group_key(text) == key
