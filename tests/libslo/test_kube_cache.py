"""kube_cache: deleted pods keep their names for a while, memory is bounded, questions are rationed."""

from __future__ import annotations

from fake_kube import CONTAINER, UID, pod

from libslo.kernel.kube import PodRecord, parse_pod
from libslo.kernel.kube_cache import PodCache, Wishes


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def record(number: int) -> PodRecord:
    return parse_pod(pod(f"p{number}", f"uid-{number}", containers={"app": f"{number:064x}"}))


def test_a_pod_is_found_by_uid_and_by_container() -> None:
    """Both keys lead to the pod, the container's name only by its own id."""
    cache = PodCache(clock_s=Clock())
    cache.put([parse_pod(pod())])
    for found in (cache.lookup(UID, CONTAINER), cache.lookup("", CONTAINER)):
        assert found and (found.pod, found.container) == ("chat-7d4b9c-x2x9z", "app")
    found = cache.lookup(UID, "")
    assert found and (found.pod, found.container) == ("chat-7d4b9c-x2x9z", "")
    assert cache.lookup("", "") is None and cache.lookup("other", "f" * 64) is None


def test_a_deleted_pod_keeps_its_name_for_the_time_of_grace() -> None:
    """Deleted by an event or missing in a list: named until the time is over, then forgotten."""
    clock = Clock()
    cache = PodCache(clock_s=clock, grace_s=300)
    cache.put([record(1), record(2), record(3)])
    cache.put([record(2), record(3)], all_there_are=True)
    cache.delete(record(3))
    clock.now_s += 300
    cache.delete(record(3))
    assert all(cache.lookup(f"uid-{number}", "") for number in (1, 2, 3))
    clock.now_s += 1
    assert [bool(cache.lookup(f"uid-{number}", "")) for number in (1, 2, 3)] == [False, True, False]
    cache.put([])
    assert len(cache) == 1
    assert cache.lookup("", f"{1:064x}") is None


def test_a_pod_that_comes_back_is_not_deleted() -> None:
    """A pod that a short list missed and the next one has is alive again."""
    clock = Clock()
    cache = PodCache(clock_s=clock, grace_s=10)
    cache.put([record(1)])
    cache.put([], all_there_are=True)
    cache.put([record(1)], all_there_are=True)
    clock.now_s += 100
    assert cache.lookup("uid-1", "")


def test_the_number_of_pods_is_bounded() -> None:
    """Deleted pods are forgotten first, then those without news; no key of a forgotten pod is left."""
    cache = PodCache(clock_s=Clock(), max_pods=10)
    cache.put(record(number) for number in range(10))
    cache.delete(record(5))
    cache.put([record(10)])
    assert cache.lookup("uid-5", "") is None and cache.lookup("uid-0", "")
    cache.put(record(number) for number in range(11, 100))
    assert len(cache) == len(cache._uids) == len(cache._containers) == 10
    assert cache.lookup("uid-99", "") and cache.lookup("uid-89", "") is None


def test_a_container_that_was_replaced_is_still_named() -> None:
    """The ids that a pod's containers had before stay known, up to a number."""
    cache = PodCache(clock_s=Clock())
    for number in range(100):
        cache.put([parse_pod(pod(containers={"app": f"{number:064x}"}))])
    assert len(cache._containers) == 64
    found = cache.lookup("", f"{99 - 63:064x}")
    assert found and found.container == "app"
    assert cache.lookup("", f"{99 - 64:064x}") is None


def test_the_mirror_of_a_static_pod_may_be_made_anew() -> None:
    """The configuration hash leads to the newest mirror, and forgetting the older one does not take it away."""
    clock = Clock()
    cache = PodCache(clock_s=clock, grace_s=10)
    annotations = {"kubernetes.io/config.hash": "e" * 32}
    cache.put([parse_pod(pod("static", "uid-1", containers={}, annotations=annotations))])
    cache.put([parse_pod(pod("static", "uid-2", containers={}, annotations=annotations))], all_there_are=True)
    clock.now_s += 11
    cache.put([])
    found = cache.lookup("e" * 32, "")
    assert found and found.uid == "uid-2"


def test_wishes_are_asked_for_a_few_times_at_growing_distances() -> None:
    """An unknown container is worth five questions, after 0, 1, 3, 7 and 15 seconds, and then none."""
    wishes, now_s, asked = Wishes(), 100.0, []
    assert wishes.add(UID, CONTAINER, now_s) and not wishes.add(UID, CONTAINER, now_s)
    while (due_s := wishes.next_s()) is not None:
        now_s = due_s
        asked.append(now_s)
        wishes.asked(now_s, lambda *_: False)
    assert asked == [100.0, 101.0, 103.0, 107.0, 115.0]
    assert not wishes.add(UID, CONTAINER, now_s)


def test_a_wish_that_came_true_is_forgotten() -> None:
    """What is known is asked for no more, and their number is bounded."""
    wishes = Wishes(limit=10)
    for number in range(50):
        wishes.add("", f"{number:064x}", 0.0)
    assert len(wishes._due) == 10
    wishes.asked(0.0, lambda *_: True)
    assert wishes.next_s() is None and not wishes._due
