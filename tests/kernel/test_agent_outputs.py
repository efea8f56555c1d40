"""The agent's outputs besides its lines, on the real kernel: what is scraped is what was written."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections import Counter
from typing import Any

import requests
from kernel_harness import AGENT, Namespace, eventually, finish, first_line, server
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.samples import Sample

from libslo.contracts import contract


def agent(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """An agent that serves metrics on a port of its own choice and is ready, and the base URL."""
    process = subprocess.Popen(
        [*AGENT, "--metrics-listen", "127.0.0.1:0", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("agent: metrics on http://127.0.0.1:"), line
    url = line.split()[-1].removesuffix("/metrics")
    eventually(lambda: requests.get(f"{url}/readyz", timeout=5).status_code == 200, 20)
    return process, url


def scrape(url: str) -> list[Sample]:
    return [sample for family in parse(requests.get(f"{url}/metrics", timeout=5).text) for sample in family.samples]


def total(samples: list[Sample], name: str, **labels: str) -> float:
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


def client(namespace: Namespace, script: str, plan: Any) -> subprocess.Popen[str]:
    """A traffic script that waits for its go."""
    process = namespace.start(script)
    assert process.stdin is not None
    process.stdin.write(json.dumps(plan) + "\n")
    process.stdin.flush()
    assert first_line(process) == "ready"
    return process


def test_a_scrape_agrees_with_the_lines(namespace: Namespace) -> None:
    """Counts by signal and status, and each bucket, count and sum of the histograms are those of the events that were written."""
    names = [f"d{delay}.test" for delay in (1, 3, 20, 60, 200)] * 4
    queries = [{"txid": number, "name": name, "qtype": 1} for number, name in enumerate(names, 1)]
    sockets = [{"family": 4, "connected": True, "together": False, "server": "127.0.0.1", "queries": queries}]
    with server(namespace, "dns_server.py"), server(namespace, "tcp_server.py", "7777"):
        asking = client(namespace, "dns_client.py", [sockets, 8.0, 0.0])
        connecting = client(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": 7777}] * 11 + [{"host": "127.0.0.1", "port": 9}] * 7)
        process, url = agent("--signal-set", "network", "--pid", str(asking.pid), "--pid", str(connecting.pid))
        finish(asking, "go")
        finish(connecting, "go")
        eventually(lambda: total(scrape(url), "llm_ebpf_probe_events_total") >= 20 + 11 + 7)
        eventually(lambda: total(scrape(url), "llm_ebpf_dns_latency_ms_count") >= 20, 20)  # what the kernel counts is told every 5 s
        samples = scrape(url)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    lines = [json.loads(line) for line in output.splitlines()]
    events = [line for line in lines if "signal" in line]
    assert {event["pid"] for event in events} == {asking.pid, connecting.pid}
    counts = Counter((event["signal"], event["status"]) for event in events)
    scraped = {
        (sample.labels["signal"], sample.labels["status"]): sample.value
        for sample in samples
        if sample.name == "llm_ebpf_probe_events_total" and sample.value
    }
    assert scraped == counts
    assert sum(count for (name, _), count in counts.items() if name == "dns_latency_ms") == 20
    assert counts["connect_errors_total", "error"] == 7
    for name in ("dns_latency_ms", "connect_latency_ms"):
        values = [event["value"] for event in events if event["signal"] == name]
        assert total(samples, f"llm_ebpf_{name}_count") == len(values)
        assert abs(total(samples, f"llm_ebpf_{name}_sum") - sum(values)) < 1e-6
        for border in ("0.064", "2.048", "32.768", "131.072", "+Inf"):
            assert total(samples, f"llm_ebpf_{name}_bucket", le=border) == sum(value <= float(border) for value in values)
    owners = {(event["namespace"], event["pod"], event["container"]) for event in events}
    assert {tuple(s.labels[key] for key in ("namespace", "pod", "container")) for s in samples if s.name.endswith("_ms_count")} == owners
    assert total(samples, "llm_slo_agent_up") == 1 and total(samples, "llm_slo_agent_capability_mode", mode="core_full") == 1
    assert total(samples, "llm_slo_agent_signal_enabled") == 6


def test_an_idle_agent_is_alive(kernel: None) -> None:
    """Without any event the heartbeat goes on, /healthz is 200, and metrics are served until the end."""
    process, url = agent("--signals", "tcp_retransmits_total", "--pid", "4194304")
    first = total(scrape(url), "llm_slo_agent_heartbeat")
    time.sleep(0.3)
    samples = scrape(url)
    assert total(samples, "llm_slo_agent_heartbeat") > first
    assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
    assert [sample.value for sample in samples if sample.name == "llm_ebpf_probe_events_total"] == [0, 0, 0]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_the_end_does_not_wait_for_an_endpoint_that_hangs(namespace: Namespace) -> None:
    """On SIGTERM, with events queued for an endpoint that never answers, the agent ends in time and accounts for each of them."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connecting = client(namespace, "tcp_client.py", [{"host": "127.0.0.1", "port": 9}] * 23)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process, url = agent("--signals", "connect_errors_total", "--pid", str(connecting.pid), "--otlp-endpoint", endpoint)
        finish(connecting, "go")
        eventually(lambda: total(scrape(url), "llm_ebpf_probe_events_total") == 23)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
        assert time.monotonic() - began < 9
    assert process.returncode == 0
    lines = [json.loads(line) for line in output.splitlines()]
    assert all(contract("agent-report").is_valid(line) for line in lines if "signal" not in line)
    logs, metrics = lines[-1]["exports"]
    assert lines[-1]["final"] is True and sum("signal" in line for line in lines) == 23
    assert logs["target"] == "otlp_logs" and logs["sent"] == 0 and sum(logs["given_up"].values()) == 23
    assert metrics["target"] == "otlp_metrics" and metrics["sent"] == 0
    assert "otlp logs: 0 delivered, 0 rejected, 23 given up, 0 refused" in errors
