"""Faults that a service makes in itself while somebody asks it to: leases over HTTP, a draw that a seed decides.

``POST /-/faults {"id", "fault", "parameters", "lease_s", "seed"}`` puts a fault on or renews it, ``DELETE /-/faults/<id>`` takes it
off, ``GET /-/faults`` says what is on and how many requests each fault changed. A fault ends with its lease, so that whoever asked
for it may be killed at any moment. Which faults exist, and which service makes them, is contracts/vocabulary/faults.json.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from libslo.errors import InputError
from libslo.lab.web import read_json, said_error
from libslo.scenarios import check_parameters
from libslo.signals import vocabulary

__all__ = ["CONTROL_PATH", "MAX_LEASE_S", "FaultBoard", "RequestFaults", "add_control", "is_drawn"]

CONTROL_PATH = "/-/faults"
MAX_LEASE_S = 3600.0
_MOST_ACTIVE = 64
_LONGEST_ID = 200
_KEYS = frozenset({"id", "fault", "parameters", "lease_s", "seed"})

Parameters = dict[str, Any]


def is_drawn(seed: int, number: int, ratio: float) -> bool:
    """Whether request `number` (0-based, since the fault came on) is one of the share `ratio`: the same answer for the same seed."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < ratio * 2**64


@dataclass(slots=True)
class _Active:
    fault: str
    parameters: Parameters
    seed: int
    ends_mono_s: float
    requests: int = 0


class RequestFaults:
    """The faults that were drawn for one request. Whoever acts on one takes it, and only that is counted."""

    def __init__(self, drawn: Mapping[str, list[Parameters]], served: Counter[str]) -> None:
        self._drawn = drawn
        self._served = served

    def take(self, fault: str) -> list[Parameters]:
        """The parameters of every fault of that name that hits this request; mostly none."""
        hits = self._drawn.get(fault, [])
        if hits:
            self._served[fault] += 1
        return hits

    def total(self, fault: str, parameter: str) -> float:
        """Sum of a parameter over the faults taken: waits add up."""
        return float(sum(hit[parameter] for hit in self.take(fault)))


class FaultBoard:
    """What is on in one service. role: of the laboratory; it decides which faults this service can make. clock: monotonic seconds."""

    def __init__(self, role: str, clock: Callable[[], float] = time.monotonic) -> None:
        table = vocabulary("faults")["faults"]
        self._known = [name for name, about in table.items() if about["role"] == role and "control" in about["mechanisms"]]
        self._clock = clock
        self._active: dict[str, _Active] = {}
        self.served: Counter[str] = Counter()

    def put(self, body: object) -> None:
        """Put a fault on, or renew it, as the body of a POST says. InputError says what is wrong with it."""
        if not isinstance(body, dict):
            raise InputError("the body must be a JSON object")
        if unknown := sorted(set(body) - _KEYS):
            raise InputError(f"unknown key {unknown[0]!r}", hint=f"one of: {', '.join(sorted(_KEYS))}")
        ident, fault, lease_s, seed = body.get("id"), body.get("fault"), body.get("lease_s"), body.get("seed", 0)
        if not isinstance(ident, str) or not 0 < len(ident) <= _LONGEST_ID:
            raise InputError(f"id must be a text of 1 to {_LONGEST_ID} characters")
        if not isinstance(lease_s, int | float) or isinstance(lease_s, bool) or not 0 < lease_s <= MAX_LEASE_S:
            raise InputError(f"lease_s must be a number of seconds, more than 0 and at most {MAX_LEASE_S:g}")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise InputError("seed must be an integer")
        if not isinstance(fault, str) or fault not in self._known:
            raise InputError(f"this service has no fault {fault!r}", hint=f"one of: {', '.join(self._known)}")
        given = body.get("parameters", {})
        if not isinstance(given, dict):
            raise InputError("parameters must be an object")
        parameters = check_parameters(fault, given)
        self._expire()
        before = self._active.get(ident)
        if before is None and len(self._active) >= _MOST_ACTIVE:
            raise InputError(f"{_MOST_ACTIVE} faults are on already")
        requests = before.requests if before is not None and before.fault == fault else 0
        self._active[ident] = _Active(fault, parameters, seed, self._clock() + lease_s, requests)

    def drop(self, ident: str) -> None:
        """Take a fault off; nothing happens when it is not on."""
        self._active.pop(ident, None)

    def active(self) -> list[dict[str, Any]]:
        """What is on, oldest first."""
        self._expire()
        now_s = self._clock()
        return [
            {"id": ident, "fault": each.fault, "parameters": each.parameters, "lease_left_s": round(each.ends_mono_s - now_s, 3)}
            for ident, each in self._active.items()
        ]

    def request(self) -> RequestFaults:
        """Draw for one request. A fault without a ratio hits every request."""
        drawn: dict[str, list[Parameters]] = {}
        if self._active:
            self._expire()
            for each in self._active.values():
                if is_drawn(each.seed, each.requests, each.parameters.get("ratio", 1.0)):
                    drawn.setdefault(each.fault, []).append(each.parameters)
                each.requests += 1
        return RequestFaults(drawn, self.served)

    def _expire(self) -> None:
        now_s = self._clock()
        for ident in [ident for ident, each in self._active.items() if each.ends_mono_s <= now_s]:
            del self._active[ident]


def add_control(application: web.Application, board: FaultBoard) -> None:
    """Let an application's faults be controlled over HTTP. Without this the paths answer 404."""

    async def put(request: web.Request) -> web.Response:
        try:
            board.put(await read_json(request))
        except InputError as error:
            return web.json_response({"error": said_error(error)}, status=422)
        return web.json_response({"active": board.active()})

    async def drop(request: web.Request) -> web.Response:
        board.drop(request.match_info["ident"])
        return web.json_response({"active": board.active()})

    async def show(_: web.Request) -> web.Response:
        return web.json_response({"active": board.active(), "served": dict(board.served)})

    application.router.add_post(CONTROL_PATH, put)
    application.router.add_get(CONTROL_PATH, show)
    application.router.add_delete(CONTROL_PATH + "/{ident:.+}", drop)
