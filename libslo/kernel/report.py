"""Agent reports: what attached, what it cannot see, and the account of every event; as JSON and as a table for people."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from libslo import __version__
from libslo.kernel.account import Account
from libslo.kernel.probes import SignalState

__all__ = ["agent_report", "check_table"]


def agent_report(
    states: Sequence[SignalState],
    *,
    node: str,
    ts_unix_ns: int,
    accounts: Mapping[str, Account] | None = None,
    drained: Mapping[str, int] | None = None,
    notes: Mapping[str, str] | None = None,
    shed: Collection[str] = (),
    mode: str,
    final: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """An agent report (contract v1alpha1). notes: further reasons by signal. mode: how the machine limits the agent.

    shed: signals that are not measured at the moment. more: further fields of the report.
    """
    signals = []
    for state in states:
        entry: dict[str, Any] = {"signal": state.signal, "variant": state.variant, "attached": state.attached}
        if state.signal in shed:
            entry["shed"] = True
        if state.errno:
            entry["errno"] = state.errno
        if reason := state.reason or (notes or {}).get(state.signal, ""):
            entry["reason"] = reason
        if state.verifier_tail:
            entry["verifier_tail"] = state.verifier_tail
        entry["blind_spots"] = list(state.blind_spots)
        entry["account"] = (accounts or {}).get(state.signal, Account()).as_dict()
        entry["drained"] = (drained or {}).get(state.signal, 0)
        signals.append(entry)
    return {
        "ts_unix_nano": ts_unix_ns,
        "node": node,
        "agent_version": __version__,
        "mode": mode,
        "kernel": os.uname().release,
        "signals": signals,
        "final": final,
        **more,
    }


def check_table(report: Mapping[str, Any]) -> str:
    """A report as lines for people: signal, variant, yes or no with errno and reason, and the blind spots below."""
    states = report["signals"]
    wide = max(len("signal"), *(len(state["signal"]) for state in states))
    variant = max(len("variant"), *(len(state["variant"]) for state in states))
    lines = [f"kernel {report['kernel']}, mode {report['mode']}", f"{'signal':{wide}}  {'variant':{variant}}  attached"]
    for state in states:
        errno = f"errno {state['errno']} ({os.strerror(state['errno']).lower()})" if state.get("errno") else ""
        why = ": ".join(part for part in (errno, state.get("reason", "")) if part)
        lines.append(f"{state['signal']:{wide}}  {state['variant']:{variant}}  {'yes' if state['attached'] else 'no  ' + why}".rstrip())
        lines += [f"    | {line}" for line in state.get("verifier_tail", "").splitlines()]
        lines += [f"    does not see: {spot}" for spot in state["blind_spots"]]
    for tried in report.get("abilities", []):
        lines.append(f"{tried['ability']}: " + ("yes" if tried["works"] else f"no ({tried['reason']})"))
    pods = report.get("identity", {}).get("pods")
    if pods:
        state = f"{pods['pods']} pods" if pods["last_success_unix_nano"] else f"no answer: {pods['last_error'] or 'not yet'}"
        lines.append(f"pod names from the {'kubelet' if pods['source'] == 'kubelet' else 'API server'} at {pods['url']}: {state}")
    return "\n".join(lines) + "\n"
