"""The page is made of the results and of nothing else, and the matrix knows every signal."""

from __future__ import annotations

import errno
import json
import re
from typing import Any

import matrix
import pytest
from compatibility import SETS, lost, page, reason_of, unsound
from matrix_runner import SETS as TRIED
from matrix_runner import better
from workloads import BY_SIGNAL

from libslo.kernel.catalogue import known_signals

RUN = {
    "made": "2000-01-02",
    "machines": [
        {"version": "6.1", "kernel": "6.1.0-1-amd64", "package": "linux-image 6.1.1-1"},
        {"version": "6.12", "skipped": "no network"},
    ],
    "workloads": {"dns_latency_ms": "some queries"},
}


def row(**more: Any) -> dict[str, Any]:
    return {
        "version": "6.1", "kernel": "6.1.0-1-amd64", "lockdown": "none", "capabilities": "all", "signal": "dns_latency_ms",
        "variant": "cgroup_skb", "attached": True, "result": "measured", "seen": 23, "known": 23, "unit": "", "detail": "median 20 ms",
        **more,
    }  # fmt: skip


def refused(**more: Any) -> dict[str, Any]:
    return row(attached=False, result="refused", detail="", **more)


def test_the_page_is_that_of_the_kept_results() -> None:
    """docs/compatibility.md is what the generator makes of testdata/kernel-matrix.jsonl."""
    assert page(*matrix.read(matrix.KEPT)) == matrix.PAGE.read_text()


@pytest.mark.parametrize("signal", known_signals())
def test_every_signal_has_a_workload(signal: str) -> None:
    """A signal of the catalogue that nothing makes events of is a hole in the matrix."""
    assert signal in BY_SIGNAL
    assert BY_SIGNAL[signal].what


def test_sets_have_names() -> None:
    """Every set that is tried has its column."""
    assert set(TRIED) == set(SETS)


def test_kept_results_know_every_variant() -> None:
    """Each variant of the catalogue was tried on each kernel that was tried at all, and no cell is without its reason."""
    from libslo.kernel.catalogue import VARIANTS

    run, rows = matrix.read(matrix.KEPT)
    wanted = {(signal, variant.name) for variant in VARIANTS for signal in variant.signals}
    for machine in run["machines"]:
        if "skipped" not in machine:
            assert {
                (each["signal"], each["variant"]) for each in rows if each["version"] == machine["version"] and "signal" in each
            } == wanted
    for each in rows:
        assert each["result"] == "measured" or reason_of(each).strip(" :"), each


def test_no_cell_is_blank() -> None:
    """What was not measured, not tried or skipped has a number, and each number a reason."""
    text = page(RUN, [row(), refused(capabilities="none", errno=1, reason="load x: operation not permitted", missing=["CAP_BPF"])])
    assert "| `dns_latency_ms` | cgroup_skb 23/23 | - [1] |" in text
    assert "1. needs CAP_BPF\n" in text
    assert "### Linux 6.12\n\nNot tried: no network\n" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert all(cell.strip() for cell in line.strip("|").split("|")), line
    for number in re.findall(r"\[(\d+)\]", text):
        assert f"\n{number}. " in text


def test_a_place_that_was_not_tried_says_so() -> None:
    """A set without a result for a signal is no blank cell either."""
    text = page(RUN, [row(), row(capabilities="needed", lockdown="integrity")])
    assert "not tried in this run" in text


def test_the_best_variant_speaks_for_its_signal() -> None:
    """The first measured variant stands in the summary; without one, the reasons of all."""
    both = [refused(variant="one", errno=errno.EPERM, reason="load: no"), row(variant="two")]
    assert "| two 23/23 |" in page(RUN, both)
    text = page(RUN, [both[0], row(variant="two", result="wrong", seen=22)])
    assert "| **wrong** [1, 2] |" in text


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"errno": 1, "reason": "load x: no", "missing": ["CAP_BPF", "CAP_NET_ADMIN"]}, "needs CAP_BPF and CAP_NET_ADMIN"),
        ({"capabilities": "no_btf", "errno": 2, "reason": "no BTF at /sys/kernel/btf/vmlinux"}, "needs the kernel's types (BTF)"),
        ({"variant": "block_io", "errno": 3, "reason": "load x: no such process"}, "there is no block_io_start before Linux 6.5"),
        (
            {"lockdown": "confidentiality", "errno": 22, "reason": "load", "verifier_tail": "unknown func bpf_probe_read_kernel#113"},
            "lockdown confidentiality forbids bpf_probe_read_kernel",
        ),
        (
            {"capabilities": "needed", "errno": 13, "reason": "attach x to tracepoint/y: permission denied", "perf_event_paranoid": 3},
            "needs CAP_SYS_ADMIN where kernel.perf_event_paranoid is 3, as it is on Debian (EACCES when it is attached)",
        ),
        (
            {"capabilities": "all", "errno": 13, "reason": "attach x to tracepoint/y: permission denied", "perf_event_paranoid": 3},
            "the kernel refuses it whatever is held (EACCES: attach x to tracepoint/y: permission denied)",
        ),
        (
            {"errno": 1, "reason": "load x.bpf.o: operation not permitted"},
            "this kernel refuses programs of this kind (EPERM at load, and an empty verifier log)",
        ),
        ({"errno": 95, "reason": "load x: whatever"}, "ENOTSUP: load x: whatever"),
        ({"reason": "place: fact (try: cure)"}, "place: fact (try: cure)"),
        ({}, "refused without a word"),
    ],
)
def test_reasons(more: dict[str, Any], expected: str) -> None:
    """A refusal is told in words where they are known, and with the errno's name and the kernel's words where not."""
    assert reason_of(refused(**more)) == expected


def test_what_is_lost_is_told() -> None:
    """A cell that was measured and is not any more is named; not one that was not tried, not measured before, or on another host."""
    before = [row(), row(variant="two"), row(variant="three", result="wrong"), row(version="host")]
    now = [refused(errno=1, reason="no"), row(variant="three", result="wrong"), refused(version="host", reason="no")]
    assert [line.split(":")[0] for line in lost(before, now, {"host": ("6.18", "6.19"), "6.1": ("6.1.1", "6.1.2")})] == [
        "6.1 none all dns_latency_ms cgroup_skb"
    ]
    assert len(lost(before, now, {"host": ("6.18", "6.18")})) == 2


def test_what_attached_and_did_not_see_is_told() -> None:
    """A variant that attaches and misses what happened is named whether it is new or not; one that is refused is not."""
    now = [
        row(),
        row(variant="new", result="wrong", seen=22),
        row(variant="blind", result="attached, nothing seen"),
        refused(errno=1, reason="no"),
    ]
    assert [line.split(":")[0].split()[-1] for line in unsound(now)] == ["new", "blind"]


def test_a_second_try_replaces_only_what_it_was_made_for() -> None:
    """What was right the first time stays; what was wrong takes the second result, which says that it is one."""
    first = [row(seen=23), row(variant="two", result="wrong")]
    second = [row(seen=24), row(variant="two", seen=25)]
    assert [(each["seen"], "first_try" in each) for each in better(first, second)] == [(23, False), (25, True)]
    assert better(first, second)[1]["first_try"]["result"] == "wrong"


def test_results_survive_writing(tmp_path: Any) -> None:
    """A results file is one JSON object a line, the run first."""
    matrix.write(tmp_path / "made" / "results.jsonl", RUN, [row()])
    assert matrix.read(tmp_path / "made" / "results.jsonl") == (RUN, [row()])
    assert len([json.loads(line) for line in (tmp_path / "made" / "results.jsonl").read_text().splitlines()]) == 2
