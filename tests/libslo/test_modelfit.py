"""Fitting the model: cases come from the pipeline itself, and the shipped file is what the command makes."""

from __future__ import annotations

import orjson
import pytest

from libslo.attribution import DOMAINS, UNKNOWN
from libslo.modelfit import fit, synthetic_cases
from libslo.resources import data_path
from libslo.signals import signals

SHIPPED = orjson.loads(data_path("contracts/models/bayes.json").read_bytes())


@pytest.fixture(scope="module")
def small() -> dict[str, object]:
    """A fit on one seed of the shipped range."""
    return fit(range(1000, 1001))


def test_cases_of_every_domain_and_quiet_ones() -> None:
    """Each single fault gives a case of its domain and a quiet one; evidence is what the engine saw."""
    cases = list(synthetic_cases(range(7, 8)))
    assert sorted(domain for domain, _ in cases if domain != UNKNOWN) == sorted(DOMAINS)
    assert sum(domain == UNKNOWN for domain, _ in cases) == len(DOMAINS)
    assert all(max(each.level for each in evidence) <= 2 for _, evidence in cases if evidence)


def test_the_shipped_model_has_the_form_the_command_makes(small: dict[str, object]) -> None:
    """Keys, provenance texts, priors and signals of the shipped file are those of a fit by the code as it is."""
    provenance = small["provenance"]
    assert isinstance(provenance, dict)
    assert SHIPPED.keys() == small.keys()
    assert SHIPPED["prior"] == small["prior"]
    for key in ("command", "data", "requests_per_run", "prior"):
        assert SHIPPED["provenance"][key] == provenance[key]
    assert set(signals()) <= set(SHIPPED["likelihood"])


def test_fitting_is_repeatable(small: dict[str, object]) -> None:
    """The same seeds give the same model."""
    assert fit(range(1000, 1001)) == small
