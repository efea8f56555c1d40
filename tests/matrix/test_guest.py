"""Fetching and starting guests, as far as no guest is needed for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import guest
import guest_kernels
import pytest
from guest_kernels import GuestKernel, guest_kernel, mirrors, newest

from libslo.errors import CannotError, InputError


def test_mirrors_are_those_that_apt_knows() -> None:
    """Of the machine's own sources, Debian's archive and its security archive are used, the first of each, and no others."""
    listed = "Debian http://one/debian/\nDebian http://two/debian/\nOther http://three/\nDebian-Security http://one/security/\nDebian \n"
    assert mirrors(listed) == {"Debian": "http://one/debian/", "Debian-Security": "http://one/security/"}


def test_the_newest_of_a_series_is_taken() -> None:
    """apt lists the newest first; another series, or one whose number only begins alike, is passed over."""
    listed = (
        " linux-image-amd64 | 6.12.9-1 | http://x trixie\n linux-image-amd64 | 6.1.192-2 | http://x\n linux-image-amd64 | 6.1.176-1 | y\n"
    )
    assert (newest(listed, "6.1"), newest(listed, "6.12"), newest(listed, "6.9")) == ("6.1.192-2", "6.12.9-1", "")


def kernel_with(place: Path, dependencies: str, built_in: str = "") -> GuestKernel:
    made = GuestKernel("6.1", "6.1.0-test", "linux-image_1", place)
    made.modules.mkdir(parents=True)
    (made.modules / "modules.dep").write_text(dependencies)
    (made.modules / "modules.builtin").write_text(built_in)
    return made


def test_modules_follow_what_they_need(tmp_path: Path) -> None:
    """Each module comes after the ones it needs, once, whatever its file is packed with; built-in ones are left out."""
    kernel = kernel_with(
        tmp_path, "a/top.ko.xz: a/mid.ko.xz a/low-one.ko.xz\na/mid.ko.xz: a/low-one.ko.xz\na/low-one.ko.xz:\n", "k/in.ko\n"
    )
    found = guest.modules_in_order(kernel, ("top", "low_one", "in"))
    assert [path.name for path in found] == ["low-one.ko.xz", "mid.ko.xz", "top.ko.xz"]
    with pytest.raises(CannotError, match="no module other"):
        guest.modules_in_order(kernel, ("other",))


def test_an_unknown_kernel_is_a_usage_error(tmp_path: Path) -> None:
    """A version that no suite has names those that there are."""
    with pytest.raises(InputError) as error:
        guest_kernel("5.4", tmp_path)
    assert "6.1" in str(error.value.hint)


def test_what_was_fetched_is_used_without_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old copy is good enough where the archive is out of reach; without one the reason is told."""

    def unreachable(cache: Path, version: str) -> dict[str, str | float]:
        raise CannotError("no index", source="apt-get", hint="network")

    monkeypatch.setattr(guest_kernels, "_resolve", unreachable)
    with pytest.raises(CannotError, match="no index"):
        guest_kernel("6.1", tmp_path)
    (tmp_path / "linux_1").mkdir()
    (tmp_path / "linux_1" / "complete").touch()
    (tmp_path / "6.1.json").write_text('{"release": "6.1.0-9", "package": "linux_1", "resolved_s": 1.0}')
    assert guest_kernel("6.1", tmp_path).release == "6.1.0-9"


def test_the_start_script_keeps_words_together(tmp_path: Path) -> None:
    """Arguments with blanks and quotes reach the guest as they were, and its exit status comes back."""
    text = guest.start_script(["echo", "it's one", "two"], directory=tmp_path, environment={"NAME": "a b"})
    ending = text.index("busybox poweroff")
    body = text[:ending].replace("modprobe virtio_blk", ":").replace("/dev/vda", str(tmp_path / "none"))
    body = "\n".join(line for line in body.splitlines() if not line.startswith(("mount", "for turn", "sync")) and "/proc/sys" not in line)
    done = subprocess.run(
        ["sh", "-c", body.replace("/out/status", str(tmp_path / "status")) + '\necho "$NAME"'], capture_output=True, text=True, check=True
    )
    assert done.stdout == "it's one two\na b\n"
    assert (tmp_path / "status").read_text() == "0\n"


def test_what_killed_runs_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories of processes that are gone are taken away, those of living ones stay."""
    monkeypatch.setattr(guest.tempfile, "gettempdir", lambda: str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for owner in (ended.pid, os.getpid()):
        (tmp_path / f"slo-guest-{owner}-x").mkdir()
    guest.remove_left_over()
    assert [path.name for path in tmp_path.iterdir()] == [f"slo-guest-{os.getpid()}-x"]


def test_a_machine_without_qemu_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is named with the package that has it."""
    monkeypatch.setattr(guest.shutil, "which", lambda program, path="": None if program.startswith("qemu") else "/bin/x")
    with pytest.raises(CannotError, match=r"missing: qemu-system-x86$") as error:
        guest.require()
    assert error.value.hint == "apt-get install qemu-system-x86"


def test_lockdown_is_never_raised_outside_a_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that we did not boot the runner refuses to touch it."""
    import matrix_runner

    file = tmp_path / "lockdown"
    file.write_text("none [integrity] confidentiality\n")
    monkeypatch.setattr(matrix_runner, "LOCKDOWN_FILE", file)
    monkeypatch.setattr(matrix_runner, "GUEST_WORD", "no kernel was booted with this word")
    matrix_runner.raise_lockdown("integrity")  # as it is: nothing to do
    with pytest.raises(CannotError, match="guests only"):
        matrix_runner.raise_lockdown("confidentiality")
    assert file.read_text() == "none [integrity] confidentiality\n"
