"""What the RAG service counts for Prometheus; names, labels and bounds are contracts/vocabulary/metrics.json."""

from __future__ import annotations

from typing import Any

from libslo.errors import CannotError
from libslo.lab.rag_retrieval import RetrievalTimes
from libslo.signals import vocabulary

__all__ = ["BROKEN", "CLIENT_GONE", "ServiceMetrics"]

CLIENT_GONE = "499"  # nginx's status for a client that closed the connection
BROKEN = "broken"  # 200 was said before the answer broke off


class ServiceMetrics:
    """Counters and histograms in a registry of their own. Raises CannotError without prometheus-client."""

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram
        except ImportError as error:
            raise CannotError("prometheus-client is not installed", hint="pip install 'llm-slo-ebpf-toolkit[lab]'") from error
        table = vocabulary("metrics")
        bounds = {"ms": table["bucket_bounds_ms"], "{token}/s": table["rate_bounds_tokens_per_sec"]}
        self._registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for about in table["service"]:
            name, text, labels = about["name"], about["help"], about["labels"]
            if about["kind"] == "counter":
                self._metrics[name] = Counter(name, text, labels, registry=self._registry)
            else:
                self._metrics[name] = Histogram(name, text, labels, registry=self._registry, buckets=bounds[about["unit"]])

    def request(self, status: str, profile: str, ttft_ms: float | None, tokens_per_sec: float | None) -> None:
        """One finished request; None where it had no first, or no second token."""
        self._metrics["llm_slo_requests_total"].labels(status, profile).inc()
        self._observe("llm_slo_ttft_ms", ttft_ms)
        self._observe("llm_slo_tokens_per_sec", tokens_per_sec)

    def retrieval(self, times: RetrievalTimes) -> None:
        """One retrieval: what of it was measured."""
        self._observe("llm_slo_retrieval_vectordb_ms", times.vectordb_ms)
        self._observe("llm_slo_retrieval_network_ms", times.network_ms)
        self._observe("llm_slo_retrieval_dns_ms", times.dns_ms)

    def exposition(self, accept: str) -> tuple[str, bytes]:
        """Content type and text of /metrics for an Accept header."""
        from prometheus_client.exposition import choose_encoder

        encode, kind = choose_encoder(accept)
        return kind, encode(self._registry)

    def _observe(self, name: str, value: float | None) -> None:
        if value is not None:
            self._metrics[name].observe(value)
