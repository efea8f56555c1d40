"""Episodes: one for a fault that goes on, however it flaps; closed by recovery or silence; the same whatever the cut or the day."""

from __future__ import annotations

import io
import random
from typing import Any

import orjson
import pytest
from builders import MS, T0, Chunks, S, agent_report, lines, probe, slo_event
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import CONSUMES, joined

from libslo.attribute import AttributeSettings, incident_settings
from libslo.clock import StreamClock
from libslo.contracts import contract
from libslo.episodes import Recovery, RequestTally
from libslo.incidents import Incident, IncidentEngine
from libslo.jsonl import read_jsonl
from libslo.scenarios import load_scenario
from libslo.signals import Objective, vocabulary
from libslo.slo import BurnTracker, burn_policy, format_timestamp, parse_timestamps
from libslo.synthetic import SyntheticSettings, fault_windows

Rows = list[tuple[int, dict[str, Any]]]


def run(data: bytes, sizes: list[int] | None = None, **options: Any) -> tuple[list[dict[str, Any]], list[Incident]]:
    """(episode records, incidents) of these lines."""
    episodes: list[dict[str, Any]] = []
    engine = IncidentEngine(incident_settings(AttributeSettings(**options)), episodes.append)
    found: list[Incident] = []
    stream: Any = io.BytesIO(data) if sizes is None else Chunks(data, sizes)
    for records in read_jsonl("F", CONSUMES, stream=stream):
        for kind, value, *_ in records:
            found += engine.feed(kind, value)
    return episodes, found + list(engine.finish())


def of_rows(*parts: Rows, **options: Any) -> tuple[list[dict[str, Any]], list[Incident]]:
    rows = sorted((row for part in parts for row in part), key=lambda row: row[0])
    return run(lines(value for _, value in rows), **options)


def requests(begin_s: float, end_s: float, rate: float, bad: Any, *, service: str = "rag", error: bool = True) -> Rows:
    """Requests at a constant rate; bad(number) says which fail."""
    out = []
    for i in range(round((end_s - begin_s) * rate)):
        ts = T0 + int((begin_s + i / rate) * S)
        failed = bool(bad(i))
        value = {"sli_name": "error_rate", "unit": "ratio", "sli_value": float(failed)} if error else {"sli_value": 1500 if failed else 300}
        out.append((ts, slo_event(timestamp=format_timestamp(ts), request_id=f"r{ts}", service=service, **value)))
    return out


def good(begin_s: float, end_s: float, rate: float = 10, **more: Any) -> Rows:
    return requests(begin_s, end_s, rate, lambda _: False, **more)


def seconds(episode: dict[str, Any], key: str) -> float:
    return (int(episode[key]) - T0) / 1e9


@pytest.mark.parametrize("rate", [10, 20])
@pytest.mark.parametrize("seed", range(12))
def test_a_flapping_fault_is_one_episode(rate: float, seed: int) -> None:
    """Three requests in ten fail, at random, for two minutes: one episode, one incident, closed by the recovery."""
    draw = random.Random(seed)
    episodes, found = of_rows(good(0, 10, rate), requests(10, 130, rate, lambda _: draw.random() < 0.3), good(130, 150, rate))
    assert [episode["state"] for episode in episodes] == ["open", "closed"] and len(found) == 1
    assert episodes[1]["closed_by"] == "recovery" and seconds(episodes[1], "end_unix_nano") == pytest.approx(130, abs=2)


@pytest.mark.parametrize("bad_s", [0.4, 1.0])
def test_bursts_within_the_hold_are_one_episode(bad_s: float) -> None:
    """All requests fail for a moment in every two seconds: the quiet between is shorter than what closes an episode."""
    episodes, found = of_rows(good(0, 10, 20), requests(10, 40, 20, lambda i: (i / 20) % 2 < bad_s), good(40, 60, 20))
    assert [episode["state"] for episode in episodes] == ["open", "closed"] and len(found) == 1


def test_a_page_is_one_episode_for_hours() -> None:
    """Under the page policy: hours of trouble with quiet minutes between are one episode, which closes by the short windows."""
    minute = 60

    def fails(number: int) -> bool:
        at_s = number * 5
        return 90 * minute <= at_s < 240 * minute and (at_s // minute) % 20 >= 3  # three good minutes in every twenty

    episodes, found = of_rows(requests(0, 300 * minute, 0.2, fails), burn_policy="page")
    assert [episode["state"] for episode in episodes] == ["open", "closed"] and len(found) == 1
    assert seconds(episodes[1], "end_unix_nano") == pytest.approx(240 * minute, abs=60)
    assert 300 <= seconds(episodes[1], "closed_unix_nano") - seconds(episodes[1], "end_unix_nano") <= 1800  # the slower pair's
    assert episodes[0]["pair"]["long_s"] in (3600, 21600)


def test_recovery_closes_and_a_new_fault_opens_anew() -> None:
    """Two faults with ten seconds between are two episodes, each with its incident under the same id."""
    episodes, found = of_rows(
        good(0, 10), requests(10, 16, 10, lambda _: True), good(16, 26), requests(26, 32, 10, lambda _: True), good(32, 40)
    )
    assert [episode["state"] for episode in episodes] == ["open", "closed"] * 2
    assert [episode["incident_id"] for episode in episodes[::2]] == [incident.value["incident_id"] for incident in found]
    assert len({incident.value["incident_id"] for incident in found}) == 2
    first = episodes[1]
    assert seconds(first, "begin_unix_nano") == pytest.approx(10, abs=0.1) and seconds(first, "end_unix_nano") == pytest.approx(16, abs=0.2)
    assert seconds(first, "closed_unix_nano") - seconds(first, "end_unix_nano") == pytest.approx(3.5, abs=0.2)
    assert (first["requests"], first["bad_requests"]) == (60, 60)


def test_a_stray_failure_after_recovery_opens_nothing() -> None:
    """The long window still holds the last episode's failures; one request that fails now is no new episode."""
    for at_s in (19.0, 19.3, 20.0, 21.0):
        stray = requests(at_s, at_s + 0.1, 10, lambda _: True)
        after = [row for row in good(16, 30) if row[0] != stray[0][0]]
        episodes, _ = of_rows(good(0, 10), requests(10, 16, 10, lambda _: True), after, stray)
        assert [episode["state"] for episode in episodes] == ["open", "closed"], at_s


def test_what_a_fault_has_slowed_down_opens_nothing_after_it() -> None:
    """Requests that began in the fault and end long after its recovery are its tail, and are counted as such."""
    rows: Rows = []
    for ts, event in requests(25, 27, 10, lambda _: True, error=False):
        latency = {**event, "sli_name": "request_latency_ms", "sli_value": (ts - T0) / 1e6 - 13_000}
        rows += [(ts, {**event, "sli_value": (ts - T0) / 1e6 - 13_500}), (ts, latency)]
    parts = [good(0, 10, error=False), requests(10, 16, 10, lambda _: True, error=False), good(16, 40, error=False)]
    engine = IncidentEngine(incident_settings(AttributeSettings()), (episodes := list[dict[str, Any]]()).append)
    for _, event in sorted([row for part in [*parts, rows] for row in part], key=lambda row: row[0]):
        list(engine.feed("slo-event", event))
    list(engine.finish())
    assert [episode["state"] for episode in episodes] == ["open", "closed"]
    assert engine.stragglers == 20


def test_records_keep_their_contract_and_say_what_fired() -> None:
    """The opening and the closing record are valid, agree on what cannot change, and peak is at or above opening."""
    episodes, _ = run(joined("dns_latency", 1))
    opened, closed = episodes
    assert all(contract("incident-episode").is_valid(episode) for episode in episodes)
    same = ("incident_id", "begin_unix_nano", "detected_unix_nano", "detection_delay_ms", "pair", "burn_at_opening", "sli", "policy")
    assert all(opened[key] == closed[key] for key in same)
    assert opened["pair"] == {"severity": "page", "long_s": 6, "short_s": 0.5, "burn_rate": 3}
    assert opened["burn_at_opening"]["long"] >= 3 and closed["burn_at_peak"]["long"] >= opened["burn_at_opening"]["long"]
    assert opened["detection_delay_ms"] == (opened["detected_unix_nano"] - opened["begin_unix_nano"]) / 1e6
    assert closed["bad_requests"] <= closed["requests"] and opened["requests"] < closed["requests"]


def test_an_episode_that_the_input_cuts_short_is_said_to_be_open() -> None:
    """open, then open_at_end, which has no end."""
    episodes, found = of_rows(good(0, 10), requests(10, 14, 10, lambda _: True))
    assert [episode["state"] for episode in episodes] == ["open", "open_at_end"] and len(found) == 1
    assert "end_unix_nano" not in episodes[1] and episodes[1]["requests"] == 40


def test_services_have_their_own_episodes() -> None:
    """Two services in trouble at the same time are two episodes."""
    parts = [part for name in ("a", "b") for part in (good(0, 10, service=name), requests(10, 15, 10, lambda _: True, service=name))]
    episodes, _ = of_rows(*parts)
    assert sorted((episode["service"], episode["state"]) for episode in episodes) == [
        ("a", "open"), ("a", "open_at_end"), ("b", "open"), ("b", "open_at_end"),
    ]  # fmt: skip


def test_indicators_of_one_request_are_one_request() -> None:
    """A request that is late and fails is one bad request."""
    rows = requests(10, 14, 10, lambda _: True) + requests(10, 14, 10, lambda _: True, error=False)
    episodes, _ = of_rows(good(0, 10), good(0, 10, error=False), rows)
    assert (episodes[-1]["requests"], episodes[-1]["bad_requests"]) == (40, 40)


# --- silence

BROKEN = requests(10, 14, 10, lambda _: True)


def test_a_service_that_falls_silent_is_decided_by_the_rest_of_the_stream() -> None:
    """Only signals, reports or another service after it: incident and episode come all the same, before the end of the input."""
    others: list[Rows] = [
        [(T0 + i * S // 2, probe(T0 + i * S // 2, service="rag")) for i in range(140)],
        [(T0 + i * S // 2, probe(T0 + i * S // 2)) for i in range(140)],
        [(T0 + i * S, agent_report(ts_unix_nano=T0 + i * S)) for i in range(70)],
        good(0, 70, service="other"),
    ]
    for other in others:
        episodes, found = of_rows(good(0, 10), BROKEN, other)
        assert [episode["state"] for episode in episodes] == ["open", "closed"] and len(found) == 1
        assert episodes[1]["closed_by"] == "silence"
        assert seconds(episodes[1], "closed_unix_nano") == pytest.approx(14 + 30, abs=0.2)
        assert found[0].detected_unix_ns < T0 + 16 * S


def test_an_incident_that_was_still_settling_is_raised_in_silence() -> None:
    """Half a second of failures, then nothing but a heartbeat: the answer does not wait for the end of the input."""
    engine = IncidentEngine(incident_settings(AttributeSettings()))
    found: list[Incident] = []
    rows = sorted([*good(0, 10, 20), *requests(10, 11, 20, lambda _: True)], key=lambda row: row[0])
    for _, event in rows:
        found += engine.feed("slo-event", event)
    assert not found
    for i in range(30):
        found += engine.feed("agent-report", agent_report(ts_unix_nano=T0 + (11 + i) * S))
    assert len(found) == 1


def test_a_hanging_service_that_answers_late_is_one_episode() -> None:
    """All requests hang for twelve seconds while the rest goes on, then fail together: no second episode."""
    hung = [(T0 + 26 * S + i * MS, event) for i, (_, event) in enumerate(requests(26, 38, 10, lambda _: True))]
    hung = [(ts, {**event, "timestamp": format_timestamp(ts)}) for ts, event in hung]
    beat = [(T0 + i * S, agent_report(ts_unix_nano=T0 + i * S)) for i in range(60)]
    episodes, found = of_rows(good(0, 10), BROKEN, hung, good(27, 50), beat)
    assert [episode["state"] for episode in episodes] == ["open", "closed"] and len(found) == 1


def test_a_node_with_a_wrong_clock_silences_nobody() -> None:
    """Signals from ten minutes ahead move no service's time, and its requests still count."""
    ahead = [(T0 + i * S // 5, probe(T0 + 540 * S + i * S // 5, service="b")) for i in range(150)]
    rows = sorted([*good(0, 10), *BROKEN, *good(14, 30), *ahead], key=lambda row: row[0])
    engine = IncidentEngine(incident_settings(AttributeSettings()))
    found: list[Incident] = []
    for _, value in rows:
        found += engine.feed("slo-event" if "sli_name" in value else "probe-event", value)
    found += engine.finish()
    assert len(found) == 1 and engine.late == 0


def test_progress_counts_steps_and_no_jumps() -> None:
    """The stream's clock adds up what passed; a jump that three records agree on counts two seconds, the way back nothing."""
    clock = StreamClock()
    for i in range(5):
        clock.see(T0 + i * S)
    assert clock.progress_ns == 4 * S
    for i in range(3):
        clock.see(T0 + 9000 * S + i)
    assert clock.progress_ns == 6 * S
    for i in range(5):
        clock.see(T0 + i * S)
    assert clock.progress_ns <= 8 * S


# --- the cut, the order, the day


@st.composite
def streams(draw: Any) -> bytes:
    """Services that are well, flap, break and fall silent, with signals and reports between."""
    now, rows = T0, []
    for _ in range(draw(st.integers(1, 8))):
        share = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))
        silent = draw(st.sampled_from([False, False, False, True]))
        name = draw(st.sampled_from(["a", "b"]))
        rng = random.Random(draw(st.integers(0, 1000)))
        for i in range(draw(st.integers(5, 80))):
            now += 100 * MS
            if silent:
                rows.append(agent_report(ts_unix_nano=now) if i % 5 == 0 else probe(now, service=name))
            else:
                value = 1500 if rng.random() < share else 300
                rows.append(slo_event(timestamp=format_timestamp(now), sli_value=value, request_id=f"r{now}", service=name))
    return lines(rows)


@settings(max_examples=40, deadline=None)
@given(streams(), st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_the_cut_changes_nothing(data: bytes, sizes: list[int]) -> None:
    """Whole or in reads of any size: the same episodes and incidents."""
    whole, cut = run(data), run(data, sizes)
    assert whole[0] == cut[0] and [i.value for i in whole[1]] == [i.value for i in cut[1]]


def shifted(value: Any, by_ns: int) -> Any:
    """A record or an episode at another time."""
    if isinstance(value, dict):
        out = {key: shifted(each, by_ns) for key, each in value.items()}
        for key in out:
            if key.endswith("unix_nano"):
                out[key] += by_ns
            elif key == "timestamp":
                out[key] = format_timestamp(int(parse_timestamps([out[key]])[0]) + by_ns)
        out.pop("incident_id", None)  # made of the time
        return out
    return [shifted(each, by_ns) for each in value] if isinstance(value, list) else value


@settings(max_examples=40, deadline=None)
@given(streams(), st.integers(-(10**9), 10**9))
def test_another_day_shifts_the_episodes(data: bytes, steps: int) -> None:
    """All times moved by the same amount (a whole number of the 100 ms in which requests are counted): the episodes move by it."""
    by_ns = steps * 100 * MS
    moved = lines(shifted(orjson.loads(line), by_ns) for line in data.splitlines())
    assert [shifted(each, 0) for each in run(moved)[0]] == [shifted(each, by_ns) for each in run(data)[0]]


@pytest.mark.parametrize("name", ["dns_latency", "cpu_throttle", "memory_pressure", "provider_throttle", "provider_error"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_synthetic_fault_is_one_episode_with_its_onset(name: str, seed: int) -> None:
    """One episode, whose onset lies within a second and a half of the truth, and which ends when the fault's last requests did."""
    (begin, end) = fault_windows(SyntheticSettings(load_scenario(name), 200))
    episodes, _ = run(joined(name, seed))
    assert [episode["state"] for episode in episodes] == ["open", "closed"]
    assert abs(episodes[0]["begin_unix_nano"] - begin["begin_unix_nano"]) <= 1500 * MS
    assert abs(episodes[1]["end_unix_nano"] - end["end_unix_nano"]) <= 3 * S


# --- the parts


def test_tally_counts_requests_once_and_forgets() -> None:
    """Indicators of a request in a row are one request, bad if any is; old buckets go when new ones come."""
    tally = RequestTally(100 * MS, S)
    for request, fine in (("a", True), ("a", False), ("a", False), ("b", True), ("c", False), ("c", True)):
        tally.add(T0, request, fine)
    assert tally.at(T0 + 100 * MS) == (3, 2)
    for i in range(1000):
        tally.add(T0 + i * 100 * MS, "x", True)
    assert tally.at(T0 + 100 * MS) == (0, 0) and len(tally._counts) <= 22


def watched(share_bad: int, budget: float = 0.05) -> Recovery:
    """An open episode of twenty requests, so many of them bad."""
    watch = Recovery(burn_policy("lab").closing, budget)
    watch.feed(T0, 20, share_bad)
    watch.begin(T0)
    return watch


def test_recovery_needs_requests_and_time() -> None:
    """Many good requests close nothing before the hold, and few nothing after it; silence is said by itself."""
    rule = burn_policy("lab").closing
    hold = int(rule.hold_s * S)
    watch = watched(20)
    watch.feed(T0 + 100 * MS, 100, 0)
    assert not watch.is_over(T0 + hold - 1) and watch.is_over(T0 + hold)
    watch.burns(True)
    assert not watch.is_over(T0 + hold)
    few = watched(6)
    few.feed(T0 + hold, 10, 0)
    assert not few.is_over(T0 + hold) and few.silent_at_ns == T0 + hold + int(rule.silent_s * S)
    few.feed(T0 + hold, 90, 0)
    assert few.is_over(T0 + hold)


def test_a_relapse_begins_the_recovery_anew() -> None:
    """Bad requests in the hold move the end."""
    watch = watched(20)
    watch.feed(T0 + S, 20, 0)
    watch.feed(T0 + 3 * S, 20, 20)
    watch.feed(T0 + 4 * S, 100, 0)
    assert not watch.is_over(T0 + 6 * S) and watch.is_over(T0 + 7 * S)
    assert watch.since_ns == T0 + 3 * S and watch.bad_share == (60, 40)


def test_a_healthy_service_has_failures_too() -> None:
    """Two per cent of failures for ever do not keep an episode of many open; its end is where they became few."""
    watch, at = watched(18), T0
    for i in range(100):
        at = T0 + (i + 1) * S
        watch.feed(at, 20, int(i % 2 == 0))
        if watch.is_over(at):
            break
    assert at <= T0 + 20 * S and watch.since_ns <= T0 + S


@pytest.mark.parametrize("objective", [0.0, 0.01, 0.95, 1.0])
def test_recovery_is_defined_at_every_budget(objective: float) -> None:
    """No budget and nothing but budget: still closed by good requests."""
    watch = watched(20, 1 - objective)
    watch.feed(T0 + S, 1000, 0)
    assert watch.is_over(T0 + 5 * S)


def test_a_restart_empties_the_long_window_only() -> None:
    """After an episode the long window begins at its end, the short one goes on."""
    tracker = BurnTracker(burn_policy("lab"), Objective(800, 0.95))
    for i in range(30):
        tracker.add(T0 + i * 100 * MS, i >= 29)
    tracker.evaluate(T0 + 3 * S)
    tracker.restart(T0 + 2900 * MS)
    tracker.add(T0 + 3 * S, True)
    (state,) = tracker.evaluate(T0 + 3100 * MS)
    assert state.long_burn == 0 and state.short_burn == pytest.approx(3 / 5 / 0.05)


@pytest.mark.parametrize("name", ["lab", "page", "ticket", "all"])
def test_closing_is_data_with_its_reason(name: str) -> None:
    """Every policy says when an episode closes, and why then."""
    rule = vocabulary("burn-windows")["policies"][name]["closing"]
    assert len(rule["reason"]) > 50 and rule["hold_s"] > 0 and rule["silent_s"] > rule["hold_s"]
    assert burn_policy(name).closing.doubt == rule["doubt"] <= 1e-3 >= rule["doubt_with_failures"]
