"""The summary of a load: both clocks, percentiles that n supports, goodput, errors, and when a run is not valid."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from builders import T0
from hypothesis import given
from hypothesis import strategies as st

from libslo.load.results import ResultColumns
from libslo.load.summary import achieved_ratio, percentile_row, summarize, summary_lines

MS = 1_000_000


def result(
    due_ms: float, *, late_ms: float = 0, ttft_ms: float = 300, tokens: int = 11, tpot_ms: float = 10, **more: Any
) -> dict[str, Any]:
    due = T0 + round(due_ms * MS)
    sent = due + round(late_ms * MS)
    first = sent + round(ttft_ms * MS)
    last = first + round((tokens - 1) * tpot_ms * MS)
    times = {
        "scheduled_unix_ns": due,
        "sent_unix_ns": sent,
        "first_token_unix_ns": first,
        "last_token_unix_ns": last,
        "end_unix_ns": last + MS,
    }
    return {"request_id": "r", "profile": "p", **times, "status": 200, "tokens": tokens, "warmup": False, "synthetic": False, **more}


def failed(due_ms: float, error: str = "timeout", **more: Any) -> dict[str, Any]:
    due = T0 + round(due_ms * MS)
    about = {"request_id": "r", "profile": "p", "status": 0, "tokens": 0, "warmup": False, "synthetic": False}
    return {**about, "scheduled_unix_ns": due, "sent_unix_ns": due, "end_unix_ns": due + MS, "error": error, **more}


def columns(*results: dict[str, Any]) -> ResultColumns:
    found = ResultColumns()
    for each in results:
        found.add(each)
    return found


def summed(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return summarize(columns(*results), **more)


def test_both_clocks_show_coordinated_omission() -> None:
    """Eight at 10/s that a server takes 500 ms for, one after another: 1900 ms from the schedule, 500 ms from when each was let go."""
    held = [result(100 * k, late_ms=400 * k, ttft_ms=500, tokens=1) for k in range(8)]
    clocks = summed(*held)["clocks"]
    assert clocks["schedule"]["e2e_ms"]["mean"] == pytest.approx(1900)
    assert clocks["schedule"]["e2e_ms"]["max"] == pytest.approx(3300)
    assert clocks["send"]["e2e_ms"]["mean"] == clocks["send"]["e2e_ms"]["max"] == pytest.approx(500)


def test_ttft_tpot_and_e2e() -> None:
    """TPOT = (E2E - TTFT) / (tokens - 1); an answer of one token has none; gaps are ITL."""
    summary = summed(result(0), result(50, tokens=1, ttft_ms=500), result(100, gaps_ms=[9.0, 11.0]))
    send = summary["clocks"]["send"]
    assert send["ttft_ms"]["mean"] == pytest.approx(1100 / 3) and send["e2e_ms"]["max"] == pytest.approx(500)
    assert summary["tpot_ms"]["n"] == 2 and summary["tpot_ms"]["mean"] == pytest.approx(10)
    assert summary["itl_ms"]["n"] == 2 and summary["itl_ms"]["p50"] == pytest.approx(10)
    assert summary["tokens"]["total"] == 23


def test_warm_up_and_failures_have_no_latency() -> None:
    """The warm-up is counted apart; what failed is an error by kind, also when tokens had come; its phases stay."""
    summary = summed(
        result(0, warmup=True, ttft_ms=9000),
        result(100),
        failed(150),
        {**result(200, ttft_ms=5000, connect_ms=3.0), "error": "stream_error"},
        failed(250, warmup=True),
    )
    assert summary["requests"] == {"due": 3, "sent": 3, "answered": 1, "failed": 2, "warmup_left_out": 2}
    assert summary["errors"] == {"stream_error": 1, "timeout": 1}
    assert summary["clocks"]["send"]["ttft_ms"]["max"] == pytest.approx(300)
    assert summary["phases"]["connect_ms"]["n"] == 1


def test_percentiles_that_n_does_not_support_are_none() -> None:
    """p99.9 of 50 is not known; the reason is said; p50 needs two values, p99 a hundred."""
    row = percentile_row(np.arange(50.0))
    assert (row["p50"], row["p90"], row["p99"], row["p99.9"]) == (pytest.approx(24.5), pytest.approx(44.1), None, None)
    assert row["p95"] == pytest.approx(46.55)
    assert row["unsupported"] == {"p99": "needs 100 values, there are 50", "p99.9": "needs 1000 values, there are 50"}
    assert "unsupported" not in percentile_row(np.arange(1000.0))
    assert percentile_row(np.array([np.nan]))["mean"] is None and percentile_row(np.array([5.0]))["p50"] is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_percentiles_lie_within_the_values(values: list[float]) -> None:
    """In order, between the least and the most."""
    row = percentile_row(np.array(values))
    known = [row[name] for name in ("p50", "p90", "p95", "p99", "p99.9", "max") if row[name] is not None]
    assert known == sorted(known) and all(min(values) <= each <= max(values) for each in known)


def test_goodput_keeps_all_limits() -> None:
    """Good is what meets every limit, from the schedule; failures and late starts are not good; one token has no TPOT to miss."""
    rows = [result(0), result(100, ttft_ms=900), result(200, tpot_ms=500), result(300, late_ms=600), failed(400), result(500, tokens=1)]
    good = summed(*rows, limits={"ttft": 800, "e2e": 3000, "tpot": 50})["goodput"]
    assert (good["good"], good["n"], good["clock"]) == (2, 6, "schedule")
    assert summed(*rows, limits={"ttft": 800}, clock="send")["goodput"]["good"] == 4
    assert good["per_s"] == pytest.approx(2 / 0.6) and good["ratio_ci95"][0] < 1 / 3 < good["ratio_ci95"][1]
    assert summed(*rows)["goodput"] is None
    assert summed(result(0), result(50, tokens=1), failed(100), limits={"tpot": 50})["goodput"]["good"] == 2


def test_a_generator_that_falls_behind_makes_the_run_invalid() -> None:
    """At 95 % of the rate the run is invalid, at 99.5 % it is not, and one late request decides nothing."""

    def ratio(speed: float, n: int = 600) -> float:
        due_s = np.arange(n) / 20
        found = achieved_ratio(due_s, due_s / speed)
        assert found is not None
        return found

    assert ratio(0.95) == pytest.approx(0.95, abs=0.001)
    assert ratio(0.995) == pytest.approx(0.995, abs=0.001)
    assert ratio(1.0) == 1.0
    due_s = np.arange(600) / 20
    late = due_s.copy()
    late[-1] += 20
    assert achieved_ratio(due_s, late) == 1.0
    late[300:] = np.nan
    assert achieved_ratio(due_s, late) == pytest.approx(0.5)
    assert achieved_ratio(np.empty(0), np.empty(0)) is None and achieved_ratio(due_s, due_s * np.nan) == 0


def test_validity_says_why() -> None:
    """Too slow a generator, no answer, nothing at all: none of them is a valid run."""
    slow = summed(*(result(100 * k, late_ms=50 * k) for k in range(50)))
    assert not slow["valid"] and "achieved/offered" in slow["reasons"][0]
    assert summed(*(result(100 * k, late_ms=50 * k) for k in range(50)), min_achieved=0.5)["valid"]
    assert summed(failed(0), failed(50))["reasons"] == ["no request was answered"]
    assert summed()["reasons"] == ["no request outside the warm-up"]
    assert summed(result(0))["valid"]


def test_not_sent_counts_against_the_generator() -> None:
    """A request that never left lowers achieved/offered and is an error."""
    row = failed(950, "not_sent")
    del row["sent_unix_ns"], row["end_unix_ns"]
    summary = summed(*(result(50 * k) for k in range(19)), row)
    assert summary["requests"]["sent"] == 19 and summary["errors"] == {"not_sent": 1}
    assert summary["rate"]["achieved_ratio"] == pytest.approx(0.95) and not summary["valid"]


def test_the_summary_is_json_and_can_be_read() -> None:
    """No NaN in it; the table names both clocks, the limits and what is wrong."""
    for rows in ([], [failed(0)], [result(k * 50) for k in range(30)]):
        summary = summed(*rows, limits={"ttft": 800})
        assert orjson.loads(orjson.dumps(summary)) == summary
        text = "\n".join(summary_lines(summary))
        assert ("INVALID" in text) == (not summary["valid"])
    assert "TTFT from schedule" in text and "TTFT from send" in text and "goodput: 30 of 30 keep ttft ≤ 800 ms" in text


def test_profiles_have_their_own_figures() -> None:
    """A mix is summed up by profile too: requests, errors, latencies by the schedule, goodput; together they are the whole."""
    fast = [result(100 * k, profile="chat", ttft_ms=100, late_ms=50) for k in range(4)]
    slow = [result(100 * k + 50, profile="rag", ttft_ms=900, tokens=1) for k in range(2)]
    summary = summed(*fast, *slow, failed(500, profile="rag"), result(0, profile="cold", warmup=True), limits={"ttft": 300.0})
    chat, rag = summary["profiles"]["chat"], summary["profiles"]["rag"]
    assert list(summary["profiles"]) == ["chat", "rag"]
    assert (chat["requests"], rag["requests"]) == ({"due": 4, "answered": 4, "failed": 0}, {"due": 3, "answered": 2, "failed": 1})
    assert (chat["errors"], rag["errors"], summary["errors"]) == ({}, {"timeout": 1}, {"timeout": 1})
    assert chat["ttft_ms"]["mean"] == pytest.approx(150) and rag["ttft_ms"]["p50"] == pytest.approx(900)
    assert (chat["tpot_ms"]["n"], rag["tpot_ms"]["n"]) == (4, 0)
    assert (chat["goodput"]["good"], rag["goodput"]["good"], summary["goodput"]["good"]) == (4, 0, 4)
    assert chat["e2e_ms"]["n"] + rag["e2e_ms"]["n"] == summary["clocks"]["schedule"]["e2e_ms"]["n"]
    orjson.dumps(summary)


def test_profiles_for_people() -> None:
    """A mix has a line a profile below the table; one profile has none, and neither has no limit."""
    one, two = summed(result(0), result(100)), summed(result(0), result(100, profile="q"), failed(200, profile="q"))
    assert not any("ms from schedule, of" in line for line in summary_lines(one))
    lines = list(summary_lines(two))
    at = next(i for i, line in enumerate(lines) if line.startswith("ms from schedule, of"))
    assert lines[at + 1].split()[:4] == ["p", "1", "-", "-"] and lines[at + 2].endswith(", timeout 1")
    assert not any("keep" in line for line in lines)
    assert "0 of 1 keep the limits" in "\n".join(summary_lines(summed(result(0), result(100, profile="q"), limits={"ttft": 1.0})))
