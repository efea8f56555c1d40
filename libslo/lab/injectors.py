"""Real faults by scenario: put on together, checked by measurement, taken off, and taken off later if their maker was killed.

The record of how to undo is on disk before a fault is on.
"""

from __future__ import annotations

import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from libslo.errors import InputError
from libslo.lab.faults.base import Injector, Target, fault_table, mechanism_needs
from libslo.lab.faults.cgroup import CpuQuota, MemoryLimit, NoisyNeighbour
from libslo.lab.faults.network import DnsServfail, PacketDelay, PacketLoss
from libslo.lab.faults.service import ServiceFault
from libslo.lab.faults.targets import find_target
from libslo.lab.faults.trials import unusable
from libslo.lab.faults.undo import take_off
from libslo.lab.state import read_records, remove_scratch
from libslo.scenarios import SEVERITIES, check_parameters, load_scenario, scenario_names

__all__ = [
    "PlannedFault",
    "Step",
    "make_injector",
    "parse_settings",
    "plan_fault",
    "plan_scenario",
    "real_faults",
    "recover_stale",
    "scenario_lines",
]

_MAKERS: dict[str, Callable[..., Injector]] = {
    "dns_delay": PacketDelay,
    "dns_servfail": DnsServfail,
    "dns_loss": PacketLoss,
    "packet_loss": PacketLoss,
    "packet_delay": PacketDelay,
    "partition": PacketLoss,
    "cpu_quota": CpuQuota,
    "noisy_neighbour": NoisyNeighbour,
    "memory_limit": MemoryLimit,
}


@dataclass(frozen=True)
class PlannedFault:
    """One fault of a step: what, where in the lab unless a target is named, how much, and what it should be taken for."""

    fault: str
    role: str
    parameters: dict[str, float | str]
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """Faults that are on together. Seconds on, None: until a signal; seconds of rest after it."""

    scenario: str
    severity: str
    faults: tuple[PlannedFault, ...]
    fault_s: float | None
    rest_s: float = 0.0


def make_injector(fault: str, parameters: Mapping[str, float | str], target: Target, mechanisms: Sequence[str] | None = None) -> Injector:
    """The injector of a fault of the vocabulary. mechanisms: to be tried, in order, instead of the vocabulary's.

    InputError for an unknown fault or a parameter that is unknown, missing or out of range.
    """
    values = check_parameters(fault, parameters)
    return _MAKERS.get(fault, ServiceFault)(fault, values, target, mechanisms)


def recover_stale() -> list[str]:
    """Take off the faults whose makers are gone; what was taken off. Called before every injection and every lab."""
    removed = []
    remove_scratch()
    for record in read_records("injection"):
        if record.is_stale() and take_off(record):
            data = record.data
            removed.append(f"{data.get('fault')} ({data.get('mechanism')}) at {data.get('place')} of killed process {record.owner.pid}")
    return removed


def plan_scenario(
    name: str, severity: str | None = None, given: Mapping[str, float | str] | None = None, duration_s: float | None = None
) -> list[Step]:
    """The steps of a scenario: severity of its harness, durations of the harness's profile, unless they are given.

    given: parameters that replace those of the severity, "delay_ms" for every fault that has it, or "dns_delay.delay_ms".
    Raises InputError for an unknown scenario or severity, or a parameter that none of its faults has.
    """
    scenario = load_scenario(name)
    harness = scenario.harness
    assert harness is not None  # noqa: S101 (load_scenario gives every scenario one)
    severity = severity or harness.severity
    if severity not in SEVERITIES:
        raise InputError(f"no severity {severity!r}", hint=f"one of: {', '.join(SEVERITIES)}")
    if not scenario.steps:
        raise InputError(f"{name} has no fault", hint="faultinject --list shows which have one")
    times = harness.profiles[harness.durations]
    fault_s = times["fault"] if duration_s is None else duration_s
    used: set[str] = set()
    steps = []
    for number, members in enumerate(scenario.steps, 1):
        faults = [fault for member in members for fault in _planned(member, severity, given or {}, used)]
        if len({(fault.fault, fault.role) for fault in faults}) < len(faults):
            raise InputError(f"{name}: two members of step {number} have the same fault", hint="one of them is enough")
        rest_s = times["recovery"] if number < len(scenario.steps) else 0.0
        steps.append(Step(name, severity, tuple(faults), fault_s, rest_s))
    if unused := sorted(set(given or {}) - used):
        raise InputError(f"no fault of {name} has the parameter {unused[0]}", hint=_parameters_of(steps))
    return steps


def plan_fault(fault: str, given: Mapping[str, float | str], duration_s: float | None) -> list[Step]:
    """One fault of the vocabulary alone; its domains are those of the single scenarios that have it. InputError as check_parameters."""
    if fault not in fault_table():
        raise InputError(f"no fault {fault!r}", hint=f"one of: {', '.join(fault_table())}")
    names = {name.removeprefix(f"{fault}.") for name in given}
    values = check_parameters(fault, {name: given.get(f"{fault}.{name}", given.get(name, "")) for name in names})
    return [Step(fault, "", (PlannedFault(fault, fault_table()[fault]["role"], values, _domains_of(fault)),), duration_s)]


def parse_settings(words: Sequence[str]) -> dict[str, float | str]:
    """NAME=VALUE words as a mapping; a value that reads as a number is one. InputError for a word of another form."""
    found: dict[str, float | str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise InputError(f"--set {word}: not of the form NAME=VALUE", hint="--set delay_ms=200")
        found[name] = _value(text)
    return found


def _value(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def scenario_lines() -> Iterator[str]:
    """Each scenario with what it means, its real faults with what each way of making them needs, and what is missing here."""
    against = cache(unusable)
    for name in scenario_names():
        scenario = load_scenario(name)
        members = dict.fromkeys(member for step in scenario.steps for member in step)
        faults = dict.fromkeys(spec.fault for member in members for spec in load_scenario(member).faults)
        ways = {fault: fault_table()[fault]["mechanisms"] for fault in faults}
        real = ", ".join(f"{fault} ({' or '.join(map(mechanism_needs, found))})" for fault, found in ways.items())
        line = f"{name:20} {scenario.description} Real: {real or 'nothing to put on'}"
        lacks = {way: reason for found in ways.values() for way in found if (reason := against(way))}
        line += "".join(f"; not here: {way}: {fact} (try: {cure})" for way, (fact, cure) in lacks.items())
        hopeless = [fault for fault, found in ways.items() if set(found) <= set(lacks)]
        yield line + (f"; so it cannot be made here: {', '.join(hopeless)}" if hopeless else "")


def real_faults(steps: Sequence[Step], target: str | None = None, *, allow_outside: bool = False) -> Iterator[dict[str, Any]]:
    """Put faults on for a while: yields a fault-window of each when all of its step are on, and again when they are off.

    SIGINT, SIGTERM and SIGHUP end it early, everything undone, with the end records. Use it from the main thread (it takes these
    signals, and processes that it starts die with the thread) and exhaust or close it.
    """
    with _signals() as stop:
        recover_stale()
        planned = [_injectors(step, target, allow_outside) for step in steps]
        for injector in (injector for injectors in planned for injector in injectors):
            injector.check()  # a sequence that cannot be finished is not begun
        for step, injectors in zip(steps, planned, strict=True):
            yield from _real_step(step, injectors, stop)
            if stop.wait(step.rest_s):
                return


def _injectors(step: Step, target: str | None, allow_outside: bool) -> list[Injector]:
    places = [find_target(fault.fault, target, role=fault.role, allow_outside=allow_outside) for fault in step.faults]
    return [make_injector(fault.fault, fault.parameters, place) for fault, place in zip(step.faults, places, strict=True)]


def _real_step(step: Step, injectors: Sequence[Injector], stop: threading.Event) -> Iterator[dict[str, Any]]:
    windows: list[dict[str, Any]] = []
    try:
        for fault, injector in zip(step.faults, injectors, strict=True):
            injector.apply()
            windows.append(_window(step, fault, injector))
        begin_s = time.monotonic()
        for window, injector in zip(windows, injectors, strict=True):
            _measure(window, injector)
        yield from (dict(window) for window in windows)
        stop.wait(None if step.fault_s is None else max(0.0, begin_s + step.fault_s - time.monotonic()))
        if not stop.is_set():
            for window, injector in zip(windows, injectors, strict=True):
                _measure(window, injector)  # that it was on to the end is part of the truth
    finally:
        _undo_all(injectors, windows)
    yield from windows


def _window(step: Step, fault: PlannedFault, injector: Injector) -> dict[str, Any]:
    window = {
        "fault_id": f"{step.scenario}-{fault.fault}-{secrets.token_hex(4)}",
        "scenario": step.scenario,
        "fault": fault.fault,
        "mechanism": injector.mechanism,
        "target": injector.target.labels,
        "parameters": injector.parameters,
        "phase": "begin",
        "begin_unix_nano": time.time_ns(),
        "expected_domains": list(fault.domains),
        "synthetic": False,
    }
    return window | ({"severity": step.severity} if step.severity else {})


def _measure(window: dict[str, Any], injector: Injector) -> None:
    if measured := injector.verify():
        window["measured"] = measured


def _undo_all(injectors: Sequence[Injector], windows: list[dict[str, Any]]) -> None:
    """Undo every one, whatever becomes of the others; the end goes into its window. The first failure is raised in the end."""
    failure: BaseException | None = None
    for number, injector in enumerate(injectors):
        try:
            injector.undo()
        except Exception as error:
            failure = failure or error
        if number < len(windows):
            windows[number] |= {"phase": "end", "end_unix_nano": time.time_ns()}
    if failure:
        raise failure


@contextmanager
def _signals() -> Iterator[threading.Event]:
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("faults belong to the main thread: it gets the signals, and processes die with the thread that starts them")
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it; otherwise the terminal has gone, and nobody can stop it
        numbers.append(signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _planned(member: str, severity: str, given: Mapping[str, float | str], used: set[str]) -> list[PlannedFault]:
    single, found = load_scenario(member), []
    for spec in single.faults:
        values = dict(spec.severities[severity])
        for name in fault_table()[spec.fault]["parameters"]:
            for key in (name, f"{spec.fault}.{name}"):
                if key in given:
                    values[name] = given[key]
                    used.add(key)
        found.append(PlannedFault(spec.fault, spec.role, check_parameters(spec.fault, values), single.domains[member]))
    return found


def _parameters_of(steps: Sequence[Step]) -> str:
    names = dict.fromkeys(f"{fault.fault}.{name}" for step in steps for fault in step.faults for name in fault.parameters)
    return f"one of: {', '.join(names)}"


def _domains_of(fault: str) -> tuple[str, ...]:
    found: list[str] = []
    for name in scenario_names():
        scenario = load_scenario(name)
        if len(scenario.steps) == 1 and any(spec.fault == fault for spec in scenario.faults):
            found += [domain for domain in scenario.domains[name] if domain not in found]
    return tuple(found)
