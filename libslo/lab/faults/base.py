"""One interface of every real fault: put on all or nothing, measured, taken off at any time; and what each way of doing it needs."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libslo.errors import CannotError
from libslo.host import cgroup_mount
from libslo.lab.faults.undo import take_off
from libslo.lab.netns import call_in_netns
from libslo.lab.state import Record, read_records, write_record
from libslo.signals import vocabulary

__all__ = ["Injector", "OnAlreadyError", "Target", "fault_table", "mechanism_needs", "missing", "run_in_netns"]

Parameters = Mapping[str, float | str]
KERNEL_HINT = "modprobe nfnetlink_queue xt_NFQUEUE xt_statistic nf_tables sch_netem sch_prio"


@dataclass(frozen=True)
class Target:
    """Where a fault goes. key: the same for the same place, whatever it was called; labels: for the fault-window.

    cgroups: by controller ("cpu", "memory"), its directory and the version of its hierarchy. addresses: of the lab, by role.
    probe_netns: from where what the fault does to `address` can be measured; peers: the same of each role.
    """

    key: str
    labels: dict[str, str]
    netns: Path | None = None
    device: str = ""
    cgroups: Mapping[str, tuple[Path, int]] = field(default_factory=dict)
    url: str = ""
    ca: str = ""
    address: str = ""
    probe_netns: Path | None = None
    probe_name: str = ""
    addresses: Mapping[str, str] = field(default_factory=dict)
    peers: Mapping[str, Path] = field(default_factory=dict)


class OnAlreadyError(CannotError):
    """The same fault is on at the same place."""


def fault_table() -> dict[str, Any]:
    """The faults of ``contracts/vocabulary/faults.json`` by name."""
    table: dict[str, Any] = vocabulary("faults")["faults"]
    return table


def mechanism_needs(mechanism: str) -> str:
    """A mechanism with the Debian packages and the cgroup controller it needs, in words."""
    about = vocabulary("faults")["mechanisms"][mechanism]
    needs = [*about.get("programs", {}).values(), *about.get("libraries", {}).values()]
    if "controller" in about:
        needs.append(f"cgroup v{about['version']}")
    return f"{mechanism}: {', '.join(needs)}" if needs else mechanism


def missing(mechanism: str) -> list[tuple[str, str]]:
    """What a mechanism needs that this machine lacks, as far as can be seen without trying: (fact, cure)."""
    about = vocabulary("faults")["mechanisms"][mechanism]
    found = [
        (f"{program} is not installed", f"apt-get install {package}")
        for program, package in about.get("programs", {}).items()
        if shutil.which(program) is None
    ]
    for library, package in about.get("libraries", {}).items():
        try:
            ctypes.CDLL(library)
        except OSError:
            found.append((f"{library} is not installed", f"apt-get install {package}"))
    if "controller" in about:
        mount = cgroup_mount(about["controller"])
        where = f"cgroup v{about['version']}"
        if mount is None or mount[1] != about["version"] or not _has_controller(mount[0], about):
            found.append((f"the {about['controller']} controller is not in {where}", f"mount {where} with {about['controller']}"))
    if about.get("capabilities") and os.geteuid() != 0:
        found.append(("this user may not", f"run as root ({', '.join(about['capabilities'])})"))
    return found


def _has_controller(mount: Path, about: Mapping[str, Any]) -> bool:
    if about["version"] == 1:
        return True
    try:
        return about["controller"] in (mount / "cgroup.controllers").read_text().split()
    except OSError:
        return False


class Injector(ABC):
    """One fault on one target. apply() is all or nothing; undo() may be called at any time and more than once.

    A kind of fault says how: put_on() for each of its mechanisms, verify(), and the hooks around them.
    """

    def __init__(self, fault: str, parameters: Parameters, target: Target, mechanisms: Sequence[str] | None = None) -> None:
        self.fault = fault
        self.parameters = dict(parameters)
        self.target = target
        self.mechanisms = list(mechanisms or fault_table()[fault]["mechanisms"])
        self.mechanism = ""
        self._record: Record | None = None

    def check(self) -> None:
        """CannotError when it is known without trying that this fault cannot be put on here."""
        lacks = [missing(mechanism) for mechanism in self.mechanisms]
        if all(lacks):
            facts = "; ".join(f"{mechanism}: {lack[0][0]}" for mechanism, lack in zip(self.mechanisms, lacks, strict=True))
            raise CannotError(f"no way to make {self.fault} here: {facts}", hint=lacks[-1][0][1])

    def apply(self) -> None:
        """Put it on by the first mechanism that works here.

        CannotError names the program, package or capability that is missing, or that the fault is on already.
        """
        self.before()
        refused: list[CannotError] = []
        for mechanism in self.mechanisms:
            self.mechanism = mechanism
            try:
                for fact, cure in missing(mechanism):
                    raise CannotError(fact, hint=cure)
                self.put_on()
                return
            except OnAlreadyError:
                self.undo()
                raise
            except CannotError as error:
                refused.append(error)
                self.undo()
            except BaseException:
                self.undo()
                raise
        facts = "; ".join(f"{mechanism}: {error}" for mechanism, error in zip(self.mechanisms, refused, strict=True))
        raise CannotError(f"no way to make {self.fault} here: {facts}", hint=refused[-1].hint)

    @abstractmethod
    def verify(self) -> dict[str, float]:
        """Measure that it took: what was measured, by name with unit. CannotError when it did not: that must not become ground truth."""

    def undo(self) -> None:
        """Take it off and forget the record; CannotError, with the record kept, when something stays on."""
        self.stop_renewing()
        try:
            if self._record:
                take_off(self._record)
                self._record = None
        finally:
            self.let_go()

    def before(self) -> None:  # noqa: B027 (not every fault has something to do here)
        """Measure what the place is like without the fault."""

    @abstractmethod
    def put_on(self) -> None:
        """Put it on by self.mechanism: remember(), then act."""

    def stop_renewing(self) -> None:  # noqa: B027 (not every fault has something to do here)
        """Called before the fault is taken off."""

    def let_go(self) -> None:  # noqa: B027 (not every fault has something to do here)
        """Called when the fault is off, or could not be taken off."""

    def key(self) -> str:
        """The same for the same place, whatever it was called."""
        return self.target.key

    def number(self, name: str) -> float:
        """A parameter that is a number."""
        return float(self.parameters[name])

    def remember(self, undo: Sequence[Mapping[str, Any]]) -> None:
        """The steps that undo reach the disk before the first of their opposites is run.

        OnAlreadyError when a record of the same fault at the same place is there.
        """
        ident = f"{self.fault.replace('_', '-')}-{hashlib.sha256(self.key().encode()).hexdigest()[:10]}"
        place = " ".join(f"{name}={value}" for name, value in self.target.labels.items())
        data = {"fault": self.fault, "mechanism": self.mechanism, "place": place, "undo": list(undo)}
        try:
            self._record = write_record("injection", ident, data, new=True)
        except FileExistsError:
            raise self._on_already(ident, place) from None

    def _on_already(self, ident: str, place: str) -> OnAlreadyError:
        for record in read_records("injection"):
            if record.ident == ident and not record.is_stale():
                return OnAlreadyError(
                    f"{self.fault} is on already at {place}, put on by process {record.owner.pid}", hint="wait for its end"
                )
        return OnAlreadyError(f"{self.fault} was left on at {place} by a process that is gone", hint="faultinject --recover")


def run_in_netns(netns: Path, command: Sequence[str], stdin: str | None = None) -> str:
    """Run a program inside a namespace; its stdout. CannotError with its complaint when it fails."""

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    done = call_in_netns(netns, run)
    if done.returncode != 0:
        said = (done.stderr.strip() or "it said nothing").splitlines()[0]
        hint = "run as root (CAP_NET_ADMIN)" if "ermi" in said else KERNEL_HINT
        raise CannotError(f"{command[0]} failed: {said}", hint=hint)
    return done.stdout
