"""The lab's machines: one network namespace a role, joined by veth pairs to a bridge in a namespace of its own.

Nothing is made in the root namespace.
Each namespace is held by a small process that dies with the runner (PDEATHSIG), as does every process started in a role,
so that a runner killed with SIGKILL leaves no process, namespace, veth, rule or qdisc; its cgroups and files
are removed by ``recover()`` at the next start.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from libslo.errors import CannotError
from libslo.host import cgroup2_mount, cgroup_mount, process_start_ticks
from libslo.lab.netns import call_in_netns, netns_of
from libslo.lab.state import STATE_VARIABLE, Record, current_owner, read_records, state_dir, write_record

__all__ = [
    "ADDRESSES",
    "NAMES",
    "RunningLab",
    "Topology",
    "bound_to_me",
    "cgroup2_root",
    "hierarchies",
    "recover",
    "running_lab",
    "running_labs",
]

# The one table of the lab's addresses (10.77.0.0/24) and names.
ADDRESSES = {
    "client": "10.77.0.10",
    "app": "10.77.0.20",
    "llm": "10.77.0.30",
    "retrieval": "10.77.0.40",
    "obs": "10.77.0.50",
    "dns": "10.77.0.53",
}
NAMES = {
    "rag.lab": "app",
    "provider.lab": "llm",
    "embeddings.lab": "retrieval",
    "vectordb.lab": "retrieval",
    "collector.lab": "obs",
    "ns.lab": "dns",
}
_PREFIX_LENGTH = 24
_SWITCH = "switch"
_CONTROLLERS = ("cpu", "memory")
_PROGRAMS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "setpriv": "util-linux", "mount": "mount"}

# sh's own pid is that of the process started: every program of the chain replaces the one before.
# $PPID is checked because a runner killed before setpriv asked for the signal would not send it.
# $2: cgroup directories, with colons between them.
# The parenthesis runs in a process of its own, but $$ stays the shell's.
_JOIN = '[ "$PPID" = "$1" ] && (IFS=:; for place in $2; do echo $$ >"$place/cgroup.procs" || exit 1; done)'
_HOLD = _JOIN + " && echo held && exec sleep infinity"
_ENTER = (
    _JOIN + ' && mount --bind "$3/resolv.conf" /etc/resolv.conf'
    ' && { [ ! -e /etc/nsswitch.conf ] || mount --bind "$3/nsswitch.conf" /etc/nsswitch.conf; } && shift 3 && exec "$@"'
)


@dataclass(frozen=True)
class RunningLab:
    """A lab that another process runs: what an injector needs in order to find it."""

    lab_id: str
    pids: dict[str, int]  # role -> pid of its namespace's holder
    addresses: dict[str, str]
    cgroups: dict[str, dict[str, str]] = field(default_factory=dict)  # role -> controller ("cpu", "memory") -> its directory
    files: Path = Path()  # certificates and logs


def bound_to_me(command: Sequence[str]) -> list[str]:
    """The command, killed by the kernel when the THREAD that starts it ends (PDEATHSIG follows the creating thread)."""
    return ["setpriv", "--pdeathsig", "KILL", *command]


def cgroup2_root() -> Path:
    """Mount point of the cgroup v2 hierarchy; CannotError when there is none."""
    mount = cgroup2_mount()
    if mount is None:
        raise CannotError("no cgroup2 file system is mounted", source="/proc/self/mounts", hint="mount -t cgroup2 none /sys/fs/cgroup")
    return mount


def running_labs() -> list[RunningLab]:
    """The labs that run on this machine, the youngest last."""
    found: list[tuple[int, RunningLab]] = []
    for record in read_records("lab"):
        roles = record.data.get("roles", {})
        if record.is_stale() or record.is_foreign() or not roles:
            continue
        if all(process_start_ticks(role["pid"]) == role["start_ticks"] for role in roles.values()):
            pids = {name: role["pid"] for name, role in roles.items()}
            addresses = {name: role["address"] for name, role in roles.items()}
            cgroups = {name: dict(role.get("cgroups", {})) for name, role in roles.items()}
            lab = RunningLab(record.ident, pids, addresses, cgroups, state_dir() / f"files-{record.ident}")
            found.append((record.owner.start_ticks, lab))
    return [lab for _, lab in sorted(found, key=lambda item: item[0])]


def running_lab(lab_id: str | None = None) -> RunningLab:
    """The youngest lab that runs on this machine, or that one; CannotError when there is none."""
    labs = [lab for lab in running_labs() if lab_id in (None, lab.lab_id)]
    if not labs:
        fact = "no lab is running" if lab_id is None else f"no lab {lab_id} is running"
        raise CannotError(fact, source=str(state_dir()), hint="python -m libslo.lab.slice, or name a namespace")
    return labs[-1]


def recover() -> list[str]:
    """Remove what killed labs left (cgroups, files, records); the removed labs' idents. Living labs are not touched."""
    removed = []
    for record in read_records("lab"):
        if record.is_stale():
            _remove_leftovers(record)
            removed.append(record.ident)
    return removed


def _remove_leftovers(record: Record) -> None:
    _remove_cgroups([hierarchy / f"slo-lab-{record.ident}" for hierarchy in hierarchies()])
    with contextlib.suppress(FileNotFoundError):  # there were none, or another start removes them at this moment
        shutil.rmtree(state_dir() / f"files-{record.ident}")
    record.remove()


def hierarchies() -> list[Path]:
    """Where a lab has cgroups: cgroup2, and the v1 hierarchies of the controllers that faults need, where those are v1."""
    mounts = [cgroup_mount(controller) for controller in _CONTROLLERS]
    return list(dict.fromkeys([cgroup2_root(), *(mount[0] for mount in mounts if mount and mount[1] == 1)]))


def _controller_places() -> dict[str, Path]:
    """By controller, the hierarchy in which a lab's roles can be limited by it; those that this machine lacks are missing."""
    places = {}
    for controller in _CONTROLLERS:
        mount = cgroup_mount(controller)
        if mount and (mount[1] == 1 or controller in _words(mount[0] / "cgroup.controllers")):
            places[controller] = mount[0]
    return places


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _enable(directory: Path, controller: str) -> bool:
    """Let the children of a cgroup2 directory have a controller; False where the kernel refuses (processes in the way)."""
    file = directory / "cgroup.subtree_control"
    try:
        if controller not in file.read_text().split():
            file.write_text(f"+{controller}")
    except OSError:
        return False
    return True


def _remove_cgroups(cgroups: Sequence[Path]) -> None:
    """Kill what lives in a lab's cgroups and remove them; CannotError when one stays busy."""
    places = [Path(path) for cgroup in cgroups for path, _, _ in os.walk(cgroup, topdown=False)]
    deadline = time.monotonic() + 5
    while True:
        for path in places:
            try:
                for pid in (path / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            except (ProcessLookupError, FileNotFoundError):
                pass
        try:
            for path in places:
                if path.is_dir():
                    path.rmdir()
            return
        except OSError as error:  # EBUSY until the killed ones are reaped
            if time.monotonic() > deadline:
                raise CannotError(f"cannot remove the cgroup: {error.strerror}", source=str(path)) from error
            time.sleep(0.01)


class Topology:
    """The namespaces of one lab, as a context manager; to be used from the main thread (see ``bound_to_me``).

    Raises CannotError naming the package or capability that is missing.
    """

    def __init__(self) -> None:
        self.lab_id = secrets.token_hex(3)
        self.cgroup = Path()
        self.cgroups: dict[str, Path] = {}  # by controller, the lab's directory in the hierarchy that has it
        self.files = Path()  # resolv.conf, certificates, logs; removed with the lab
        self.pids: dict[str, int] = {}
        self.processes: list[tuple[str, subprocess.Popen[Any]]] = []
        self._holders: list[subprocess.Popen[Any]] = []
        self._record: Record | None = None

    def __enter__(self) -> Topology:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a lab belongs to the main thread: its processes die with the thread that starts them")
        _check_ground()
        recover()
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self) -> None:
        self.cgroup = cgroup2_root() / f"slo-lab-{self.lab_id}"
        self.files = state_dir() / f"files-{self.lab_id}"
        self._record = write_record("lab", self.lab_id, {"cgroup": str(self.cgroup)})
        self.files.mkdir(mode=0o755)
        (self.files / "resolv.conf").write_text(f"nameserver {ADDRESSES['dns']}\n")
        (self.files / "nsswitch.conf").write_text("hosts: files dns\n")  # no resolver daemon of the host in between
        roles = [_SWITCH, *ADDRESSES]
        self._make_cgroups(roles)
        for _ in roles:
            self._hold()
        for role, holder in zip(roles, self._holders, strict=True):
            assert holder.stdout is not None  # noqa: S101 (an invariant, not input)
            if holder.stdout.readline() != b"held\n":
                raise CannotError("cannot make a network namespace", source=role, hint="run as root (CAP_SYS_ADMIN)")
            self.pids[role] = holder.pid
        self._wire()
        self._publish()

    def _make_cgroups(self, roles: Sequence[str]) -> None:
        """In every hierarchy a directory of the lab and below it one of each role: the roles are leaves, the lab's own is empty."""
        name = self.cgroup.name
        for hierarchy in hierarchies():
            try:
                (hierarchy / name).mkdir()
                for role in roles:
                    (hierarchy / name / role).mkdir()
            except OSError as error:
                raise CannotError(
                    f"cannot make a cgroup: {error.strerror}", source=str(hierarchy / name), hint="run as root with writable cgroups"
                ) from error
        for controller, hierarchy in _controller_places().items():
            both = hierarchy != cgroup2_root() or (_enable(hierarchy, controller) and _enable(hierarchy / name, controller))
            if both:
                self.cgroups[controller] = hierarchy / name

    def _places(self, role: str) -> str:
        """The role's directories in all hierarchies, as the shell snippets take them."""
        return ":".join(str(hierarchy / self.cgroup.name / role) for hierarchy in hierarchies())

    def _hold(self) -> None:
        # Not in the cgroups of its role: it would be the oldest process there, and what a quota does to the role be laid to it.
        command = ["unshare", "--net", "sh", "-c", _HOLD, "lab-hold", str(os.getpid()), self._places(_SWITCH)]
        self._holders.append(
            subprocess.Popen(bound_to_me(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        )

    def _wire(self) -> None:
        switch = ["link set lo up", "link add br0 type bridge", "link set br0 up"]
        for role in ADDRESSES:
            switch += [
                f"link add p-{role} type veth peer name eth0 netns {self.pids[role]}",
                f"link set p-{role} master br0 up",
            ]
        _ip_batch(self.pids[_SWITCH], switch)
        for role, address in ADDRESSES.items():
            lines = ["link set lo up", f"address add {address}/{_PREFIX_LENGTH} dev eth0", "link set eth0 up"]
            _ip_batch(self.pids[role], lines)

    def _publish(self) -> None:
        roles = {
            role: {
                "pid": self.pids[role],
                "start_ticks": process_start_ticks(self.pids[role]),
                "address": address,
                "cgroups": {controller: str(place / role) for controller, place in self.cgroups.items()},
            }
            for role, address in ADDRESSES.items()
        }
        self._record = write_record("lab", self.lab_id, {"cgroup": str(self.cgroup), "roles": roles})

    def command_in(self, role: str, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in a role: its network, its cgroup, its resolver; ends with this thread."""
        enter = ["nsenter", f"--net={netns_of(self.pids[role])}", "unshare", "--mount", "--propagation", "private"]
        arrive = ["sh", "-c", _ENTER, "lab-enter", str(os.getpid()), self._places(role), str(self.files)]
        return bound_to_me([*enter, *arrive, *command])

    def spawn(
        self,
        role: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command in a role. `env` is added to this process's environment; the lab ends it in close()."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start lab processes from the main thread: they die with the thread that starts them")
        process = subprocess.Popen(
            self.command_in(role, command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**lab_environment(), **(env or {})},
            start_new_session=True,
        )
        self.processes.append((role, process))
        return process

    def close(self) -> None:
        """End every process of the lab (SIGTERM, after 3 s SIGKILL) and remove cgroups, files and record."""
        for _, process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 3
        for _, process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for holder in self._holders:
            holder.kill()
            holder.wait()
            if holder.stdout:
                holder.stdout.close()
        self.processes.clear()
        self._holders.clear()
        self.pids.clear()
        if self._record:
            _remove_leftovers(self._record)
            self._record = None


def importable() -> dict[str, str]:
    """Environment in which a child finds this very libslo, also when it runs from a checkout."""
    root = str(Path(__file__).resolve().parents[2])
    return {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


def lab_environment() -> dict[str, str]:
    """Environment of the lab's processes: this one's, but for settings of the user's own tools. An experiment pages nobody."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SLO_") or name == STATE_VARIABLE}
    return {**mine, **importable()}


def _check_ground() -> None:
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise CannotError(f"{program} is not installed", hint=f"apt-get install {package}")
    if not Path("/etc/resolv.conf").is_file():
        raise CannotError("there is no file to mount the lab's resolver on", source="/etc/resolv.conf", hint="touch /etc/resolv.conf")
    if sys.platform != "linux" or os.geteuid() != 0:
        raise CannotError("the lab makes network namespaces, for which this user has no right", hint="run as root (CAP_SYS_ADMIN)")
    current_owner()


def _ip_batch(pid: int, lines: Sequence[str]) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)

    done = call_in_netns(netns_of(pid), run)
    if done.returncode != 0:
        raise CannotError(
            f"cannot join the namespaces: {done.stderr.strip().splitlines()[0]}",
            hint="the kernel needs veth and bridge (modprobe veth bridge), the user CAP_NET_ADMIN",
        )
