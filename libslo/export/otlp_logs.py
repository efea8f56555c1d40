"""Deliver records as OTLP log records over HTTP, from a bounded queue, with an honest account.

Retried are 429, 502, 503, 504 and broken connections (Retry-After honoured, at most `attempts` times); a partial success
is never sent again: what it rejects is counted. What could not be delivered is counted as given up.
Source of the rules: the OTLP specification, sections "OTLP/HTTP Response" and "Failures".
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libslo import __version__
from libslo.errors import InputError
from libslo.otlp import gzip_body
from libslo.slo import parse_timestamps
from libslo.spans import otlp_value

__all__ = ["DeliveryStats", "OtlpLogExporter", "log_record", "logs_request", "logs_url"]

_RETRY = {429, 502, 503, 504}
_SEVERITY = {"ok": (9, "INFO"), "warning": (13, "WARN"), "breach": (17, "ERROR"), "error": (17, "ERROR")}


@dataclass
class DeliveryStats:
    """Log records by what became of them; refused is what did not even fit into the queue."""

    delivered: int = 0
    rejected: int = 0
    given_up: int = 0
    refused: int = 0
    last_error: str = ""

    def __str__(self) -> str:
        counts = f"{self.delivered} delivered, {self.rejected} rejected, {self.given_up} given up, {self.refused} refused (queue full)"
        return f"{counts}; last error: {self.last_error}" if self.last_error else counts


def logs_url(endpoint: str) -> str:
    """The logs URL of a base endpoint such as http://host:4318 (a full URL stays as it is)."""
    if not endpoint.startswith(("http://", "https://")):
        raise InputError(f"{endpoint!r} is not an HTTP URL", hint="for example http://127.0.0.1:4318")
    return endpoint if endpoint.rstrip("/").endswith("/v1/logs") else endpoint.rstrip("/") + "/v1/logs"


def log_record(kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """One slo-event, probe-event or incident as an OTLP log record in JSON form."""
    ts = value["ts_unix_nano"] if "ts_unix_nano" in value else int(parse_timestamps([value["timestamp"]])[0])
    number, text = _SEVERITY.get(str(value.get("status", "")), (17, "ERROR") if kind == "incident-attribution" else (9, "INFO"))
    flat = {
        key: item
        for key, item in value.items()
        if isinstance(item, str | int | float | bool) and key not in ("ts_unix_nano", "trace_id", "span_id")
    }
    record: dict[str, Any] = {
        "timeUnixNano": str(ts),
        "severityNumber": number,
        "severityText": text,
        "eventName": f"llm_slo.{kind}",
        "body": {"stringValue": _dumps(value).decode()},
        "attributes": [{"key": key, "value": otlp_value(item)} for key, item in flat.items()],
    }
    if value.get("trace_id"):
        record["traceId"] = value["trace_id"]
    if value.get("span_id"):
        record["spanId"] = value["span_id"]
    return record


def logs_request(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An ExportLogsServiceRequest in JSON form."""
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "llm-slo-toolkit"}}]}
    return {
        "resourceLogs": [
            {
                "resource": resource,
                "scopeLogs": [{"scope": {"name": "llm-slo-ebpf-toolkit", "version": __version__}, "logRecords": list(records)}],
            }
        ]
    }


def _dumps(value: Any) -> bytes:
    import orjson

    return orjson.dumps(value)


class OtlpLogExporter:
    """Sends records from a thread of its own, so that a slow endpoint never holds up the pipe."""

    def __init__(
        self,
        endpoint: str,
        *,
        capacity: int = 20_000,
        batch: int = 500,
        attempts: int = 5,
        timeout_s: float = 10.0,
        first_wait_s: float = 0.5,
    ) -> None:
        self.stats = DeliveryStats()
        self._url = logs_url(endpoint)
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(capacity)
        self._batch, self._attempts, self._timeout_s, self._first_wait_s = batch, attempts, timeout_s, first_wait_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="otlp-logs")
        self._thread.start()

    def submit(self, kind: str, value: Mapping[str, Any]) -> None:
        """Queue one record; counted as refused when the queue is full."""
        try:
            self._queue.put_nowait(log_record(kind, value))
        except queue.Full:
            self.stats.refused += 1

    def close(self, grace_s: float = 10.0) -> DeliveryStats:
        """Send what is queued (for at most `grace_s`), count the rest as given up, and return the account."""
        deadline = time.monotonic() + grace_s
        try:
            self._queue.put(None, timeout=grace_s)
        except queue.Full:
            pass
        self._thread.join(timeout=max(deadline - time.monotonic(), 0.1))
        self._stop.set()
        self._thread.join(timeout=self._timeout_s + 1)
        while True:
            try:
                self.stats.given_up += self._queue.get_nowait() is not None
            except queue.Empty:
                return self.stats

    def _run(self) -> None:
        import requests

        session = requests.Session()
        while not self._stop.is_set():
            batch: list[dict[str, Any]] = []
            ended = False
            item = self._queue.get()
            while True:
                ended = item is None
                if item is not None:
                    batch.append(item)
                if ended or len(batch) >= self._batch:
                    break
                try:
                    item = self._queue.get(timeout=0.2)
                except queue.Empty:
                    break
            if batch:
                self._send(session, batch)
            if ended:
                return

    def _send(self, session: Any, batch: list[dict[str, Any]]) -> None:
        import random

        import requests

        body = gzip_body(_dumps(logs_request(batch)))
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        wait_s = self._first_wait_s
        for attempt in range(1, self._attempts + 1):
            retry_after = ""
            try:
                answer = session.post(self._url, data=body, headers=headers, timeout=self._timeout_s, allow_redirects=False)
                if answer.status_code < 300:
                    rejected = min(max(_rejected(answer.content), 0), len(batch))
                    self.stats.rejected += rejected
                    self.stats.delivered += len(batch) - rejected
                    return
                self.stats.last_error = f"HTTP {answer.status_code}"
                if answer.status_code not in _RETRY:
                    break
                retry_after = answer.headers.get("Retry-After", "")
            except requests.RequestException as error:
                self.stats.last_error = type(error).__name__
            if attempt == self._attempts:
                break
            pause = float(retry_after) if retry_after.isdigit() else wait_s * random.uniform(0.5, 1.5)
            wait_s *= 2
            if self._stop.wait(min(pause, 60.0)):
                break
        self.stats.given_up += len(batch)


def _rejected(body: bytes) -> int:
    """The rejectedLogRecords of an answer's partialSuccess; 0 when it says nothing of the kind."""
    import orjson

    try:
        return int((orjson.loads(body or b"{}").get("partialSuccess") or {}).get("rejectedLogRecords") or 0)
    except (ValueError, AttributeError, TypeError):
        return 0
