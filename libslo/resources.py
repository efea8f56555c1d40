"""Find the data files that travel with the toolkit, installed or run from a checkout."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from libslo.errors import CannotError

__all__ = ["data_path"]


@cache
def _data_root() -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "contracts").is_dir():
        return checkout
    return package / "_data"


def data_path(relative: str) -> Path:
    """Path of a data file such as ``contracts/v1/slo-event.schema.json`` or ``bpf/build/x.bpf.o``.

    Raises CannotError when the file is not there (an incomplete installation, or objects not compiled yet).
    """
    path = _data_root() / relative
    if not path.exists():
        hint = "make bpf" if relative.startswith("bpf/") else "reinstall the package: its data files are missing"
        raise CannotError("no such data file", source=str(path), hint=hint)
    return path
