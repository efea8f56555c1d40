"""Pods that are, and for a while pods that were: found by pod uid or container id from any thread, bounded in number."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from libslo.kernel.kube import PodIdentity, PodRecord

__all__ = ["PodCache", "Wishes"]

_MAX_IDS = 64  # container ids remembered of one pod: a container that crashes over and over gets a new one each time


@dataclass(slots=True)
class _Entry:
    record: PodRecord
    gone_s: float | None = None


class PodCache:
    """Pods by uid and by container id. grace_s: how long a deleted pod keeps its name. clock_s: a monotonic clock.

    Over max_pods, deleted ones are forgotten first, then those that were longest without news.
    """

    def __init__(self, *, clock_s: Callable[[], float], grace_s: float = 300.0, max_pods: int = 4096) -> None:
        self._clock_s = clock_s
        self._grace_s = grace_s
        self._max_pods = max_pods
        self._lock = threading.Lock()
        self._pods: OrderedDict[str, _Entry] = OrderedDict()  # by first uid
        self._uids: dict[str, str] = {}  # any uid -> first uid
        self._containers: dict[str, str] = {}  # container id -> first uid

    def __len__(self) -> int:
        """Pods remembered, deleted ones too."""
        return len(self._pods)

    def lookup(self, pod_uid: str, container_id: str) -> PodIdentity | None:
        """The identity of a container, or of its pod while the container is not known; None for an unknown pod."""
        with self._lock:
            uid = self._uids.get(pod_uid) or self._containers.get(container_id)
            entry = self._pods.get(uid) if uid else None
            if entry is None or (entry.gone_s is not None and self._clock_s() - entry.gone_s > self._grace_s):
                return None
            return entry.record.identity(container_id)

    def put(self, records: Iterable[PodRecord], *, all_there_are: bool = False) -> None:
        """Add or renew pods. all_there_are: those that are not among them have been deleted."""
        with self._lock:
            there = {self._put(record) for record in records}
            if all_there_are:
                for uid, entry in self._pods.items():
                    if uid not in there and entry.gone_s is None:
                        entry.gone_s = self._clock_s()
            self._trim()

    def delete(self, record: PodRecord) -> None:
        """A pod was deleted: its last words are kept for the time of grace."""
        with self._lock:
            old = self._pods.get(record.uids[0])
            since_s = old.gone_s if old else None
            self._pods[self._put(record)].gone_s = self._clock_s() if since_s is None else since_s
            self._trim()

    def _put(self, record: PodRecord) -> str:
        uid = record.uids[0]
        old = self._pods.get(uid)
        if old:  # a container that was replaced may still have events on their way
            merged = {**old.record.containers, **record.containers}
            for container_id in list(merged)[: max(0, len(merged) - _MAX_IDS)]:
                self._containers.pop(container_id, None)
                merged.pop(container_id)
            record = replace(record, containers=merged)
        self._pods[uid] = _Entry(record)
        self._pods.move_to_end(uid)
        for each in record.uids:
            self._uids[each] = uid
        for container_id in record.containers:
            self._containers[container_id] = uid
        return uid

    def _trim(self) -> None:
        now_s = self._clock_s()
        gone = [(entry.gone_s, uid) for uid, entry in self._pods.items() if entry.gone_s is not None]
        for gone_s, uid in sorted(gone):
            if now_s - gone_s > self._grace_s or len(self._pods) > self._max_pods:
                self._forget(uid)
        while len(self._pods) > self._max_pods:
            self._forget(next(iter(self._pods)))

    def _forget(self, uid: str) -> None:
        record = self._pods.pop(uid).record
        for table, keys in ((self._uids, record.uids), (self._containers, record.containers)):
            for key in keys:
                if table.get(key) == uid:
                    del table[key]


@dataclass(slots=True)
class Wishes:
    """Containers that were asked for and not known: when to ask for them again.

    Each is worth max_asks questions, the first at once, each next one after twice the time: the status of a container that
    has just started comes a little later, and that of a pod's sandbox never. Safe to use from two threads.
    """

    max_asks: int = 5
    first_gap_s: float = 1.0
    limit: int = 1024
    _due: OrderedDict[tuple[str, str], tuple[int, float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, pod_uid: str, container_id: str, now_s: float) -> bool:
        """Note a miss; True when it is a new one."""
        key = (pod_uid, container_id)
        with self._lock:
            if key in self._due:
                return False
            self._due[key] = (0, now_s)
            while len(self._due) > self.limit:
                self._due.popitem(last=False)
            return True

    def next_s(self) -> float | None:
        """When the next question is due; None without one."""
        with self._lock:
            return min((due_s for asks, due_s in self._due.values() if asks < self.max_asks), default=None)

    def asked(self, now_s: float, known: Callable[[str, str], bool]) -> None:
        """All were asked for just now; what is known is a wish no more."""
        with self._lock:
            for key, (asks, due_s) in list(self._due.items()):
                if known(*key):
                    del self._due[key]
                elif due_s <= now_s:
                    self._due[key] = (asks + 1, now_s + self.first_gap_s * 2**asks)
