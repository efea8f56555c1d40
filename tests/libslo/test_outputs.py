"""All outputs of an agent together: what goes in comes out, concurrently, bounded, and the end is on time."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import requests
from builders import T0, agent_report, probe
from loopback import OK, servers
from prometheus_client.parser import text_string_to_metric_families as parse

from libslo.contracts import contract
from libslo.errors import CannotError, InputError
from libslo.export import outputs as outputs_module
from libslo.export.agent_state import HistogramSeries, snapshot_from_report
from libslo.export.outputs import Outputs, OutputSettings

LISTEN = OutputSettings(metrics_listen="127.0.0.1:0")


def opened(settings: OutputSettings) -> tuple[Outputs, list[str]]:
    notes: list[str] = []
    return Outputs(settings, notes.append), notes


def publish_batch(sinks: Outputs, events: list[dict[str, Any]], reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One turn of an agent without histograms."""
    return sinks.publish_batch(events, reports, snapshot_from_report(reports[-1], T0) if reports else None)


def url_of(notes: list[str]) -> str:
    return notes[0].removeprefix("metrics on ")


def scrape(url: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in parse(requests.get(url, timeout=10).text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def status(url: str, path: str) -> tuple[int, str]:
    answer = requests.get(url.replace("/metrics", path), timeout=5)
    return answer.status_code, answer.text.strip()


def test_what_was_published_is_scraped_and_sent() -> None:
    """Events appear in /metrics, as OTLP logs and in OTLP metrics, and the reports carry what each target got."""
    with servers() as make:
        server = make(OK)
        sinks, notes = opened(OutputSettings(otlp_endpoint=server.url, metrics_listen="127.0.0.1:0"))
        with sinks:
            assert publish_batch(sinks, [], [agent_report()])[0]["exports"] == [
                {"target": "otlp_logs", "sent": 0, "given_up": {}},
                {"target": "otlp_metrics", "sent": 0, "given_up": {}},
            ]
            publish_batch(sinks, [probe(T0 + i, value=i, status="ok" if i < 60 else "warning") for i in range(90)], [])
            found = scrape(url_of(notes))
            (report,) = publish_batch(sinks, [probe(T0)], [agent_report(final=True)])
        assert contract("agent-report").is_valid(report)
        assert report["exports"][0] == {"target": "otlp_logs", "sent": 91, "given_up": {}}
        assert report["exports"][1]["sent"] == 2 and report["exports"][1]["given_up"] == {}
        events = {(labels["signal"], labels["status"]): value for labels, value in found["llm_ebpf_probe_events_total"]}
        assert events["dns_latency_ms", "ok"] == 60 and events["dns_latency_ms", "warning"] == 30
        assert found["llm_ebpf_dns_latency_ms_count"] == [({"namespace": "llm", "pod": "rag-0", "container": "rag", "service": ""}, 90.0)]
        paths = [got.path for got in server.got]
        assert set(paths) == {"/v1/logs", "/v1/metrics"}
        last = [got.value for got in server.got if got.path == "/v1/metrics"][-1]
        metrics = {metric["name"]: metric for metric in last["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
        assert metrics["llm_ebpf_dns_latency_ms"]["histogram"]["dataPoints"][0]["count"] == "91"
    assert len(notes) == 1


def test_without_targets_nothing_happens() -> None:
    """No thread, no count, and reports as they were."""
    before = threading.active_count()
    sinks, notes = opened(OutputSettings())
    with sinks:
        report = agent_report(final=True)
        assert publish_batch(sinks, [probe(T0)], [report]) == [report]
        assert threading.active_count() == before
        assert sinks.current().signals == {}
    assert notes == []


def test_a_dead_endpoint_is_said_in_the_final_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events for an endpoint that is down are given up by reason, within the time that closing may take, and a person is told."""
    monkeypatch.setattr(outputs_module, "CLOSE_S", 1.0)
    sinks, notes = opened(OutputSettings(otlp_endpoint="http://127.0.0.1:9"))
    with sinks:
        publish_batch(sinks, [probe(T0)] * 5, [agent_report()])
        began = time.monotonic()
        (report,) = publish_batch(sinks, [], [agent_report(final=True)])
        assert time.monotonic() - began < 2
    logs = report["exports"][0]
    assert logs["sent"] == 0 and sum(logs["given_up"].values()) == 5 and set(logs["given_up"]) <= {"connection", "closed"}
    assert notes[0].startswith("otlp logs: 0 delivered, 0 rejected, 5 given up") and "127.0.0.1" not in notes[0]


def test_both_targets_share_the_time_to_close() -> None:
    """Logs and metrics that both hang cost the deadline once."""
    with servers() as make:
        sinks, _ = opened(OutputSettings(otlp_endpoint=make(30.0).url))
        with sinks:
            publish_batch(sinks, [probe(T0)], [agent_report()])
            began = time.monotonic()
            sinks.close(0.5)
            assert time.monotonic() - began < 1.2
        assert [entry["given_up"] for entry in sinks.exports()] == [{"closed": 1}, {"closed": 2}]


def test_what_targets_lost_is_a_dropped_event_of_its_signal() -> None:
    """Events that an endpoint refuses are in llm_slo_agent_dropped_events_total; lost snapshots of metrics are not."""
    with servers() as make:
        sinks, notes = opened(OutputSettings(otlp_endpoint=make((400, {}, b"")).url, metrics_listen="127.0.0.1:0"))
        with sinks:
            publish_batch(sinks, [probe(T0)] * 5 + [probe(T0, "connect_latency_ms")] * 2, [agent_report()])
            for _ in range(100):
                drops = {
                    (labels["signal"], labels["reason"]): n for labels, n in scrape(url_of(notes))["llm_slo_agent_dropped_events_total"]
                }
                if ("dns_latency_ms", "export_rejected") in drops:
                    break
                time.sleep(0.05)
            assert drops["dns_latency_ms", "export_rejected"] == 5 and drops["connect_latency_ms", "export_rejected"] == 2
            assert not any(signal == "unknown" for signal, _ in drops)


def test_metrics_are_sent_at_their_interval_while_the_loop_turns() -> None:
    """Turns of the loop send the state every --otlp-interval, events or not, and not before there is a state."""
    with servers() as make:
        server = make(OK)
        sinks, _ = opened(OutputSettings(otlp_endpoint=server.url, otlp_interval_s=0.2))
        with sinks:
            for turn in range(40):
                if turn == 5:
                    sinks.publish([], snapshot_from_report(agent_report(), T0))
                sinks.beat()
                time.sleep(0.02)
            assert turn == 39
        assert 3 <= len(server.got) <= 6  # within 0.7 s, and the last one


def test_health_follows_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready after the first report; neither alive nor up when the loop stands still; not ready when nothing is attached."""
    monkeypatch.setattr(outputs_module, "_STALLED_NS", 300_000_000)
    sinks, notes = opened(LISTEN)
    with sinks:
        url = url_of(notes)
        sinks.beat()
        assert status(url, "/healthz") == (200, "ok")
        assert status(url, "/readyz") == (503, "nothing is attached yet")
        assert scrape(url)["llm_slo_agent_up"] == [({}, 0.0)]
        publish_batch(sinks, [], [agent_report(attached=False)])
        assert status(url, "/readyz") == (503, "no signal is attached")
        publish_batch(sinks, [], [agent_report()])
        assert status(url, "/readyz") == (200, "ok")
        found = scrape(url)
        assert found["llm_slo_agent_up"] == [({}, 1.0)] and abs(found["llm_slo_agent_heartbeat"][0][1] - time.time()) < 5
        time.sleep(0.4)
        assert status(url, "/healthz") == (503, "the capture loop has not turned for 0.3 s")
        assert status(url, "/readyz")[0] == 503
        assert scrape(url)["llm_slo_agent_up"] == [({}, 0.0)]
        sinks.beat()
        assert status(url, "/healthz") == (200, "ok")


def test_scrapes_during_updates_are_whole() -> None:
    """Four scrapers while events come: counts never go back, buckets agree with their count, and the last scrape has everything."""
    sinks, notes = opened(LISTEN)
    errors: list[str] = []
    stop = threading.Event()

    def watch(url: str) -> None:
        last = 0.0
        while not stop.is_set():
            try:
                found = scrape(url)
            except requests.ConnectionError:
                continue
            total = sum(value for _, value in found.get("llm_ebpf_probe_events_total", []))
            waits = sum(value for _, value in found.get("llm_ebpf_dns_latency_ms_count", []))
            if total < last or total != waits:
                errors.append(f"{last} -> {total}, {waits} waits")
            last = total

    with sinks:
        publish_batch(sinks, [], [agent_report()])
        threads = [threading.Thread(target=watch, args=(url_of(notes),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(300):
            publish_batch(sinks, [probe(T0, value=i, pod=f"p{(turn + i) % 7}") for i in range(50)], [])
            time.sleep(0.002)
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert sum(value for _, value in scrape(url_of(notes))["llm_ebpf_dns_latency_ms_count"]) == 15_000


def test_series_are_bounded_in_the_text() -> None:
    """--metrics-max-series histograms a signal and one for all others, and no wait is lost."""
    sinks, notes = opened(OutputSettings(metrics_listen="127.0.0.1:0", metrics_max_series=10))
    with sinks:
        publish_batch(sinks, [probe(T0, pod=f"p{i}") for i in range(1000)], [agent_report()])
        series = scrape(url_of(notes))["llm_ebpf_dns_latency_ms_count"]
        assert len(series) == 11 and sum(value for _, value in series) == 1000
        assert ({"namespace": "other", "pod": "other", "container": "other", "service": "other"}, 990.0) in series


def test_histograms_of_the_kernel_win_over_those_of_events() -> None:
    """Where the kernel counted all waits, the events (some of them filtered out) are not counted beside them."""
    fine = tuple(0.001 * 2**power for power in range(27))
    labels = {"namespace": "llm", "pod": "rag-0", "container": "rag", "service": ""}
    snapshot = snapshot_from_report(agent_report(), T0)
    dns = replace(snapshot.signals["dns_latency_ms"], histograms=[HistogramSeries(labels, fine, np.full(27, 2, np.uint64), 99.0)] * 2)
    snapshot = replace(snapshot, signals={**snapshot.signals, "dns_latency_ms": dns})
    sinks, notes = opened(LISTEN)
    with sinks:
        sinks.publish([probe(T0)] * 3 + [probe(T0, "connect_latency_ms")] * 4, snapshot)
        found = scrape(url_of(notes))
        assert found["llm_ebpf_dns_latency_ms_count"] == [(labels, 108.0)]
        assert found["llm_ebpf_dns_latency_ms_sum"] == [(labels, 198.0)]
        assert found["llm_ebpf_connect_latency_ms_count"] == [(labels, 4.0)]


def test_a_start_that_fails_leaves_nothing_behind() -> None:
    """When the port is taken or the URL is none, entering fails and no thread of ours stays."""
    first, notes = opened(LISTEN)
    with first:
        before = threading.active_count()
        address = url_of(notes).removeprefix("http://").removesuffix("/metrics")
        second, _ = opened(OutputSettings(metrics_listen=address, otlp_endpoint="http://127.0.0.1:9"))
        with pytest.raises(CannotError, match="--metrics-listen"), second:
            pass
        assert threading.active_count() == before
    before = threading.active_count()
    third, _ = opened(replace(LISTEN, otlp_endpoint="no url"))
    with pytest.raises(InputError), third:
        pass
    assert threading.active_count() == before


def test_publish_never_waits() -> None:
    """A hundred batches of 500 events with an endpoint that hangs and a scraper take the loop far less than a request may take."""
    with servers() as make:
        sinks, _ = opened(OutputSettings(otlp_endpoint=make(30.0).url, metrics_listen="127.0.0.1:0"))
        with sinks:
            batch: list[Any] = [probe(T0)] * 500
            publish_batch(sinks, batch, [agent_report()])
            began = time.monotonic()
            for _ in range(100):
                sinks.publish(batch)
            assert time.monotonic() - began < 2
            sinks.close(0.1)
        logs = sinks.exports()[0]
        assert logs["sent"] == 0 and sum(logs["given_up"].values()) == 50_500
