"""Open-loop load on the lab's application: one JSON line a request, its times in Unix nanoseconds.

``python -m libslo.lab.client --url http://rag.lab:8080 --rate 20 --seed 1 --duration 30``
Requests leave at their scheduled times whatever happened to those before (no coordinated omission).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Iterator

import aiohttp

__all__ = ["arrivals_s", "main"]

_UNSAMPLED = f"00-{1:032x}-{1:016x}-00"  # W3C trace context: the caller does not record, so no service below does


def arrivals_s(kind: str, rate: float, duration_s: float, generator: random.Random) -> Iterator[float]:
    """Times of the requests in seconds from the start: "constant" or "poisson" at `rate` a second."""
    now_s = 0.0
    while True:
        now_s += generator.expovariate(rate) if kind == "poisson" else 1 / rate
        if now_s >= duration_s:
            return
        yield now_s


async def _one(
    session: aiohttp.ClientSession, url: str, request_id: str, scheduled_ns: int, profile: str, headers: dict[str, str]
) -> dict[str, object]:
    record: dict[str, object] = {"request_id": request_id, "scheduled_unix_ns": scheduled_ns, "sent_unix_ns": time.time_ns()}
    tokens = 0
    try:
        body = {"prompt": f"why was request {request_id} slow", "request_id": request_id, "profile": profile}
        async with session.post(f"{url}/chat", json=body, headers=headers) as response:
            record["status"] = response.status
            async for line in response.content:
                if b'"token"' in line:
                    record.setdefault("first_token_unix_ns", time.time_ns())
                    record["last_token_unix_ns"] = time.time_ns()
                    tokens += 1
                elif b'"error"' in line:
                    record["error"] = json.loads(line)["error"]
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        record.setdefault("status", 0)
        record["error"] = type(error).__name__
    return {**record, "tokens": tokens}


async def _stopped(stop: asyncio.Event, wait_s: float) -> bool:
    """Wait, but not longer than until the stop; whether it came."""
    try:
        await asyncio.wait_for(stop.wait(), max(0.0, wait_s))
    except TimeoutError:
        pass
    return stop.is_set()


async def _load(options: argparse.Namespace) -> None:
    generator = random.Random(options.seed)
    headers = {"traceparent": _UNSAMPLED} if options.unsampled else {}
    tasks: set[asyncio.Task[None]] = set()
    connector = aiohttp.TCPConnector(force_close=True, limit=0, ttl_dns_cache=3600)  # looked up once: its own DNS must not count

    async def run(number: int, scheduled_ns: int) -> None:
        record = await _one(session, options.url, f"{options.prefix}-{number:06d}", scheduled_ns, options.profile, headers)
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()

    timeout = aiohttp.ClientTimeout(total=options.timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        start_s, start_ns = time.monotonic(), time.time_ns()
        for number, offset_s in enumerate(arrivals_s(options.arrival, options.rate, options.duration, generator)):
            if number >= options.max_requests or await _stopped(stop, start_s + offset_s - time.monotonic()):
                break
            task = asyncio.create_task(run(number, start_ns + int(offset_s * 1e9)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)


def main(arguments: list[str] | None = None) -> None:
    """Run for the duration, or until SIGTERM; what is under way is finished, at most a timeout later."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="http://rag.lab:8080")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--arrival", choices=["poisson", "constant"], default="poisson")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--duration", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--max-requests", type=int, default=100_000)
    parser.add_argument("--timeout", type=float, default=20.0, metavar="SECONDS", help="of one request")
    parser.add_argument("--profile", default="rag_medium")
    parser.add_argument("--unsampled", action="store_true", help="ask the services not to trace: for warming up")
    parser.add_argument("--prefix", default="r", help="of the request ids")
    options = parser.parse_args(arguments)
    if options.rate <= 0:
        parser.error("--rate must be positive")
    asyncio.run(_load(options))


if __name__ == "__main__":
    main()
