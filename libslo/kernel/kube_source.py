"""Where pod names come from: the node's kubelet, or the API server; asked from a thread of its own, so that no event waits.

No source ever raises once it runs: what goes wrong is counted by kind, the last error is kept, and it tries again.
"""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from libslo.errors import InputError
from libslo.kernel.kube import PodIdentity, PodRecord, parse_pod, parse_pod_list
from libslo.kernel.kube_cache import PodCache, Wishes
from libslo.kernel.kube_http import KubeError, KubeHttp, Place
from libslo.kernel.privileges import drop_capabilities

__all__ = ["ApiSource", "KubeletSource", "PodSource", "SourceStatus"]

_MAX_PAGES = 100
_PAGE_PODS = "100"


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How a source fares. last_success_unix_ns: 0 for never. errors: by kind. pods: remembered now. bad_pods: items that were none."""

    source: str
    url: str
    last_success_unix_ns: int
    errors: Mapping[str, int]
    last_error: str
    pods: int
    bad_pods: int

    def as_dict(self) -> dict[str, Any]:
        """As it stands in an agent report."""
        return {
            "source": self.source, "url": self.url, "last_success_unix_nano": self.last_success_unix_ns,
            "errors": dict(self.errors), "last_error": self.last_error, "pods": self.pods, "bad_pods": self.bad_pods,
        }  # fmt: skip


class PodSource(Protocol):
    """What can name a container. None of its methods blocks."""

    def lookup(self, pod_uid: str, container_id: str) -> PodIdentity | None:
        """The pod of a container, or of a pod uid alone; None when it is not known, or not yet."""

    def status(self) -> SourceStatus:
        """How it fares."""

    def close(self) -> None:
        """Stop asking."""


class _Source(ABC):
    """The thread, the cache and the account that both sources share."""

    kind = ""
    _gap_s = 1.0  # at most one question in this time, whatever shows up

    def __init__(self, http: KubeHttp, cache: PodCache, *, max_backoff_s: float) -> None:
        self._http = http
        self._cache = cache
        self._max_backoff_s = max_backoff_s
        self._errors: Counter[str] = Counter()
        self._last_error = ""
        self._last_success_ns = 0
        self._bad_pods = 0
        self._failures = 0  # in a row
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pods-{self.kind}", daemon=True)
        self._thread.start()

    def lookup(self, pod_uid: str, container_id: str) -> PodIdentity | None:
        """The pod of a container, or of a pod uid alone; None when it is not known, or not yet."""
        return self._cache.lookup(pod_uid, container_id)

    def status(self) -> SourceStatus:
        """How it fares."""
        return SourceStatus(
            self.kind, self._http.place.url, self._last_success_ns, dict(self._errors), self._last_error, len(self._cache), self._bad_pods
        )

    def close(self) -> None:
        """Stop asking; what is being read is given up."""
        self._stop.set()
        self._wake.set()
        self._http.close()
        self._thread.join(2.0)

    def wait_first(self, timeout_s: float) -> bool:
        """Wait until the first question was answered or failed; False when the time was over before."""
        return self._tried.wait(timeout_s)

    def _run(self) -> None:
        with suppress(OSError):
            drop_capabilities()  # of this thread: what talks to the network needs none
        while not self._stop.is_set():
            try:
                self._ask()
                wait_s = self._pause_s()
            except Exception as error:  # a thread that dies would take the names with it, silently
                if self._stop.is_set():
                    return
                self._failed(error.kind if isinstance(error, KubeError) else "internal", str(error))
                wait_s = self._backoff_s()
            self._tried.set()
            self._sleep(wait_s)

    @abstractmethod
    def _ask(self) -> None:
        """Ask once, and take the answer into the cache; raises KubeError."""

    def _pause_s(self) -> float:
        return self._gap_s

    def _sleep(self, wait_s: float) -> None:
        self._stop.wait(wait_s)

    def _backoff_s(self) -> float:
        """From half a second, doubled with every failure in a row, with jitter: nodes that failed together must not return together."""
        return float(min(self._max_backoff_s, 0.5 * 2 ** min(self._failures, 16)) * random.uniform(0.5, 1.0))

    def _failed(self, kind: str, message: str) -> None:
        self._errors[kind] += 1
        self._last_error = message
        self._failures += 1

    def _succeeded(self) -> None:
        self._last_success_ns = time.time_ns()
        self._failures = 0

    def _pods(self, value: object, path: str) -> list[PodRecord]:
        try:
            pods, bad = parse_pod_list(value)
        except InputError as error:
            raise KubeError("shape", f"{path}: {error}") from error
        self._bad_pods += bad
        return pods


class KubeletSource(_Source):
    """The kubelet's own list of the pods of its node, asked every interval_s, and soon when an unknown container shows up."""

    kind = "kubelet"

    def __init__(
        self, place: Place, *, interval_s: float = 30.0, gap_s: float = 1.0, answer_s: float = 10.0, grace_s: float = 300.0,
        max_pods: int = 4096, max_backoff_s: float = 60.0, max_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self._interval_s = interval_s
        self._gap_s = gap_s
        self._took_s = 0.0  # by the last question
        self._wishes = Wishes(first_gap_s=gap_s)
        cache = PodCache(clock_s=time.monotonic, grace_s=grace_s, max_pods=max_pods)
        super().__init__(_http(place, answer_s, max_bytes), cache, max_backoff_s=max_backoff_s)

    def lookup(self, pod_uid: str, container_id: str) -> PodIdentity | None:
        """The pod of a container, or of a pod uid alone; an unknown one is asked for soon."""
        found = self._cache.lookup(pod_uid, container_id)
        if (found is None or not found.container) and self._wishes.add(pod_uid, container_id, time.monotonic()):
            self._wake.set()
        return found

    def _ask(self) -> None:
        asked_s = time.monotonic()  # what shows up while the answer is on its way may not be in it
        self._cache.put(self._pods(self._http.get_json("/pods"), "/pods"), all_there_are=True)
        self._succeeded()
        self._wishes.asked(asked_s, self._knows)
        self._took_s = time.monotonic() - asked_s

    def _knows(self, pod_uid: str, container_id: str) -> bool:
        found = self._cache.lookup(pod_uid, container_id)
        return found is not None and bool(found.container)

    def _pause_s(self) -> float:
        return self._interval_s * random.uniform(0.8, 1.2)

    def _sleep(self, wait_s: float) -> None:
        """Until the next turn, or an earlier wish; after failures nobody's wish makes it shorter.

        Wishes may use a twentieth of the time: 250 pods with 4.9 MB cost 52 ms of a processor.
        """
        begun_s = time.monotonic()
        end_s = begun_s + wait_s
        next_s = begun_s + max(self._gap_s, 20 * self._took_s)
        while not self._stop.is_set():
            self._wake.clear()
            wish_s = self._wishes.next_s() if self._failures == 0 else None
            until_s = end_s if wish_s is None else min(end_s, max(wish_s, next_s))
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            self._wake.wait(left_s)


class ApiSource(_Source):
    """The API server: a list of one node's pods, then a watch from there on. watch_s: how long one watch is asked to last."""

    kind = "api"

    def __init__(
        self, place: Place, node: str, *, watch_s: float = 90.0, gap_s: float = 1.0, answer_s: float = 10.0, grace_s: float = 300.0,
        max_pods: int = 4096, max_backoff_s: float = 60.0, max_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self._scope = {"fieldSelector": f"spec.nodeName={node}"}
        self._watch_s = watch_s
        self._answer_s = answer_s
        self._gap_s = gap_s
        self._version = ""  # resourceVersion to go on from; "" makes a new list
        cache = PodCache(clock_s=time.monotonic, grace_s=grace_s, max_pods=max_pods)
        super().__init__(_http(place, answer_s, max_bytes), cache, max_backoff_s=max_backoff_s)

    def _ask(self) -> None:
        try:
            if not self._version:
                self._version = self._list()
                self._last_success_ns = time.time_ns()  # the failures in a row end with a watch that works: see _backoff_s
                self._tried.set()
            self._watch()
            self._succeeded()
        except KubeError as error:
            if error.kind in ("gone", "malformed", "shape", "too_large"):
                self._version = ""  # too old, or a change was lost: only a new list can tell
            raise

    def _list(self) -> str:
        pods: list[PodRecord] = []
        params = {**self._scope, "limit": _PAGE_PODS}
        for _ in range(_MAX_PAGES):
            page = self._http.get_json("/api/v1/pods", params)
            pods += self._pods(page, "/api/v1/pods")
            metadata = page.get("metadata") if isinstance(page.get("metadata"), dict) else {}
            if not metadata.get("continue"):
                self._cache.put(pods, all_there_are=True)
                return str(metadata.get("resourceVersion") or "0")
            params["continue"] = str(metadata["continue"])
        raise KubeError("too_large", f"/api/v1/pods: more than {_MAX_PAGES} pages")

    def _watch(self) -> None:
        seconds = max(1, round(self._watch_s * random.uniform(0.8, 1.2)))
        params = {
            **self._scope, "watch": "1", "resourceVersion": self._version, "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds),
        }  # fmt: skip
        for event in self._http.lines("/api/v1/pods", params, seconds + self._answer_s):
            self._take(event)
            self._succeeded()

    def _take(self, event: object) -> None:
        kind = event.get("type") if isinstance(event, dict) else None
        value = event.get("object") if isinstance(event, dict) else None
        if not isinstance(value, dict) or kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"):
            raise KubeError("shape", "/api/v1/pods: not a watch event")
        if kind == "ERROR":
            raise KubeError("gone" if value.get("code") == 410 else "http", f"watch: {value.get('code')} {value.get('message', '')}"[:200])
        metadata = value.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        if isinstance(version, str) and version:
            self._version = version
        if kind == "BOOKMARK":
            return
        try:
            record = parse_pod(value)
        except InputError:
            self._bad_pods += 1
            return
        if kind == "DELETED":
            self._cache.delete(record)
        else:
            self._cache.put([record])


def _http(place: Place, answer_s: float, max_bytes: int | None) -> KubeHttp:
    return KubeHttp(place, answer_s=answer_s) if max_bytes is None else KubeHttp(place, answer_s=answer_s, max_bytes=max_bytes)
