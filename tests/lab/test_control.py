"""Fault control of the services: leases, the draw, the count, and bodies that are refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from local_services import running

from libslo.errors import InputError
from libslo.lab.control import CONTROL_PATH, FaultBoard, add_control, is_drawn
from libslo.lab.model import Pace
from libslo.lab.provider import Provider
from libslo.lab.rag_service import build_service, service_parser
from libslo.lab.retrieval import Retrieval


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def body(**more: Any) -> dict[str, Any]:
    return {"id": "a", "fault": "provider_error", "parameters": {"ratio": 0.5}, "lease_s": 3.0, "seed": 7, **more}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> FaultBoard:
    return FaultBoard("llm", clock)


def hits(board: FaultBoard, count: int, fault: str = "provider_error") -> list[bool]:
    return [bool(board.request().take(fault)) for _ in range(count)]


def test_a_fault_ends_with_its_lease(board: FaultBoard, clock: Clock) -> None:
    """It hits until its lease is over, and is then off the list without anybody asking."""
    board.put(body(parameters={"ratio": 1}))
    clock.now_s += 2.9
    assert board.active() == [
        {"id": "a", "fault": "provider_error", "parameters": {"ratio": 1, "status": 503}, "lease_left_s": pytest.approx(0.1)}
    ]
    assert hits(board, 2) == [True, True]
    clock.now_s += 0.1
    assert hits(board, 2) == [False, False]
    assert board.active() == []
    assert board.served == {"provider_error": 2}


def test_renewing(board: FaultBoard, clock: Clock) -> None:
    """The same id prolongs the lease and replaces the parameters, and the draw goes on where it was."""
    board.put(body())
    first = hits(board, 50)
    clock.now_s += 2
    board.put(body())
    clock.now_s += 2
    assert first + hits(board, 50) == [is_drawn(7, number, 0.5) for number in range(100)]
    board.put(body(parameters={"ratio": 1, "status": 500}))
    assert board.request().take("provider_error") == [{"ratio": 1, "status": 500}]


def test_the_draw_is_decided_by_the_seed(board: FaultBoard) -> None:
    """Same seed, same requests; over many requests the share is the ratio; another seed hits others."""
    board.put(body(parameters={"ratio": 0.3}))
    drawn = hits(board, 10_000)
    assert drawn == [is_drawn(7, number, 0.3) for number in range(10_000)]
    assert sum(drawn) == board.served["provider_error"]
    assert sum(drawn) / 10_000 == pytest.approx(0.3, abs=0.015)  # 3 standard deviations
    assert drawn != [is_drawn(8, number, 0.3) for number in range(10_000)]
    assert [number for number in range(20) if is_drawn(1, number, 0.3)] == DRAWN_BY_SEED_1
    assert all(is_drawn(seed, 0, 1.0) for seed in range(100))


DRAWN_BY_SEED_1 = [7, 8, 9, 16]  # on any machine


def test_several_at_once(board: FaultBoard) -> None:
    """Faults of different ids are drawn each by its own seed and count; only what is acted on is counted."""
    board.put(body(id="slow", fault="provider_slow", parameters={"ttft_factor": 2}))
    board.put(body(id="b", parameters={"ratio": 1, "status": 500}))
    board.put(body(id="c", parameters={"ratio": 1, "status": 502}))
    drawn = board.request()
    assert [hit["status"] for hit in drawn.take("provider_error")] == [500, 502]
    assert board.served == {"provider_error": 1}
    assert drawn.total("provider_slow", "ttft_factor") == 2
    board.drop("b")
    board.drop("never there")
    assert [each["id"] for each in board.active()] == ["slow", "c"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fault": "provider_eror"}, "no fault 'provider_eror'"),
        ({"fault": "retrieval_slowdown", "parameters": {"delay_ms": 5}}, "this service has no fault 'retrieval_slowdown'"),
        ({"fault": "dns_delay", "parameters": {"delay_ms": 5}}, "this service has no fault 'dns_delay'"),
        ({"fault": ["provider_error"]}, "no fault"),
        ({"parameters": {}}, "needs ratio"),
        ({"parameters": {"ratio": 2}}, "ratio cannot be 2"),
        ({"parameters": {"ratio": float("nan")}}, "ratio cannot be nan"),
        ({"parameters": {"ratio": "all"}}, "ratio cannot be 'all'"),
        ({"parameters": {"ratio": 1, "speed": 3}}, "no parameter speed"),
        ({"parameters": [1]}, "parameters must be an object"),
        ({"id": ""}, "id must be"),
        ({"id": 5}, "id must be"),
        ({"id": "x" * 201}, "id must be"),
        ({"lease_s": 0}, "lease_s must be"),
        ({"lease_s": 1e9}, "lease_s must be"),
        ({"lease_s": float("nan")}, "lease_s must be"),
        ({"lease_s": None}, "lease_s must be"),
        ({"lease_s": True}, "lease_s must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"sead": 1}, "unknown key 'sead'"),
    ],
)
def test_refused_bodies(board: FaultBoard, change: dict[str, Any], said: str) -> None:
    """Whatever is wrong is named, and nothing is put on."""
    with pytest.raises(InputError, match=said):
        board.put(body(**change))
    assert board.active() == []


def test_the_number_of_faults_is_bounded(board: FaultBoard) -> None:
    """A caller that never renews cannot fill the memory."""
    for number in range(64):
        board.put(body(id=str(number)))
    with pytest.raises(InputError, match="64 faults"):
        board.put(body(id="one more"))
    board.put(body(id="3", seed=5))


def test_over_http() -> None:
    """POST, GET and DELETE speak as described; a bad body is 422 with the reason; a real short lease ends by itself."""

    async def talk() -> None:
        application = web.Application()
        add_control(application, FaultBoard("app"))
        stall = {"id": "s/1", "fault": "app_stall", "parameters": {"delay_ms": 5}, "lease_s": 0.2, "seed": 1}
        async with running(application) as url, aiohttp.ClientSession() as session:
            async with session.post(url + CONTROL_PATH, json=stall) as response:
                assert response.status == 200
                (active,) = (await response.json())["active"]
                assert (active["id"], active["fault"], active["parameters"]) == ("s/1", "app_stall", {"delay_ms": 5})
                assert 0.1 < active["lease_left_s"] <= 0.2
            async with session.get(url + CONTROL_PATH) as response:
                answer = await response.json()
                assert [each["id"] for each in answer["active"]] == ["s/1"]
                assert answer["served"] == {}
            await asyncio.sleep(0.2)
            async with session.get(url + CONTROL_PATH) as response:
                assert (await response.json())["active"] == []
            async with session.post(url + CONTROL_PATH, json=stall) as response:
                assert response.status == 200
            async with session.delete(url + CONTROL_PATH + "/s/1") as response:
                assert (response.status, await response.json()) == (200, {"active": []})
            for bad in (b"{", b"[]", b"", b"\xff", json.dumps({**stall, "parameters": {"delay_ms": 0}}).encode()):
                async with session.post(url + CONTROL_PATH, data=bad) as response:
                    assert response.status == 422, bad
                    assert set(await response.json()) == {"error"}

    asyncio.run(talk())


@pytest.mark.parametrize("allow", [False, True])
def test_only_where_it_is_allowed(allow: bool) -> None:
    """Every service has the paths with --allow-faults, and answers 404 without."""

    async def statuses() -> set[int]:
        found = set()
        for application in (
            Provider(Pace(0, 0), 1, allow_faults=allow).application(),
            Retrieval(0, allow_faults=allow).application(),
            build_service(service_parser().parse_args(["--allow-faults"] if allow else [])).application(),
        ):
            async with running(application) as url, aiohttp.ClientSession() as session, session.get(url + CONTROL_PATH) as response:
                found.add(response.status)
        return found

    assert asyncio.run(statuses()) == {200 if allow else 404}
