"""The overhead guard of a running session: measure, decide, act, and say so."""

from __future__ import annotations

import os
import time
from typing import Any

from libslo.errors import CannotError
from libslo.kernel.governor import Decision, Governor
from libslo.kernel.libbpf import BpfObject
from libslo.kernel.overhead import OverheadMeter, hit_cost, rss_bytes
from libslo.kernel.privileges import missing_capabilities
from libslo.kernel.session import Session

__all__ = ["Guard"]


class Guard:
    """Keeps a session below its ceiling; made before capabilities are dropped, because it calibrates."""

    def __init__(self, session: Session, *, ceiling_pct: float) -> None:
        """ceiling_pct: of the machine's CPU time; 0 only measures."""
        self._session = session
        self._governor = Governor(ceiling_pct) if ceiling_pct else None
        self._meter = OverheadMeter(hit_cost(), self._attached(), session.hits(), lambda: sum(session.children_s().values()))
        self._drained = session.drained()
        self._poll_s = self._polled_s()
        self._read_s = time.monotonic()
        self.overhead: dict[str, Any] | None = None  # of the last reading, as in an agent report

    def turn(self) -> list[dict[str, Any]]:
        """Take a reading, act on it; returns decisions as in an agent report."""
        session = self._session
        wall_s = max(time.monotonic() - self._read_s, 1e-9)
        muted = self._muted()
        reading = self._meter.read(self._attached(), session.hits(), muted)
        drained, poll_s = session.drained(), self._polled_s()
        events = {name: count - self._drained.get(name, 0) for name, count in drained.items()}
        polled = {name: 100 * (s - self._poll_s.get(name, 0.0)) / wall_s / (os.cpu_count() or 1) for name, s in poll_s.items()}
        self._drained, self._poll_s, self._read_s = drained, poll_s, time.monotonic()
        rest_pct = max(0.0, reading.agent_pct - sum(polled.values()))
        share_pct = {name: rest_pct * count / max(1, sum(events.values())) for name, count in events.items()}
        cost_pct: dict[tuple[str, ...], float] = {
            tuple(sorted(probe.wanted)): reading.kernel_pct[probe.variant.object_name]
            + sum(share_pct.get(name, 0.0) for name in probe.wanted)
            for probe in session.probes()
            if probe.variant.object_name in reading.kernel_pct.keys() - muted
        }
        cost_pct |= {(name,): pct for name, pct in polled.items() if name not in session.shed_signals}
        self.overhead = {
            "cpu_pct": round(reading.total_pct, 4),
            "agent_cpu_pct": round(reading.agent_pct, 4),
            "kernel_cpu_pct": round(sum(reading.kernel_pct.values()), 4),
            "method": reading.method,
            "rss_bytes": rss_bytes(),
            "signals": {"+".join(group): round(pct, 4) for group, pct in sorted(cost_pct.items())},
        }
        decision = self._governor.decide(reading.total_pct, cost_pct) if self._governor else None
        return [self._act(decision)] if decision else []

    def _attached(self) -> dict[str, BpfObject]:
        """Objects that cost something: those that are muted, too."""
        return {probe.variant.object_name: probe.object for probe in self._session.probes() if probe.object.attached}

    def _muted(self) -> set[str]:
        shed = self._session.shed_signals
        return {probe.variant.object_name for probe in self._session.probes() if probe.wanted & shed}

    def _polled_s(self) -> dict[str, float]:
        """CPU time of each signal's source outside of the kernel's programs, in seconds."""
        asked, children = self._session.poll_s, self._session.children_s()
        return {name: asked.get(name, 0.0) + children.get(name, 0.0) for name in asked.keys() | children.keys()}

    def _act(self, decision: Decision) -> dict[str, Any]:
        told: dict[str, Any] = {
            "ts_unix_nano": time.time_ns(), "action": decision.action, "signals": list(decision.signals),
            "overhead_pct": round(decision.overhead_pct, 4), "ceiling_pct": decision.ceiling_pct, "cost_pct": round(decision.cost_pct, 4),
        }  # fmt: skip
        if decision.action == "shed":
            # Without capabilities nothing could be attached again: then the programs stay and return at once.
            detach = not missing_capabilities(("CAP_BPF", "CAP_PERFMON"))
            told["how"] = "detached" if self._session.shed(decision.signals[0], detach=detach) else "muted"
        else:
            try:
                self._session.restore(decision.signals[0])
                told["how"] = "measured again"
            except (OSError, CannotError) as error:
                if self._governor:
                    self._governor.not_restored(decision)
                told["how"] = f"cannot be attached again: {error}"
        return told
