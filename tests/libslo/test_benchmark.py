"""The steps that benchmarks time do the whole work."""

from __future__ import annotations

from pathlib import Path

import orjson

from libslo.contracts import contract
from libslo.kernel.benchmark import line_path_cost, ring_drain_ns_per_event


def test_the_line_path_writes_every_event(tmp_path: Path) -> None:
    """A synthetic ring comes out as as many valid probe events, and every step took some time."""
    out = tmp_path / "lines.jsonl"
    cost = line_path_cost(str(out), n=500, runs=2)
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert len(lines) == cost.events == 500
    assert all(map(contract("probe-event").is_valid, lines))
    assert len({line["signal"] for line in lines}) == 6
    assert {"conn_tuple" in line for line in lines} == {True, False}
    assert 0 < cost.all < cost.convert


def test_the_ring_is_drained_whole() -> None:
    """The drain is compared on records that are all there."""
    assert ring_drain_ns_per_event(n=1000, runs=1).drain_ns > 0
