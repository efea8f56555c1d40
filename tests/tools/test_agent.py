"""agent on the command line, as far as it goes without a kernel; tests/kernel has the rest."""

from __future__ import annotations

import json
import os
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
    done = run("--btf", missing)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"agent: {missing}: no BTF: the kernel does not describe its types\n"
        "  try: use a kernel with CONFIG_DEBUG_INFO_BTF=y, or name its BTF file with --btf\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the missing capability is found first")
def test_check_without_btf_reports_and_strict_refuses(tmp_path: Path) -> None:
    """--check is an answer, exit 0, even when nothing attaches; --strict makes it exit 3."""
    missing = str(tmp_path / "vmlinux")
    done = run("--check", "--json", "--btf", missing)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["mode"] == "no_btf"
    assert [state["attached"] for state in report["signals"]] == [False] * 4
    table = run("--check", "--strict", "--btf", missing)
    assert table.returncode == 3
    assert "no BTF" in table.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the missing capability is found first")
def test_a_missing_pylibbpf_is_exit_3_with_its_cure(tmp_path: Path) -> None:
    """Without the kernel extra the agent names the package to install."""
    code = "import importlib.util as u; u.find_spec = lambda name: None\nfrom slotools.agent import main; main(['--btf', sys.argv[1]])"
    btf = tmp_path / "vmlinux"
    btf.touch()
    done = subprocess.run([sys.executable, "-c", "import sys; " + code, str(btf)], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == "agent: libbpf: pylibbpf is not installed\n  try: pip install 'llm-slo-ebpf-toolkit[kernel]'\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the missing capability is found first")
def test_missing_objects_are_exit_3_with_their_cure(tmp_path: Path) -> None:
    """Without compiled objects the agent says how to make them."""
    code = (
        "import sys, pathlib, libslo.resources as r, libslo.kernel.libbpf as b, libslo.kernel.probes as p\n"
        "r._data_root = lambda: pathlib.Path(sys.argv[1])\np.library = lambda: None\n"
        "from slotools.agent import main; main(['--btf', sys.argv[1] + '/vmlinux'])"
    )
    (tmp_path / "vmlinux").touch()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 3
    assert "bpf/build/dns_latency_ms.cgroup_skb.bpf.o: no such data file (try: make bpf)" in done.stderr


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
    config.write_text("signal_set:\n  enabled: [syscall_latency_ms]\n")
    done = run("--config", str(config), "--check", "--json")
    assert done.returncode == 0
    assert [state["signal"] for state in json.loads(done.stdout)["signals"]] == ["syscall_latency_ms"]
