"""What stands for a language model in the lab: tokens that a prompt decides, at a pace that is asked for."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

__all__ = ["MAX_TOKENS", "Pace", "completion_tokens", "paced_tokens"]

MAX_TOKENS = 4096
_WORDS = ("the", "kernel", "saw", "a", "slow", "name", "before", "each", "call", "while", "queue", "and", "model", "idle")
_JITTER_RATIO = 0.1


@dataclass(frozen=True)
class Pace:
    """ttft_ms: median time to the first token, ± 10 % seeded by the prompt. itl_ms: between two tokens."""

    ttft_ms: float
    itl_ms: float

    def slowed(self, ttft_factor: float, itl_factor: float) -> Pace:
        """The pace, so many times slower."""
        return Pace(self.ttft_ms * ttft_factor, self.itl_ms * itl_factor)


def completion_tokens(prompt: str, count: int) -> list[str]:
    """The answer to a prompt: the same for the same prompt, in any process."""
    generator = random.Random(zlib.crc32(prompt.encode(errors="replace")))
    return [generator.choice(_WORDS) + " " for _ in range(count)]


async def paced_tokens(prompt: str, count: int, pace: Pace, came_mono_s: float) -> AsyncGenerator[str, None]:
    """The answer to a prompt, token by token at the pace; the time to the first one counts from `came_mono_s`."""
    jitter = random.Random(zlib.crc32(prompt.encode(errors="replace"))).uniform(1 - _JITTER_RATIO, 1 + _JITTER_RATIO)
    await _sleep_until(came_mono_s + pace.ttft_ms * jitter / 1e3)
    first_mono_s = time.monotonic()
    for index, token in enumerate(completion_tokens(prompt, count)):
        await _sleep_until(first_mono_s + index * pace.itl_ms / 1e3)
        yield token


async def _sleep_until(when_mono_s: float) -> None:
    await asyncio.sleep(max(0.0, when_mono_s - time.monotonic()))
