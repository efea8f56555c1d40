"""What the lab's servers say when they cannot begin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from libslo.errors import CannotError, SloError

__all__ = ["cannot_listen", "spoken_errors"]


@contextmanager
def spoken_errors(program: str) -> Iterator[None]:
    """End the program with `program: fact`, a line with the cure, and the error's exit code, where a traceback would help nobody."""
    try:
        yield
    except SloError as error:
        cure = f"\n  try: {error.hint}" if error.hint else ""
        sys.stderr.write(f"{program}: {error}{cure}\n")
        sys.exit(error.exit_code)


def cannot_listen(host: str, port: int, error: OSError) -> CannotError:
    """What to say when an address is somebody else's, or none of this machine."""
    return CannotError(f"cannot listen: {error.strerror}", source=f"{host}:{port}", hint="name another --port, or end what listens there")
