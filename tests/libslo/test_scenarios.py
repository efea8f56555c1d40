"""Scenarios are data: complete, and an unknown name lists the known ones."""

from __future__ import annotations

import pytest

from libslo.attribution import DOMAINS, UNKNOWN
from libslo.errors import InputError
from libslo.evidence import evidence_kinds
from libslo.resources import data_path
from libslo.scenarios import SEVERITIES, check_scenario, expected_domains, load_profile, load_scenario, scenario_names
from libslo.signals import signals


def test_names() -> None:
    """The scenarios of the design are there, baseline first, the mixed ones last, each in a file of its name."""
    names = scenario_names()
    assert names[0] == "baseline" and names[-2:] == ("mixed", "mixed_multi")
    assert {"dns_latency", "cpu_throttle", "memory_pressure", "provider_throttle", "network_partition"} <= set(names)
    assert "profiles" not in names


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_is_whole(name: str) -> None:
    """Name and description are given, shares are positive, faults have effects on known signals and known domains."""
    scenario = load_scenario(name)
    assert f"name: {name}\n" in data_path(f"scenarios/{name}.yaml").read_text()
    assert scenario.description.endswith(".")
    assert all(phase.share > 0 for phase in scenario.phases)
    assert sum(phase.share for phase in scenario.phases) == pytest.approx(1, abs=0.02)
    for fault in {fault for phase in scenario.phases for fault in phase.faults}:
        assert set(scenario.domains[fault]) <= {*DOMAINS, UNKNOWN} and scenario.domains[fault]
        effect = scenario.effects[fault]
        assert set(effect) <= {"request", "per_request", "per_second"}
        for part in ("per_request", "per_second"):
            assert set(effect.get(part) or {}) <= set(signals())
    assert load_profile(scenario.profile)["request_rate_per_s"] > 0


def test_single_scenarios_start_quiet() -> None:
    """Each fault comes after a baseline and before a recovery."""
    for name in scenario_names():
        phases = load_scenario(name).phases
        if name != "baseline":
            assert phases[0].faults == () and phases[-1].faults == ()


def test_mixed_scenarios_combine_the_single_ones() -> None:
    """A sequence takes its faults' effects and domains from their own files."""
    mixed = load_scenario("mixed_multi")
    assert [phase.faults for phase in mixed.phases if phase.faults] == [
        ("dns_latency", "cpu_throttle"),
        ("memory_pressure", "provider_throttle"),
        ("dns_latency", "network_partition"),
    ]
    assert mixed.effects["dns_latency"] == load_scenario("dns_latency").effects["dns_latency"]


@pytest.mark.parametrize("name", ["", "dns", "profiles", "../scenarios/mixed", "MIXED"])
def test_unknown_scenario_lists_the_known(name: str) -> None:
    """A name that is none is bad input with all names as the cure."""
    with pytest.raises(InputError) as caught:
        load_scenario(name)
    assert all(each in str(caught.value.hint) for each in scenario_names())


@pytest.mark.parametrize(
    ("label", "domains"),
    [
        ("dns_latency", ("network_dns",)),
        ("dns_latency+cpu_throttle", ("network_dns", "cpu_throttle")),
        ("baseline", ()),
        ("", ()),
        ("no_such", ()),
        ("dns_latency+dns_latency", ("network_dns",)),
        ("mixed", ()),
    ],
)
def test_expected_domains(label: str, domains: tuple[str, ...]) -> None:
    """A label stands for the domains of its faults; unknown ones for none."""
    assert expected_domains(label) == domains


def test_expected_signals_exist() -> None:
    """What a scenario says it moves are known signals."""
    import yaml

    for name in scenario_names():
        value = yaml.safe_load(data_path(f"scenarios/{name}.yaml").read_text())
        assert set(value.get("expected_signals", [])) <= set(evidence_kinds())


GOOD = {
    "name": "x",
    "description": "Y.",
    "expected_domains": ["network_dns"],
    "assertions": [],
    "faults": [{"fault": "dns_delay", "severities": {key: {"delay_ms": 5} for key in SEVERITIES}}],
}


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"description": "no full stop"}, "description: 'no full stop' is not of the form"),
        ({"assertions": [{"metric": "m", "operator": "!=", "value": 1, "phase": "fault"}]}, "assertions[0].operator: '!=' is none of"),
        ({"assertions": [{"metric": "m", "operator": "<", "value": 1, "phase": "fault"}]}, "assertions[0].metric: 'm' is none of"),
        ({"phases": []}, "unknown key phases"),
        ({"expected_signals": ["dns_latency_ms", "dns"]}, "expected_signals: no signal 'dns'"),
        ({"side_signals": [""]}, "side_signals: no signal ''"),
        ({"sequence": [["dns_latency"]]}, "faults: a sequence has those of its members"),
        ({"sequence": [["dns_latency"]], "synthetic": {}}, "synthetic.shares: is missing"),
        ({"faults": [{"fault": "dns_delay", "severities": {"low": {"delay_ms": 5}}}]}, "'medium' is missing"),
        ({"faults": [{"fault": "nope", "severities": {key: {} for key in SEVERITIES}}]}, "no fault 'nope'"),
        ({"faults": [{"fault": "dns_delay", "severities": {key: {"delay_ms": 0} for key in SEVERITIES}}]}, "delay_ms cannot be 0"),
        ({"faults": [{"fault": "dns_delay", "severities": {key: {} for key in SEVERITIES}}]}, "dns_delay needs delay_ms (ms)"),
        ({"faults": [{"fault": "dns_delay", "severities": {key: {"ms": 1} for key in SEVERITIES}}]}, "dns_delay has no parameter ms"),
        ({"faults": [{"fault": "dns_delay", "severities": {key: {"delay_ms": "5"} for key in SEVERITIES}}]}, "delay_ms cannot be '5'"),
    ],
)
def test_a_scenario_that_is_wrong_says_where(change: dict[str, object], fact: str) -> None:
    """Form, faults and their parameters are checked, and the sentence names what is wrong."""
    check_scenario(GOOD, "x.yaml")
    with pytest.raises(InputError) as caught:
        check_scenario({**GOOD, **change}, "x.yaml")
    assert fact in str(caught.value)


def test_without_domains_there_is_nothing_to_judge_by() -> None:
    """A scenario of its own faults says what they are; a sequence takes that from its members."""
    bare = {key: value for key, value in GOOD.items() if key != "expected_domains"}
    with pytest.raises(InputError, match="expected_domains: is missing"):
        check_scenario(bare, "x.yaml")
    check_scenario({**{key: value for key, value in bare.items() if key != "faults"}, "sequence": [["x"]]}, "x.yaml")


@pytest.mark.parametrize("member", ["nope", "mixed", "mixed_multi", "baseline", "harness"])
def test_a_sequence_of_what_is_no_single_fault(monkeypatch: pytest.MonkeyPatch, member: str) -> None:
    """Members of a sequence are scenarios with faults, and not itself."""
    from libslo import scenarios

    whole = scenarios._read("mixed")
    read = scenarios._read
    monkeypatch.setattr(
        scenarios, "_read", lambda name: {**whole, "sequence": [["dns_latency"], [member]]} if name == "mixed" else read(name)
    )
    load_scenario.cache_clear()
    with pytest.raises(InputError) as caught:
        load_scenario("mixed")
    load_scenario.cache_clear()
    assert f"sequence: {member!r} is no scenario with a fault" in str(caught.value)
    assert "dns_latency" in str(caught.value.hint) and str(caught.value.source).endswith("mixed.yaml")


@pytest.mark.parametrize("name", scenario_names())
def test_every_real_fault_is_in_the_vocabulary(name: str) -> None:
    """Faults have a place in the laboratory; what must hold names phases that a run of the scenario has; the harness is whole."""
    scenario = load_scenario(name)
    assert scenario.harness is not None
    assert set(scenario.harness.profiles[scenario.harness.durations]) == {"baseline", "fault", "recovery"}
    assert scenario.harness.severity in SEVERITIES
    assert bool(scenario.steps) == (name != "baseline") and bool(scenario.faults) == (scenario.steps == ((name,),))
    for spec in scenario.faults:
        assert spec.role in {"app", "llm", "retrieval", "dns"}
    assert set(scenario.expected_signals) <= set(signals())
    assert scenario.assertions


def test_severities_grow() -> None:
    """Each step of severity differs from the one before it."""
    for name in scenario_names():
        for spec in load_scenario(name).faults:
            low, medium, high = (spec.severities[severity] for severity in SEVERITIES)
            assert low != medium != high != low
