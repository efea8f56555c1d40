"""The soak's verdict on made-up series, and a few seconds of it on the real kernel."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "soak.py"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    """tests/soak.py as a module."""
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    path = sys.path[:]
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def report(*, final: bool = True, **more: int) -> dict[str, Any]:
    account = {"attempts": 10, "emitted": 6, "filtered": 3, "rate_limited": 1, "dropped": 0}
    account |= {name: count for name, count in more.items() if name in account}
    return {"final": final, "signals": [{"signal": "x", "attached": True, "account": account, "drained": more.get("drained", 6)}]}


def observed(soak: ModuleType, **more: Any) -> Any:
    """A run in which all is well: 74 MB with noise, after tables that fill in the first half."""
    generator = random.Random(1)
    samples = [
        soak.Sample(5.0 * number, int(1e6 * (74 - max(0, 60 - number) / 6 + generator.uniform(-0.2, 0.2))), 100 + number % 2, 2)
        for number in range(120)
    ]
    good = soak.Observed(samples, [report(final=False), report()], events=6, scrapes=3, held=40)
    return replace(good, **more)


def failed(soak: ModuleType, seen: Any) -> list[str]:
    return [check.name for check in soak.verdict(seen) if check.kept is False]


def test_a_flat_run_passes(soak: ModuleType) -> None:
    """Noise, and tables that fill in the first half, are no growth."""
    assert failed(soak, observed(soak)) == []


def test_growth_is_seen_through_wild_samples(soak: ModuleType) -> None:
    """1.5 MB over the second half fail, although every seventh sample is wild."""
    samples = [
        replace(each, rss_bytes=each.rss_bytes + int(each.at_s * 5000) + (4_000_000 if number % 7 == 0 else 0))
        for number, each in enumerate(observed(soak).samples)
    ]
    assert failed(soak, observed(soak, samples=samples)) == ["RSS flat"]


def test_a_step_at_the_end_is_growth(soak: ModuleType) -> None:
    """Four megabytes more in the last samples fail, although the median slope does not see them."""
    samples = observed(soak).samples
    samples[-6:] = [replace(each, rss_bytes=each.rss_bytes + 4_000_000) for each in samples[-6:]]
    assert failed(soak, observed(soak, samples=samples)) == ["RSS flat"]


def test_a_short_run_is_not_judged_but_for_a_leap(soak: ModuleType) -> None:
    """Below two minutes a slow rise gives no verdict; a leap fails."""
    short = [soak.Sample(float(number), 70_000_000 + 200_000 * number, 100, 2) for number in range(10)]
    assert soak.judge_memory(short).kept is None
    leap = [soak.Sample(float(number), 80_000_000 if number > 16 else 70_000_000, 100, 2) for number in range(20)]
    assert soak.judge_memory(leap).kept is False
    assert soak.judge_memory(short[:2]).kept is False


@pytest.mark.parametrize("name", ["fds", "threads"])
def test_leaked_descriptors_and_threads_fail(soak: ModuleType, name: str) -> None:
    """One more every minute fails."""
    samples = [replace(each, **{name: 50 + number // 12}) for number, each in enumerate(observed(soak).samples)]
    assert failed(soak, observed(soak, samples=samples)) == [f"{'file descriptors' if name == 'fds' else 'threads'} flat"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"reports": [report(final=False, filtered=4), report()]}, "account closes"),
        ({"reports": [report(final=False)]}, "drained == emitted"),
        ({"reports": [report(drained=5)], "events": 5}, "drained == emitted"),
        ({"events": 5}, "written == drained"),
        ({"scrapes": 0}, "metrics answered"),
        ({"exit_code": 70}, "ended well"),
        ({"left": ["map 7"]}, "nothing left behind"),
        ({"held": 0}, "nothing left behind"),
    ],
)
def test_every_loss_fails(soak: ModuleType, change: dict[str, Any], name: str) -> None:
    """Each broken promise fails the check of its name, and no other."""
    assert failed(soak, observed(soak, **change)) == [name]


def test_a_run_without_reports_fails(soak: ModuleType) -> None:
    """No report proves nothing."""
    assert {"every signal attached", "account closes", "drained == emitted"} <= set(failed(soak, observed(soak, reports=[])))


@pytest.mark.usefixtures("kernel")
def test_a_few_seconds_on_the_real_kernel() -> None:
    """Under mixed load nothing is lost, nothing is left, and the verdict is yes."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seconds", "6", "--interval", "0.5", "--only-load"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing left behind           ok" in done.stdout
