"""The retrieval step of the RAG service: embed the prompt, search the vectors; what each part of it took."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.trace import Status, StatusCode

from libslo.lab.upstream import CallPhases, Upstream, UpstreamError

__all__ = ["RetrievalClient", "RetrievalTimes"]


@dataclass(frozen=True)
class RetrievalTimes:
    """What could be measured of one retrieval, in ms; None where nothing was.

    dns, network: of both calls together (look-ups; connecting). vectordb: the search on its open connection, one round trip included.
    """

    dns_ms: float | None
    network_ms: float | None
    vectordb_ms: float | None

    def attributes(self) -> dict[str, float]:
        """The measured ones under their span attribute names."""
        values = {"dns": self.dns_ms, "network": self.network_ms, "vectordb": self.vectordb_ms}
        return {f"llm.slo.retrieval.{name}_ms": value for name, value in values.items() if value is not None}


class RetrievalClient:
    """Calls `embeddings_url` and `vectordb_url` (without a path)."""

    def __init__(self, upstream: Upstream, embeddings_url: str, vectordb_url: str) -> None:
        self._upstream = upstream
        self._embed_url = embeddings_url.rstrip("/") + "/embed"
        self._search_url = vectordb_url.rstrip("/") + "/search"

    async def retrieve(self, prompt: str, count: int, times: list[RetrievalTimes]) -> list[int]:
        """Ids of the documents closest to the prompt, at most `count`; appends to `times`, also when it fails. Raises UpstreamError."""
        embedding, search = CallPhases(), CallPhases()
        with self._upstream.tracer.start_as_current_span("chat.retrieval", record_exception=False, set_status_on_exception=False) as span:
            try:
                embedded = await self._upstream.call("retrieval.embedding", self._embed_url, {"text": prompt}, embedding)
                ask = {"vector": embedded["vector"], "k": count}
                found = await self._upstream.call("retrieval.vector_search", self._search_url, ask, search)
                ids = [int(each) for each in found["ids"]]
                span.set_attribute("llm.retrieval.documents", len(ids))
                return ids
            except UpstreamError as error:
                span.set_status(Status(StatusCode.ERROR, error.kind))
                raise
            except (KeyError, TypeError, ValueError) as error:
                span.set_status(Status(StatusCode.ERROR, "malformed_answer"))
                raise UpstreamError("malformed_answer") from error
            finally:
                both = RetrievalTimes(
                    _sum(embedding.dns_ms, search.dns_ms), _sum(embedding.network_ms, search.network_ms), search.exchange_ms
                )
                span.set_attributes(both.attributes())
                times.append(both)


def _sum(*parts_ms: float | None) -> float | None:
    known = [part for part in parts_ms if part is not None]
    return sum(known) if known else None
