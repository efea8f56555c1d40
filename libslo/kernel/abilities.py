"""What this kernel lets a program hang on, by trying: lists of features, bpftool's among them, claim what does not work."""

from __future__ import annotations

from typing import Any

from libslo.errors import CannotError
from libslo.kernel.libbpf import BpfError, BpfObject
from libslo.resources import data_path

__all__ = ["ABILITIES", "tried_abilities"]

# Kind of attachment -> the object that tries it.
ABILITIES = {
    "tp_btf": "ability.tp_btf",
    "raw_tp": "calibration.raw_tp",
    "tracepoint": "ability.tracepoint",
    "fentry": "ability.fentry",
    "kprobe": "ability.kprobe",
}


def tried_abilities() -> list[dict[str, Any]]:
    """One entry a kind: ability, works, and the reason when it does not. Nothing stays loaded."""
    tried = {name: _obstacle(object_name) for name, object_name in ABILITIES.items()}
    return [{"ability": name, "works": not reason} | ({"reason": reason} if reason else {}) for name, reason in tried.items()]


def _obstacle(object_name: str) -> str:
    bpf = None
    try:
        bpf = BpfObject(data_path(f"bpf/build/{object_name}.bpf.o"))
        bpf.load()
        bpf.attach()
    except BpfError as error:
        return f"{error.what}: {(error.strerror or '').lower()}"
    except CannotError as error:
        return str(error)
    finally:
        if bpf:
            bpf.close()
    return ""
