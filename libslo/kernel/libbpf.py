"""libbpf through ctypes: open, load, attach and read maps. The only file that knows foreign functions.

pylibbpf carries libbpf inside its extension module and exports the C API; importing pylibbpf itself would also import
its compiler, so only the shared object is loaded. Nothing here is imported before an agent really starts.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from libslo.errors import CannotError

__all__ = [
    "BpfError",
    "BpfObject",
    "ProgramRuns",
    "enable_statistics",
    "library",
    "map_delete",
    "map_lookup",
    "map_lookup_and_delete",
    "map_lookup_batch",
    "map_lookup_percpu",
    "map_push",
    "map_update",
    "possible_cpus",
]

_LOG_BYTES = 1 << 18
_TAIL_LINES = 12


class BpfError(OSError):
    """The kernel or libbpf refused: errno, what was tried, and the end of the verifier's log ("" when it said nothing)."""

    def __init__(self, number: int, what: str, verifier_tail: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.what = what
        self.verifier_tail = verifier_tail


@cache
def library() -> Any:
    """The shared object with libbpf's C API. Raises CannotError when pylibbpf is not installed."""
    spec = importlib.util.find_spec("pylibbpf")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = [file for place in places for file in sorted(place.glob("pylibbpf*.so"))]
    if not files:
        raise CannotError("pylibbpf is not installed", source="libbpf", hint="pip install 'llm-slo-ebpf-toolkit[kernel]'")
    lib = ctypes.CDLL(str(files[0]), use_errno=True)
    pointer, text, integer, unsigned = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "libbpf_set_print": (pointer, [pointer]),
        "libbpf_num_possible_cpus": (integer, []),
        "bpf_object__open_file": (pointer, [text, pointer]),
        "bpf_object__load": (integer, [pointer]),
        "bpf_object__close": (None, [pointer]),
        "bpf_object__find_map_by_name": (pointer, [pointer, text]),
        "bpf_object__next_program": (pointer, [pointer, pointer]),
        "bpf_program__name": (text, [pointer]),
        "bpf_program__section_name": (text, [pointer]),
        "bpf_program__fd": (integer, [pointer]),
        "bpf_program__set_log_buf": (integer, [pointer, pointer, ctypes.c_size_t]),
        "bpf_program__attach": (pointer, [pointer]),
        "bpf_prog_test_run_opts": (integer, [integer, pointer]),
        "bpf_program__attach_cgroup": (pointer, [pointer, integer]),
        "bpf_program__attach_uprobe_opts": (pointer, [pointer, integer, text, ctypes.c_size_t, pointer]),
        "bpf_link__destroy": (integer, [pointer]),
        "bpf_map__fd": (integer, [pointer]),
        "bpf_map__set_max_entries": (integer, [pointer, unsigned]),
        "bpf_map__max_entries": (unsigned, [pointer]),
        "bpf_enable_stats": (integer, [integer]),
        "bpf_map_update_elem": (integer, [integer, pointer, pointer, ctypes.c_uint64]),
        "bpf_map_delete_elem": (integer, [integer, pointer]),
        "bpf_map_lookup_elem": (integer, [integer, pointer, pointer]),
        "bpf_map_lookup_and_delete_elem": (integer, [integer, pointer, pointer]),
        "bpf_map_lookup_batch": (integer, [integer, pointer, pointer, pointer, pointer, pointer, pointer]),
    }
    for name, (result, arguments) in prototypes.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.libbpf_set_print(None)  # it would write to stderr, which is for people
    return lib


class ProgramRuns(NamedTuple):
    """What the kernel counted of one program while statistics were on."""

    runs: int
    time_ns: int


def enable_statistics() -> int:
    """A file descriptor; while it is open, the kernel counts and times every run of every program. Raises BpfError."""
    fd = int(library().bpf_enable_stats(0))  # BPF_STATS_RUN_TIME
    if fd < 0:
        raise BpfError(-fd, "enable statistics")
    return fd


class _OpenOptions(ctypes.Structure):
    """struct bpf_object_open_opts of libbpf 1.x up to the field we set; `sz` tells libbpf where it ends."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("reserved", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
    )


class _RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1.x."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


_RUN_ON_CPU = 1  # BPF_F_TEST_RUN_ON_CPU


class _UprobeOptions(ctypes.Structure):
    """struct bpf_uprobe_opts of libbpf 1.x up to the field we set."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ref_ctr_offset", ctypes.c_size_t),
        ("bpf_cookie", ctypes.c_uint64),
        ("retprobe", ctypes.c_bool),
        ("func_name", ctypes.c_char_p),
    )


class BpfObject:
    """One compiled object: opened, then loaded, then attached through links that die with this process."""

    def __init__(self, path: Path, *, btf_path: Path | None = None) -> None:
        """btf_path: types of the running kernel, for kernels that do not show them at /sys/kernel/btf/vmlinux."""
        self.path = path
        self._lib = library()
        self._links: list[int] = []
        options = _OpenOptions()
        options.sz = ctypes.sizeof(options)
        if btf_path is not None:
            options.btf_custom_path = os.fsencode(btf_path)
        self._object = self._lib.bpf_object__open_file(os.fsencode(path), ctypes.byref(options))
        if not self._object:
            raise BpfError(ctypes.get_errno(), f"open {path.name}")

    def _programs(self) -> Iterator[tuple[int, str, str]]:
        program = self._lib.bpf_object__next_program(self._object, None)
        while program:
            name = self._lib.bpf_program__name(program).decode()
            yield program, name, self._lib.bpf_program__section_name(program).decode()
            program = self._lib.bpf_object__next_program(self._object, program)

    def set_max_entries(self, map_name: str, entries: int) -> None:
        """Set a map's size (a ring's bytes) before the load."""
        self._check(self._lib.bpf_map__set_max_entries(self._map(map_name), entries), f"size of {map_name}")

    def has_map(self, map_name: str) -> bool:
        """True when the object has a map of this name."""
        return bool(self._lib.bpf_object__find_map_by_name(self._object, map_name.encode()))

    @property
    def attached(self) -> bool:
        """True between attach() and detach()."""
        return bool(self._links)

    def max_entries(self, map_name: str) -> int:
        """The size of a map: entries, or bytes for a ring (which libbpf rounds up to a power of two of pages)."""
        return int(self._lib.bpf_map__max_entries(self._map(map_name)))

    def load(self) -> None:
        """Create the maps and load the programs. Raises BpfError with the tail of the verifier's log."""
        logs = {}
        for program, name, _ in self._programs():
            logs[name] = ctypes.create_string_buffer(_LOG_BYTES)
            self._lib.bpf_program__set_log_buf(program, logs[name], _LOG_BYTES)
        result = self._lib.bpf_object__load(self._object)
        if result:
            said = [f"{name}: {tail}" for name, log in logs.items() if (tail := _tail(log.value))]
            raise BpfError(-result, f"load {self.path.name}", "\n".join(said))

    def user_functions(self) -> list[str]:
        """Functions of user space that programs of this object attach to: what their sections name after a colon."""
        return sorted({_user_function(section) for _, _, section in self._programs()} - {""})

    def attach_user(self, binary: Path) -> None:
        """Attach the programs of user functions to a file that has them, in all processes. Raises BpfError, with none of them left."""
        before = len(self._links)
        for program, name, section in self._programs():
            function = _user_function(section)
            if not function:
                continue
            options = _UprobeOptions(ctypes.sizeof(_UprobeOptions), 0, 0, section.startswith("uretprobe"), function.encode())
            link = self._lib.bpf_program__attach_uprobe_opts(program, -1, os.fsencode(binary), 0, ctypes.byref(options))
            if not link:
                error = BpfError(ctypes.get_errno(), f"attach {name} to {function} in {binary}")
                while len(self._links) > before:
                    self._lib.bpf_link__destroy(self._links.pop())
                raise error
            self._links.append(link)

    def attach(self, cgroup_fd: int | None = None) -> None:
        """Attach every program: those of cgroup and sockops sections at `cgroup_fd`, the others where their section says.

        Not those of user functions, which attach_user() gives a file. Raises BpfError, with none of them left.
        """
        for program, name, section in self._programs():
            if _user_function(section):
                continue
            if section.startswith(("cgroup", "sockops")):
                link = self._lib.bpf_program__attach_cgroup(program, -1 if cgroup_fd is None else cgroup_fd)
            else:
                link = self._lib.bpf_program__attach(program)
            if not link:
                error = BpfError(ctypes.get_errno(), f"attach {name} to {section}")
                self.detach()
                raise error
            self._links.append(link)

    def run_on(self, cpu: int) -> int:
        """Run the object's only program, of a section raw_tp without a name, once on that CPU; returns what it returns.

        Raises BpfError, with ENXIO for a CPU that is offline.
        """
        ((program, name, _),) = self._programs()
        options = _RunOptions(flags=_RUN_ON_CPU, cpu=cpu)
        options.sz = ctypes.sizeof(options)
        self._check(self._lib.bpf_prog_test_run_opts(self._lib.bpf_program__fd(program), ctypes.byref(options)), f"run {name}")
        return int(options.retval)

    def detach(self) -> None:
        """Destroy the links; maps stay readable."""
        while self._links:
            self._lib.bpf_link__destroy(self._links.pop())

    def close(self) -> None:
        """Detach, and give everything back to the kernel."""
        self.detach()
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None

    def map_fd(self, name: str) -> int:
        """File descriptor of a map; it belongs to the object."""
        return int(self._lib.bpf_map__fd(self._map(name)))

    def recursion_misses(self) -> int:
        """Runs that the kernel skipped because the same program was already running on that CPU."""
        return sum(int(fields.get("recursion_misses", "0")) for fields in self._program_fields())

    def program_runs(self) -> list[ProgramRuns]:
        """Runs of each program, counted while statistics are on."""
        return [ProgramRuns(int(fields.get("run_cnt", "0")), int(fields.get("run_time_ns", "0"))) for fields in self._program_fields()]

    def _program_fields(self) -> Iterator[dict[str, str]]:
        for program, _, _ in self._programs():
            info = Path(f"/proc/self/fdinfo/{self._lib.bpf_program__fd(program)}").read_text(encoding="utf-8")
            yield dict(line.split(":", 1) for line in info.splitlines() if ":" in line)

    def _map(self, name: str) -> int:
        found = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise BpfError(ctypes.get_errno(), f"map {name}")
        return int(found)

    @staticmethod
    def _check(result: int, what: str) -> None:
        if result < 0:
            raise BpfError(-result, what)


def _user_function(section: str) -> str:
    """The function of a uprobe/library:function or uretprobe/library:function section, "" of other sections."""
    return section.partition(":")[2] if section.startswith(("uprobe/", "uretprobe/")) else ""


def _tail(log: bytes) -> str:
    lines = [line for line in log.decode("utf-8", "replace").splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL_LINES:])


def possible_cpus() -> int:
    """How many CPUs this kernel may ever have; their numbers are below that."""
    return int(library().libbpf_num_possible_cpus())


def map_update(fd: int, key: bytes, value: bytes, *, only_new: bool = False) -> None:
    """Write one entry. only_new: leave one that is there (BPF_NOEXIST)."""
    result = library().bpf_map_update_elem(fd, key, value, int(only_new))
    if result and not (only_new and -result == errno.EEXIST):
        raise BpfError(-result, "map update")


def map_push(fd: int, value: bytes) -> None:
    """Put a value on a stack or into a queue."""
    result = library().bpf_map_update_elem(fd, None, value, 0)
    if result:
        raise BpfError(-result, "map push")


def map_delete(fd: int, key: bytes) -> None:
    """Take one entry out; one that is not there is none to complain of."""
    result = library().bpf_map_delete_elem(fd, key)
    if result and -result != errno.ENOENT:
        raise BpfError(-result, "map delete")


def map_lookup(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """Read one entry; None when there is none."""
    return _lookup(library().bpf_map_lookup_elem, fd, key, value_bytes)


def map_lookup_and_delete(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """Take one entry out, atomically: of several who ask, one gets it and the others None."""
    return _lookup(library().bpf_map_lookup_and_delete_elem, fd, key, value_bytes)


def map_lookup_percpu(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """Read one per-CPU entry: the values of all possible CPUs, each padded to 8 bytes, one after the other."""
    return _lookup(library().bpf_map_lookup_elem, fd, key, possible_cpus() * ((value_bytes + 7) & ~7))


def map_lookup_batch(fd: int, key_bytes: int, value_bytes: int, max_entries: int) -> tuple[bytes, bytes, int]:
    """Read all entries of a hash map at once: keys and values, each one after the other, and how many.

    Entries that come and go meanwhile may or may not be seen. max_entries: the map's size, so that one call holds all.
    """
    keys = ctypes.create_string_buffer(max_entries * key_bytes)
    values = ctypes.create_string_buffer(max_entries * value_bytes)
    count = ctypes.c_uint32(max_entries)
    cursor = ctypes.create_string_buffer(max(key_bytes, 8))
    result = library().bpf_map_lookup_batch(fd, None, cursor, keys, values, ctypes.byref(count), None)
    if result and -result != errno.ENOENT:  # which says that the end of the map was reached
        raise BpfError(-result, "map batch lookup")
    # Only what was filled is copied: room for all entries may be a megabyte.
    return ctypes.string_at(keys, count.value * key_bytes), ctypes.string_at(values, count.value * value_bytes), count.value


def _lookup(function: Any, fd: int, key: bytes, value_bytes: int) -> bytes | None:
    value = ctypes.create_string_buffer(value_bytes)
    result = function(fd, key, value)
    if not result:
        return value.raw
    if -result == errno.ENOENT:
        return None
    raise BpfError(-result, "map lookup")
