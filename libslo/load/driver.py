"""Sends the requests of a plan at their times and notes what each saw. Needs aiohttp.

Open loop: a request leaves when it is due, whatever became of those before it. All times come from one monotonic clock, set by the
wall clock at the start, so that no step of the wall clock gets into a latency.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from libslo.errors import CannotError
from libslo.load.connections import Phases, failure, timed_session
from libslo.load.plans import LoadRequest
from libslo.load.protocols import StreamError, TokenStream, request_body, request_headers
from libslo.load.target import Counts, Target

__all__ = ["Drive", "drive_load"]

_TICK_S = 0.1
_OUT_OF_SOCKETS = (errno.ENFILE, errno.EMFILE)


@dataclass(frozen=True, slots=True)
class Drive:
    """How a run went. stopped: by a signal, before its plan was over. cpu_s: of this process meanwhile."""

    stopped: bool
    cpu_s: float


def drive_load(
    plan: Iterator[LoadRequest], target: Target, emit: Callable[[dict[str, Any]], None], tick: Callable[[Counts], None]
) -> Drive:
    """Send a plan; SIGINT or SIGTERM ends the sending and waits for what is under way, a second one does not wait.

    emit: gets every request's load-result when it is over. tick: called ten times a second. What either raises ends the run and is
    raised. Raises CannotError when the process may not open another socket.
    """
    _allow_many_sockets()
    return asyncio.run(_Driver(target, emit, tick).run(plan))


class _Driver:
    def __init__(self, target: Target, emit: Callable[[dict[str, Any]], None], tick: Callable[[Counts], None]) -> None:
        self._target = target
        self._emit = emit
        self._tick = tick
        self._counts = Counts()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._stopped = False
        self._api_key = os.environ.get("OPENAI_API_KEY") or None
        self._headers = request_headers(target.protocol, self._api_key)

    async def run(self, plan: Iterator[LoadRequest]) -> Drive:
        cpu_s = time.process_time()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        target = self._target
        self._slots = asyncio.Semaphore(target.max_in_flight) if target.max_in_flight else None
        async with timed_session(ca=target.ca, keep_alive=target.keep_alive, look_up_each=target.look_up_each) as self._session:
            self._start_ns = time.monotonic_ns()
            self._to_unix_ns = time.time_ns() - self._start_ns
            self._sender = asyncio.create_task(self._send(plan))
            ticker = asyncio.create_task(self._ticks())
            try:
                await self._until_over(self._sender)
                while self._tasks and self._failure is None:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ticker.cancel()
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(ticker, *self._tasks, return_exceptions=True)
        if self._failure:
            raise self._failure
        return Drive(self._stopped, time.process_time() - cpu_s)

    async def _until_over(self, sender: asyncio.Task[None]) -> None:
        await asyncio.wait([sender])
        if not sender.cancelled() and (error := sender.exception()):
            raise error

    def _stop(self) -> None:
        if self._stopped:
            for task in self._tasks:
                task.cancel()
        self._stopped = True
        self._sender.cancel()

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._sender.cancel()

    async def _ticks(self) -> None:
        try:
            while True:
                await asyncio.sleep(_TICK_S)
                self._counts.elapsed_s = (time.monotonic_ns() - self._start_ns) / 1e9
                self._counts.in_flight = len(self._tasks)
                self._tick(self._counts)
        except Exception as error:
            self._fail(error)

    async def _send(self, plan: Iterator[LoadRequest]) -> None:
        request: LoadRequest | None = None
        try:
            for request in plan:
                due_ns = self._start_ns + request.offset_ns
                wait_ns = due_ns - time.monotonic_ns()
                await asyncio.sleep(max(0, wait_ns) / 1e9)  # also when late: those under way have to come to their turn
                held = False
                if self._slots:
                    held = self._slots.locked()
                    await self._slots.acquire()
                self._begin(request, due_ns, held)
                request = None
        except asyncio.CancelledError:
            self._leave_out(request, plan)
            raise

    def _begin(self, request: LoadRequest, due_ns: int, held: bool) -> None:
        task = asyncio.create_task(self._one(request, due_ns, held))
        self._tasks.add(task)
        task.add_done_callback(self._over)
        self._counts.sent += 1

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._slots:
            self._slots.release()
        if not task.cancelled() and (error := task.exception()):
            self._fail(error)

    def _leave_out(self, request: LoadRequest | None, plan: Iterator[LoadRequest]) -> None:
        """What was due before the stop and had to wait for others is said not to be sent."""
        elapsed_ns = time.monotonic_ns() - self._start_ns
        while request is not None and request.offset_ns <= elapsed_ns and self._failure is None:
            self._emit({**self._result(request, self._start_ns + request.offset_ns), "status": 0, "error": "not_sent", "tokens": 0})
            request = next(plan, None)

    def _result(self, request: LoadRequest, due_ns: int) -> dict[str, Any]:
        return {
            "request_id": request.request_id,
            "profile": request.profile,
            "scheduled_unix_ns": due_ns + self._to_unix_ns,
            "prompt_tokens": request.prompt_tokens,
            "warmup": request.offset_ns < self._target.warmup_s * 1e9,
            "synthetic": False,
        }

    async def _one(self, request: LoadRequest, due_ns: int, held: bool) -> None:
        answer = _Answer(self._target, self._to_unix_ns)
        headers = self._headers
        if self._target.traceparent != "none":
            headers = {**headers, "traceparent": answer.traceparent(self._target.traceparent == "sampled")}
        body = request_body(request, self._target.protocol, self._target.model)
        sent_ns = time.monotonic_ns()
        self._counts.late_s = (sent_ns - due_ns) / 1e9
        cancelled = False
        try:
            async with asyncio.timeout(self._target.timeout_s):
                await answer.take(self._session, headers, body)
        except StreamError as error:
            answer.fail("stream_error", str(error))
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _OUT_OF_SOCKETS:
                raise CannotError("no further socket can be opened", hint="ulimit -n, or --max-in-flight") from error
            answer.fail(*failure(error))
        except asyncio.CancelledError:
            cancelled = True
            answer.fail("cancelled", "stopped before the answer was whole")
        end_ns = time.monotonic_ns()
        result = {**self._result(request, due_ns), "sent_unix_ns": sent_ns + self._to_unix_ns, **answer.result()}
        if held:
            result["held_ms"] = max(0, sent_ns - due_ns) / 1e6
        result["end_unix_ns"] = end_ns + self._to_unix_ns
        failed = "error" in result
        if failed and self._api_key:
            result["detail"] = result["detail"].replace(self._api_key, "***")  # a server may repeat what it refused
        self._counts.failed += failed
        self._counts.answered += not failed
        self._emit(result)
        if cancelled:
            raise asyncio.CancelledError


def _end_with_connection(response: aiohttp.ClientResponse) -> None:
    """Let a body end when its connection does: of a chunk that is broken in mid-stream aiohttp's reader is told nothing, and waits on."""
    connection = response.connection
    closed = connection.protocol.closed if connection is not None and connection.protocol is not None else None
    if closed is None:
        return

    def ended(_: object) -> None:
        if not response.content.is_eof() and response.content.exception() is None:
            response.content.set_exception(aiohttp.ClientPayloadError("the connection ended in the middle of the answer"))

    closed.add_done_callback(ended)


def _status_kind(status: int) -> str:
    if status == 429:
        return "http_429"
    return {3: "http_3xx", 4: "http_4xx", 5: "http_5xx"}.get(status // 100, "bad_response")


def _allow_many_sockets() -> None:
    """As many open files as this process may have at all: each request under way is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Answer:
    """What one request got."""

    def __init__(self, target: Target, to_unix_ns: int) -> None:
        self._target = target
        self._to_unix_ns = to_unix_ns
        self._phases = Phases()
        self._stream = TokenStream(target.protocol)
        self._at_ns: list[int] = []  # of each token that came
        self._first_token_ns = self._last_token_ns = 0
        self._found: dict[str, Any] = {"status": 0}

    def traceparent(self, sampled: bool) -> str:
        """A new W3C trace context; its trace id goes into the result."""
        self._found["trace_id"] = os.urandom(16).hex()
        return f"00-{self._found['trace_id']}-{os.urandom(8).hex()}-0{sampled:d}"

    async def take(self, session: aiohttp.ClientSession, headers: dict[str, str], body: bytes | None) -> None:
        """Send and read to the end; raises what the client raises, and StreamError."""
        method = "GET" if body is None else "POST"
        async with session.request(
            method, self._target.url, data=body, headers=headers, allow_redirects=False, trace_request_ctx=self._phases
        ) as response:
            self._found["first_byte_unix_ns"] = time.monotonic_ns() + self._to_unix_ns
            self._found["status"] = status = response.status
            _end_with_connection(response)
            wanted = self._target.protocol != "http" and status == 200
            beginning = b""
            async for piece in response.content.iter_any():
                if not wanted:
                    beginning = beginning or piece
                elif count := self._stream.feed(piece):
                    self._note_tokens(count)
            if wanted:
                self._stream.end()
            elif not 200 <= status < 300 or self._target.protocol != "http":
                said = " ".join(beginning[:200].decode(errors="replace").split())
                self.fail(_status_kind(status), f"status {status}: {said}".rstrip(": "))

    def _note_tokens(self, count: int) -> None:
        self._last_token_ns = now_ns = time.monotonic_ns()
        self._first_token_ns = self._first_token_ns or now_ns
        if self._target.gaps:
            self._at_ns += [now_ns] * count

    def fail(self, kind: str, words: str) -> None:
        """The request failed."""
        self._found |= {"error": kind, "detail": words}

    def result(self) -> dict[str, Any]:
        """Keys of the contract load-result."""
        found = {**self._found, **self._phases.as_ms(), "tokens": self._stream.tokens}
        if self._first_token_ns:
            found["first_token_unix_ns"] = self._first_token_ns + self._to_unix_ns
            found["last_token_unix_ns"] = self._last_token_ns + self._to_unix_ns
            found["tokens_from"] = "chunks"
        if self._stream.usage_tokens and self._stream.done:
            found |= {"tokens": self._stream.usage_tokens, "tokens_from": "usage"}
        if self._target.gaps and self._at_ns:
            found["gaps_ms"] = [(after - before) / 1e6 for before, after in zip(self._at_ns, self._at_ns[1:], strict=False)]
        return found
