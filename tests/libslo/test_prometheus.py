"""/metrics, /healthz and /readyz of a real server, the text read back by prometheus_client's own parser."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import requests
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from test_agent_metrics import SERIES, snapshot

from libslo.errors import CannotError, InputError
from libslo.export.prometheus import MetricsServer


@contextmanager
def server(current: Any = snapshot, alive: str = "", ready: str = "", address: str = "127.0.0.1:0") -> Iterator[MetricsServer]:
    made = MetricsServer(address, current, lambda: alive, lambda: ready)
    try:
        yield made
    finally:
        made.close()


def base(made: MetricsServer) -> str:
    return made.url.removesuffix("/metrics")


def scrape(made: MetricsServer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = requests.get(made.url, timeout=5).text
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in parse(text) for sample in family.samples}


def test_the_text_says_what_the_snapshot_says() -> None:
    """Gauges, counters with _total, and cumulative buckets up to +Inf with count and sum, under the agreed names."""
    with server(lambda: snapshot(cpu_overhead_pct=0.5)) as made:
        found = scrape(made)
    assert found["llm_slo_agent_up", ()] == 1 and found["llm_slo_agent_cpu_overhead_pct", ()] == 0.5
    assert found["llm_slo_agent_capability_mode", (("mode", "core_full"),)] == 1
    assert found["llm_ebpf_probe_events_total", (("signal", "dns_latency_ms"), ("status", "ok"))] == 80
    assert found["llm_slo_agent_dropped_events_total", (("reason", "dropped"), ("signal", "dns_latency_ms"))] == 5
    owner = tuple(SERIES.labels.items())

    def bucket(border: str) -> float:
        return found["llm_ebpf_dns_latency_ms_bucket", tuple(sorted((*owner, ("le", border))))]

    assert [bucket("0.008"), bucket("0.016"), bucket("1048.576"), bucket("+Inf")] == [0, 1, sum(range(18)), sum(range(22))]
    assert found["llm_ebpf_dns_latency_ms_count", tuple(sorted(owner))] == sum(range(22))
    assert found["llm_ebpf_dns_latency_ms_sum", tuple(sorted(owner))] == 12.5


def test_the_form_is_negotiated() -> None:
    """OpenMetrics for who asks, the plain text for everybody else, packed for who takes gzip."""
    with server() as made:
        plain = requests.get(made.url, timeout=5, headers={"Accept-Encoding": "identity"})
        assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4") and "Content-Encoding" not in plain.headers
        wanted = {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}
        packed = requests.get(made.url, timeout=5, headers=wanted)
        assert packed.headers["Content-Type"].startswith("application/openmetrics-text") and packed.headers["Content-Encoding"] == "gzip"
        assert packed.text.endswith("# EOF\n")
        assert {family.name for family in parse_openmetrics(packed.text)} == {family.name for family in parse(plain.text)}


def test_health_and_readiness_say_why_not() -> None:
    """200 when well; 503 with the reason otherwise; /metrics is served all the same."""
    with server() as made:
        assert [requests.get(f"{base(made)}/{path}", timeout=5).status_code for path in ("healthz", "readyz")] == [200, 200]
    with server(alive="the capture loop has not turned for 10 s", ready="nothing is attached yet") as made:
        sick, early = (requests.get(f"{base(made)}/{path}", timeout=5) for path in ("healthz", "readyz"))
        assert (sick.status_code, sick.text) == (503, "the capture loop has not turned for 10 s\n")
        assert (early.status_code, early.text) == (503, "nothing is attached yet\n")
        assert requests.get(made.url, timeout=5).status_code == 200


def test_other_paths_and_methods() -> None:
    """404 elsewhere, HEAD like GET without the body, no POST, a query does not matter."""
    with server() as made:
        assert requests.get(f"{base(made)}/", timeout=5).status_code == 404
        assert requests.get(f"{base(made)}/metrics/x", timeout=5).status_code == 404
        head = requests.head(made.url, timeout=5, headers={"Accept-Encoding": "identity"})
        assert head.status_code == 200 and int(head.headers["Content-Length"]) > 100
        with socket.create_connection(("127.0.0.1", made.port)) as raw, raw.makefile("rb") as answer:
            raw.sendall(b"HEAD /metrics HTTP/1.0\r\n\r\n")
            assert answer.read().endswith(b"\r\n\r\n")
        assert requests.post(made.url, timeout=5).status_code == 501
        assert requests.get(f"{made.url}?name[]=x", timeout=5).status_code == 200


def test_a_taken_port_names_the_option() -> None:
    """A port that somebody else has is CannotError (exit 3) with the option to change."""
    with server() as made, pytest.raises(CannotError) as caught, server(address=f"127.0.0.1:{made.port}"):
        pass
    assert str(caught.value) == f"--metrics-listen: cannot listen on 127.0.0.1:{made.port}: address already in use"
    assert caught.value.exit_code == 3 and "another port" in str(caught.value.hint)


def test_what_is_no_address_is_bad_input() -> None:
    """Anything but HOST:PORT is refused; a host that does not exist cannot be listened on."""
    with pytest.raises(InputError), server(address="9464"):
        pass
    with pytest.raises(CannotError), server(address="192.0.2.1:0"):
        pass


def test_ipv6() -> None:
    """[::1]:0 listens on IPv6, and the address is printed so that it can be asked."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with server(address="[::1]:0") as made:
        assert made.url.startswith("http://[::1]:")
        assert requests.get(made.url, timeout=5).status_code == 200


def test_names_that_are_not_utf8_do_not_break_the_scrape() -> None:
    """A label with a lone surrogate, a quote or a line break still gives a text that can be read."""
    odd = replace(SERIES, labels={**SERIES.labels, "pod": 'a"\n\\b', "container": "\udcff"})
    state = snapshot()
    dns = replace(state.signals["dns_latency_ms"], histograms=[odd])
    with server(lambda: replace(state, signals={"dns_latency_ms": dns})) as made:
        found = scrape(made)
    assert found["llm_ebpf_dns_latency_ms_count", (("container", "?"), ("namespace", "n"), ("pod", 'a"\n\\b'), ("service", "s"))] == 231


def test_idle_connections_do_not_keep_scrapes_out_for_ever() -> None:
    """More connections than slots are closed; when some end, scrapes work again."""
    with server() as made:
        idle = [socket.create_connection(("127.0.0.1", made.port)) for _ in range(12)]
        for each in idle:
            each.close()
        for _ in range(100):
            try:
                if requests.get(made.url, timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                threading.Event().wait(0.05)
        else:
            pytest.fail("no scrape got through")


def test_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listening asks no name server for the host's name: the agent would see its own query."""
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("looked up"))
    with server() as made:
        assert requests.get(made.url, timeout=5).status_code == 200
