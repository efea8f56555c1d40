"""Where the driver sends requests, and how far it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counts", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and how. url: whole; timeout_s: of one request, from when it is sent; warmup_s: from the start.

    traceparent: none, unsampled or sampled. max_in_flight: 0 for no bound. gaps: whether results carry the times between tokens.
    """

    url: str
    protocol: str = "ndjson"
    model: str | None = None
    ca: str | None = None
    timeout_s: float = 20.0
    keep_alive: bool = False
    look_up_each: bool = False
    max_in_flight: int = 0
    traceparent: str = "none"
    gaps: bool = False
    warmup_s: float = 0.0


@dataclass(slots=True)
class Counts:
    """How far a run is. elapsed_s: since its start; late_s: how late the last request left."""

    elapsed_s: float = 0.0
    sent: int = 0
    in_flight: int = 0
    answered: int = 0
    failed: int = 0
    late_s: float = 0.0
