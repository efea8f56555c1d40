"""Who is charged with what a CPU quota held, on trees of files that stand for cgroups and processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import libslo.kernel.polled
from libslo.kernel.polled import CpuStat, Targets

Make = Callable[..., CpuStat]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a CpuStat over tmp_path/cgroup and tmp_path/proc, from processes: pid to (cgroup, environment, None for unreadable)."""
    root, proc = tmp_path / "cgroup", tmp_path / "proc"

    def made(processes: dict[int, tuple[str, str | None]], **targets: object) -> CpuStat:
        (root / "app").mkdir(parents=True)
        for pid, (cgroup, environ) in processes.items():
            (root / cgroup).mkdir(parents=True, exist_ok=True)
            with (root / cgroup / "cgroup.procs").open("a") as file:
                file.write(f"{pid}\n")
            (proc / str(pid)).mkdir(parents=True)
            (proc / str(pid) / "cgroup").write_text(f"0::/{cgroup}\n")
            (proc / str(pid) / "comm").write_text(f"c{pid}\n")
            if environ is not None:
                (proc / str(pid) / "environ").write_text(environ)
        held(tmp_path, 0)
        monkeypatch.setattr(libslo.kernel.polled, "cgroup_mount", lambda _: (root, 2))
        monkeypatch.setattr(libslo.kernel.polled, "cgroup2_mount", lambda: root)
        return CpuStat(Targets(**targets), proc=proc)  # type: ignore[arg-type]

    return made


def held(place: Path, usec: int) -> None:
    (place / "cgroup" / "app" / "cpu.stat").write_text(f"nr_periods 1\nthrottled_usec {usec}\n")


def charged(stat: CpuStat, place: Path) -> list[int]:
    """The pids that 5 ms more are charged to."""
    held(place, 5000)
    readings = stat.poll(1 << 40)
    assert all(event["duration_ns"] == 5_000_000 for event in readings.events)
    assert readings.account.attempts == 1 == readings.account.emitted + readings.account.filtered
    return [int(pid) for pid in readings.events["pid"]]


SHELL, APP = ("app", "PATH=/bin\0"), ("app", "PATH=/bin\0OTEL_SERVICE_NAME=rag\0")


def test_a_shell_that_starts_the_service_is_not_charged(make: Make, tmp_path: Path) -> None:
    """Of the processes in the cgroup the one that names its service, though a wrapper has the lower pid."""
    assert charged(make({100: SHELL, 200: APP, 300: APP}), tmp_path) == [200]


def test_a_service_below_the_cgroup_is_found(make: Make, tmp_path: Path) -> None:
    """Also in a cgroup below the one with the quota, by either variable."""
    below = ("app/worker", "OTEL_RESOURCE_ATTRIBUTES=service.name=rag\0")
    assert charged(make({100: SHELL, 50: below}), tmp_path) == [50]


@pytest.mark.parametrize("environ", ["PATH=/bin\0", "OTEL_RESOURCE_ATTRIBUTES=team=x\0", "", None])
def test_without_a_name_it_is_the_lowest_pid(make: Make, tmp_path: Path, environ: str | None) -> None:
    """When nobody names a service, or may be read, it is as it was: the first process of the cgroup itself."""
    assert charged(make({200: ("app", environ), 100: ("app", environ), 50: ("app/worker", environ)}), tmp_path) == [100]


def test_who_does_not_pass_is_not_charged(make: Make, tmp_path: Path) -> None:
    """A named service that the targets leave out is no owner."""
    assert charged(make({100: SHELL, 200: APP}, pids=(100,)), tmp_path) == [100]


def test_nobody_there(make: Make, tmp_path: Path) -> None:
    """An empty cgroup is nobody's, and with targets it is filtered."""
    assert charged(make({}), tmp_path) == [0]


def test_nobody_that_passes(make: Make, tmp_path: Path) -> None:
    """With targets that nobody in it meets, a reading is filtered."""
    assert charged(make({100: SHELL}, comm="other"), tmp_path) == []


def test_a_crowd_is_not_asked_one_by_one(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a cgroup with many processes only the first are asked."""
    stat = make({**dict.fromkeys(range(1, 200), SHELL), 900: APP})
    asked: list[int] = []
    monkeypatch.setattr(stat, "_names_service", lambda pid: asked.append(pid))
    assert charged(stat, tmp_path) == [1] and asked == list(range(1, 65))
