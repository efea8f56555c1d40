"""The pipeline in a real shell: no file in between, same seed same bytes, every line valid."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import T0, lines, objects, probe, raw_sample, raw_span, run_tool, slo_event, span_request
from runs import synthetic, without_labels

MIXED = "faultinject --scenario mixed --count 200 --seed 42"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def shell(script: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLO_")}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"], input=data, capture_output=True, env={**clean, "PATH": PATH}, timeout=120, check=False
    )


def test_five_faults_are_five_incidents() -> None:
    """The mixed scenario ends in the five domains in their order, exit 0, and the same bytes again."""
    first, second = (shell(f"{MIXED} | collector | attributor") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert [o["predicted_fault_domain"] for o in objects(first.stdout)] == [
        "network_dns",
        "cpu_throttle",
        "memory_pressure",
        "provider_throttle",
        "network_egress",
    ]
    assert first.stdout == second.stdout
    assert shell("faultinject --scenario mixed --count 200 --seed 43 | collector | attributor").stdout != first.stdout


@pytest.mark.parametrize("stage", ["", " | collector", " | collector | attributor"])
def test_every_line_on_every_pipe_is_valid(stage: str) -> None:
    """What each stage writes keeps its contract."""
    done = shell(f"{MIXED}{stage} | schemavalidate")
    assert done.returncode == 0, done.stdout[:2000]
    assert b" 0 invalid" in done.stderr


def test_shuffled_labels_change_no_prediction() -> None:
    """Labels taken away or made up before the collector: the same incidents, byte for byte."""
    records = list(synthetic("mixed", 42))
    expected = shell("collector | attributor", lines(records)).stdout
    for label in ("cpu_throttle", None):
        changed = [
            {**{k: v for k, v in r.items() if k != "fault_label"}, **({"fault_label": label} if label and "ttft_ms" in r else {})}
            for r in records
        ]
        assert shell("collector | attributor", lines(changed)).stdout == expected != b""


def test_a_stage_more_or_less_changes_nothing() -> None:
    """The collector passes its own output through; cat and split writes in between do not matter."""
    expected = shell(f"{MIXED} | collector").stdout
    events = without_labels(expected, lambda label: label)
    assert shell(f"{MIXED} | cat | dd bs=777 status=none | collector").stdout == expected
    kinds = sorted(next(key for key in ("sli_name", "signal") if key in o) for o in objects(shell("collector", events).stdout))
    assert kinds == sorted(next(key for key in ("sli_name", "signal") if key in o) for o in objects(expected))


def test_baseline_ends_in_silence() -> None:
    """Nothing wrong, nothing said."""
    done = shell("faultinject --scenario baseline --count 200 | collector | attributor")
    assert (done.returncode, done.stdout) == (0, b"")


def test_head_ends_the_whole_pipeline_well() -> None:
    """`… | head -1`: every stage ends with 0."""
    done = shell(f'{MIXED} | collector | head -1; echo "${{PIPESTATUS[@]}}"')
    assert done.stdout.splitlines()[-1] == b"0 0 0" and b"roken" not in done.stderr


def test_summary_of_the_pipeline(tmp_path: Path) -> None:
    """The figures for labelled input: five of five, with its interval."""
    shell(f"{MIXED} | collector | attributor --summary-out {tmp_path}/s.json --confusion-out {tmp_path}/c.csv")
    assert b'"right": 5' in (tmp_path / "s.json").read_bytes()
    assert (tmp_path / "c.csv").read_text().count("\n") == 6


def test_bench_input_size() -> None:
    """Twenty thousand samples are eighty thousand events."""
    data = lines([record for record in synthetic("baseline", 1) if "ttft_ms" in record]) * 100
    done = run_tool("collector", data=data)
    assert done.stdout.count(b"\n") == 80_000


def damaged(seed: int, count: int) -> bytes:
    """Good lines of every contract, most of them with a value replaced, a key lost or added, or bytes changed."""
    rng = random.Random(seed)
    good = [raw_sample(), slo_event(), probe(T0, trace_id="0" * 32), span_request(raw_span(attrs={"a": 1})), synthetic("mixed", 42)[5]]
    values: list[Any] = [
        None,
        True,
        -1,
        0,
        0.5,
        1e300,
        -1e300,
        2**62,
        2**63,
        10**19,
        "",
        "x",
        "NaN",
        [],
        {},
        [1],
        {"a": {}},
        "2261-12-31T23:59:60Z",
    ]
    out = []
    for _ in range(count):
        value = copy.deepcopy(rng.choice(good))
        place: Any = value
        while rng.random() < 0.6:
            inner = [each for each in (place.values() if isinstance(place, dict) else place) if isinstance(each, dict | list) and each]
            if not inner:
                break
            place = rng.choice(inner)
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        match rng.randrange(5):
            case 0 | 1 | 2:
                place[key] = rng.choice(values)
            case 3:
                del place[key]
            case _:
                pass
        line = bytearray(lines([value]))
        if rng.random() < 0.1:
            line[rng.randrange(len(line) - 1)] = rng.choice(b'\x00"{}[],:\xff9e-')
        out.append(bytes(line))
    return b"".join(out)


@pytest.mark.parametrize("seed", [1, 2, 103, 115])
def test_damaged_lines_are_never_our_bug(seed: int) -> None:
    """Whatever was done to the lines: under --on-bad skip the pipeline ends with 0, and what it writes is valid."""
    data = damaged(seed, 3000)
    joined = shell("collector --on-bad skip --no-pass-through", data)
    assert joined.returncode == 0, joined.stderr[-500:]
    checked = shell("schemavalidate", joined.stdout)
    assert checked.returncode == 0, checked.stdout[:500]
    attributed = shell("attributor --on-bad skip", data + joined.stdout)
    assert attributed.returncode == 0, attributed.stderr[-500:]
