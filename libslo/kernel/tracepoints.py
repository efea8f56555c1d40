"""Classic tracepoints: whether the running kernel lays their records out as our programs read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from libslo.errors import CannotError

__all__ = ["TRACEFS", "check_formats", "field_offsets"]

TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_FIELD = re.compile(r"field:[^;]*?(\w+)(?:\[\d*\])?;\s*offset:(\d+);")


def field_offsets(text: str) -> dict[str, int]:
    """Offset in bytes of each field, from the text of a tracepoint's ``format`` file (Documentation/trace/events.rst)."""
    return {name: int(offset) for name, offset in _FIELD.findall(text)}


def check_formats(formats: Mapping[str, Mapping[str, tuple[int, ...]]], places: tuple[Path, ...] = TRACEFS) -> None:
    """Compare what a variant reads with the running kernel.

    formats: by tracepoint ("block/block_rq_issue") and field, the offsets that its program can read it at.
    Raises CannotError when tracefs is not mounted, a tracepoint is not there, or a field lies elsewhere.
    """
    if not formats:
        return
    root = next((place for place in places if (place / "events").is_dir()), None)
    if root is None:
        raise CannotError("no tracefs is mounted", source="kernel", hint="mount -t tracefs tracefs /sys/kernel/tracing")
    for tracepoint, fields in formats.items():
        path = root / "events" / tracepoint / "format"
        try:
            found = field_offsets(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CannotError(f"no tracepoint {tracepoint}", source=str(path), hint="another variant of this signal") from error
        for name, offsets in fields.items():
            if found.get(name) not in offsets:
                raise CannotError(f"field {name} of {tracepoint} is at {found.get(name)}, not at {' or '.join(map(str, offsets))}",
                                  source=str(path), hint="another variant of this signal")  # fmt: skip
