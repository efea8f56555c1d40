"""Owner-stamped records."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from libslo.errors import CannotError, InputError
from libslo.host import process_start_ticks
from libslo.lab import state as module
from libslo.lab.state import current_owner, read_records, write_record


def _rewrite_owner(path: Path, **changes: object) -> None:
    body = json.loads(path.read_text())
    body["owner"] |= changes
    path.write_text(json.dumps(body))


def test_round_trip(state: Path) -> None:
    """A record is read back as written, is not stale while its owner lives, and is gone after remove."""
    written = write_record("lab", "a1", {"cgroup": "/x"})
    (read,) = read_records("lab")
    assert read == written
    assert not read.is_stale()
    assert list(read_records("injection")) == []
    read.remove()
    read.remove()
    assert list(state.iterdir()) == []


def test_dead_owner_is_stale(state: Path) -> None:
    """A record is stale when its pid has ended, and when the pid was given to a later process."""
    record = write_record("lab", "a1", {})
    child = subprocess.Popen(["true"])
    child.wait()
    _rewrite_owner(record.path, pid=child.pid)
    assert next(read_records("lab")).is_stale()
    _rewrite_owner(record.path, pid=os.getpid(), start_ticks=current_owner().start_ticks + 1)
    assert next(read_records("lab")).is_stale()


def test_zombie_is_no_owner() -> None:
    """A killed process that nobody has waited for yet counts as gone."""
    child = subprocess.Popen(["sleep", "60"])
    assert process_start_ticks(child.pid) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start_ticks(child.pid) is None
    child.wait()


def test_record_of_another_boot_is_stale(state: Path) -> None:
    """After a restart of the machine, no pid of a record means anything."""
    record = write_record("lab", "a1", {})
    _rewrite_owner(record.path, boot_id="0")
    assert next(read_records("lab")).is_stale()


def test_record_of_another_pid_namespace_is_left_alone(state: Path) -> None:
    """A record written inside another container is foreign, never stale: its pids cannot be looked up here."""
    record = write_record("lab", "a1", {})
    _rewrite_owner(record.path, pid=1 << 21, pid_namespace=1)
    (read,) = read_records("lab")
    assert read.is_foreign()
    assert not read.is_stale()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "lab"}', '{"kind":"lab","ident":"b","owner":{},"data":{}}'])
def test_corrupt_record_is_an_error_with_place_and_cure(state: Path, content: str) -> None:
    """A file that is not a record is named, never skipped and never deleted."""
    state.mkdir()
    path = state / "lab-zz.json"
    path.write_text(content)
    with pytest.raises(InputError, match="not a state record") as caught:
        list(read_records("lab"))
    assert caught.value.source == str(path)
    assert caught.value.hint is not None
    assert f"rm {path}" in caught.value.hint
    assert path.exists()


def test_renamed_record_is_refused(state: Path) -> None:
    """A record under another's name is not believed."""
    record = write_record("lab", "a1", {})
    record.path.rename(state / "lab-b2.json")
    with pytest.raises(InputError, match="does not fit"):
        list(read_records("lab"))


def test_failed_write_leaves_the_old_record(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk refuses, the record before stays whole and no scratch file is left."""
    write_record("lab", "a1", {"n": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(CannotError, match="No space left"):
        write_record("lab", "a1", {"n": 2})
    assert next(read_records("lab")).data == {"n": 1}
    assert [path.name for path in state.iterdir()] == ["lab-a1.json"]


def test_unusable_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state directory that cannot be made is an error that names the variable to set."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLO_STATE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(CannotError) as caught:
        write_record("lab", "a1", {})
    assert "SLO_STATE_DIR" in str(caught.value.hint)


def test_a_directory_that_others_may_write_is_not_trusted(state: Path) -> None:
    """What lies in the state directory is undone by root, so one that others could have written to is refused with its cure."""
    state.mkdir(exist_ok=True)
    state.chmod(0o777)
    with pytest.raises(CannotError, match="not ours alone") as caught:
        list(read_records("lab"))
    assert "chmod 700" in str(caught.value.hint)
    state.chmod(0o700)
    assert list(read_records("lab")) == []
