"""What the lab's tests share: when to skip, a state directory of their own, and the check that nothing is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_traces import Traces

from libslo.errors import SloError
from libslo.lab.topology import ADDRESSES, NAMES, Topology


@pytest.fixture(scope="session")
def lab_ground(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip with the reason where no lab can be made; fail instead where SLO_REQUIRE_KERNEL=1."""
    os.environ["SLO_STATE_DIR"] = str(tmp_path_factory.mktemp("probe"))
    try:
        with Topology():
            pass
    except SloError as error:
        if os.environ.get("SLO_REQUIRE_KERNEL") == "1":
            pytest.fail(f"SLO_REQUIRE_KERNEL=1, but no lab here: {error}")
        pytest.skip(f"no lab here: {error}")
    finally:
        del os.environ["SLO_STATE_DIR"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of this test alone."""
    path = tmp_path / "state"
    monkeypatch.setenv("SLO_STATE_DIR", str(path))
    return path


@pytest.fixture
def traces(lab_ground: None, state: Path) -> Iterator[Traces]:
    """The list, and after the test the check that nothing of it is alive."""
    traces = Traces(state)
    yield traces
    left = traces.processes()
    for pid in left:
        os.kill(pid, 9)
    shutil.rmtree(state, ignore_errors=True)
    assert not left, f"the test left processes: {left}"


@pytest.fixture
def named_lab(traces: Traces) -> Iterator[Topology]:
    """Namespaces with the name server in them, no other service."""
    with Topology() as topology:
        records = [word for name, role in NAMES.items() for word in ("--record", f"{name}={ADDRESSES[role]}")]
        command = [sys.executable, "-m", "libslo.lab.dns_server", "--listen", ADDRESSES["dns"], *records]
        process = topology.spawn("dns", command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield topology
        process.stdout.close()
