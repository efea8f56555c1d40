"""Fitting: likelihoods are counted, the temperature comes from runs that had no part in the fit, and the shipped file is such a fit."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from libslo.attribution import DOMAINS, UNKNOWN, attribute_bayes, fit_likelihoods, load_model, model_of
from libslo.cases import Case, Run
from libslo.errors import InputError
from libslo.evidence import Evidence, evidence_kinds, judge
from libslo.modelfit import fit_model, labelled_cases
from libslo.resources import data_path

SHIPPED = orjson.loads(data_path("contracts/models/bayes.json").read_bytes())
OWN = {
    "network_dns": "dns_latency_ms",
    "network_egress": "tcp_retransmits_total",
    "cpu_throttle": "cfs_throttled_ms",
    "memory_pressure": "mem_reclaim_latency_ms",
    "provider_throttle": "provider_throttled_ratio",
    "provider_error": "provider_failed_ratio",
    "retrieval_backend": "retrieval_latency_ms",
}


def seen(*raised: str, level: int = 2) -> tuple[Evidence, ...]:
    kinds = [evidence_kinds()[name] for name in OWN.values()]
    times = (1, 5, 99)  # of a baseline as large as the floor: as before, raised, high
    found = tuple(judge(kind, kind.floor * times[level if kind.signal in raised else 0], kind.floor) for kind in kinds)
    assert [each.level for each in found] == [level if kind.signal in raised else 0 for kind in kinds]
    return found


def run(domain: str, seed: int, *raised: str) -> Run:
    """A run in which the fault of the domain raised these signals, and a quiet window before it."""
    name = f"{domain}-{seed}"
    found = (Case(name, (domain,), (seen(*raised),), 2.0),)
    return Run(name, domain, "low", seed, found, (), 0, (Case(f"{name}/quiet", (), (seen(),)),), (), (), f"sha-{name}")


def runs(seeds: int = 3) -> list[Run]:
    """Every domain shows its own signal; what nothing explains shows none."""
    return [run(domain, seed, *([OWN[domain]] if domain in OWN else [])) for domain in (*DOMAINS, UNKNOWN) for seed in range(seeds)]


def test_a_fit_names_what_it_was_fitted_on() -> None:
    """The signal of a domain names it, no signal is unknown, and the file says where it comes from."""
    value = fit_model(runs(), "the command")
    model = model_of(value)
    for domain, signal in OWN.items():
        assert attribute_bayes(seen(signal), model).domain == domain
    assert attribute_bayes(seen(), model).domain == UNKNOWN
    about = value["provenance"]
    assert about["command"] == "the command" and about["runs"] == 24 and about["seeds"] == [0, 1, 2]
    assert about["recordings"]["network_dns-1"] == "sha-network_dns-1" and about["cases"]["network_dns"] == 3
    assert about["cases"][UNKNOWN] == 3 + about["windows_without_a_fault"] == 3 + 24


def test_the_temperature_takes_back_what_is_too_sure() -> None:
    """Where runs of another seed show the wrong signal the fit trusts itself less than where all are alike."""
    alike = fit_model(runs(), "")
    odd = [each if each.seed != 2 else run(each.scenario, 2, OWN["network_dns"]) for each in runs()]
    assert fit_model(odd, "")["temperature"] > alike["temperature"]
    assert fit_model(odd, "")["provenance"]["calibration"]["surprise"] > alike["provenance"]["calibration"]["surprise"]


def test_order_of_runs_changes_nothing() -> None:
    """The likelihoods and the temperature do not depend on the order in which runs were read."""
    one, other = fit_model(runs(), ""), fit_model(runs()[::-1], "")
    assert one["likelihood"] == other["likelihood"] and one["temperature"] == other["temperature"]


@pytest.mark.parametrize("missing", [*DOMAINS])
def test_every_domain_needs_a_case(missing: str) -> None:
    """A domain that was never recorded is named."""
    with pytest.raises(InputError, match=missing):
        fit_model([each for each in runs() if each.scenario != missing], "")


def test_calibration_needs_a_second_seed() -> None:
    """With one seed there is nothing to calibrate on."""
    with pytest.raises(InputError, match="same seed"):
        fit_model(runs(1), "")


def test_pairs_and_unnoticed_faults_are_no_cases() -> None:
    """Only single faults are counted; every window without a fault is a case of unknown."""
    pair = replace(run("network_dns", 7), found=(Case("pair", ("network_dns", "cpu_throttle"), (seen(),)),))
    assert [(domain, profile) for domain, profile, _ in labelled_cases([pair])] == [(UNKNOWN, UNKNOWN)]
    assert [profile for _, profile, _ in labelled_cases([run("network_dns", 1)])] == ["network_dns/low", UNKNOWN]


def test_all_evidence_of_a_case_counts_once() -> None:
    """Five looks at one incident weigh as one."""
    one, rest = Evidence("dns_latency_ms", "ebpf", 1, 1, 0, 2), Evidence("cfs_throttled_ms", "ebpf", 1, 1, 0, 0)
    profiles = {domain: domain for domain in (*DOMAINS, UNKNOWN)}
    many = fit_likelihoods([("network_dns", [[one]] * 5), (UNKNOWN, [[rest]])], profiles)
    assert many == fit_likelihoods([("network_dns", [[one]]), (UNKNOWN, [[rest]])], profiles)


def test_the_shipped_model_is_a_fit_on_recordings() -> None:
    """Its form is what the code writes, and it says on which recorded runs it was fitted, none of a holdout."""
    small = fit_model(runs(), "")
    assert SHIPPED.keys() == small.keys() and SHIPPED["provenance"].keys() == small["provenance"].keys()
    assert SHIPPED["version"] == small["version"]
    assert min(SHIPPED["provenance"]["cases"].values()) >= 8
    assert len(SHIPPED["provenance"]["recordings"]) == SHIPPED["provenance"]["runs"]
    assert load_model().temperature == SHIPPED["temperature"]
