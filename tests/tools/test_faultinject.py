"""faultinject, synthetic part: scenarios by name, same seed same bytes, and the truth beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import lines, objects, run_tool
from runs import synthetic

from libslo.contracts import contract
from libslo.scenarios import scenario_names


def test_same_seed_same_bytes() -> None:
    """Two processes with one seed write the same bytes, another seed others; 42 is the default."""
    runs = [
        run_tool("faultinject", "--scenario", "mixed", "--count", "50", *seed).stdout for seed in ([], ["--seed", "42"], ["--seed", "7"])
    ]
    assert runs[0] == runs[1] != runs[2]
    assert run_tool("faultinject", "--scenario", "mixed").stdout == lines(synthetic("mixed", 42))


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_runs(name: str) -> None:
    """Each gives as many samples as asked for, and nothing on stderr."""
    done = run_tool("faultinject", "--scenario", name, "--count", "20")
    assert (done.returncode, done.stderr) == (0, b"")
    assert sum("ttft_ms" in o for o in objects(done.stdout)) == 20


def test_list_names_all_scenarios() -> None:
    """--list prints a line for each, with what it means."""
    out = run_tool("faultinject", "--list").stdout.decode().splitlines()
    assert [line.split()[0] for line in out] == list(scenario_names()) and all(len(line.split()) > 3 for line in out)
    assert all(" Real: " in line for line in out)
    assert "dns_delay (netem: iproute2 or nfqueue: iptables, libnetfilter-queue1)" in out[list(scenario_names()).index("dns_latency")]
    assert "provider_error (control)" in next(line for line in out if line.startswith("provider_error"))


def test_list_says_what_is_missing() -> None:
    """Without programs in its path, the list names the packages, and the faults that cannot be made."""
    done = run_tool("faultinject", "--list", env={"PATH": "/nowhere"})
    line = next(line for line in done.stdout.decode().splitlines() if line.startswith("network_partition"))
    assert "not here: nftables: nft is not installed (try: apt-get install nftables)" in line
    assert line.endswith("so it cannot be made here: packet_loss, partition")


def test_an_unknown_scenario_lists_the_known() -> None:
    """Exit 2 with all names as the cure."""
    done = run_tool("faultinject", "--scenario", "dns")
    fact, cure = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout, fact) == (2, b"", "faultinject: no scenario 'dns'")
    assert cure == f"  try: one of: {', '.join(scenario_names())}"


def test_truth_out(tmp_path: Path) -> None:
    """The fault-windows of the run are valid lines in a file of their own."""
    path = tmp_path / "new" / "truth.jsonl"
    done = run_tool("faultinject", "--scenario", "mixed", "--truth-out", str(path))
    windows = objects(path.read_bytes())
    assert len(windows) == 10 and all(contract("fault-window").is_valid(window) for window in windows)
    assert b"fault_id" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ([], "one of --scenario"),
        (["--scenario", "mixed", "--list"], "one of --scenario"),
        (["--scenario", "mixed", "--real", "dns_latency"], "one of"),
        (["--scenario", "mixed", "--count", "-1"], "--count"),
        (["--scenario", "mixed", "--rate", "0"], "--rate"),
        (["--scenario", "mixed", "--rate", "nan"], "--rate"),
        (["--scenario", "mixed", "--rate", "inf"], "--rate"),
        (["--scenario", "mixed", "--seed", "-1"], "--seed"),
        (["--real", "dns_latency", "--fault", "dns_delay"], "one of --scenario"),
        (["--real", "dns_latency", "--set", "delay_ms=nan"], "delay_ms cannot be nan"),
        (["--real", "dns_latency", "--set", "delay_ms"], "--set delay_ms: not of the form NAME=VALUE"),
        (["--real", "dns_latency", "--set", "ratio=1"], "no fault of dns_latency has the parameter ratio"),
        (["--real", "dns_latency", "--severity", "extreme"], "no severity 'extreme'"),
        (["--real", "dns_latency", "--duration", "0"], "--duration"),
        (["--real", "baseline"], "baseline has no fault"),
        (["--real", "solar_flare"], "no scenario 'solar_flare'"),
        (["--fault", "solar_flare"], "no fault 'solar_flare'"),
        (["--fault", "dns_delay"], "dns_delay needs delay_ms"),
        (["--fault", "dns_delay", "--severity", "low"], "--severity goes with --real"),
        (["--scenario", "mixed", "--target", "lab"], "--set, --duration, --target"),
        (["--real", "dns_latency", "--count", "5"], "--count goes with --scenario"),
        (["--fault", "dns_delay", "--seed", "5"], "--seed goes with --scenario"),
        (["--list", "--out", "x"], "--out goes with what makes a fault"),
    ],
)
def test_bad_options_are_usage(arguments: list[str], fact: str) -> None:
    """Exit 2 and the option in the first line."""
    done = run_tool("faultinject", *arguments)
    assert done.returncode == 2 and fact in done.stderr.decode().splitlines()[0] and done.stdout == b""


def test_count_zero_is_nothing() -> None:
    """No requests, no records, exit 0."""
    done = run_tool("faultinject", "--scenario", "mixed", "--count", "0")
    assert (done.returncode, done.stdout) == (0, b"")
