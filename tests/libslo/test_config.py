"""toolkit.yaml: checked against its schema, errors name the key, values become option defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import TESTDATA

from libslo.config import OPTION_KEYS, config_schema, load_config, option_defaults
from libslo.errors import InputError

BAD = sorted((TESTDATA / "contracts" / "bad" / "toolkit").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "toolkit.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_wrong_key_is_named_with_its_path(path: Path) -> None:
    """A configuration that breaks the schema is refused with the file, the path of the key, and where the keys are listed."""
    with pytest.raises(InputError) as caught:
        load_config(str(path))
    assert path.stem.split("-", 1)[1] in caught.value.fact
    assert caught.value.source == str(path) and "toolkit.schema.json" in str(caught.value.hint)


def test_a_full_configuration_fills_every_option() -> None:
    """Each option that has a place in the file gets its value; the signal list becomes the comma list the option takes."""
    config = load_config(str(TESTDATA / "contracts/good/toolkit/full.yaml"))
    assert option_defaults(config, OPTION_KEYS) == {
        "signals": "dns_latency_ms,connect_latency_ms",
        "signal_set": "network",
        "disable_signals": "tcp_retransmits_total",
        "min_latency_ms": [("", 0.5)],
        "mode": "auto",
        "rate_limit": 1000,
        "burst_limit": 3000,
        "signal_rate_limit": 9000,
        "histogram_interval_s": 60,
        "names": True,
        "max_overhead_pct": 5,
        "drop_capabilities": False,
        "window_ms": 1500,
        "lateness_ms": 300,
        "otlp_endpoint": "http://127.0.0.1:4318",
        "otlp_listen": "127.0.0.1:4318",
        "otlp_interval_s": 5,
        "metrics_listen": "127.0.0.1:9464",
        "metrics_max_series": 100,
        "cluster": "lab",
        "kubelet": "https://127.0.0.1:10250",
        "kube_api": "in-cluster",
        "kube_token": "/etc/slo/token",
        "kube_ca": "/etc/slo/ca.pem",
        "kube_insecure": False,
        "node_name": "node-a",
        "load_service": "rag-service",
        "burn_policy": "page",
        "slo": ["ttft_ms=1200@0.99"],
        "webhook": True,
        "webhook_receiver": "opsgenie",
        "webhook_url": "https://api.eu.opsgenie.com",
        "webhook_secret_file": "/etc/slo/opsgenie",
        "webhook_timeout_s": 4,
        "webhook_total_s": 30,
        "webhook_forbid_private": True,
        "webhook_strict": True,
        "dead_letter": "/var/lib/slo/dead.jsonl",
    }


def test_only_options_that_the_tool_has_get_defaults() -> None:
    """A tool without an option is not told about it; an empty file sets nothing."""
    assert option_defaults({"identity": {"cluster": "x"}}, ["out", None, "cluster"]) == {"cluster": "x"}
    assert load_config(str(TESTDATA / "contracts/good/toolkit/empty.yaml")) == {}


def test_option_places_exist_in_the_schema() -> None:
    """Every place that an option reads is a key of the schema."""
    for place in OPTION_KEYS.values():
        node = config_schema()
        for key in place.split("."):
            node = node["properties"][key]


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("a: [1\n", "not YAML"),
        ("otlp:\n  listen: 'x\n", "not YAML"),
        ("- a\n", "is not of type object"),
        ("just text\n", "is not of type object"),
        ("identity: {cluster: 2026-01-01}\n", "cluster"),
        ("1: x\n", "1"),
        ("correlation: {window_ms: .inf}\n", "window_ms"),
        ("correlation: {window_ms: .nan}\n", "window_ms"),
        ("--- {}\n--- {}\n", "not YAML"),
        ("identity: {cluster: '\x07'}\n", "not YAML"),
    ],
)
def test_what_is_no_configuration_is_bad_input(tmp_path: Path, text: str, fact: str) -> None:
    """Broken YAML, other shapes, and values that JSON does not know are input errors, never internal ones."""
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, text))
    assert fact in caught.value.fact


def test_broken_yaml_names_its_line(tmp_path: Path) -> None:
    """Where YAML breaks is said as a line of the file."""
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, "otlp:\n  endpoint: http://x\n bad: [\n"))
    assert caught.value.line in (3, 4)


def test_unreadable_configuration_is_bad_input(tmp_path: Path) -> None:
    """A missing file, a directory and bytes that are no text are input errors."""
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.yaml", tmp_path, binary):
        with pytest.raises(InputError, match="cannot read the configuration"):
            load_config(str(path))
