"""What the tools used of a node's CPUs, from overhead-samples. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Usage", "usage"]

_S = 1_000_000_000


@dataclass(frozen=True)
class Usage:
    """What a tool used since its sample before, in percent of all CPUs, and its resident memory at ts_unix_ns.

    round_unix_ns: the time of the first sample of the round, which all tools of a round share.
    """

    round_unix_ns: int
    ts_unix_ns: int
    tool: str
    node_cpu_pct: float
    rss_bytes: int


def usage(samples: Iterable[Mapping[str, Any]], cpus: int, begin_ns: int = 0, end_ns: int | None = None) -> Iterator[Usage]:
    """From each sample of a process to its next, both between begin and end (Unix time; None: no end).

    A round is a sample a tool, one after the other. A process that began anew begins anew.
    """
    before: dict[str, Mapping[str, Any]] = {}
    seen: set[str] = set()
    round_ns = 0
    for sample in samples:
        tool, ts_ns = sample["overhead_of"], sample["ts_unix_nano"]
        if not seen or tool in seen:
            seen, round_ns = set(), ts_ns
        seen.add(tool)
        last, before[tool] = before.get(tool), sample
        if last is None or last["pid"] != sample["pid"] or not begin_ns <= last["ts_unix_nano"] < ts_ns or ts_ns > (end_ns or ts_ns):
            continue
        used_s = sample["cpu_s"] - last["cpu_s"]
        yield Usage(round_ns, ts_ns, tool, 100 * used_s * _S / (ts_ns - last["ts_unix_nano"]) / cpus, sample["rss_bytes"])
