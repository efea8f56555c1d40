"""agent on the command line, as far as it goes without a kernel; tests/kernel has the rest."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = [sys.executable, "-c", "from slotools.agent import main; main()"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*AGENT, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def test_help_costs_no_heavy_import() -> None:
    """--help has an example to paste and imports neither numpy nor libbpf."""
    code = """
import sys
from slotools.agent import main
try:
    main(["--help"])
finally:
    print(sorted({"numpy", "pylibbpf"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Example: agent --signals" in done.stdout
    assert done.stderr == "[]\n"


def test_an_unknown_signal_is_a_usage_error_that_lists_the_known() -> None:
    """An unknown signal name is exit 2 and names those there are."""
    from libslo.kernel.catalogue import known_signals

    done = run("--signals", "dns_latency_ms,nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"agent: --signals: unknown signal 'nonsense'; known: {', '.join(known_signals())}\n  try: agent --help\n")


def test_no_signal_is_a_usage_error() -> None:
    """An empty list of signals is exit 2."""
    assert run("--signals", " , ").returncode == 2


def test_json_goes_with_check() -> None:
    """--json alone is exit 2."""
    done = run("--json")
    assert (done.returncode, done.stderr) == (2, "agent: --json goes with --check\n  try: agent --help\n")


@pytest.mark.parametrize("arguments", ["--count 0", "--rate-limit -1", "--min-latency x", "--duration 0", "--pid 0", "--ring-bytes 1"])
def test_bad_numbers_are_usage_errors(arguments: str) -> None:
    """Numbers out of range are exit 2."""
    assert run(*arguments.split()).returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the missing capability is found first")
def test_a_missing_btf_is_exit_3_with_its_place(tmp_path: Path) -> None:
    """Without BTF the agent says where it looked and what to do."""
    missing = str(tmp_path / "vmlinux")
    done = run("--btf", missing, "--signals", "connect_latency_ms", "--capability-mode", "core_full")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"agent: {missing}: no BTF: the kernel does not describe its types\n"
        "  try: use a kernel with CONFIG_DEBUG_INFO_BTF=y, or name its BTF file with --btf\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the missing capability is found first")
def test_check_without_btf_reports_and_strict_refuses(tmp_path: Path) -> None:
    """--check is an answer, exit 0, even when nothing attaches; --strict makes it exit 3."""
    missing = str(tmp_path / "vmlinux")
    which = ("--signals", "connect_latency_ms,mem_reclaim_latency_ms", "--capability-mode", "core_full")
    done = run("--check", "--json", "--btf", missing, *which)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["mode"] == "no_btf"
    assert [state["attached"] for state in report["signals"]] == [False] * 2
    table = run("--check", "--strict", "--btf", missing, *which)
    assert table.returncode == 3
    assert "no BTF" in table.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the missing capability is found first")
def test_a_missing_pylibbpf_is_exit_3_with_its_cure(tmp_path: Path) -> None:
    """Without the kernel extra the agent names the package to install."""
    code = "import importlib.util as u; u.find_spec = lambda name: None\nfrom slotools.agent import main\n"
    code += "main(['--signals', 'dns_latency_ms', '--btf', sys.argv[1]])"
    btf = tmp_path / "vmlinux"
    btf.touch()
    done = subprocess.run([sys.executable, "-c", "import sys; " + code, str(btf)], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == "agent: libbpf: pylibbpf is not installed\n  try: pip install 'llm-slo-ebpf-toolkit[kernel]'\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the missing capability is found first")
def test_missing_objects_are_exit_3_with_their_cure(tmp_path: Path) -> None:
    """Without compiled objects the agent says how to make them."""
    code = (
        "import sys, pathlib, libslo.kernel.probes as p, libslo.resources as r\n"
        "whole = r.data_path\n"
        "p.data_path = lambda name: whole(name.replace('bpf/build', 'bpf/nowhere'))\n"
        "from slotools.agent import main; main(['--signals', 'dns_latency_ms', '--btf', sys.argv[1] + '/vmlinux'])"
    )
    (tmp_path / "vmlinux").touch()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 3
    assert "bpf/nowhere/dns_latency_ms.cgroup_skb.bpf.o: no such data file (try: " in done.stderr


def test_capabilities_are_named() -> None:
    """What is missing is said by name; CAP_SYS_ADMIN stands for both."""
    from libslo.kernel.probes import DEFAULT_BTF, machine_obstacle

    obstacle = machine_obstacle(capabilities=1 << 38)
    assert obstacle is not None
    assert obstacle.fact == "missing capability CAP_BPF"
    if DEFAULT_BTF.exists():
        found = machine_obstacle(capabilities=1 << 21)
        assert found is None or "capability" not in found.fact


def test_the_configuration_file_gives_defaults(tmp_path: Path) -> None:
    """signal_set.enabled of toolkit.yaml is the default of --signals."""
    config = tmp_path / "toolkit.yaml"
    config.write_text("signal_set:\n  enabled: [nonsense_ms]\n")
    done = run("--config", str(config))
    assert done.returncode == 2
    assert "unknown signal 'nonsense_ms'" in done.stderr


def test_a_taken_metrics_port_is_exit_3_with_the_option() -> None:
    """Somebody else's port ends the agent before it writes anything, naming the option to change."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run("--metrics-listen", address)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"agent: --metrics-listen: cannot listen on {address}: address already in use\n"
        "  try: name another port, or end what listens there; port 0 takes a free one\n"
    )


@pytest.mark.parametrize(
    "arguments",
    ["--metrics-listen 9464", "--otlp-endpoint h:4318", "--otlp-interval 0", "--otlp-interval nan", "--metrics-max-series 0"],
)
def test_bad_targets_are_exit_2(arguments: str) -> None:
    """What is no address, no URL or no sensible number is bad input, before anything is attached."""
    done = run(*arguments.split())
    assert (done.returncode, done.stdout) == (2, "")


def test_a_header_of_the_environment_is_never_shown() -> None:
    """A broken OTEL_EXPORTER_OTLP_HEADERS is named, and its content stays secret."""
    done = run("--otlp-endpoint", "http://127.0.0.1:9", OTEL_EXPORTER_OTLP_HEADERS="hunter2")
    assert done.returncode == 2
    assert done.stderr.startswith("agent: OTEL_EXPORTER_OTLP_HEADERS: entry 1 is not a header\n") and "hunter2" not in done.stderr


def test_a_missing_prometheus_client_is_exit_3_with_its_cure() -> None:
    """Without the metrics extra, --metrics-listen names the package to install."""
    code = (
        "import importlib.util as u\nfind = u.find_spec\nu.find_spec = lambda name: None if name == 'prometheus_client' else find(name)\n"
        "from slotools.agent import main; main(['--metrics-listen', '127.0.0.1:0'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert done.stderr == (
        "agent: --metrics-listen: prometheus-client is not installed\n  try: pip install 'llm-slo-ebpf-toolkit[metrics]'\n"
    )


def test_the_help_names_every_mode() -> None:
    """The modes that --help offers, without loading the catalogue, are the catalogue's."""
    from libslo.kernel import agent_options, catalogue

    assert agent_options._MODES == catalogue.MODES


def test_environment_and_file_choose_signals_and_an_option_wins(tmp_path: Path) -> None:
    """Signal sets come from the file, are overruled by the environment, and both by an option; disabled ones are left out."""
    config = tmp_path / "toolkit.yaml"
    config.write_text("signal_set:\n  name: counters\n  disabled: [cpu_steal_pct]\n")

    def signals(*arguments: str, **environment: str) -> set[str]:
        done = run("--config", str(config), "--check", "--json", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return {state["signal"] for state in json.loads(done.stdout)["signals"]}

    assert signals() == {"cfs_throttled_ms"}
    assert signals(SLO_DISABLE_SIGNALS="cfs_throttled_ms") == {"cpu_steal_pct"}
    assert signals("--disable-signals", "") == {"cfs_throttled_ms", "cpu_steal_pct"}
    assert signals("--signals", "mem_reclaim_latency_ms", SLO_SIGNAL_SET="network") == {"mem_reclaim_latency_ms"}
    assert signals("--signal-set", "counters", SLO_DISABLE_SIGNALS="cpu_steal_pct", SLO_SIGNALS="dns_latency_ms") == {"cfs_throttled_ms"}
    config.write_text("signal_set: {enabled: [mem_reclaim_latency_ms]}\n")
    assert signals() == {"mem_reclaim_latency_ms"}
    assert signals(SLO_SIGNAL_SET="counters") == signals("--signal-set", "counters") == {"cfs_throttled_ms", "cpu_steal_pct"}


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ("--signal-set everything", "--signal-set: unknown set 'everything'; known: default, all, network, counters"),
        ("--disable-signals nope", "--disable-signals: unknown signal 'nope'"),
        ("--signal-set counters --disable-signals cpu_steal_pct,cfs_throttled_ms", "--disable-signals: no signal is left"),
        ("--min-latency nope=3", "--min-latency: unknown signal 'nope'"),
        ("--variant dns_latency_ms", "'dns_latency_ms' is not SIGNAL=VARIANT"),
        ("--variant dns_latency_ms=nope --signals dns_latency_ms --check", "dns_latency_ms has no variant 'nope'"),
        ("--capability-mode full", "'full' is not one of"),
        ("--max-overhead-pct 101", "101"),
    ],
)
def test_a_choice_that_does_not_exist_is_exit_2(arguments: str, fact: str) -> None:
    """Unknown sets, signals, variants and modes are named, with what there is."""
    done = run(*arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert fact in done.stderr and "  try: " in done.stderr
