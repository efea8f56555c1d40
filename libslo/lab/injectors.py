"""Real faults in a network namespace: put on, checked by measurement, taken off, and taken off later if their maker was killed.

The record of how to undo is on disk before the fault is on.
"""

from __future__ import annotations

import random
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from libslo.errors import CannotError, InputError
from libslo.lab.netns import call_in_netns, find_netns, netns_inode, netns_of
from libslo.lab.nfqueue import PacketDelayer
from libslo.lab.state import Record, read_records, write_record
from libslo.lab.topology import NAMES, running_lab

__all__ = ["SCENARIOS", "DnsDelay", "Injector", "Target", "find_target", "measure_dns_ms", "real_fault", "recover_stale"]

_NETEM_HANDLE = "5107:"  # ours: a root qdisc with another handle is never touched
_DNS_PORT = 53
_PROBES = 5
_UNDO_PROGRAMS = {"tc", "iptables", "ip6tables"}


@dataclass(frozen=True)
class Target:
    """Where a fault goes: the namespace of a DNS server, and from where its answers can be measured, if that is known."""

    netns: Path
    labels: dict[str, str]
    probe_netns: Path | None = None
    probe_server: str = ""
    probe_name: str = ""


class Injector(Protocol):
    """One fault on one target. apply() is all or nothing; undo() may be called at any time and more than once."""

    mechanism: str

    def apply(self) -> None:
        """Put the fault on."""

    def verify(self) -> dict[str, float]:
        """Measure that it took; what was measured, by name with unit."""

    def undo(self) -> None:
        """Take it off."""


def find_target(target: str | None = None) -> Target:
    """None or "lab": the running lab's DNS server. A pid ("N", "pid:N") or a path: that process's or that namespace.

    Raises CannotError when no lab runs, InputError when there is no such namespace.
    """
    if target in (None, "lab", "lab:dns"):
        lab = running_lab()
        labels = {"lab": lab.lab_id, "role": "dns", "address": lab.addresses["dns"]}
        probe = netns_of(lab.pids["client"])
        return Target(netns_of(lab.pids["dns"]), labels, probe, lab.addresses["dns"], next(iter(NAMES)))
    assert target is not None  # noqa: S101 (None was handled above)
    pid = target.removeprefix("pid:")
    if pid.isdigit():
        netns = netns_of(int(pid))
    elif target.startswith("/"):
        netns = Path(target)
    else:
        raise InputError(f"not a target: {target}", hint="lab, a pid or the path of a network namespace")
    return Target(netns, {"netns": str(netns_inode(netns)), "given": target})


@dataclass
class DnsDelay:
    """Delays what a DNS server sends over UDP by `delay_ms`, in the server's own namespace.

    With netem where the kernel has it (found out by trying), else with a netfilter queue and a verdict after the wait.
    DNS over TCP is not delayed. The queue lets packets pass when this process is killed; netem stays until recover_stale().
    """

    target: Target
    delay_ms: float
    mechanisms: Sequence[str] = ("netem", "nfqueue")
    mechanism: str = ""
    _record: Record | None = None
    _delayer: PacketDelayer | None = None
    _before_ms: float | None = None

    def apply(self) -> None:
        """Put the delay on. CannotError names the program, package or capability that is missing."""
        if self.delay_ms <= 0:
            raise InputError(f"a delay of {self.delay_ms:g} ms is none", hint="give a positive number of milliseconds")
        self._probe_ms()  # a first answer costs the server and the neighbour tables more than those after it
        self._before_ms = self._probe_ms()
        refused: list[CannotError] = []
        for mechanism in self.mechanisms:
            self.mechanism = mechanism
            try:
                self._apply_netem() if mechanism == "netem" else self._apply_nfqueue()
                return
            except CannotError as error:
                refused.append(error)
                self.undo()
            except BaseException:
                self.undo()
                raise
        facts = "; ".join(str(error) for error in refused)
        raise CannotError(f"no way to delay DNS answers: {facts}", hint=refused[-1].hint)

    def verify(self) -> dict[str, float]:
        """The added delay: of real queries from the target's probe namespace, else of packets already held, else {}.

        CannotError when less than half of what was asked for arrived: a fault that is not there must not become ground truth.
        """
        if self._before_ms is None:
            held_ms = self._delayer.account.median_held_ms() if self._delayer else None
            return {} if held_ms is None else {"delay_ms": round(held_ms, 2)}
        now_ms = self._probe_ms()
        if now_ms is None or now_ms - self._before_ms < self.delay_ms / 2:
            found = "no answers" if now_ms is None else f"{now_ms - self._before_ms:.1f} ms"
            hint = "see whether another injection is on in the same namespace"
            raise CannotError(f"the DNS delay did not take: asked for {self.delay_ms:g} ms, measured {found}", hint=hint)
        return {"delay_ms": round(now_ms - self._before_ms, 2), "queries": _PROBES}

    def undo(self) -> None:
        """Take the delay off and forget the record; CannotError, with the record kept, when something stays on."""
        try:
            if self._record:
                _undo_record(self._record)
                self._record = None
        finally:
            if self._delayer:
                self._delayer.stop()
                self._delayer = None

    def _probe_ms(self) -> float | None:
        target = self.target
        if target.probe_netns is None:
            return None
        values = measure_dns_ms(target.probe_netns, target.probe_server, target.probe_name, _PROBES)
        return statistics.median(values) if values else None

    def _remember(self, undo: list[list[str]]) -> None:
        """The undo commands reach the disk before the first of their opposites is run."""
        data = {
            "mechanism": self.mechanism,
            "netns_path": str(self.target.netns),
            "netns_inode": netns_inode(self.target.netns),
            "undo": undo,
        }
        self._record = write_record("injection", secrets.token_hex(4), data)

    def _apply_netem(self) -> None:
        _need("tc", "iproute2")
        devices = [line.split(":")[1].split("@")[0].strip() for line in _links(self.target.netns)]
        undo = [["tc", "qdisc", "del", "dev", device, "root", "handle", _NETEM_HANDLE] for device in devices]
        for device in devices:
            if f" {_NETEM_HANDLE} root" in _in_netns(self.target.netns, ["tc", "qdisc", "show", "dev", device]):
                raise InputError(f"a DNS delay is on already at {device}", hint="wait for its end")
        self._remember(undo)
        band = f"{_NETEM_HANDLE}4"
        for device in devices:
            # everything in bands 1-3 of prio as by default, UDP from port 53 through netem in the fourth
            _in_netns(self.target.netns, ["tc", "qdisc", "add", "dev", device, "root", "handle", _NETEM_HANDLE, "prio", "bands", "4"])
            delay = ["netem", "limit", "10000", "delay", f"{self.delay_ms:g}ms"]
            _in_netns(self.target.netns, ["tc", "qdisc", "add", "dev", device, "parent", band, *delay])
            for protocol, match in (("ip", "ip"), ("ipv6", "ip6")):
                port = ["match", match, "protocol", "17", "0xff", "match", match, "sport", str(_DNS_PORT), "0xffff"]
                tree = ["tc", "filter", "add", "dev", device, "parent", _NETEM_HANDLE, "protocol", protocol, "prio"]
                _in_netns(self.target.netns, [*tree, "1" if protocol == "ip" else "2", "u32", *port, "flowid", band])

    def _apply_nfqueue(self) -> None:
        programs = ["iptables"] + (["ip6tables"] if shutil.which("ip6tables") else [])
        _need("iptables", "iptables")
        queue_number = random.randrange(1024, 65536)
        rule = ["OUTPUT", "-p", "udp", "--sport", str(_DNS_PORT), "-j", "NFQUEUE", "--queue-num", str(queue_number), "--queue-bypass"]
        self._delayer = PacketDelayer(self.target.netns, queue_number, self.delay_ms)
        self._delayer.start()
        self._remember([[program, "-w", "5", "-D", *rule] for program in programs])
        for program in programs:
            _in_netns(self.target.netns, [program, "-w", "5", "-I", *rule])


SCENARIOS: dict[str, tuple[str, Callable[[Target, float], DnsDelay], list[str]]] = {
    "dns_latency": ("dns_delay", DnsDelay, ["network_dns"]),
}


def recover_stale() -> list[str]:
    """Take off the faults whose makers are gone; what was taken off. Called before every injection and every lab."""
    removed = []
    for record in read_records("injection"):
        if record.is_stale() and _undo_record(record):
            place = f"network namespace {record.data['netns_inode']}"
            removed.append(f"{record.data.get('mechanism', 'fault')} in {place} of killed process {record.owner.pid}")
    return removed


def real_fault(
    scenario: str, *, delay_ms: float = 200.0, duration_s: float | None = None, target: str | None = None
) -> Iterator[dict[str, Any]]:
    """Put a real fault on for a while: yields its fault-window record when it is on and again when it is off.

    duration_s: None means until SIGINT or SIGTERM, which end every injection early, undone, with its end record.
    Use it from the main thread (it takes both signals for the time of the fault) and exhaust or close it.
    """
    if scenario not in SCENARIOS:
        raise InputError(f"no real injector for scenario {scenario}", hint=f"one of: {', '.join(SCENARIOS)}")
    fault, make, domains = SCENARIOS[scenario]
    stop = threading.Event()
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        recover_stale()
        injector = make(find_target(target), delay_ms)
        window: dict[str, Any] = {
            "fault_id": f"{scenario}-{secrets.token_hex(4)}",
            "scenario": scenario,
            "fault": fault,
            "mechanism": "",
            "target": injector.target.labels,
            "parameters": {"delay_ms": delay_ms},
            "phase": "begin",
            "begin_unix_nano": 0,
            "expected_domains": domains,
            "synthetic": False,
        }
        try:
            injector.apply()
            begin_s = time.monotonic()
            window |= {"mechanism": injector.mechanism, "begin_unix_nano": time.time_ns()}
            measured = injector.verify()
            window |= {"measured": measured} if measured else {}
            yield dict(window)
            stop.wait(None if duration_s is None else max(0.0, begin_s + duration_s - time.monotonic()))
            measured = {} if stop.is_set() else injector.verify()  # that it was on to the end is part of the truth
            window |= {"measured": measured} if measured else {}
        finally:
            injector.undo()
        yield window | {"phase": "end", "end_unix_nano": time.time_ns()}
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def measure_dns_ms(netns: Path, server: str, name: str, count: int, timeout_s: float = 10) -> list[float]:
    """Times of `count` simultaneous A queries sent from a namespace, by this process's clock; lost ones are missing."""
    query_tail = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"

    def ask(connected: socket.socket) -> float | None:
        transaction = random.randbytes(2)
        with connected:
            connected.settimeout(timeout_s)
            sent_s = time.perf_counter()
            try:
                connected.send(transaction + b"\1\0\0\1\0\0\0\0\0\0" + query_tail)
                while connected.recv(4096)[:2] != transaction:
                    pass
            except OSError:
                return None
            return (time.perf_counter() - sent_s) * 1e3

    def open_sockets() -> list[socket.socket]:
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        for one in sockets:
            one.connect((server, _DNS_PORT))
        return sockets

    with ThreadPoolExecutor(count) as pool:
        return [value for value in pool.map(ask, call_in_netns(netns, open_sockets)) if value is not None]


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        raise CannotError(f"{program} is not installed", hint=f"apt-get install {package}")


def _in_netns(netns: Path, command: Sequence[str]) -> str:
    """Run a program inside a namespace; its stdout. CannotError with its complaint when it fails."""
    done = call_in_netns(netns, lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    if done.returncode != 0:
        said = (done.stderr.strip() or "it said nothing").splitlines()[0]
        hint = "run as root (CAP_NET_ADMIN)" if "ermi" in said else "modprobe nfnetlink_queue xt_NFQUEUE sch_netem sch_prio"
        raise CannotError(f"{command[0]} failed: {said}", hint=hint)
    return done.stdout


def _links(netns: Path) -> list[str]:
    """Lines of the devices that are up, loopback included: a resolver may share the server's namespace."""
    return [line for line in _in_netns(netns, ["ip", "-o", "link", "show", "up"]).splitlines() if line]


def _undo_record(record: Record) -> bool:
    """Undo what a record names and remove it; False when its namespace is gone and took its rules and qdiscs with it.

    Raises InputError for a record that says no such thing, CannotError when something stays on: the record is kept then.
    """
    try:
        inode, path = int(record.data["netns_inode"]), Path(record.data["netns_path"])
        commands = [[str(word) for word in command] for command in record.data["undo"]]
        if not {command[0] for command in commands} <= _UNDO_PROGRAMS:
            raise ValueError("a program that undoes no fault")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        hint = f"look at it, undo by hand what it names, then: rm {record.path}"
        raise InputError(f"not an undo record of this toolkit ({error!r})", source=str(record.path), hint=hint) from error
    netns = find_netns(inode, path)
    still_on = call_in_netns(netns, lambda: [command for command in commands if _stays(command)]) if netns else []
    if still_on:
        words = " ".join(still_on[0])
        raise CannotError(f"cannot take the fault off: {words}", source=str(record.path), hint=f"nsenter --net={netns} {words}")
    record.remove()
    return netns is not None


def _stays(undo: Sequence[str]) -> bool:
    """Run an undo command and see whether its object is still there; one that was never made is no error (the record comes first)."""
    if shutil.which(undo[0]) is None:
        return undo[0] != "ip6tables"  # without it nothing was put on; without the others nobody can tell
    subprocess.run(undo, capture_output=True, check=False)
    if undo[0] == "tc":
        shown = subprocess.run(["tc", "qdisc", "show", "dev", undo[4]], capture_output=True, text=True, check=False)
        unknown = shown.returncode != 0 and "Cannot find device" not in shown.stderr
        return unknown or f" {_NETEM_HANDLE} root" in shown.stdout
    look = ["-C" if word == "-D" else word for word in undo]
    # 1: no such rule; 3: no such table. Anything else (4: the lock was held) leaves it open, and the record stays.
    return subprocess.run(look, capture_output=True, check=False).returncode not in (1, 3)
