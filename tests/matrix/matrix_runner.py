"""Try every variant of every signal on this kernel, under several sets of capabilities at once, against known workloads.

For each set of capabilities one process is forked before anything else happens; it drops what it may not have and attaches every variant
by itself. Then each workload runs once, and all processes say what they saw: so one run of the workloads judges all sets and variants.
Under a guest the lockdown is raised step by step (securityfs takes it upwards only); on a machine that is not a guest it is left as it is.

Writes results as JSON lines: one a (lockdown, set, variant, signal).
Usage: matrix_runner.py --out FILE [--lockdown none,integrity,confidentiality] [--sets all,needed] [--signals NAMES]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from workloads import BY_SIGNAL, Event, Lab, Workload, start_all

from libslo.errors import CannotError
from libslo.kernel.catalogue import VARIANTS, Variant
from libslo.kernel.privileges import missing_capabilities
from libslo.kernel.session import Session
from libslo.kernel.settings import CaptureSettings

# include/uapi/linux/capability.h
CAP = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}
# What a process keeps; None: all that the machine gives. btf hidden: an empty tmpfs over /sys/kernel/btf in a mount namespace of its own.
SETS: dict[str, tuple[tuple[str, ...] | None, bool]] = {
    "all": (None, True),
    "needed": (("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"), True),
    "tracing": (("CAP_BPF", "CAP_PERFMON"), True),
    "none": ((), True),
    "no_btf": (None, False),
}
LOCKDOWN_FILE = Path("/sys/kernel/security/lockdown")
AGAIN = ("wrong", "attached, nothing seen", "workload failed")
GUEST_WORD = "slo.guest"  # on the kernel command line of guests that we boot
_TURN_S = 0.25
_POLL_EVERY_S = 1.0
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _SIGKILL = 1, 38, 9
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x00020000, 1 << 14, 1 << 18
_CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def hide_btf() -> None:
    """Nothing at /sys/kernel/btf for this process any more."""
    _checked(libc.unshare(_CLONE_NEWNS), "unshare")
    _checked(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate")
    _checked(libc.mount(b"none", b"/sys/kernel/btf", b"tmpfs", 0, None), "mount over /sys/kernel/btf")


def keep_capabilities(names: Sequence[str]) -> None:
    """Give up every other capability, for good. Names that this process does not hold cannot be kept: OSError."""
    mask = sum(1 << CAP[name] for name in names)
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _checked(libc.capset(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), struct.pack("<6I", low, low, 0, high, high, 0)), "capset")


class Attempt:
    """One variant, attached or not, and what it has seen."""

    def __init__(self, variant: Variant, pids: tuple[int, ...], signals: tuple[str, ...]) -> None:
        self.events: list[Event] = []
        self.session: Session | None = None
        self.states: dict[str, dict[str, Any]] = {}
        begun = time.monotonic()
        try:
            forced = dict.fromkeys(signals, variant.name)
            self.session = Session(CaptureSettings(signals=signals, pids=pids, variants=forced))
            for state in self.session.states:
                self.states[state.signal] = {
                    "attached": state.attached, "errno": state.errno, "reason": state.reason, "verifier_tail": state.verifier_tail
                }  # fmt: skip
        except CannotError as error:
            self._failed(signals, None, f"{error} (try: {error.hint})")
        except OSError as error:
            self._failed(signals, error.errno, str(error))
        missing = missing_capabilities(variant.capabilities)
        for state in self.states.values():
            state |= {"took_s": round(time.monotonic() - begun, 2), "missing": missing}

    def _failed(self, signals: tuple[str, ...], number: int | None, reason: str) -> None:
        self.states = {name: {"attached": False, "errno": number, "reason": reason, "verifier_tail": ""} for name in signals}

    def turn(self, *, poll: bool) -> None:
        if self.session:
            self.events += self.session.drain()
            if poll:
                self.poll()

    def poll(self) -> None:
        """A source that has gone gives no more events, which the workload's judge will see."""
        if self.session:
            with contextlib.suppress(CannotError):
                self.events += self.session.poll()

    def collect(self) -> list[Event]:
        if self.session:
            self.events += self.session.detach() + self.session.sweep()
            self.poll()
            self.session.close()
            self.session = None
        return self.events


def observe(pipe: Connection, name: str) -> None:
    """A process with one set of capabilities: attaches when asked, drains all the time, says what it saw when asked."""
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    kept, btf = SETS[name]
    try:
        if not btf:
            hide_btf()
        if kept is not None:
            keep_capabilities(kept)
    except OSError as error:
        pipe.send(str(error))
        return
    pipe.send("")
    attempts: dict[str, Attempt] = {}
    polled_s = time.monotonic()
    while True:
        if pipe.poll(_TURN_S):
            word, *rest = pipe.recv()
            if word == "attach":
                variants = [variant for variant in VARIANTS if set(variant.signals) & set(rest[0])]
                attempts = {}
                for variant in variants:
                    signals = tuple(signal for signal in variant.signals if signal in rest[0])
                    pids = tuple(sorted({pid for signal in signals for pid in rest[0][signal]}))
                    attempts[key(variant)] = Attempt(variant, pids, signals)
                pipe.send({each: attempt.states for each, attempt in attempts.items()})
            elif word == "collect":
                pipe.send({each: attempt.collect() for each, attempt in attempts.items()})
                attempts = {}
            else:
                return
        poll = time.monotonic() - polled_s >= _POLL_EVERY_S
        polled_s = time.monotonic() if poll else polled_s
        for attempt in attempts.values():
            attempt.turn(poll=poll)


def key(variant: Variant) -> str:
    return f"{variant.name}/{variant.signals[0]}"


class Observer:
    """The parent's end of such a process."""

    def __init__(self, name: str) -> None:
        self.name = name
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=observe, args=(other, name), daemon=True)
        self.process.start()
        other.close()
        self.obstacle: str = self.pipe.recv()

    def ask(self, *words: Any) -> Any:
        self.tell(*words)
        return self.answer()

    def tell(self, *words: Any) -> None:
        self.pipe.send(words)

    def answer(self) -> Any:
        return self.pipe.recv()


def lockdown_now() -> str:
    """The level in brackets; "unknown" without securityfs, and "no lockdown" when it has no such file."""
    text = ""
    with contextlib.suppress(OSError):
        text = LOCKDOWN_FILE.read_text()
    if not text:  # securityfs may not be mounted here: look at one in a mount namespace that ends with the command
        with tempfile.TemporaryDirectory() as place:
            look = (
                f"mount -t securityfs none {place} && if test -e {place}/lockdown; then cat {place}/lockdown; else echo '[no lockdown]'; fi"
            )
            text = subprocess.run(["unshare", "--mount", "sh", "-c", look], capture_output=True, text=True, check=False).stdout
    return text.partition("[")[2].partition("]")[0] or "unknown"


def raise_lockdown(level: str) -> None:
    """Upwards only, and only in a guest of ours: a machine would stay like that until it boots again."""
    if lockdown_now() == level:
        return
    if GUEST_WORD not in Path("/proc/cmdline").read_text().split():
        raise CannotError("lockdown is raised in guests only", source=str(LOCKDOWN_FILE), hint="matrix.py, which boots them")
    LOCKDOWN_FILE.write_text(level)


def verdict(variant: Variant, signal: str, state: dict[str, Any], events: list[Event], workload: Workload | str | None) -> dict[str, Any]:
    """What became of one signal of one variant."""
    row: dict[str, Any] = {
        "signal": signal, "variant": variant.name, "attached": state["attached"], "took_s": state["took_s"],
        **{name: state[name] for name in ("errno", "reason", "verifier_tail", "missing") if state[name]},
    }  # fmt: skip
    if not state["attached"]:
        return row | {"result": "refused"}
    if workload is None:
        return row | {"result": "no workload", "reason": "nothing makes events of this signal: tests/matrix/workloads.py"}
    if isinstance(workload, str):
        return row | {"result": "workload failed", "reason": workload}
    found = workload.judge(signal, [event for event in events if event["signal"] == signal])
    word = "measured" if found.right else "attached, nothing seen" if not found.seen else "wrong"
    return row | {"result": word, "seen": found.seen, "known": found.known, "unit": found.unit, "detail": found.detail}


def one_level(observers: list[Observer], lab: Lab, signals: tuple[str, ...], note: Any) -> list[dict[str, Any]]:
    """All sets, variants and signals under the lockdown that is on now."""
    rows = []
    with contextlib.ExitStack() as stack:
        workloads = start_all(lab, stack, signals, note)
        pids = {}
        for signal in signals:
            workload = workloads.get(BY_SIGNAL[signal]) if signal in BY_SIGNAL else None
            pids[signal] = workload.pids if isinstance(workload, Workload) else ()
        note("workloads wait")
        states = {}
        for observer in observers:  # one after the other: libbpf loads in a third of the time when nothing else runs
            states[observer.name] = observer.ask("attach", pids)
        note("probes attached")
        for kind, workload in workloads.items():
            if isinstance(workload, Workload):
                begun = time.monotonic()
                try:
                    workload.run()
                    note(f"{kind.__name__} ran for {time.monotonic() - begun:.1f} s")
                except (OSError, AssertionError, ValueError, subprocess.SubprocessError) as error:
                    workloads[kind] = f"{type(error).__name__}: {error}"
                    note(f"{kind.__name__}: {workloads[kind]}")
        time.sleep(2 * _TURN_S)
        for observer in observers:
            events = observer.ask("collect")
            for variant in VARIANTS:
                for signal, state in states[observer.name].get(key(variant), {}).items():
                    workload = workloads.get(BY_SIGNAL[signal]) if signal in BY_SIGNAL else None
                    rows.append({"capabilities": observer.name, **verdict(variant, signal, state, events[key(variant)], workload)})
        note("events collected")
    return rows


def better(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first results, with those of the second try in place of the ones that it was made for."""

    def place(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["capabilities"], row["signal"], row["variant"]

    places = {place(row): row for row in second}
    told = ("result", "seen", "known", "detail", "reason")
    return [
        row if row["result"] not in AGAIN or place(row) not in places
        else places[place(row)] | {"first_try": {name: row[name] for name in told if name in row}}
        for row in first
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lockdown", default="", help="levels to raise to, with commas; default: as it is")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--signals", default="")
    options = parser.parse_args()
    begun = time.monotonic()

    def note(text: str) -> None:
        print(f"  {os.uname().release} {time.monotonic() - begun:6.1f} s: {text}", file=sys.stderr, flush=True)

    known = tuple(dict.fromkeys(signal for variant in VARIANTS for signal in variant.signals))
    signals = tuple(options.signals.split(",")) if options.signals else known
    rows: list[dict[str, Any]] = []
    paranoid = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    unprivileged = int(Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text())
    head = {"kernel": os.uname().release, "perf_event_paranoid": paranoid, "unprivileged_bpf_disabled": unprivileged}
    observers = [Observer(name) for name in options.sets.split(",")]
    for observer in [each for each in observers if each.obstacle]:
        rows.append({**head, "capabilities": observer.name, "lockdown": lockdown_now(), "result": "skipped", "reason": observer.obstacle})
        observers.remove(observer)
    place = Path(tempfile.mkdtemp(prefix="slo-matrix-"))
    try:
        with contextlib.ExitStack() as stack:
            lab = Lab(stack, place)
            note("servers listen")
            for level in options.lockdown.split(","):
                if level:
                    raise_lockdown(level)
                now = lockdown_now()
                note(f"lockdown {now}")
                level_rows = one_level(observers, lab, signals, note)
                doubtful = tuple(name for name in signals if any(row["signal"] == name and row["result"] in AGAIN for row in level_rows))
                if doubtful:  # a busy machine may disturb a workload: what is right the second time was not the probe's fault
                    note(f"again: {', '.join(doubtful)}")
                    level_rows = better(level_rows, one_level(observers, lab, doubtful, note))
                rows += [{**head, "lockdown": now, **row} for row in level_rows]
    finally:
        for observer in observers:
            observer.tell("quit")
            observer.process.join(5)
        shutil.rmtree(place, ignore_errors=True)
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
