"""What TLS events say of their handshake."""

from __future__ import annotations

import re

import pytest
from builders import ROOT

from libslo.kernel.handshakes import FLAGS, OUTCOMES, tls_attributes


def test_numbers_are_those_of_the_probes() -> None:
    """Outcomes and flags in Python are the enums of bpf/include/slo_tls.h."""
    header = (ROOT / "bpf/include/slo_tls.h").read_text()
    outcomes = {name.lower(): int(value) for name, value in re.findall(r"SLO_TLS_([A-Z_]+) = (\d+),", header)}
    flags = {name.lower(): 1 << int(shift) for name, shift in re.findall(r"SLO_TLS_F_([A-Z]+) = 1 << (\d+),", header)}
    assert outcomes == {"done": 0, **OUTCOMES}
    assert flags == FLAGS


def test_a_handshake_that_ended_well_has_no_outcome() -> None:
    """Version, resumption, retry and early data are told when they are known, and nothing of a failure."""
    assert tls_attributes(False, 5_000_000, 0, 0, 0, 0) == {}
    assert tls_attributes(False, 5_000_000, 0x0303, 0, 0, FLAGS["resumed"]) == {"tls.version": "TLSv1.2", "tls.resumed": True}
    assert tls_attributes(False, 1, 0x0304, 0, 0, FLAGS["retried"] | FLAGS["early"]) == {
        "tls.version": "TLSv1.3", "tls.hello_retry": True, "tls.early_data": True,
    }  # fmt: skip
    assert tls_attributes(False, 1, 0x7F1C, 0, 0, 0) == {"tls.version": "0x7f1c"}


@pytest.mark.parametrize(
    ("outcome", "alert", "flags", "expected"),
    [
        ("alert", 48, FLAGS["local"], {"tls.alert": "unknown_ca", "tls.side": "local"}),
        ("alert", 0, 0, {"tls.alert": "close_notify", "tls.side": "peer"}),
        ("alert", 200, 0, {"tls.alert": "alert 200", "tls.side": "peer"}),
        ("alert", 0, FLAGS["hidden"], {"tls.alert": "encrypted", "tls.side": "peer"}),
        ("closed", 0, FLAGS["local"], {"tls.side": "local"}),
        ("not_tls", 0, 0, {"tls.side": "peer"}),
        ("library", 0, 0, {}),
    ],
)
def test_a_failure_says_who_and_how(outcome: str, alert: int, flags: int, expected: dict[str, str]) -> None:
    """A failure has its outcome and elapsed time, the side where that is seen, and an alert's name where there was one."""
    found = tls_attributes(True, 12_500_000, 0x0303, OUTCOMES[outcome], alert, flags)
    assert found == {"tls.version": "TLSv1.2", "tls.elapsed_ms": 12.5, "tls.outcome": outcome, **expected}
