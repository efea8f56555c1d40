"""Trying the variants of each signal: a capability is what loaded AND attached, nothing else."""

from __future__ import annotations

import errno as errno_names
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from libslo.errors import CannotError
from libslo.host import ROOT_CGROUP_ID, cgroup2_mount
from libslo.kernel.catalogue import Variant, ladder, variants
from libslo.kernel.libbpf import BpfError, BpfObject, library
from libslo.kernel.polled import Poller, Targets, never, open_poller
from libslo.kernel.privileges import missing_capabilities
from libslo.kernel.tracepoints import check_formats
from libslo.kernel.userfunctions import files_with_function
from libslo.resources import data_path

__all__ = ["DEFAULT_BTF", "Probe", "SignalState", "attach_signals", "attached_mode", "machine_obstacle", "unattached"]

_LIBRARY = "libssl"  # the one library whose functions are probed
DEFAULT_BTF = Path("/sys/kernel/btf/vmlinux")


class Configure(Protocol):
    """Sets an object up; `wanted` are the signals asked for that it carries."""

    def __call__(self, bpf: BpfObject, *, wanted: set[str]) -> None: ...


@dataclass(slots=True)
class Probe:
    """One attached object."""

    variant: Variant
    object: BpfObject
    wanted: frozenset[str]
    attach: Callable[[], None]  # again, after a detach


@dataclass(slots=True)
class SignalState:
    """What became of one signal that was asked for."""

    signal: str
    variant: str
    attached: bool
    blind_spots: tuple[str, ...]
    probe: Probe | None = None
    poller: Poller | None = None
    errno: int | None = None
    reason: str = ""
    verifier_tail: str = ""
    source: str = ""
    first: bool = True  # by the preferred variant


def machine_obstacle(btf: Path = DEFAULT_BTF, *, capabilities: int | None = None) -> CannotError | None:
    """Why this process cannot load the preferred probes at all, or None.

    capabilities: effective set as a bit mask, of this process when not given.
    """
    missing = missing_capabilities(("CAP_BPF", "CAP_PERFMON"), held=capabilities)
    if missing:
        return CannotError(f"missing capability {' and '.join(missing)}", source="kernel",
                           hint="run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")  # fmt: skip
    if not btf.is_file():
        return CannotError("no BTF: the kernel does not describe its types", source=str(btf),
                           hint="use a kernel with CONFIG_DEBUG_INFO_BTF=y, or name its BTF file with --btf")  # fmt: skip
    try:
        library()
    except CannotError as error:
        return error
    return None


def unattached(signals: Iterable[str], reason: str) -> list[SignalState]:
    """The states of signals that were not even tried."""
    return [
        SignalState(name, variant.name, False, variant.blind_spots, reason=reason, source=variant.source)
        for name in signals
        for variant in [variants(name)[0]]
    ]


def attach_signals(
    signals: Sequence[str],
    *,
    sizes: Mapping[str, int],
    prepare: Configure,
    targets: Targets,
    btf: Path = DEFAULT_BTF,
    mode: str = "auto",
    forced: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] = never,
) -> list[SignalState]:
    """Load and attach, for each signal, the first variant of its ladder that works; one that fails cannot stop another.

    sizes: entries of maps, by name, set before the load where an object has them. prepare: called between load and attach
    with the object and those of `signals` that it carries, so that no event slips past the filters.
    targets: who passes, for the sources that are polled. mode, forced: see catalogue.ladder.
    stopped: the rest is not tried any more.
    The caller closes probes and pollers. Raises InputError for a signal or a forced variant that does not exist.
    """
    ladders = {name: ladder(name, mode=mode, forced=(forced or {}).get(name, "")) for name in signals}
    tried: dict[str, Probe | SignalState] = {}
    cgroup = cgroup2_mount()
    states: list[SignalState] = []
    for name, rungs in ladders.items():
        if stopped():
            states += unattached([name], "stopped before it was tried")
            continue
        failed: list[SignalState] = []
        state = None
        for variant in rungs:
            if variant.polled:
                state = _try_polled(variant, name, targets, btf, stopped)
            else:
                if variant.object_name not in tried:
                    # Only for the signals that come this far down their ladders: another variant may have them already.
                    wanted = {other for other, rest in ladders.items() if variant in rest and not _has(states, other)}
                    tried[variant.object_name] = _try_variant(variant, name, sizes, btf, cgroup, wanted, prepare)
                state = _state_of(name, variant, tried[variant.object_name])
            state.first = variant == variants(name)[0]
            if state.attached:
                break
            failed.append(state)
        if state is None:
            state = unattached([name], f"no variant in mode {mode}")[0]
        elif not state.attached and len(failed) > 1:
            # The preferred variant's failure is the one to cure; the others are told in one line each.
            state = failed[0]
            state.reason += "".join(f"; {other.variant}: {other.reason}" for other in failed[1:])
        states.append(state)
    return states


def attached_mode(states: Sequence[SignalState], *, asked: str = "auto", btf: Path = DEFAULT_BTF) -> str:
    """The mode that an agent is in, by what attached; of the contract's list."""
    attached = [state for state in states if state.attached]
    if asked in ("bcc_degraded", "no_btf", "min_capability"):
        return asked
    if any(state.source == "bcc" for state in attached):
        return "bcc_degraded"
    if not any(state.source == "bpf" for state in attached) and missing_capabilities(("CAP_BPF",)):
        return "min_capability"
    if not btf.is_file():
        return "no_btf"
    return "core_full" if len(attached) == len(states) and all(state.first for state in states) else "core_partial"


def _has(states: Sequence[SignalState], name: str) -> bool:
    return any(state.signal == name and state.attached for state in states)


def _state_of(name: str, variant: Variant, found: Probe | SignalState) -> SignalState:
    state = SignalState(name, variant.name, False, variant.blind_spots, source=variant.source)
    if isinstance(found, Probe):
        state.attached, state.probe = True, found
    else:
        state.errno, state.reason, state.verifier_tail = found.errno, found.reason, found.verifier_tail
    return state


def _try_polled(variant: Variant, name: str, targets: Targets, btf: Path, stopped: Callable[[], bool]) -> SignalState:
    state = SignalState(name, variant.name, False, variant.blind_spots, source=variant.source)
    if variant.btf and not btf.is_file():
        state.errno, state.reason = errno_names.ENOENT, _no_btf(btf)
        return state
    try:
        btf_path = btf if variant.btf and btf != DEFAULT_BTF else None
        state.poller = open_poller(variant.name, targets, btf_path=btf_path, stopped=stopped)
        state.attached = True
    except BpfError as error:
        _explain(state, variant, error)
    except CannotError as error:
        state.reason = _told(error)
    except OSError as error:
        state.errno, state.reason = error.errno, str(error)
    return state


def _no_btf(btf: Path) -> str:
    return f"no BTF at {btf} (try: --btf FILE, or a kernel with CONFIG_DEBUG_INFO_BTF=y)"


def _explain(state: SignalState, variant: Variant, error: BpfError) -> None:
    state.errno, state.verifier_tail = error.errno, error.verifier_tail
    state.reason = f"{error.what}: {(error.strerror or '').lower()}"
    missing = missing_capabilities(variant.capabilities)
    if error.errno in (errno_names.EPERM, errno_names.EACCES) and missing:
        state.reason += f" (missing capability {' and '.join(missing)})"


def _told(error: CannotError) -> str:
    return f"{error} (try: {error.hint})" if error.hint else str(error)


def _try_variant(
    variant: Variant, name: str, sizes: Mapping[str, int], btf: Path, cgroup: Path | None, wanted: set[str], prepare: Configure
) -> Probe | SignalState:
    failed = SignalState(name, variant.name, False, variant.blind_spots, source=variant.source)
    if variant.btf and not btf.is_file():
        failed.errno, failed.reason = errno_names.ENOENT, _no_btf(btf)
        return failed
    if variant.at_cgroup and cgroup is None:
        failed.errno, failed.reason = errno_names.ENOENT, "no cgroup2 is mounted (try: mount -t cgroup2 cgroup2 /sys/fs/cgroup)"
        return failed
    if variant.at_cgroup and cgroup is not None and cgroup.stat().st_ino != ROOT_CGROUP_ID:
        failed.errno = errno_names.EXDEV
        failed.reason = (
            f"{cgroup} is not the root of cgroup2 (try: give the agent the host's cgroup namespace, or mount its /sys/fs/cgroup)"
        )
        return failed
    bpf = None
    try:
        check_formats(variant.formats)
        bpf = BpfObject(data_path(f"bpf/build/{variant.object_name}.bpf.o"),
                        btf_path=btf if variant.btf and btf != DEFAULT_BTF else None)  # fmt: skip
        for map_name, entries in sizes.items():
            if bpf.has_map(map_name):
                bpf.set_max_entries(map_name, entries)
        bpf.load()
        prepare(bpf, wanted=wanted)
        attach = partial(_attach, bpf, cgroup if variant.at_cgroup else None)
        attach()
        return Probe(variant, bpf, frozenset(wanted), attach)
    except BpfError as error:
        _explain(failed, variant, error)
    except CannotError as error:
        failed.reason = _told(error)
    except OSError as error:
        failed.errno, failed.reason = error.errno, str(error)
    if bpf:
        bpf.close()
    return failed


def _attach(bpf: BpfObject, cgroup: Path | None) -> None:
    cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY) if cgroup else None
    try:
        bpf.attach(cgroup_fd)
    finally:
        if cgroup_fd is not None:
            os.close(cgroup_fd)
    if bpf.user_functions():
        _attach_user(bpf)


def _attach_user(bpf: BpfObject) -> None:
    """Attach to every file in use that has the functions; one that only calls them is none."""
    function, library = bpf.user_functions()[0], _LIBRARY
    failed: BpfError | None = None
    for path in files_with_function(function, library):
        try:
            bpf.attach_user(path)
        except BpfError as error:
            failed = error
    if not bpf.attached:
        raise failed or CannotError(f"no running program has {function} of {library}", source="kernel",
                                    hint="start the agent again when one runs")  # fmt: skip
