"""From evidence to domains: missing says nothing, two faults show as two, and `unknown` is a real answer."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from libslo.attribution import DOMAINS, UNKNOWN, Verdict, attribute_bayes, attribute_rule, fit_likelihoods, load_model, model_of
from libslo.contracts import contract
from libslo.errors import InputError
from libslo.evidence import Evidence, evidence_kinds
from libslo.resources import data_path
from libslo.scenarios import load_scenario, scenario_names
from libslo.signals import vocabulary

MODEL = load_model()
SEEN = st.lists(st.tuples(st.sampled_from(list(evidence_kinds())), st.integers(0, 2)), unique_by=lambda row: row[0], max_size=12)


def ev(**levels: int) -> list[Evidence]:
    return [Evidence(name, "ebpf", 1.0, 1.0, 0.0, level) for name, level in levels.items()]


def posterior(verdict: Verdict) -> dict[str, float]:
    return {each.domain: each.posterior for each in verdict.hypotheses}


def test_domains_are_those_of_the_contract() -> None:
    """The attributor can say every domain of the contract and no other."""
    assert {*DOMAINS, UNKNOWN} == set(contract("incident-attribution").schema["properties"]["predicted_fault_domain"]["enum"])


@pytest.mark.parametrize(
    ("levels", "domain"),
    [
        ({"dns_latency_ms": 2}, "network_dns"),
        ({"cfs_throttled_ms": 2, "runqueue_delay_ms": 1}, "cpu_throttle"),
        ({"mem_reclaim_latency_ms": 2, "syscall_latency_ms": 2, "disk_io_latency_ms": 1}, "memory_pressure"),
        ({"provider_throttled_ratio": 2}, "provider_throttle"),
        ({"provider_failed_ratio": 2}, "provider_error"),
        ({"tcp_retransmits_total": 2, "connect_latency_ms": 2}, "network_egress"),
        ({"retrieval_latency_ms": 2, "retrieval_unexplained_ms": 2}, "retrieval_backend"),
    ],
)
def test_the_plain_cases(levels: dict[str, int], domain: str) -> None:
    """The signal of a domain, everything else as usual, names the domain in both modes."""
    usual = {"dns_latency_ms": 0, "connect_latency_ms": 0, "runqueue_delay_ms": 0, "cfs_throttled_ms": 0, "provider_throttled_ratio": 0}
    evidence = ev(**{**usual, **levels})
    assert attribute_bayes(evidence, MODEL).domain == domain
    assert attribute_rule(evidence).domain == domain


def test_nothing_raised_is_unknown() -> None:
    """When every signal is as before, the answer is `unknown`."""
    quiet = ev(**dict.fromkeys(evidence_kinds(), 0))
    assert attribute_bayes(quiet, MODEL).domain == UNKNOWN
    assert attribute_rule(quiet) == attribute_rule([])
    assert attribute_rule([]).domain == UNKNOWN


def test_no_evidence_gives_the_prior_and_abstains() -> None:
    """Knowing nothing, no domain is accused."""
    assert attribute_bayes([], MODEL).domain == UNKNOWN


@given(SEEN)
def test_a_missing_signal_is_not_a_normal_one(seen: list[tuple[str, int]]) -> None:
    """Evidence on a signal the model knows nothing of changes nothing; a normal signal is not the same as a missing one."""
    evidence = ev(**dict(seen))
    strange = [*evidence, Evidence("some_new_signal", "otel", 9.0, 1.0, 3.0, 2)]
    assert attribute_bayes(strange, MODEL) == attribute_bayes(evidence, MODEL)


def test_normal_speaks_against_a_domain() -> None:
    """A DNS signal as usual makes network_dns less probable than not having looked."""
    looked = posterior(attribute_bayes(ev(dns_latency_ms=0, runqueue_delay_ms=1), MODEL)).get("network_dns", 0)
    blind = posterior(attribute_bayes(ev(runqueue_delay_ms=1), MODEL)).get("network_dns", 0)
    assert looked < 0.6 * blind


TIE = [
    ("tcp_retransmits_total", 0),
    ("runqueue_delay_ms", 0),
    ("connect_latency_ms", 0),
    ("dns_latency_ms", 2),
    ("tls_handshake_fail_total", 0),
    ("provider_throttled_ratio", 2),
]


@given(SEEN, st.randoms())
@example(TIE, random.Random(4))
@example(TIE, random.Random(13))
def test_order_of_evidence_changes_nothing(seen: list[tuple[str, int]], rng: random.Random) -> None:
    """Permuted evidence gives the same posteriors and the same answer."""
    evidence = ev(**dict(seen))
    shuffled = rng.sample(evidence, len(evidence))
    a, b = attribute_bayes(evidence, MODEL), attribute_bayes(shuffled, MODEL)
    assert a.domain == b.domain and posterior(a) == pytest.approx(posterior(b))
    assert attribute_rule(evidence).domain == attribute_rule(shuffled).domain


@given(SEEN, st.floats(0, 1))
def test_verdicts_are_well_formed(seen: list[tuple[str, int]], abstain_below: float) -> None:
    """Posteriors are probabilities, highest first, none below 0.01; below the threshold the answer is `unknown`."""
    verdict = attribute_bayes(ev(**dict(seen)), MODEL, abstain_below)
    values = [each.posterior for each in verdict.hypotheses]
    assert values == sorted(values, reverse=True) and all(0.01 <= value <= 1 for value in values)
    assert 0 <= verdict.confidence <= 1
    if verdict.domain != UNKNOWN:
        assert verdict.confidence >= abstain_below and verdict.domain == verdict.hypotheses[0].domain


def test_two_faults_show_as_two_hypotheses() -> None:
    """Signals of two domains at once make both probable, and each is given its own signal."""
    both = attribute_bayes(ev(dns_latency_ms=2, mem_reclaim_latency_ms=2, connect_latency_ms=0, cfs_throttled_ms=0), MODEL)
    assert posterior(both)["network_dns"] > 0.4 and posterior(both)["memory_pressure"] > 0.4
    named = {each.domain: each.evidence for each in both.hypotheses}
    assert named["network_dns"][0] == "dns_latency_ms" and named["memory_pressure"][0] == "mem_reclaim_latency_ms"


def test_a_signal_speaks_only_for_domains_that_show_it() -> None:
    """A signal that a domain never showed when the model was fitted is no evidence for that domain, however rare it is otherwise."""
    evidence = ev(dns_latency_ms=2, cfs_throttled_ms=2, mem_reclaim_latency_ms=2)
    named = {each.domain: set(each.evidence) for each in attribute_bayes(evidence, MODEL, 0).hypotheses}
    own = {"network_dns": {"dns_latency_ms"}, "cpu_throttle": {"cfs_throttled_ms"}, "memory_pressure": {"mem_reclaim_latency_ms"}}
    for domain, signals in named.items():
        assert signals <= own.get(domain, set()), (domain, signals)


@given(SEEN, st.sampled_from([(0.2, 0.4, 0.4), (0.01, 0.09, 0.9), (0.97, 0.02, 0.01)]))
def test_signals_are_named_that_a_domain_expects_twice_as_much_as_unknown(seen: list[tuple[str, int]], usual_shares: Any) -> None:
    """And that it expects in a tenth of the cases; most telling first, then by name; none that is as it should be."""
    quiet = dict.fromkeys(MODEL.of(UNKNOWN), usual_shares)
    model = replace(MODEL, likelihood={name: {**table, **quiet} for name, table in MODEL.likelihood.items()})
    for each in attribute_bayes(ev(**dict(seen)), model).hypotheses:
        wanted = []
        for name, level in seen:
            if level > 0 and name in model.likelihood and each.domain != UNKNOWN:
                shares = model.likelihood[name]
                expects, usual = (max(shares[profile][level] for profile in model.of(owner)) for owner in (each.domain, UNKNOWN))
                if expects >= 0.1 and math.log(expects / usual) >= math.log(2):
                    wanted.append((-math.log(expects / usual), name))
        assert each.evidence == tuple(name for _, name in sorted(wanted))


def test_abstaining_is_a_matter_of_the_threshold() -> None:
    """The same evidence is an answer or not, depending on how sure one wants to be."""
    evidence = ev(runqueue_delay_ms=1)
    top = attribute_bayes(evidence, MODEL, 0).hypotheses[0].posterior
    assert attribute_bayes(evidence, MODEL, min(top + 0.01, 1)).domain == UNKNOWN


def test_rule_confidence_is_one_over_the_matches() -> None:
    """The first rule answers; the more others match, the less sure it is."""
    verdict = attribute_rule(ev(dns_latency_ms=1, mem_reclaim_latency_ms=1))
    assert (verdict.domain, verdict.confidence) == ("network_dns", 0.5)
    assert [each.domain for each in verdict.hypotheses] == ["network_dns", "memory_pressure"]


def test_rules_name_known_signals_and_every_domain() -> None:
    """The rules are data: each domain once, signals that exist, levels that exist."""
    rules = orjson.loads(data_path("contracts/models/rules.json").read_bytes())["rules"]
    assert sorted(rule["domain"] for rule in rules) == sorted(DOMAINS)
    assert all(name in evidence_kinds() and level in (1, 2) for rule in rules for name, level in rule["any"])


# --- the model file


def test_the_model_says_where_it_comes_from() -> None:
    """Provenance names the command, the data and the number of cases of every domain; its signals are known ones."""
    assert {"command", "data", "seeds", "cases", "prior"} <= set(MODEL.provenance)
    assert set(MODEL.provenance["cases"]) == {*DOMAINS, UNKNOWN} == set(MODEL.profiles.values())
    assert "real faults" in MODEL.provenance["data"]
    assert set(MODEL.likelihood) <= set(evidence_kinds())
    assert sum(MODEL.prior.values()) == pytest.approx(1, abs=1e-5)


def change(*path: str, to: Any) -> Any:
    def apply(value: dict[str, Any]) -> None:
        for key in path[:-1]:
            value = value[key]
        if to is None:
            del value[path[-1]]
        else:
            value[path[-1]] = to

    return apply


BROKEN = {
    "no prior": (change("prior", to=None), "prior"),
    "domain missing in the prior": (change("prior", "network_dns", to=None), "prior: no network_dns"),
    "domain missing in a table": (change("likelihood", "dns_latency_ms", "unknown", to=None), "likelihood.dns_latency_ms: no unknown"),
    "no profiles": (change("profiles", to=None), "profiles"),
    "domain without a profile": (change("profiles", "unknown", to=None), "profiles: no unknown"),
    "profile of no domain": (change("profiles", "network_dns/low", to="weather"), "profiles: no fault domain weather"),
    "probability above one": (
        change("likelihood", "dns_latency_ms", "network_dns/low", to=[1.2, -0.1, -0.1]),
        "likelihood.dns_latency_ms.network_dns/low",
    ),
    "probability of zero": (
        change("likelihood", "dns_latency_ms", "network_dns/low", to=[0.0, 0.5, 0.5]),
        "likelihood.dns_latency_ms.network_dns/low",
    ),
    "does not sum to one": (change("likelihood", "dns_latency_ms", "network_dns/low", to=[0.5, 0.5, 0.5]), "sum to 1"),
    "two levels": (change("likelihood", "dns_latency_ms", "network_dns/low", to=[0.5, 0.5]), "3 probabilities"),
    "text for a number": (change("likelihood", "dns_latency_ms", "network_dns/low", to=["a", "b", "c"]), "not a model"),
    "prior above one": (change("prior", "unknown", to=1.5), "prior"),
    "prior is text": (change("prior", "unknown", to="x"), "not a model"),
    "pair prior above one": (change("pair_prior", to=2), "prior"),
    "no temperature": (change("temperature", to=None), "temperature"),
    "temperature of zero": (change("temperature", to=0), "temperature"),
    "likelihood is a list": (change("likelihood", to=[1]), "not a model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_bad_input_that_names_the_place(tmp_path: Path, case: str) -> None:
    """Each way a model file can be wrong is an input error with the file, the place and a hint."""
    apply, fact = BROKEN[case]
    value = copy.deepcopy(orjson.loads(data_path("contracts/models/bayes.json").read_bytes()))
    apply(value)
    path = tmp_path / "model.json"
    path.write_bytes(orjson.dumps(value))
    with pytest.raises(InputError) as caught:
        load_model(str(path))
    assert fact in caught.value.fact and caught.value.source == str(path) and caught.value.hint


@pytest.mark.parametrize(
    ("content", "fact"),
    [(b"", "not JSON"), (b"not json", "not JSON"), (b"[]", "not a model"), (b"3", "not a model"), (b"{}", "not a model")],
)
def test_what_is_no_model_is_bad_input(tmp_path: Path, content: bytes, fact: str) -> None:
    """Another file given by mistake is an input error."""
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=fact):
        load_model(str(path))
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot read the model"):
            load_model(str(missing))


def test_a_good_model_file_is_used(tmp_path: Path) -> None:
    """--model replaces the shipped one."""
    value = orjson.loads(data_path("contracts/models/bayes.json").read_bytes())
    value["likelihood"] = {}
    (tmp_path / "m.json").write_bytes(orjson.dumps(value))
    assert attribute_bayes(ev(dns_latency_ms=2), load_model(str(tmp_path / "m.json"))).domain == UNKNOWN


def test_temperature_flattens() -> None:
    """A higher temperature makes the answer less sure, never another one."""
    sharp, flat = (attribute_bayes(ev(dns_latency_ms=2, connect_latency_ms=0), replace(MODEL, temperature=t), 0) for t in (1.0, 4.0))
    assert sharp.domain == flat.domain == "network_dns" and flat.confidence < sharp.confidence


# --- fitting


PROFILES = {domain: domain for domain in (*DOMAINS, UNKNOWN)}


def fit(*cases: tuple[str, list[Evidence]], profiles: dict[str, str] = PROFILES) -> dict[str, dict[str, list[float]]]:
    return fit_likelihoods([(profile, [evidence]) for profile, evidence in cases], profiles)


def test_fit_counts_levels_with_smoothing() -> None:
    """Frequencies per domain, smoothed, sum to one; domains without cases look like `unknown`."""
    dns = [("network_dns", ev(dns_latency_ms=2))] * 8 + [("network_dns", ev(dns_latency_ms=0))] * 2
    table = fit(*dns, *[(UNKNOWN, ev(dns_latency_ms=0))] * 100)["dns_latency_ms"]
    assert set(table) == {*DOMAINS, UNKNOWN}
    assert all(sum(row) == pytest.approx(1) and all(0 < p < 1 for p in row) for row in table.values())
    assert table["network_dns"][2] > 0.6 > 0.1 > table["network_dns"][1]
    assert table["cpu_throttle"] == pytest.approx(table[UNKNOWN], abs=0.02)


def test_fit_does_not_count_what_is_missing() -> None:
    """A signal that was not there in a case says nothing about its levels."""
    seen, blind = ("network_dns", ev(dns_latency_ms=2)), ("network_dns", ev(connect_latency_ms=0))
    usual = (UNKNOWN, ev(dns_latency_ms=0, connect_latency_ms=0))
    one, other = fit(*[seen] * 4, *[usual] * 9), fit(*[seen] * 4, *[blind] * 20, *[usual] * 9)
    assert one["dns_latency_ms"] == other["dns_latency_ms"]


def test_fit_treats_rare_levels_alike_whatever_the_number_of_cases() -> None:
    """A level that neither a domain nor `unknown` ever showed speaks for neither, although `unknown` has more cases."""
    for n in (5, 40):
        table = fit(*[("network_dns", ev(cfs_throttled_ms=0))] * n, *[(UNKNOWN, ev(cfs_throttled_ms=0))] * 280)["cfs_throttled_ms"]
        assert 0.5 < table["network_dns"][2] / table[UNKNOWN][2] < 2


def test_no_fault_must_show_all_that_the_recorded_ones_showed() -> None:
    """However often a signal was raised, its absence is never near impossible."""
    table = fit(*[("network_dns", ev(dns_latency_ms=2))] * 500, *[(UNKNOWN, ev(dns_latency_ms=0))] * 500)["dns_latency_ms"]
    assert table["network_dns"][0] == pytest.approx(0.1)


def test_a_faint_fault_is_not_a_strong_one_with_its_signals_left_out() -> None:
    """With a profile for each severity, one signal alone names the domain whose faint faults show just that."""
    signals = ("tcp_retransmits_total", "connect_latency_ms", "tls_handshake_ms", "retrieval_latency_ms", "token_throughput_tps")
    strong, faint, usual = (ev(**dict.fromkeys(signals, level)) for level in (2, 0, 0))
    faint = [*ev(tcp_retransmits_total=2), *faint[1:]]
    cases = [("network_egress/high", strong)] * 5 + [("network_egress/low", faint)] * 5 + [(UNKNOWN, usual)] * 150
    cases += [(domain, usual) for domain in DOMAINS if domain != "network_egress" for _ in range(5)]
    apart = {
        **{d: d for d in PROFILES if d != "network_egress"},
        "network_egress/high": "network_egress",
        "network_egress/low": "network_egress",
    }
    about = {"version": "t", "provenance": {}, "prior": dict(MODEL.prior), "pair_prior": 1.0, "temperature": 1.0}
    model = model_of({**about, "profiles": apart, "likelihood": fit(*cases, profiles=apart)})
    one = model_of({**about, "profiles": PROFILES, "likelihood": fit(*[(profile.partition("/")[0], each) for profile, each in cases])})
    assert attribute_bayes(faint, model).domain == "network_egress"
    assert posterior(attribute_bayes(faint, one))["network_egress"] < posterior(attribute_bayes(faint, model))["network_egress"]


@given(SEEN)
def test_the_fewer_signals_the_less_sure(seen: list[tuple[str, int]]) -> None:
    """Of evidence that names a domain, half taken away never makes it surer of another one than 0.9."""
    whole = attribute_bayes(ev(**dict(seen)), MODEL)
    half = attribute_bayes(ev(**dict(seen[::2])), MODEL)
    assert half.domain in (whole.domain, UNKNOWN) or half.confidence < 0.9


def test_every_fault_scenario_has_its_signals_in_the_model() -> None:
    """What a scenario says it moves is raised under its domain in the model more often than under `unknown`."""
    for name in scenario_names():
        scenario = load_scenario(name)
        if name.startswith(("mixed", "baseline")) or scenario.domains[name] == (UNKNOWN,):
            continue
        (domain,) = scenario.domains[name]
        moved = [
            signal
            for signal, table in MODEL.likelihood.items()
            if max(1 - table[profile][0] for profile in MODEL.of(domain)) > 3 * (1 - table[UNKNOWN][0])
        ]
        assert moved, name
        assert len(vocabulary("evidence")["cuts"]) == 2
