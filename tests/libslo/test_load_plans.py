"""Plans of loads: arrivals, sizes, order, and that a seed says it all."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libslo.contracts import contract
from libslo.errors import InputError
from libslo.load.plans import LoadRequest, arrival_offsets_s, check_order, planned, prompt_text
from libslo.load.profiles import Arrival, changed_arrival, read_loads
from libslo.load.traces import trace_requests
from libslo.scenarios import load_scenario, scenario_names

TABLE = read_loads()


def rng(seed: int = 42) -> np.random.Generator:
    return np.random.default_rng(seed)


def offsets(arrival: Arrival, duration_s: float, seed: int = 1) -> np.ndarray:
    blocks = list(arrival_offsets_s(arrival, rng(seed), duration_s))
    return np.concatenate(blocks) if blocks else np.empty(0)


@pytest.mark.parametrize("name", TABLE.loads)
def test_every_load_gives_a_valid_plan(name: str) -> None:
    """Requests keep their contract, ids are in order and unique, times never go back and stay within the duration."""
    plan = list(planned(TABLE.load(name), rng(), 20))
    assert plan and all(contract("load-request").is_valid(request.as_record()) for request in plan)
    times = [request.offset_ns for request in plan]
    assert times == sorted(times) and times[-1] < 20e9
    assert len({request.request_id for request in plan}) == len(plan)
    assert LoadRequest.from_record(plan[0].as_record()) == plan[0]


def test_the_scenarios_load_is_there() -> None:
    """Every scenario names a load that exists, and loads.yaml is no scenario."""
    for name in scenario_names():
        harness = load_scenario(name).harness
        assert harness and harness.load in TABLE.loads
    assert "loads" not in scenario_names()


def test_same_seed_same_plan_and_a_longer_one_begins_with_it() -> None:
    """A seed decides everything; more time only adds requests."""
    load = TABLE.load("rag_mixed_20rps")
    short, longer, other = (list(planned(load, rng(seed), s)) for seed, s in ((42, 30), (42, 90), (7, 30)))
    assert longer[: len(short)] == short and len(longer) > 2 * len(short)
    assert [request.offset_ns for request in other] != [request.offset_ns for request in short]


def test_other_arrivals_ask_the_same() -> None:
    """What is asked is drawn apart from when: another rate or kind of arrival changes no size and no prompt."""
    load = TABLE.load("rag_mixed_20rps")
    asked = []
    for changed in (load, changed_arrival(load, rate=90), changed_arrival(load, kind="constant")):
        plan = islice(planned(changed, rng(), 60), 500)
        asked.append([(one.profile, one.prompt_tokens, one.max_tokens, one.prompt_seed) for one in plan])
    assert asked[0] == asked[1] == asked[2]


def test_mix_and_sizes_are_those_of_the_profiles() -> None:
    """Weights are kept, sizes stay within their bounds, and a lognormal has its median."""
    load = TABLE.load("rag_mixed_20rps")
    plan = list(planned(load, rng(), 600))
    counts = Counter(request.profile for request in plan)
    assert counts["chat_short"] / len(plan) == pytest.approx(0.5, abs=0.02)
    assert counts["context_long"] / len(plan) == pytest.approx(0.1, abs=0.015)
    for profile, _ in load.mix:
        mine = [request for request in plan if request.profile == profile.name]
        assert all(profile.prompt_tokens.least <= request.prompt_tokens <= profile.prompt_tokens.most for request in mine)
        outputs = [request.max_tokens for request in mine]
        assert (min(outputs), max(outputs)) == (profile.output_tokens.least, profile.output_tokens.most)
        assert np.median([request.prompt_tokens for request in mine]) == pytest.approx(profile.prompt_tokens.median, rel=0.06)


def test_outputs_of_the_laboratory_s_load_are_short() -> None:
    """16 to 48 tokens at 8 ms each: well below a second."""
    assert {16 <= request.max_tokens <= 48 for request in planned(TABLE.load("rag_mixed_20rps"), rng(), 60)} == {True}


def test_constant_arrivals_are_exact() -> None:
    """Eight in 0.8 s at 10/s, the first at once, each a tenth of a second later, also over many blocks."""
    assert offsets(Arrival("constant", 10), 0.8) == pytest.approx(np.arange(8) / 10)
    assert offsets(Arrival("constant", 1000), 10).size == 10_000


@pytest.mark.parametrize(("kind", "shape", "variation"), [("poisson", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 16.0, 0.25)])
def test_random_arrivals_have_their_rate_and_variation(kind: str, shape: float, variation: float) -> None:
    """The mean gap is 1/rate; its coefficient of variation is 1 of Poisson and 1/√shape of gamma."""
    gaps = np.diff(offsets(Arrival(kind, 50, shape=shape), 2000))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.03)


@pytest.mark.parametrize(("begin", "end"), [(5.0, 40.0), (40.0, 5.0), (10.0, 10.0)])
def test_a_ramp_makes_as_many_due_as_its_rate_says(begin: float, end: float) -> None:
    """By any time t, rate·t + growth·t²/2 requests were due, rising or falling."""
    times = offsets(Arrival("ramp", begin, rate_to=end), 60)
    assert times.size == pytest.approx(60 * (begin + end) / 2, abs=1.5)
    for t in (7.0, 30.0, 55.0):
        assert (times < t).sum() == pytest.approx(begin * t + (end - begin) / 60 * t * t / 2, abs=1.5)


@given(
    st.sampled_from(["constant", "poisson", "gamma"]), st.floats(0.1, 2000), st.floats(0.05, 20), st.floats(0.01, 3), st.integers(0, 2**32)
)
def test_arrivals_are_ordered_and_within(kind: str, rate: float, shape: float, duration_s: float, seed: int) -> None:
    """Whatever the rate: times do not go back, are not negative, and end before the duration does."""
    times = offsets(Arrival(kind, rate, shape=shape), duration_s, seed)
    assert (np.diff(times) >= 0).all() and (times >= 0).all() and (times < duration_s).all()


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    """0, less, NaN and infinity."""
    with pytest.raises(InputError, match="rate cannot be"):
        Arrival("poisson", rate)


def test_arrivals_can_be_changed() -> None:
    """What is asked for replaces the load's own; rate_to makes a ramp; a ramp without an end is refused."""
    load = TABLE.load("rag_mixed_20rps")
    assert changed_arrival(load, rate=5).arrival == Arrival("poisson", 5)
    assert changed_arrival(load, rate_to=50).arrival == Arrival("ramp", 20, 50)
    assert changed_arrival(TABLE.load("rag_mixed_ramp"), kind="constant").arrival == Arrival("constant", 5)
    with pytest.raises(InputError, match="rate_to"):
        changed_arrival(load, kind="ramp")
    with pytest.raises(InputError, match="rate_to"):
        changed_arrival(load, kind="constant", rate_to=5)


def test_unknown_load_lists_the_known() -> None:
    """The cure names them."""
    with pytest.raises(InputError, match="no load 'rag'") as caught:
        TABLE.load("rag")
    assert "rag_mixed_20rps" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (("rate: 1,", "rate: 0,"), "loads.a.rate"),
        (("rate: 1,", "rate: .nan,"), "NaN"),
        (("mix: {p: 1}", "mix: {p: .inf}"), "infinite"),
        (("mix: {p: 1}", "mix: {q: 1}"), "no profile 'q'"),
        (("mix: {p: 1}", "mix: {}"), "loads.a.mix"),
        (("uniform: [1, 9]", "uniform: [9, 1]"), "from 9 to 1"),
        (("uniform: [1, 9]", "uniform: [1]"), "profiles.p.prompt_tokens"),
        (("arrival: constant", "arrival: weekly"), "loads.a.arrival"),
        (("loads:", "load:"), "load"),
        (("profiles:", "profiles: ["), "not YAML"),
    ],
)
def test_a_broken_file_of_loads_is_named(tmp_path: Path, change: tuple[str, str], fact: str) -> None:
    """The file, and the path of the key in it."""
    good = (
        "profiles: {p: {prompt_tokens: {uniform: [1, 9]}, output_tokens: {constant: 1}}}\n"
        "loads:\n  a: {arrival: constant, rate: 1, mix: {p: 1}}\n"
    )
    path = tmp_path / "loads.yaml"
    path.write_text(good)
    assert read_loads(str(path)).load("a").arrival.rate == 1
    path.write_text(good.replace(*change))
    with pytest.raises(InputError) as caught:
        read_loads(str(path))
    assert caught.value.source == str(path) and fact in caught.value.fact


def test_prompts_are_as_long_as_they_say_and_begin_with_their_seed() -> None:
    """One word a token; the same seed, the same prompt; no two prompts begin alike."""
    assert len(prompt_text(500, 7).split()) == 500
    assert prompt_text(500, 7) == prompt_text(500, 7) != prompt_text(500, 8)
    assert prompt_text(5, 7).split()[0] == "7" and prompt_text(1, 9) == "9"


def test_order_is_checked() -> None:
    """A request before the one above it is named by its line; equal times are fine."""
    plan = [LoadRequest(f"r{at}", "p", at, 1, 1) for at in (5, 5, 9)]
    assert list(check_order(enumerate(plan, 1), "f")) == plan
    with pytest.raises(InputError, match="before that of the line above") as caught:
        list(check_order(enumerate([*plan, plan[0]], 1), "f"))
    assert (caught.value.source, caught.value.line) == ("f", 4)


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\n"


def replay(tmp_path: Path, text: str, **more: Any) -> list[LoadRequest]:
    path = tmp_path / "trace"
    path.write_text(text)
    return [request for _, request in trace_requests(str(path), TABLE.trace_columns, rng(), **more)]


def test_traces_are_replayed(tmp_path: Path) -> None:
    """The Azure trace's columns, and ours as JSON lines: times count from the first, tokens are as recorded."""
    plan = replay(tmp_path, AZURE)
    assert [(one.offset_ns, one.prompt_tokens, one.max_tokens) for one in plan] == [(0, 374, 44), (4_314_579_000, 396, 109)]
    assert [one.offset_ns for one in replay(tmp_path, AZURE, speed=2)] == [0, 2_157_289_500]
    rows = '{"timestamp": 10, "prompt_tokens": 5, "output_tokens": 0}\n\n{"timestamp": 10.5, "prompt_tokens": 6, "output_tokens": 7}\n'
    assert [(one.offset_ns, one.prompt_tokens, one.max_tokens) for one in replay(tmp_path, rows)] == [(0, 5, 1), (500_000_000, 6, 7)]
    assert list(islice(replay(tmp_path, ""), 1)) == []


@pytest.mark.parametrize(
    ("change", "line", "fact"),
    [
        (("TIMESTAMP", "when"), 1, "no column for time"),
        (("2023-11-16 18:15:50", "yesterday"), 3, "is not a time"),
        (("2023-11-16 18:15:50.9951690", "nan"), 3, "is not a time"),
        (("396", "-1"), 3, "not a number of tokens"),
        (("396", "1.5"), 3, "not a number of tokens"),
        ((",396,109", ",396"), 3, "2 cells under 3 columns"),
        (("2023-11-16 18:15:50", "2023-11-16 18:15:40"), 3, "before that of the first"),
    ],
)
def test_a_broken_trace_is_named_by_its_line(tmp_path: Path, change: tuple[str, str], line: int, fact: str) -> None:
    """What cannot be read is said with file, line and reason."""
    with pytest.raises(InputError) as caught:
        replay(tmp_path, AZURE.replace(*change))
    assert fact in caught.value.fact and caught.value.line == line


def test_bad_lines_of_a_trace_can_be_left_out(tmp_path: Path) -> None:
    """Each is reported with its line, the others stay; a heading that lacks a column is no line to leave out."""
    bad: list[InputError] = []
    text = AZURE + "2023-11-16 18:15:51,x,1\n2023-11-16 18:15:40,1,1\n1,2\n" + "2023-11-16 18:15:52.6805900,7,8\n"
    plan = replay(tmp_path, text, skip=bad.append)
    assert [(one.request_id, one.offset_ns) for one in plan] == [("r-000000", 0), ("r-000001", 4_314_579_000), ("r-000002", 6_000_000_000)]
    assert [one.line for one in bad] == [4, 5, 6]
    rows = '[1]\n{"timestamp": 10}\n{"timestamp": 10, "prompt_tokens": 5, "output_tokens": 1}\n'
    assert [one.prompt_tokens for one in replay(tmp_path, "{}\n" + rows, skip=bad.append)] == [5]
    assert [one.line for one in bad[3:]] == [1, 2, 3]
    with pytest.raises(InputError, match="no column for time"):
        replay(tmp_path, AZURE.replace("TIMESTAMP", "when"), skip=bad.append)


def test_a_broken_json_trace_is_named_by_its_line(tmp_path: Path) -> None:
    """Half an object, and a list where objects were."""
    good = '{"timestamp": 1, "prompt_tokens": 5, "output_tokens": 5}\n'
    for bad in ('{"timestamp":\n', "[1]\n"):
        with pytest.raises(InputError, match="not a line of a trace") as caught:
            replay(tmp_path, good + bad)
        assert caught.value.line == 2
