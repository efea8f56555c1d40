"""What a load saw, in figures: both clocks, percentiles that n supports, goodput, errors, whether the run is valid. Pure.

TTFT: to the first token that is not empty. E2E: to the last one, or to the end of an answer without tokens. TPOT = (E2E - TTFT) /
(tokens - 1). The clock "schedule" counts from when a request was due, "send" from when it left: where both differ, requests had to wait
in the generator, and figures by "send" would hide it (coordinated omission). Latencies are of requests that were answered to the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from libslo.load.results import Flags, Numbers, ResultColumns
from libslo.statistics import wilson_interval

__all__ = ["LIMITS", "PERCENTILES", "achieved_ratio", "percentile_row", "summarize", "summary_lines"]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
LIMITS = ("ttft", "e2e", "tpot")
CLOCKS = {"schedule": "scheduled_unix_ns", "send": "sent_unix_ns"}


def percentile_row(values: Numbers) -> dict[str, Any]:
    """n, mean, percentiles (linear between neighbours) and max of the values that are numbers.

    A percentile p needs 1/(1-p) values, so that one is expected beyond it; with fewer it is None, and "unsupported" says why.
    """
    values = values[np.isfinite(values)]
    row: dict[str, Any] = {"n": int(values.size), "mean": float(values.mean()) if values.size else None}
    unsupported: dict[str, str] = {}
    for percentile in PERCENTILES:
        name, needed = f"p{percentile:g}", round(100 / (100 - percentile))
        row[name] = float(np.percentile(values, percentile)) if values.size >= needed else None
        if values.size < needed:
            unsupported[name] = f"needs {needed} values, there are {values.size}"
    row["max"] = float(values.max()) if values.size else None
    return {**row, "unsupported": unsupported} if unsupported else row


def achieved_ratio(due_s: Numbers, sent_s: Numbers) -> float | None:
    """The rate at which requests left over the rate at which they were due; None without any.

    A generator that cannot keep up falls behind steadily: the ratio is that of due to passed time at the median of the last tenth of the
    requests, so that a single late one does not decide; requests that never left count against it.
    """
    left = np.isfinite(sent_s)
    if not due_s.size:
        return None
    if not left.any():
        return 0.0
    order = np.argsort(due_s[left], kind="stable")
    last = order[-max(1, order.size // 10) :]
    at_s, late_s = float(np.median(due_s[left][last])), float(np.median((sent_s - due_s)[left][last]))
    per_request_s = float(due_s.max() - due_s.min()) / max(1, due_s.size - 1)
    passed_s = at_s + per_request_s
    kept_up = passed_s / (passed_s + max(0.0, late_s)) if passed_s > 0 else 1.0
    return kept_up * float(left.sum()) / due_s.size


def summarize(
    results: ResultColumns, *, limits: Mapping[str, float] | None = None, min_achieved: float = 0.99, clock: str = "schedule"
) -> dict[str, Any]:
    """The summary as one JSON object, without NaN. limits: ms by what of LIMITS a good request keeps, counted by `clock`."""
    due_s, sent_s, end_s = (results.seconds(name) for name in ("scheduled_unix_ns", "sent_unix_ns", "end_unix_ns"))
    first_s, last_s = results.seconds("first_token_unix_ns"), results.seconds("last_token_unix_ns")
    answered, tokens = results.answered, results.tokens
    over_s = np.where(answered, np.where(np.isfinite(last_s), last_s, end_s), np.nan)
    first_s = np.where(answered, first_s, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot_ms = np.where(tokens > 1, (over_s - first_s) * 1e3 / (tokens - 1), np.nan)
    clocks = {name: (results.seconds(field), name) for name, field in CLOCKS.items()}
    latencies = {name: {"ttft": (first_s - begin_s) * 1e3, "e2e": (over_s - begin_s) * 1e3} for name, (begin_s, _) in clocks.items()}
    ratio = achieved_ratio(due_s, sent_s)
    span_s = float(due_s.max() - due_s.min()) * len(results) / (len(results) - 1) if len(results) > 1 else None
    offered = len(results) / span_s if span_s else None
    reasons = _reasons(len(results), int(answered.sum()), ratio, min_achieved)
    judged = {**latencies[clock], "tpot": tpot_ms}
    return {
        "valid": not reasons,
        "reasons": reasons,
        "requests": {
            "due": len(results),
            "sent": int(np.isfinite(sent_s).sum()),
            "answered": int(answered.sum()),
            "failed": len(results) - int(answered.sum()),
            "warmup_left_out": results.warmup,
        },
        "errors": dict(sorted(results.errors.items())),
        "rate": {"offered_rps": offered, "achieved_ratio": ratio, "min_achieved": min_achieved},
        "clocks": {name: {f"{what}_ms": percentile_row(values) for what, values in each.items()} for name, each in latencies.items()},
        "tpot_ms": percentile_row(tpot_ms),
        "itl_ms": percentile_row(results.gaps_ms),
        "send_delay_ms": percentile_row((sent_s - due_s) * 1e3),
        "held_ms": percentile_row(results.span_ms("held_ms")),
        "phases": {name: percentile_row(results.span_ms(name)) for name in ("dns_ms", "connect_ms", "tls_ms")},
        "tokens": {"total": int(tokens[answered].sum()), "per_s": float(tokens[answered].sum()) / span_s if span_s else None},
        "goodput": _goodput(judged, answered, limits, span_s, clock) if limits else None,
        "profiles": {
            name: _profile(judged, answered, results.profile_errors[name], of_it, limits, span_s, clock)
            for name, of_it in results.of_profiles().items()
        },
    }


def _profile(
    latencies: Mapping[str, Numbers],
    answered: Flags,
    errors: Mapping[str, int],
    of_it: Flags,
    limits: Mapping[str, float] | None,
    span_s: float | None,
    clock: str,
) -> dict[str, Any]:
    """The figures of one profile's requests; latencies by `clock`, as goodput is judged."""
    mine = {name: values[of_it] for name, values in latencies.items()}
    due, good = int(of_it.sum()), int(answered[of_it].sum())
    return {
        "requests": {"due": due, "answered": good, "failed": due - good},
        "errors": dict(sorted(errors.items())),
        "clock": clock,
        **{f"{name}_ms": percentile_row(values) for name, values in mine.items()},
        "goodput": _goodput(mine, answered[of_it], limits, span_s, clock) if limits else None,
    }


def _reasons(due: int, answered: int, ratio: float | None, min_achieved: float) -> list[str]:
    if due == 0:
        return ["no request outside the warm-up"]
    reasons = [] if answered else ["no request was answered"]
    if ratio is not None and ratio < min_achieved:
        reasons.append(f"achieved/offered {ratio:.3f} is below {min_achieved:g}: the load was not what was asked for")
    return reasons


def _goodput(
    latencies: Mapping[str, Numbers],
    answered: Flags,
    limits: Mapping[str, float],
    span_s: float | None,
    clock: str,
) -> dict[str, Any]:
    """Requests that keep all limits, of all that were due. An answer of one token has no TPOT, and keeps its limit."""
    good = answered.copy()
    for name, limit_ms in limits.items():
        with np.errstate(invalid="ignore"):
            good &= (latencies[name] <= limit_ms) | (np.isnan(latencies[name]) if name == "tpot" else False)
    n, count = int(good.size), int(good.sum())
    return {
        "limits_ms": dict(limits),
        "clock": clock,
        "good": count,
        "n": n,
        "ratio": count / n if n else None,
        "ratio_ci95": list(wilson_interval(count, n)) if n else None,
        "per_s": count / span_s if span_s else None,
    }


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The summary for people."""
    requests, rate = summary["requests"], summary["rate"]
    errors = ", ".join(f"{kind} {count}" for kind, count in summary["errors"].items())
    due = f"{requests['due']} requests due{_number(rate['offered_rps'], ' at {:.4g}/s')}, {requests['sent']} sent"
    failed = f"{requests['failed']} failed" + (f" ({errors})" if errors else "")
    yield f"{due}, {requests['answered']} answered, {failed}; {requests['warmup_left_out']} in the warm-up left out"
    rows = [
        *((f"{what} from {clock}", summary["clocks"][clock][f"{what.lower()}_ms"]) for what in ("TTFT", "E2E") for clock in CLOCKS),
        ("TPOT", summary["tpot_ms"]),
        ("ITL", summary["itl_ms"]),
        ("sent late by", summary["send_delay_ms"]),
        ("held back by", summary["held_ms"]),
        *((name.removesuffix("_ms"), row) for name, row in summary["phases"].items()),
    ]
    names = ["mean", *(f"p{each:g}" for each in PERCENTILES), "max"]
    yield f"{'ms':20}{'n':>8}" + "".join(f"{name:>10}" for name in names)
    for title, row in rows:
        if row["n"]:
            yield f"{title:20}{row['n']:>8}" + "".join(f"{_cell(row[name]):>10}" for name in names)
    if summary["goodput"]:
        limits = ", ".join(f"{name} ≤ {limit:g} ms" for name, limit in summary["goodput"]["limits_ms"].items())
        yield f"goodput: {_kept(summary['goodput'])} {limits}{_number(summary['goodput']['per_s'], ', {:.4g}/s')}"
    if len(summary["profiles"]) > 1:
        yield from _profile_lines(summary["profiles"])
    if rate["achieved_ratio"] is not None:
        yield f"achieved/offered: {rate['achieved_ratio']:.4f}"
    for reason in summary["reasons"]:
        yield f"INVALID: {reason}"


def _profile_lines(profiles: Mapping[str, Any]) -> Iterator[str]:
    """A line a profile: its requests, medians and 95th percentiles, goodput, errors."""
    title = f"ms from {next(iter(profiles.values()))['clock']}, of"
    width = max(20, len(title), *map(len, profiles))
    names = ("ttft p50", "ttft p95", "e2e p50", "e2e p95", "tpot p50")
    yield f"{title:{width}}{'n':>8}" + "".join(f"{name:>10}" for name in names)
    for profile, row in profiles.items():
        cells = "".join(f"{_cell(row[f'{what}_ms'][percentile]):>10}" for what, percentile in map(str.split, names))
        kept = f"  {_kept(row['goodput'])} the limits" if row["goodput"] else ""
        errors = "".join(f", {kind} {count}" for kind, count in row["errors"].items())
        yield f"{profile:{width}}{row['requests']['due']:>8}{cells}{kept}{errors}"


def _kept(goodput: Mapping[str, Any]) -> str:
    return f"{goodput['good']} of {goodput['n']} keep"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _number(value: float | None, form: str) -> str:
    return form.format(value) if value is not None else ""
