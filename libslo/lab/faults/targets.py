"""Find what a fault is put on: a role of the running lab, or, when that is meant, something outside a lab."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from libslo.errors import CannotError, InputError
from libslo.host import cgroup_mount
from libslo.lab.faults.base import Target, fault_table
from libslo.lab.netns import call_in_netns, netns_inode, netns_of
from libslo.lab.topology import NAMES, RunningLab, running_lab, running_labs

__all__ = ["find_target"]

_FORMS = "lab, lab:ID, pid:N, cgroup:PATH, netns:PATH, dev:IFACE or url:http://HOST:PORT"
_CONTROL_URLS = {"llm": "https://{address}:8443", "retrieval": "http://{address}:8080", "app": "http://{address}:8080"}
_CONTROLLERS = ("cpu", "memory")


def find_target(fault: str, target: str | None = None, *, role: str | None = None, allow_outside: bool = False) -> Target:
    """Where a fault of the vocabulary goes. target: one of _FORMS, None for the running lab; role: of the lab, instead of the fault's own.

    Raises CannotError when no lab runs or the place lacks what the fault needs, InputError for a target that is none, that does not fit
    the fault, or that is in no lab without `allow_outside`; the error says what would be touched.
    """
    about = fault_table()[fault]
    form, _, rest = (target or "lab").partition(":")
    if form == "lab":
        return _lab_target(about["target"], running_lab(rest or None), role or about["role"])
    if form.isdigit() and not rest:
        form, rest = "pid", form
    if form.startswith("/"):
        form, rest = "netns", str(target)
    finders = {("pid", "netns"), ("netns", "netns"), ("dev", "netns"), ("pid", "cgroup"), ("cgroup", "cgroup"), ("url", "service")}
    if not rest or form not in {known for known, _ in finders}:
        raise InputError(f"not a target: {target}", hint=_FORMS)
    if (form, about["target"]) not in finders:
        fitting = ", ".join(sorted(f"{known}:" for known, kind in finders if kind == about["target"]))
        raise InputError(f"{fault} goes on a {about['target']}, which {target} is not", hint=f"lab, or one of: {fitting}")
    if form == "url":
        found, is_lab, what = Target(f"service {rest}", {"url": rest}, url=rest.rstrip("/")), False, f"the service at {rest}"
        if not rest.startswith(("http://", "https://")):
            raise InputError(f"not a target: {target}", hint="url:http://HOST:PORT")
    elif about["target"] == "cgroup":
        found, is_lab, what = _cgroup_target(form, rest)
    else:
        found, is_lab, what = _netns_target(form, rest)
    if not is_lab and not allow_outside:
        raise InputError(f"{fault} would touch {what}, which is in no lab", hint="add --i-know if that is meant")
    return found


def _lab_target(kind: str, lab: RunningLab, role: str) -> Target:
    if role not in lab.pids:
        raise InputError(f"no role {role!r} in the lab", hint=f"one of: {', '.join(lab.pids)}")
    labels = {"lab": lab.lab_id, "role": role, "address": lab.addresses[role]}
    netns = netns_of(lab.pids[role])
    known: dict[str, Any] = {"address": lab.addresses[role], "addresses": lab.addresses}
    if kind == "service":
        if role not in _CONTROL_URLS:
            raise InputError(f"{role} has no fault control", hint=f"one of: {', '.join(_CONTROL_URLS)}")
        url = _CONTROL_URLS[role].format(address=lab.addresses[role])
        return Target(f"service {lab.lab_id} {role}", labels, netns=netns, url=url, ca=str(lab.files / "ca.pem"), **known)
    if kind == "cgroup":
        versions = {controller: mount[1] for controller in _CONTROLLERS if (mount := cgroup_mount(controller))}
        cgroups = {controller: (Path(path), versions[controller]) for controller, path in lab.cgroups.get(role, {}).items()}
        return Target(_cgroup_key(cgroups), labels, cgroups=cgroups, **known)
    peers = {name: netns_of(pid) for name, pid in lab.pids.items()}
    return Target(_netns_key(netns), labels, netns=netns, probe_netns=peers["client"], probe_name=next(iter(NAMES)), peers=peers, **known)


def _netns_target(form: str, rest: str) -> tuple[Target, bool, str]:
    """The target, whether it belongs to a running lab, and what it is in words."""
    device = ""
    if form == "pid":
        netns = netns_of(_pid(rest))
    elif form == "netns":
        netns = Path(rest)
    else:
        netns, device = Path("/proc/self/ns/net"), rest
    inode = netns_inode(netns)
    if device and device not in call_in_netns(netns, lambda: [name for _, name in socket.if_nameindex()]):
        raise InputError(f"no network interface {device!r} here", hint="ip link shows them")
    is_lab = inode in {netns_inode(netns_of(pid)) for lab in running_labs() for pid in lab.pids.values()}
    labels = {"netns": str(inode), "given": f"{form}:{rest}"}
    key = _netns_key(netns) + (f" {device}" if device else "")
    own = " (the current one)" if inode == netns_inode(Path("/proc/self/ns/net")) else ""
    what = f"the interface {device} of network namespace {inode}{own}" if device else f"network namespace {inode}{own}"
    return Target(key, labels, netns=netns, device=device), is_lab, what


def _cgroup_target(form: str, rest: str) -> tuple[Target, bool, str]:
    mounts = {controller: mount for controller in _CONTROLLERS if (mount := cgroup_mount(controller))}
    cgroups: dict[str, tuple[Path, int]] = {}
    if form == "pid":
        lines = _read_cgroups(_pid(rest))
        for controller, (root, version) in mounts.items():
            path = lines.get(controller if version == 1 else "")
            if path is not None:
                cgroups[controller] = (root / path.lstrip("/"), version)
    else:
        place = Path(rest).resolve()
        if not (place / "cgroup.procs").is_file():
            raise InputError("no cgroup directory", source=rest, hint="such as /sys/fs/cgroup/system.slice/x.service")
        for controller, (root, version) in mounts.items():
            if place.is_relative_to(root):
                cgroups[controller] = (place, version)
    if not cgroups:
        raise CannotError(
            "neither the cpu nor the memory controller is there", source=rest, hint="mount cgroup v1 or v2 with cpu and memory"
        )
    cgroups = {controller: (place, version) for controller, (place, version) in cgroups.items() if place != mounts[controller][0]}
    if not cgroups:
        raise InputError("the root cgroup cannot be limited", source=rest, hint="name a cgroup below it, or a process in one")
    labs = {path for lab in running_labs() for places in lab.cgroups.values() for path in places.values()}
    labels = {"cgroup": str(next(iter(cgroups.values()))[0]), "given": f"{form}:{rest}"}
    places = sorted({str(place) for place, _ in cgroups.values()})
    return Target(_cgroup_key(cgroups), labels, cgroups=cgroups), set(places) <= labs, f"cgroup {', '.join(places)}"


def _read_cgroups(pid: int) -> dict[str, str]:
    """Paths by controller from ``/proc/<pid>/cgroup``; that of cgroup2 under ""."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError as error:
        raise InputError(f"no process {pid}: {error.strerror}", hint="give the pid of a live process") from error
    rows = [line.split(":", 2) for line in text.splitlines()]
    return {controller: path for _, controllers, path in rows for controller in controllers.split(",")}


def _pid(text: str) -> int:
    if not text.isdigit():
        raise InputError(f"not a target: pid:{text}", hint="pid: and a number")
    return int(text)


def _netns_key(netns: Path) -> str:
    return f"netns {netns_inode(netns)}"


def _cgroup_key(cgroups: dict[str, tuple[Path, int]]) -> str:
    return " ".join(f"{controller} {place}" for controller, (place, _) in sorted(cgroups.items()))
