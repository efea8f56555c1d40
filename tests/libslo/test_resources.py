"""Data files are found by one function, from a checkout and from an installation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import ROOT

from libslo.errors import CannotError
from libslo.resources import data_path


def test_files_of_the_checkout() -> None:
    """Contracts and scenarios are found."""
    assert data_path("contracts/v1/slo-event.schema.json").is_file()
    assert data_path("scenarios/mixed.yaml").is_file()


@pytest.mark.parametrize(("name", "hint"), [("bpf/build/none.bpf.o", "make bpf"), ("contracts/none.json", "reinstall")])
def test_a_missing_file_says_the_cure(name: str, hint: str) -> None:
    """Objects that are not compiled ask for `make bpf`, anything else for a reinstallation."""
    with pytest.raises(CannotError) as caught:
        data_path(name)
    assert hint in str(caught.value.hint) and caught.value.exit_code == 3


def test_an_installation_carries_its_own_data(tmp_path: Path) -> None:
    """Without a checkout around it the package finds its data below libslo/_data."""
    shutil.copytree(ROOT / "libslo", tmp_path / "libslo", ignore=shutil.ignore_patterns("__pycache__", "lab", "kernel"))
    for name in ("contracts", "scenarios"):
        shutil.copytree(ROOT / name, tmp_path / "libslo" / "_data" / name)
    program = (
        "import libslo; from libslo.contracts import contract; from libslo.scenarios import scenario_names\n"
        "print(libslo.__file__, len(scenario_names()), contract('slo-event').name)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, count, name = done.stdout.split()
    assert where.startswith(str(tmp_path)) and int(count) >= 8 and name == "slo-event"
